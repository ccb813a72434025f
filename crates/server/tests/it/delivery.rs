//! From sender to target: byte for byte, in order, resumed where it was left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use gitstafette_client::target::HttpTarget;
use gitstafette_client::{Route, Start};
use gitstafette_core::filter::Filter;
use gitstafette_core::headers::{Headers, is_hop_by_hop};
use gitstafette_core::secret::Secret;
use gitstafette_core::testing::{Format, SAMPLES, large_push};
use gitstafette_core::verify::{GitHubSignature, Unverified};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;

use crate::support::{
    Arrived, SECRET, Sender, TestClient, TestServer, TestTarget, all_acknowledged, hook, no_tls, options,
    payload, soon,
};

/// The end-to-end header fields, sorted by name; repeated ones in order.
fn end_to_end(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !is_hop_by_hop(name.as_str()))
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn sent_fields(headers: &[(&'static str, String)]) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> =
        headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone().into_bytes())).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn still_verifies(arrived: &Arrived) -> bool {
    let headers: Headers =
        arrived.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())).collect();
    let signature = GitHubSignature::new(vec![Secret::new(SECRET)]);
    Unverified { headers, body: arrived.body.clone() }.verify(&signature).is_ok()
}

#[tokio::test]
async fn every_sample_arrives_byte_for_byte_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), "").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);

    let mut sent = HashMap::new();
    let mut order: HashMap<String, Vec<String>> = HashMap::new();
    for (number, sample) in SAMPLES.iter().enumerate() {
        for format in [Format::Json, Format::Form] {
            let id = format!("{number}-{format:?}");
            let request = hook(format).deliver(sample, &id);
            assert_eq!(sender.request(&request).await.unwrap().status(), StatusCode::CREATED, "{id}");
            let repository = sample.payload.contains("octo-harbor/anchor");
            order.entry(repository.to_string()).or_default().push(id.clone());
            sent.insert(id, request);
        }
    }
    let large = hook(Format::Form).request("push", "large", &large_push(5_000_000));
    assert_eq!(sender.request(&large).await.unwrap().status(), StatusCode::CREATED);
    sent.insert("large".to_owned(), large);

    let mut arrived_ids = Vec::new();
    for _ in 0..sent.len() {
        let arrived = target.next().await;
        let id = arrived.delivery_id().to_owned();
        let request = &sent[&id];
        assert_eq!(arrived.body, request.body, "{id}");
        assert_eq!(end_to_end(&arrived.headers), sent_fields(&request.headers), "{id}");
        assert!(still_verifies(&arrived), "{id}");
        arrived_ids.push(id);
    }
    all_acknowledged(&*server.store).await;
    assert!(target.is_quiet(), "none is doubled");
    let sequences_in_order = arrived_per_repository(&server, &arrived_ids).await;
    assert!(sequences_in_order.len() >= 2, "the samples are of several repositories");
    for (repository, sequences) in sequences_in_order {
        assert!(sequences.is_sorted(), "{repository}: {sequences:?}");
    }
    client.stop().await;
    server.stop().await;
}

/// The sequences of what arrived, per repository, in the order of arrival.
async fn arrived_per_repository(server: &TestServer, ids: &[String]) -> HashMap<String, Vec<u64>> {
    let limit = gitstafette_core::store::ReadLimit { events: 1000, bytes: u64::MAX };
    let mut after = gitstafette_core::event::Sequence::ZERO;
    let mut places = HashMap::new();
    loop {
        let page = server.store.read(after, &Filter::default(), limit).await.unwrap();
        if page.read_to <= after {
            break;
        }
        after = page.read_to;
        for event in page.events {
            let facts = &event.webhook.facts;
            let place = (facts.repository_label().into_owned(), event.sequence.get());
            places.insert(facts.delivery_id.to_string(), place);
        }
    }
    let mut repositories: HashMap<String, Vec<u64>> = HashMap::new();
    for id in ids {
        let (repository, sequence) = &places[id];
        repositories.entry(repository.clone()).or_default().push(*sequence);
    }
    repositories
}

#[tokio::test]
async fn repeated_headers_stay_repeated_and_dangerous_ones_stay_behind() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let mut request = hook(Format::Json).request("push", "delivery-1", &payload("x"));
    for (name, value) in [
        ("X-Repeated", "one"),
        ("X-Other", "between"),
        ("X-Repeated", "two, three"),
        ("X-Empty", ""),
        ("Authorization", "Bearer stolen"),
        ("Cookie", "a=b"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Jenkins-Validation", "true"),
        ("Connection", "X-Of-This-Connection"),
        ("X-Of-This-Connection", "1"),
        ("TE", "trailers"),
    ] {
        request.headers.push((name, value.to_owned()));
    }
    assert_eq!(Sender::new(&server).request(&request).await.unwrap().status(), StatusCode::CREATED);
    let headers = target.next().await.headers;
    let repeated: Vec<_> = headers.get_all("x-repeated").iter().collect();
    assert_eq!(repeated, ["one", "two, three"]);
    assert_eq!(
        (&headers["x-other"], &headers["x-empty"]),
        (&"between".parse().unwrap(), &"".parse().unwrap())
    );
    for name in [
        "authorization",
        "cookie",
        "x-forwarded-for",
        "x-jenkins-validation",
        "x-of-this-connection",
        "te",
        "connection",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
    client.stop().await;
}

#[tokio::test]
async fn the_largest_webhook_passes() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let base = payload("x");
    let text = format!("{base}{}", " ".repeat((25 << 20) - base.len()));
    let answer = Sender::new(&server).send("push", "delivery-1", &text).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(target.next().await.body.len(), 25 << 20);
    all_acknowledged(&*server.store).await;
    client.stop().await;
}

#[tokio::test]
async fn a_large_webhook_on_a_slow_line_is_no_dead_stream() {
    let server = TestServer::start("heartbeat-interval = \"50ms\"").await;
    let mut target = TestTarget::start().await;
    let slow = slow_line(server.addresses.grpc).await;
    let client = TestClient::start(options(slow, target.target()));
    let text = format!("{}{}", payload("x"), " ".repeat(2 << 20));
    assert_eq!(Sender::new(&server).send("push", "delivery-1", &text).await.status(), StatusCode::CREATED);
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    client.stop().await;
}

/// A proxy that hands on what the server sends in 16 KiB every few milliseconds: 2 MiB take several heartbeats.
async fn slow_line(server: std::net::SocketAddr) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = near.into_split();
            let far = tokio::net::TcpStream::connect(server).await.unwrap();
            let (mut from_server, mut to_server) = far.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut chunk = vec![0; 16 << 10];
                while let Ok(read @ 1..) = from_server.read(&mut chunk).await {
                    tokio::time::sleep(Duration::from_millis(4)).await; // the slowness is what is tested
                    if to_client.write_all(&chunk[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_new_client_gets_what_was_stored_before_it_came() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    assert_eq!(target.next_ids(3).await, ["delivery-1", "delivery-2", "delivery-3"]);
    client.stop().await;

    let mut latest = options(server.addresses.grpc, target.target());
    latest.subscription.client_id = "late".parse().unwrap();
    latest.subscription.start = Start::Latest;
    let mut client = TestClient::start(latest);
    client.subscribed().await;
    sender.push("delivery-4").await;
    assert_eq!(target.next_ids(1).await, ["delivery-4"]);
    client.stop().await;
}

#[tokio::test]
async fn a_client_resumes_where_it_was_and_so_does_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut target = TestTarget::start().await;
    let server = TestServer::start_in(folder.path(), "").await;
    let sender = Sender::new(&server);
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    sender.push("delivery-1").await;
    target.next().await;
    client.stop().await;
    sender.push("delivery-2").await;
    server.stop().await;

    let server = TestServer::start_in(folder.path(), "").await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    Sender::new(&server).push("delivery-3").await;
    assert_eq!(target.next_ids(2).await, ["delivery-2", "delivery-3"]);
    client.stop().await;
    assert!(target.is_quiet(), "what was acknowledged does not come again");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_died_gets_again_what_it_did_not_acknowledge() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::answering(|number| match number {
        1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    let mut patient = options(server.addresses.grpc, target.target());
    let backoff = &mut patient.routes[0].policy.backoff;
    (backoff.first, backoff.most) = (Duration::from_secs(600), Duration::from_secs(600));
    let client = TestClient::start(patient);
    Sender::new(&server).push("delivery-1").await;
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    client.kill();
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    client.stop().await;
}

#[tokio::test]
async fn a_target_that_fails_is_tried_again_with_the_same_bytes_and_order_holds() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::answering(|number| match number {
        1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        2 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    sender.push("delivery-2").await;
    assert_eq!(target.next_ids(4).await, ["delivery-1", "delivery-1", "delivery-1", "delivery-2"]);
    all_acknowledged(&*server.store).await;
    let first = gitstafette_core::event::Sequence::new(1);
    let outcomes = server.store.reports(first).await.unwrap();
    assert_eq!((outcomes[0].outcome.attempts, outcomes[0].outcome.code), (3, Some(200)));
    client.stop().await;
}

#[tokio::test]
async fn redirects_are_reported_and_not_followed() {
    let server = TestServer::start("").await;
    let mut target =
        TestTarget::answering(|_| (StatusCode::FOUND, [("location", "/elsewhere")]).into_response()).await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    Sender::new(&server).push("delivery-1").await;
    target.next().await;
    all_acknowledged(&*server.store).await;
    assert!(target.is_quiet());
    let outcomes = server.store.reports(*server.store.head().borrow()).await.unwrap();
    assert_eq!(outcomes[0].outcome.code, Some(302));
    client.stop().await;
}

#[tokio::test]
async fn a_target_that_is_not_there_yet_gets_it_when_it_is() {
    let server = TestServer::start("").await;
    // A port that nobody listens on, until the test does.
    let placeholder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = placeholder.local_addr().unwrap();
    drop(placeholder);
    let url = format!("http://{address}/");
    let target = Arc::new(HttpTarget::try_new(&url, Duration::from_secs(30), no_tls()).unwrap());
    let client = TestClient::start(options(server.addresses.grpc, target));
    Sender::new(&server).push("delivery-1").await;
    let listener = TcpListener::bind(address).await.unwrap();
    let (seen, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let router = axum::Router::new().fallback(move |headers: HeaderMap| async move {
        drop(seen.send(headers));
    });
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let headers = soon(arrived.recv()).await.unwrap();
    assert_eq!(headers["x-github-delivery"], "delivery-1");
    client.stop().await;
    serving.abort();
}

#[tokio::test]
async fn a_slow_repository_does_not_hold_up_another() {
    let server = TestServer::start("").await;
    let mut blocked = TestTarget::answering(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    let mut free = TestTarget::start().await;
    let only = |pattern: &str, target: &TestTarget| Route {
        filter: Filter { repositories: vec![pattern.parse().unwrap()], events: vec![] },
        ..Route::new(target.target())
    };
    let mut two_routes = options(server.addresses.grpc, free.target());
    two_routes.routes = vec![only("octo-harbor/lighthouse", &blocked), only("octo-harbor/anchor", &free)];
    let client = TestClient::start(two_routes);
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    blocked.next().await;
    let other = r#"{"repository":{"id":478599060,"full_name":"octo-harbor/anchor"}}"#;
    assert_eq!(sender.send("push", "delivery-2", other).await.status(), StatusCode::CREATED);
    assert_eq!(free.next_ids(1).await, ["delivery-2"]);
    client.kill();
}

#[tokio::test]
async fn several_clients_each_get_everything_they_asked_for() {
    let server = TestServer::start("").await;
    let (mut all, mut pings) = (TestTarget::start().await, TestTarget::start().await);
    let everything = TestClient::start(options(server.addresses.grpc, all.target()));
    let mut filtered = options(server.addresses.grpc, pings.target());
    filtered.subscription.client_id = "pings".parse().unwrap();
    filtered.subscription.filter = Filter {
        repositories: vec!["octo-harbor/lighthouse".parse().unwrap()],
        events: vec!["ping".parse().unwrap()],
    };
    let only_pings = TestClient::start(filtered);
    let sender = Sender::new(&server);
    for (event, id) in
        [("push", "delivery-1"), ("ping", "delivery-2"), ("push", "delivery-3"), ("ping", "delivery-4")]
    {
        assert_eq!(sender.send(event, id, &payload(id)).await.status(), StatusCode::CREATED);
    }
    assert_eq!(all.next_ids(4).await, ["delivery-1", "delivery-2", "delivery-3", "delivery-4"]);
    assert_eq!(pings.next_ids(2).await, ["delivery-2", "delivery-4"]);
    everything.stop().await;
    only_pings.stop().await;
    assert!(all.is_quiet() && pings.is_quiet());
}
