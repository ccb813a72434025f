//! Servers that relay to each other, in one process over real sockets: both directions, what stays the same over hops,
//! loops, two ways to one server, who may publish, and what operators see.

use std::net::SocketAddr;

use gitstafette_core::event::Sequence;
use gitstafette_core::filter::Filter;
use gitstafette_core::headers::is_hop_by_hop;
use gitstafette_core::hop::MAX_HOPS;
use gitstafette_core::store::{EventStore, ReadLimit};
use gitstafette_core::target::OutcomeResult;
use gitstafette_core::testing::Format;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::{self, PublishRequest, PublishResponse, PublishResult};
use gitstafette_proto::{MAX_BODY_BYTES, MAX_MESSAGE_BYTES};
use http::StatusCode;
use prost::Message;
use tonic::{Code, Request, Status};

use crate::support::{
    SECRET, Sender, TOKEN, TestClient, TestServer, TestTarget, hook, http_client, options, payload, soon,
};

/// A relay that pushes to, or pulls from, the server at this address.
pub fn relay(direction: &str, name: &str, at: SocketAddr, more: &str) -> String {
    format!(
        "[relay.{direction}.{name}]\nserver = \"{at}\"\ntoken = \"{TOKEN}\"\nretry-most = \"100ms\"\n{more}\n"
    )
}

async fn server(name: &str, more: &str) -> TestServer {
    TestServer::start(&format!("name = \"{name}\"\n{more}")).await
}

/// Waits until so many events are stored.
async fn holds(store: &dyn EventStore, events: u64) {
    soon(store.head().wait_for(|head| head.get() >= events)).await.unwrap();
}

/// All stored events.
async fn events(store: &dyn EventStore) -> Vec<std::sync::Arc<gitstafette_core::event::Event>> {
    let limit = ReadLimit { events: 10_000, bytes: u64::MAX };
    store.read(Sequence::ZERO, &Filter::default(), limit).await.unwrap().events
}

async fn delivery_ids(store: &dyn EventStore) -> Vec<String> {
    events(store).await.iter().map(|event| event.webhook.facts.delivery_id.to_string()).collect()
}

/// The names of the servers that the event came through.
fn way(event: &gitstafette_core::event::Event) -> Vec<&str> {
    event.webhook.facts.hops.iter().map(|hop| &*hop.server).collect()
}

/// Waits until the relay has an outcome for the newest event.
async fn handed_on(store: &dyn EventStore, client: &str) {
    let client = client.parse().unwrap();
    let done = async {
        while store
            .progress(&client)
            .await
            .unwrap()
            .is_none_or(|progress| progress.cursor < *store.head().borrow())
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await; // a cursor has nothing to wait on
        }
    };
    soon(done).await;
}

#[tokio::test]
async fn a_chain_that_pushes_and_pulls_hands_everything_on_byte_for_byte() {
    let middle = server("middle", "").await;
    let edge = server("edge", &relay("push", "middle", middle.addresses.grpc, "")).await;
    let last = server("last", &relay("pull", "middle", middle.addresses.grpc, "")).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(last.addresses.grpc, target.target()));
    let sender = Sender::new(&edge);
    for number in 0..20 {
        sender.push(&format!("d-{number}")).await;
    }
    let request = hook(Format::Form).request("push", "a-form", &payload("ünïcode & more"));
    sender.request(&request).await.unwrap();
    for number in 0..20 {
        assert_eq!(target.next().await.delivery_id(), format!("d-{number}"));
    }
    let arrived = target.next().await;
    assert_eq!(arrived.body, request.body);
    for (name, value) in &request.headers {
        assert_eq!(arrived.headers[*name], *value, "{name}");
    }
    let expected = delivery_ids(&*edge.store).await;
    assert_eq!(expected.len(), 21);
    assert_eq!(delivery_ids(&*middle.store).await, expected);
    assert_eq!(delivery_ids(&*last.store).await, expected);
    let (at_edge, at_last) = (events(&*edge.store).await, events(&*last.store).await);
    assert_eq!(way(&at_edge[0]), [""; 0]);
    assert_eq!(way(&at_last[0]), ["edge", "middle"]);
    assert_eq!(at_last[0].webhook.facts.hops.origin(), Some((edge.store.id(), at_edge[0].sequence)));
    assert_eq!(at_last[0].webhook.facts.identity(), at_edge[0].webhook.facts.identity());
    handed_on(&*edge.store, "relay.push.middle").await;
    let reports = edge.store.reports(at_edge[0].sequence).await.unwrap();
    assert_eq!(reports[0].outcome.result, OutcomeResult::Delivered);
    assert_eq!(reports[0].outcome.detail, "stored there as 1");
    client.stop().await;
    for server in [edge, last, middle] {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_ring_ends_where_it_began() {
    let [a, b, c] = [free_port().await, free_port().await, free_port().await];
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let ports = |grpc: u16| format!("port = 0\ngrpc-port = {grpc}\ngrpc-health-port = 0\nadmin-port = 0\n");
    let first = server("a", &format!("{}{}", ports(a), relay("push", "b", at(b), ""))).await;
    let second = server("b", &format!("{}{}", ports(b), relay("push", "c", at(c), ""))).await;
    let third = server("c", &format!("{}{}", ports(c), relay("push", "a", at(a), ""))).await;
    Sender::new(&second).push("once-around").await;
    for store in [&second.store, &third.store, &first.store] {
        holds(&**store, 1).await;
    }
    handed_on(&*first.store, "relay.push.b").await;
    let reports = first.store.reports(Sequence::new(1)).await.unwrap();
    assert_eq!(reports[0].outcome.result, OutcomeResult::Filtered);
    assert_eq!(reports[0].outcome.detail, "it has come through this server before");
    for server in [&first, &second, &third] {
        assert_eq!(server.events().await, 1);
    }
    let metrics = http_client().get(format!("http://{}/metrics", second.addresses.admin.unwrap()));
    let text = metrics.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("gitstafette_relayed_events_total{result=\"loop\"} 1"), "{text}");
}

/// A port that was free a moment ago: in a ring somebody must be named before it listens.
async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn two_ways_to_one_server_are_one_event_there_also_when_it_is_redelivered() {
    let last = server("last", "").await;
    let left = server("left", &relay("push", "last", last.addresses.grpc, "")).await;
    let right = server("right", &relay("push", "last", last.addresses.grpc, "")).await;
    let ways =
        relay("push", "left", left.addresses.grpc, "") + &relay("push", "right", right.addresses.grpc, "");
    let edge = server("edge", &ways).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(last.addresses.grpc, target.target()));
    let sender = Sender::new(&edge);
    for number in 0..50 {
        sender.push(&format!("d-{number}")).await;
    }
    let expected: Vec<_> = (0..50).map(|number| format!("d-{number}")).collect();
    assert_eq!(target.next_ids(50).await, expected);
    for relay in ["relay.push.left", "relay.push.right"] {
        handed_on(&*edge.store, relay).await;
    }
    for server in [&left, &right] {
        handed_on(&*server.store, "relay.push.last").await;
    }
    assert_eq!(delivery_ids(&*last.store).await, expected);
    crate::support::all_acknowledged(&*last.store).await;
    // GitHub's button: a redelivery at the edge is one everywhere, once.
    sender.push("d-7").await;
    assert_eq!(target.next().await.delivery_id(), "d-7");
    for server in [&left, &right] {
        holds(&*server.store, 51).await;
        handed_on(&*server.store, "relay.push.last").await;
    }
    let stored = events(&*last.store).await;
    assert_eq!(stored.len(), 51);
    assert!(stored[50].redelivery && !stored[7].redelivery);
    client.stop().await;
}

#[tokio::test]
async fn a_neighbours_watchlist_is_a_filter_and_so_is_the_relays() {
    let other = TestServer::start("").await;
    let filter = "event = [\"push\"]";
    let edge = server("edge", &relay("push", "other", other.addresses.grpc, filter)).await;
    let sender = Sender::new(&edge);
    assert_eq!(sender.send("issues", "an-issue", &payload("x")).await.status(), StatusCode::CREATED);
    sender.push("a-push").await;
    holds(&*other.store, 1).await;
    assert_eq!(delivery_ids(&*other.store).await, ["a-push"]);

    let narrow = format!("name = \"narrow\"\n{}", relay("pull", "edge", edge.addresses.grpc, ""));
    let narrow = crate::support::settings(&narrow).replace("octo-harbor/*", "octo-harbor/other");
    let config = gitstafette_server::config::Config::from_toml(&narrow).unwrap();
    let store = std::sync::Arc::new(gitstafette_core::store::MemoryStore::new(config.store_options));
    let narrow = TestServer::run(config, store).await;
    handed_on(&*edge.store, "narrow.pull.edge").await;
    assert_eq!(narrow.events().await, 0);
    let reports = edge.store.reports(Sequence::new(1)).await.unwrap();
    assert_eq!(reports[0].outcome.result, OutcomeResult::Filtered);
    assert!(reports[0].outcome.detail.contains("not on the watchlist"), "{}", reports[0].outcome.detail);
}

#[tokio::test]
async fn a_neighbour_that_is_away_costs_nothing_but_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let settings = format!("admin-port = 0\n{}", relay("push", "away", at, ""));
    let edge = TestServer::start_in(folder.path(), &settings).await;
    let sender = Sender::new(&edge);
    for number in 0..300 {
        sender.push(&format!("d-{number}")).await;
    }
    let readiness = async || {
        let answer = http_client().get(edge.url("/readyz")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "webhooks are taken all the same");
        json(answer).await
    };
    soon(async {
        while readiness().await["relays"]["push.away"] != "disconnected" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await; // health has nothing to wait on
        }
    })
    .await;
    let states = relays(&edge).await;
    assert_eq!((states[0]["connected"].as_bool(), states[0]["lag"].as_u64()), (Some(false), Some(300)));
    assert!(states[0]["lastError"].as_str().unwrap().contains("cannot connect"), "{states}");
    // Its own clients are served meanwhile.
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(edge.addresses.grpc, target.target()));
    assert_eq!(target.next_ids(300).await.len(), 300);
    client.stop().await;

    let ports = format!("port = 0\ngrpc-port = {port}\ngrpc-health-port = 0\n");
    let back = TestServer::start(&ports).await;
    holds(&*back.store, 300).await;
    assert_eq!(delivery_ids(&*back.store).await, delivery_ids(&*edge.store).await);
    handed_on(&*edge.store, "relay.push.away").await;
    assert_eq!(readiness().await["relays"]["push.away"], "connected");
    assert_eq!(relays(&edge).await[0]["relayed"], 300);
}

/// What the admin interface says of relays.
async fn relays(server: &TestServer) -> serde_json::Value {
    let url = format!("http://{}/v1/relays", server.addresses.admin.unwrap());
    let request = http_client().get(url).header("authorization", format!("Bearer {TOKEN}"));
    json(request.send().await.unwrap()).await["relays"].take()
}

async fn json(answer: reqwest::Response) -> serde_json::Value {
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

/// Publishes one event with a token.
async fn publish(
    server: &TestServer,
    token: Option<&str>,
    event: v1::Event,
) -> Result<PublishResponse, Status> {
    let mut calls = GitstafetteClient::new(crate::streams::channel(server).await);
    let mut request =
        Request::new(tokio_stream::once(PublishRequest { event: Some(event), ..PublishRequest::default() }));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut answers = calls.publish(request).await?.into_inner();
    answers.message().await.map(|answer| answer.expect("an answer"))
}

/// An event as a neighbour would publish it.
fn published(number: u64) -> v1::Event {
    let request = hook(Format::Json).request("push", &format!("d-{number}"), &payload("x"));
    let headers = request.headers.iter().map(|(name, value)| v1::HeaderField {
        name: name.to_ascii_lowercase(),
        value: value.clone().into_bytes().into(),
    });
    v1::Event {
        sequence: number,
        source: "github".into(),
        hook_id: "4711".into(),
        delivery_id: format!("d-{number}"),
        event: "push".into(),
        repository_id: Some(537_845_873),
        repository_name: Some("octo-harbor/lighthouse".into()),
        owner: Some("octo-harbor".into()),
        headers: headers.collect(),
        body: request.body.clone(),
        hops: vec![hop(1, number)],
        ..v1::Event::default()
    }
}

fn field(name: &str, value: &'static str) -> v1::HeaderField {
    v1::HeaderField { name: name.to_owned(), value: value.into() }
}

fn hop(store: u64, sequence: u64) -> v1::Hop {
    let store_id = format!("{store:016x}");
    v1::Hop { store_id, server_name: format!("server {store}"), sequence, ..v1::Hop::default() }
}

#[tokio::test]
async fn what_is_published_is_judged() {
    let server = server("here", "body-limit = \"1KiB\"\npublisher-token = \"a publisher's\"\n").await;
    let publish = async |event| publish(&server, Some("a publisher's"), event).await;
    let stored = publish(published(1)).await.unwrap();
    assert_eq!((stored.result(), stored.sequence), (PublishResult::Stored, 1));
    let repeat = publish(published(1)).await.unwrap();
    assert_eq!((repeat.result(), repeat.sequence), (PublishResult::Repeat, 1));
    let mut unwatched = published(2);
    unwatched.body = br#"{"repository":{"id":1,"full_name":"other/other"}}"#.to_vec().into();
    let unwanted = publish(unwatched).await.unwrap();
    assert_eq!(unwanted.result(), PublishResult::Unwanted, "the webhook decides, not what is said of it");
    assert_eq!(unwanted.detail, "other/other is not on the watchlist");
    let long = v1::Event { hops: (1..=MAX_HOPS as u64).map(|store| hop(store, 3)).collect(), ..published(3) };
    assert_eq!(publish(long).await.unwrap().result(), PublishResult::Unwanted);
    let own = v1::Hop { store_id: server.store.id().to_string(), ..hop(1, 4) };
    let been_here = v1::Event { hops: vec![own, hop(2, 9)], ..published(4) };
    assert_eq!(publish(been_here).await.unwrap().result(), PublishResult::Unwanted);
    let no_object = v1::Event { body: b"[]".to_vec().into(), ..published(5) };
    let refused = publish(no_object).await.unwrap();
    assert_eq!(refused.result(), PublishResult::Refused);
    assert!(refused.detail.contains("not a JSON object"), "{}", refused.detail);
    let large = v1::Event { body: vec![b'x'; 2000].into(), ..published(5) };
    let refused = publish(large).await.unwrap();
    assert_eq!(refused.result(), PublishResult::Refused);
    assert!(refused.detail.contains("larger than 1024 bytes"), "{}", refused.detail);
    for (wrong, field) in [
        (v1::Event { hops: vec![], ..published(6) }, "hops"),
        // A hop that cannot be read does not count.
        (v1::Event { hops: vec![v1::Hop { store_id: "x".into(), ..hop(1, 1) }], ..published(6) }, "hops"),
        (v1::Event { delivery_id: String::new(), ..published(6) }, "delivery_id"),
        (
            v1::Event { hops: (0..40).map(|store| hop(store, 3)).collect(), ..published(6) },
            "more than 33 hops",
        ),
        (
            v1::Event { headers: vec![v1::HeaderField::default(); 1001], ..published(6) },
            "more than 1000 header fields",
        ),
    ] {
        let status = publish(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    assert_eq!(server.events().await, 1);
}

/// As at ingest: what cannot be carried on to a target is not stored.
#[tokio::test]
async fn only_end_to_end_headers_of_published_events_are_stored() {
    let server = server("here", "publisher-token = \"a publisher's\"\n").await;
    let mut event = published(1);
    let expected =
        event.headers.iter().filter(|field| !is_hop_by_hop(&field.name)).map(|field| field.name.clone());
    let expected: Vec<_> = expected.chain(["x-kept".to_owned()]).collect();
    for (name, value) in [
        ("x a", "v"),
        ("", "v"),
        (":path", "/"),
        ("x-line", "v\r\nx: y"),
        ("Connection", "close, X-Named"),
        ("x-named", "v"),
        ("te", "trailers"),
        ("Transfer-Encoding", "chunked"),
        ("content-length", "5"),
        ("host", "other.example"),
        ("x-kept", "v"),
    ] {
        event.headers.push(field(name, value));
    }
    let answer = publish(&server, Some("a publisher's"), event).await.unwrap();
    assert_eq!(answer.result(), PublishResult::Stored, "{}", answer.detail);
    let stored = events(&*server.store).await;
    let names: Vec<_> = stored[0].webhook.headers.iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, expected);
}

/// Two bytes below the limit of one message, there is no room for what this server adds.
#[tokio::test]
async fn an_event_that_cannot_be_sent_on_is_not_accepted() {
    let limits = "body-limit = \"64MiB\"\ninflight-limit = \"192MiB\"\npublisher-token = \"a publisher's\"\n";
    let server = server("here", limits).await;
    let mut event = published(1);
    let rest = payload("").len();
    event.body = payload(&"x".repeat(MAX_BODY_BYTES as usize - rest)).into_bytes().into();
    let request = |event: &v1::Event| PublishRequest { event: Some(event.clone()), ..Default::default() };
    event.headers.push(field("x-large", ""));
    let room = MAX_MESSAGE_BYTES - 2 - request(&event).encoded_len() - 6;
    event.headers.last_mut().unwrap().value = vec![b'x'; room].into();
    assert!(request(&event).encoded_len() <= MAX_MESSAGE_BYTES - 2);
    let refused = publish(&server, Some("a publisher's"), event.clone()).await.unwrap();
    assert_eq!(refused.result(), PublishResult::Refused);
    assert!(
        refused.detail.contains("a message to clients and other servers has room for"),
        "{}",
        refused.detail
    );
    assert_eq!(server.events().await, 0);

    // With the usual headers it is stored, and arrives.
    event.headers.pop();
    let stored = publish(&server, Some("a publisher's"), event).await.unwrap();
    assert_eq!(stored.result(), PublishResult::Stored, "{}", stored.detail);
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    assert_eq!(target.next().await.body.len() as u64, MAX_BODY_BYTES);
    client.stop().await;
}

#[tokio::test]
async fn a_trusted_peer_cannot_store_an_event_under_another_repository() {
    let server = server("here", "publisher-token = \"a publisher's\"\n").await;
    let publish = async |event| publish(&server, Some("a publisher's"), event).await.unwrap().result();
    let mut faulty = published(1);
    faulty.delivery_id = "another".into();
    faulty.hook_id = "9".into();
    faulty.event = "ping".into();
    faulty.action = Some("opened".into());
    faulty.repository_id = Some(478_599_060);
    faulty.repository_name = Some("octo-harbor/anchor".into());
    faulty.owner = Some("other".into());
    faulty.installation_id = Some(5);
    assert_eq!(publish(faulty).await, PublishResult::Stored);
    assert_eq!(
        publish(published(1)).await,
        PublishResult::Repeat,
        "it has the identity that its headers say"
    );

    let stored = events(&*server.store).await;
    assert_eq!(stored.len(), 1);
    let facts = &stored[0].webhook.facts;
    assert_eq!((facts.delivery_id.as_str(), facts.hook_id.as_ref().unwrap().as_str()), ("d-1", "4711"));
    assert_eq!(facts.event_type.to_string(), "push");
    assert_eq!(facts.repository_label(), "octo-harbor/lighthouse");
    assert_eq!((facts.repository_id.unwrap().0, facts.owner.as_deref()), (537_845_873, Some("octo-harbor")));
    assert_eq!((facts.installation_id, facts.hops.iter().len()), (None, 1));
}

#[tokio::test]
async fn only_a_trusted_peer_names_the_repository_of_a_webhook_that_names_none() {
    let watching_9 = async |more: &str| {
        let settings = crate::support::settings(more).replace("octo-harbor/*", "9");
        let config = gitstafette_server::config::Config::from_toml(&settings).unwrap();
        let store = std::sync::Arc::new(gitstafette_core::store::MemoryStore::new(config.store_options));
        TestServer::run(config, store).await
    };
    let request = hook(Format::Json).request("push", "d-1", r#"{"ref":"main"}"#);
    let headers = request.headers.iter().map(|(name, value)| v1::HeaderField {
        name: name.to_ascii_lowercase(),
        value: value.clone().into_bytes().into(),
    });
    let silent = v1::Event {
        headers: headers.collect(),
        body: request.body.clone(),
        repository_id: Some(9),
        repository_name: None,
        owner: None,
        ..published(1)
    };
    let trusting = watching_9("publisher-token = \"a publisher's\"\n").await;
    let stored = publish(&trusting, Some("a publisher's"), silent.clone()).await.unwrap();
    assert_eq!(stored.result(), PublishResult::Stored);
    assert_eq!(events(&*trusting.store).await[0].webhook.facts.repository_id.unwrap().0, 9);
    let verifying = watching_9("").await;
    let unwanted = publish(&verifying, Some(TOKEN), silent).await.unwrap();
    assert_eq!(unwanted.result(), PublishResult::Unwanted, "its signature says nothing of a repository");
}

#[tokio::test]
async fn a_relays_id_is_not_for_clients() {
    let server = server("here", "").await;
    let first = v1::subscribe_request::Request::Subscription(crate::streams::subscription("relay.push.x"));
    let refused = crate::streams::open(&server, Some(TOKEN), Some(first)).await.err().expect("it is refused");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn who_may_publish() {
    let server = server("here", "publisher-token = \"a publisher's\"\n").await;
    let refused = publish(&server, None, published(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = publish(&server, Some(TOKEN), published(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "clients do not publish where publishers have tokens");
    assert_eq!(
        publish(&server, Some("a publisher's"), published(1)).await.unwrap().result(),
        PublishResult::Stored
    );

    // A client may read, and not forge: where hooks have secrets, the webhook's signature must hold.
    let verifying = TestServer::start("").await;
    let forged = v1::Event { body: b"{}".to_vec().into(), ..published(2) };
    assert_eq!(
        publish(&verifying, Some(TOKEN), forged.clone()).await.unwrap().result(),
        PublishResult::Refused
    );
    assert_eq!(publish(&verifying, Some(TOKEN), published(1)).await.unwrap().result(), PublishResult::Stored);

    // Nobody has a token: the webhook's own signature decides, and what it says.
    let open = format!(
        "repositories = [\"octo-harbor/*\"]\nwebhook-hmac = \"{SECRET}\"\nport = 0\ngrpc-port = 0\ngrpc-health-port = 0\n"
    );
    let config = gitstafette_server::config::Config::from_toml(&open).unwrap();
    let store = std::sync::Arc::new(gitstafette_core::store::MemoryStore::new(config.store_options));
    let open = TestServer::run(config, store).await;
    let mut lie = published(1);
    lie.event = "ping".into();
    assert_eq!(publish(&open, None, lie).await.unwrap().result(), PublishResult::Stored);
    assert_eq!(&*events(&*open.store).await[0].webhook.facts.event_type.name, "push", "as it is signed");
    assert_eq!(publish(&open, None, forged).await.unwrap().result(), PublishResult::Refused);
}
