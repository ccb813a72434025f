//! What one client token can make the server do: streams of one id, messages, acknowledgements, ids of others.

use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::event::{Address, ClientId, Sequence};
use gitstafette_core::secret::Secret;
use gitstafette_core::store::{EventStore, MemoryStore};
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::subscription::Start;
use gitstafette_proto::v1::{
    Acknowledgements, Deferral, FirstAttempts, GoAwayReason, Recall, ReleaseSubscriptionRequest,
    Subscription, WebhookEventsRequest,
};
use gitstafette_server::config::Config;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::memory::resident;
use crate::programs::Program;
use crate::streams::{Raw, acknowledgement, channel, open, open_on, subscribe, subscription, with_token};
use crate::support::{Sender, TOKEN, TestServer, http_client, payload, settings, soon};

const OTHER_TOKEN: &str = "another token";

/// A server that knows these client tokens.
async fn with_tokens(store: &Arc<MemoryStore>, tokens: &[&str]) -> TestServer {
    let mut config = Config::from_toml(&settings("admin-port = 0\n")).unwrap();
    config.server.clients.tokens = tokens.iter().map(|token| Secret::new(*token)).collect();
    TestServer::run(config, Arc::clone(store) as Arc<dyn EventStore>).await
}

fn memory_store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(Config::from_toml(&settings("")).unwrap().store_options))
}

async fn connect(server: &TestServer, token: &str, client_id: &str) -> Result<Raw, Status> {
    open(server, Some(token), Some(Wire::Subscription(subscription(client_id)))).await
}

fn client() -> ClientId {
    "a".parse().unwrap()
}

#[tokio::test]
async fn many_streams_of_one_id_end_each_other_at_once() {
    let server = TestServer::start("").await;
    Sender::new(&server).push("delivery-1").await;
    let channel = channel(&server).await;
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let channel = channel.clone();
        opening.spawn(async move {
            let mut last = None;
            for _ in 0..20 {
                let first = Some(Wire::Subscription(subscription("a")));
                // None of them reads.
                last = Some(open_on(channel.clone(), Some(TOKEN), first).await.unwrap());
            }
            last.unwrap()
        });
    }
    let mut others = soon(opening.join_all()).await;
    let mut newest = subscribe(&server, "a").await;
    assert_eq!(newest.event().await, 1);
    for other in &mut others {
        assert_eq!(other.go_away().await, GoAwayReason::TakenOver);
    }
}

#[tokio::test]
async fn a_message_has_as_many_entries_as_the_window() {
    let server = TestServer::start("").await;
    let narrow =
        || Some(Wire::Subscription(Subscription { max_unacknowledged_events: 2, ..subscription("a") }));
    let acknowledgements = |count| {
        let Wire::Acknowledgements(one) = acknowledgement(1) else { unreachable!() };
        Wire::Acknowledgements(Acknowledgements {
            acknowledgements: vec![one.acknowledgements[0].clone(); count],
        })
    };
    let first_attempts = FirstAttempts { first_attempts: vec![Default::default(); 3] };
    for (message, hint) in [
        (acknowledgements(3), "3 acknowledgements in one message"),
        (acknowledgements(1025), "1025 acknowledgements in one message"),
        (Wire::FirstAttempts(first_attempts), "3 first attempts"),
        (Wire::Deferral(Deferral { sequences: vec![7; 3] }), "3 deferred events"),
        (Wire::Recall(Recall { sequences: vec![7; 3] }), "3 recalled events"),
    ] {
        let mut raw = open(&server, Some(TOKEN), narrow()).await.unwrap();
        raw.send(acknowledgements(2)).await;
        raw.receipt().await;
        raw.send(message).await;
        let refused = raw.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(hint), "{refused}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_with_a_reason() {
    let server = TestServer::start("").await;
    let large = || {
        let Wire::Acknowledgements(mut message) = acknowledgement(1) else { unreachable!() };
        message.acknowledgements[0].outcomes[0].detail = "x".repeat(1 << 20);
        Wire::Acknowledgements(message)
    };
    let refused = open(&server, Some(TOKEN), Some(large())).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let mut raw = subscribe(&server, "a").await;
    raw.send(large()).await;
    let started = raw.next().await.unwrap();
    assert!(matches!(started, Response::Started(_)));
    let refused = raw.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("in several messages"), "{refused}");
}

/// Waits until the server has taken all that the stream has sent.
async fn settle(raw: &mut Raw) {
    raw.send(acknowledgement(1 << 40)).await;
    loop {
        if let Response::Receipt(receipt) = raw.next().await.unwrap()
            && receipt.sequences.contains(&(1 << 40))
        {
            return;
        }
    }
}

#[tokio::test]
async fn outcomes_of_events_for_others_are_dropped() {
    for is_durable in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let server = if is_durable {
            TestServer::start_in(folder.path(), "").await
        } else {
            TestServer::start("").await
        };
        let sender = Sender::new(&server);
        for number in 1..=2 {
            sender.push(&format!("delivery-{number}")).await;
        }
        let address = Address { client: Some("other".parse().unwrap()), ..Address::default() };
        let copy = server.store.redeliver(Sequence::new(1), address).await.unwrap().unwrap();
        sender.push("delivery-4").await;
        // The window lets the first event through. The others are acknowledged as if an earlier stream had been sent them.
        let narrow = Subscription { max_unacknowledged_events: 1, ..subscription("a") };
        let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(narrow))).await.unwrap();
        assert_eq!(raw.event().await, 1);
        for sequence in [2, 3, 4] {
            raw.send(acknowledgement(sequence)).await;
        }
        settle(&mut raw).await;
        assert_eq!(copy, Sequence::new(3));
        assert_eq!(server.store.reports(copy).await.unwrap(), [], "it is for another client");
        assert_eq!(server.store.reports(Sequence::new(2)).await.unwrap().len(), 1);
        let progress = server.store.progress(&client()).await.unwrap().unwrap();
        assert_eq!(progress.ahead, [2, 4].map(Sequence::new).into_iter().collect());
        drop(raw);

        // The filter skips all of them.
        let filtered = Subscription { events: vec!["release".to_owned()], ..subscription("b") };
        let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(filtered))).await.unwrap();
        raw.send(acknowledgement(4)).await;
        settle(&mut raw).await;
        let deferring = Subscription {
            events: vec!["release".to_owned()],
            deferred: vec![1, 2, 3, 4],
            ..subscription("c")
        };
        let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(deferring))).await.unwrap();
        raw.send(acknowledgement(4)).await;
        settle(&mut raw).await;
        assert_eq!(
            server.store.reports(Sequence::new(4)).await.unwrap().len(),
            1,
            "only of the first client"
        );
    }
}

#[tokio::test]
async fn recalling_what_was_never_sent_is_no_missed_event() {
    let server = TestServer::start("admin-port = 0\n").await;
    for number in 1..=3 {
        Sender::new(&server).push(&format!("delivery-{number}")).await;
    }
    let deferring =
        Subscription { events: vec!["release".to_owned()], deferred: vec![1, 2, 3, 99], ..subscription("a") };
    let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(deferring))).await.unwrap();
    for sequence in 1..=3 {
        raw.send(Wire::Recall(Recall { sequences: vec![sequence] })).await;
        let missed = async {
            loop {
                if let Response::Missed(missed) = raw.next().await.unwrap() {
                    return missed.first;
                }
            }
        };
        assert_eq!(missed.await, sequence, "the client need not wait for it");
    }
    let url = format!("http://{}/metrics", server.addresses.admin.unwrap());
    let metrics = http_client().get(url).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("gitstafette_events_missed_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_client_id_belongs_to_the_token_that_used_it_first() {
    let store = memory_store();
    let server = with_tokens(&store, &[TOKEN, OTHER_TOKEN]).await;
    Sender::new(&server).push("delivery-1").await;
    let mut own = connect(&server, TOKEN, "a").await.unwrap();
    assert_eq!(own.event().await, 1);
    let refused = connect(&server, OTHER_TOKEN, "a").await.err().expect("the id belongs to the other token");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("subscriptions release a"), "{refused}");
    // The stream of the owner goes on.
    own.send(acknowledgement(1)).await;
    own.receipt().await;
    Sender::new(&server).push("delivery-2").await;
    assert_eq!(own.event().await, 2);

    let fetch = |token| {
        let request = WebhookEventsRequest {
            client_id: "go".to_owned(),
            repository_id: "octo-harbor/lighthouse".to_owned(),
            ..WebhookEventsRequest::default()
        };
        with_token(request, Some(token))
    };
    let mut go_client = GitstafetteClient::new(channel(&server).await);
    let _fetching = go_client.fetch_webhook_events(fetch(OTHER_TOKEN)).await.unwrap();
    let refused = go_client.fetch_webhook_events(fetch(TOKEN)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    server.stop().await;
}

#[tokio::test]
async fn client_ids_pass_when_their_token_is_replaced_or_they_are_released() {
    let folder = tempfile::tempdir().unwrap();
    let server = |tokens: &'static [&'static str]| {
        let mut config = Config::from_toml(&settings("admin-port = 0\n")).unwrap();
        config.server.clients.tokens = tokens.iter().map(|token| Secret::new(*token)).collect();
        let store = gitstafette_core::store::SqliteStore::open(folder.path(), config.store_options).unwrap();
        TestServer::run(config, Arc::new(store))
    };
    let with_old = server(&["old"]).await;
    Sender::new(&with_old).push("delivery-1").await;
    let mut raw = connect(&with_old, "old", "a").await.unwrap();
    assert_eq!(raw.event().await, 1);
    raw.send(acknowledgement(1)).await;
    raw.receipt().await;
    with_old.stop().await;

    // While both tokens are in use, an operator releases the id for the new one.
    let with_both = server(&["old", "new"]).await;
    Sender::new(&with_both).push("delivery-2").await;
    assert_eq!(connect(&with_both, "new", "a").await.err().unwrap().code(), Code::PermissionDenied);
    let mut calls = GitstafetteClient::new(channel(&with_both).await);
    let mut release = async |client_id: &str| {
        let request = ReleaseSubscriptionRequest { client_id: client_id.to_owned() };
        calls.release_subscription(with_token(request, Some("old"))).await.map_err(|status| status.code())
    };
    assert_eq!(release("unknown").await.unwrap_err(), Code::NotFound);
    release("a").await.unwrap();
    let mut raw = connect(&with_both, "new", "a").await.unwrap();
    assert_eq!(raw.event().await, 2, "the cursor stays");
    assert_eq!(connect(&with_both, "old", "a").await.err().unwrap().code(), Code::PermissionDenied);
    drop(connect(&with_both, "old", "b").await.unwrap());

    let release = |client_id: &str| {
        let url = format!("http://{}/v1/subscriptions/release", with_both.addresses.admin.unwrap());
        let request = http_client().post(url).bearer_auth("new");
        let body = serde_json::json!({ "client": client_id }).to_string();
        request.header("content-type", "application/json").body(body).send()
    };
    assert_eq!(release("unknown").await.unwrap().status(), 404);
    assert_eq!(release("a b").await.unwrap().status(), 400);
    assert_eq!(release("a").await.unwrap().status(), 204);
    drop(connect(&with_both, "old", "a").await.unwrap());
    with_both.stop().await;

    // The old token is gone: what was its id passes to the first that uses it.
    let with_new = server(&["new", "other"]).await;
    let mut raw = connect(&with_new, "new", "a").await.unwrap();
    assert_eq!(raw.event().await, 2);
    assert_eq!(connect(&with_new, "other", "a").await.err().unwrap().code(), Code::PermissionDenied);
    drop(connect(&with_new, "other", "b").await.unwrap());
}

/// A connection whose peer takes so many bytes and no more until it reads.
async fn narrow(program: &Program) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", program.grpc)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(64 << 10).initial_connection_window_size(64 << 10);
    endpoint.connect().await.unwrap()
}

async fn open_with(channel: Channel, subscription: Subscription) -> Raw {
    open_on(channel, Some(TOKEN), Some(Wire::Subscription(subscription))).await.unwrap()
}

#[tokio::test]
async fn an_idle_stream_takes_little_memory() {
    const STREAMS: usize = 600;
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &["--max-client-ids", "1000"]).await;
    program.ignore_log();
    // The first streams start threads and fill caches.
    let channel = narrow(&program).await;
    let mut streams = Vec::new();
    for number in 0..50 {
        streams.push(open_with(channel.clone(), subscription(&format!("first-{number}"))).await);
    }
    let Some(before) = resident(&program, "VmRSS") else {
        println!("SKIPPED: this system does not tell the memory of a process");
        return;
    };
    for connection in 0..STREAMS / 100 {
        let channel = narrow(&program).await;
        for number in 0..100 {
            let client_id = format!("client-{connection}-{number}");
            streams.push(open_with(channel.clone(), subscription(&client_id)).await);
        }
    }
    let each = resident(&program, "VmRSS").unwrap().saturating_sub(before) / STREAMS as u64;
    println!("{each} bytes for each stream");
    assert!(each < 40 << 10, "{each}");
}

#[tokio::test]
async fn clients_that_do_not_read_do_not_hold_up_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &[]).await;
    program.ignore_log();
    let sender = Sender::to(program.http.clone());
    let send = async |number: u32, bytes: usize| {
        let text = format!("{}{}", payload("hello"), " ".repeat(bytes));
        let answer = sender.send("push", &format!("delivery-{number}"), &text).await;
        assert_eq!(answer.status(), 201);
    };
    let mut asleep = Vec::new();
    for number in 0..17 {
        asleep.push(open_with(narrow(&program).await, subscription(&format!("asleep-{number}"))).await);
    }
    send(1, 4_180_000).await;
    let latest = Subscription {
        start: Some(Start::Latest(gitstafette_proto::v1::Latest {})),
        ..subscription("awake")
    };
    let mut awake = open_with(narrow(&program).await, latest).await;
    assert!(matches!(awake.next().await.unwrap(), Response::Started(_)));
    let received = async {
        send(2, 100_000).await;
        assert_eq!(awake.event().await, 2);
        send(3, 10).await;
        assert_eq!(awake.event().await, 3);
    };
    tokio::time::timeout(Duration::from_secs(5), received).await.expect("they pass those that do not read");

    // A client that reads gets the large one when those that hold its place are cut.
    let mut reading = open_with(narrow(&program).await, subscription("reading")).await;
    let received = async {
        for sequence in 1..=3 {
            assert_eq!(reading.event().await, sequence);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), received).await.expect("those that do not read are cut");
}
