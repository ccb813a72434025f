//! A stored event that cannot be read stops nobody, and everybody is told.

use std::path::Path;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::StoreError;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::admin::{ADMIN, Operator};
use crate::relay::relay;
use crate::support::{Sender, TestClient, TestServer, TestTarget, all_acknowledged, options, soon};

const REASON: &str = "its payload has changed on the disk: its checksum is another";

/// A server with these webhooks, one of which the disk has changed since.
async fn with_damaged(folder: &Path, deliveries: &[&str], damaged: &str) -> TestServer {
    let server = TestServer::start_in(folder, ADMIN).await;
    for delivery in deliveries {
        Sender::new(&server).push(delivery).await;
    }
    server.stop().await;
    let file = folder.join("events.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let text = format!("{{\"text\":\"{damaged}\"");
    let at: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes())).collect();
    assert_eq!(at.len(), 1, "the body is there once");
    bytes[at[0]] = b'[';
    std::fs::write(&file, bytes).unwrap();
    TestServer::start_in(folder, ADMIN).await
}

#[tokio::test]
async fn a_damaged_event_is_missed_and_the_stream_goes_on() {
    let folder = TempDir::new().unwrap();
    let server = with_damaged(folder.path(), &["delivery-1", "delivery-2", "delivery-3"], "delivery-2").await;
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(options(server.addresses.grpc, target.target()));
    assert_eq!(target.next_ids(2).await, ["delivery-1", "delivery-3"]);
    soon(client.state.wait_for(|state| state.missed == 1)).await.unwrap();
    all_acknowledged(&*server.store).await;
    let state = client.state.borrow().clone();
    assert_eq!((state.delivered, state.dead_letters, state.last_error), (2, 0, None));

    let operator = Operator::of(&server);
    let listed = operator.get("/v1/events").await;
    let damage: Vec<_> = listed["events"].as_array().unwrap().iter().map(|event| &event["damage"]).collect();
    assert_eq!(damage, [&Value::Null, &json!(REASON), &Value::Null]);
    let (status, problem) = operator.call(Method::GET, "/v1/events/2", None).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(problem["detail"], format!("event 2 is damaged: {REASON}"));
    let (status, problem) =
        operator.call(Method::POST, "/v1/events/redeliver", Some(json!({"sequence": 2}))).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{problem}");
    let all = json!({"events": {"first": 1, "last": 3}});
    let redelivered = operator.post("/v1/events/redeliver", all).await;
    assert_eq!(redelivered["redelivered"].as_array().unwrap().len(), 2, "it does not hold up the others");
    assert_eq!(target.next_ids(2).await, ["delivery-1", "delivery-3"]);
    assert_eq!(operator.get("/v1/statistics").await["damaged"], 1);
    let Value::String(metrics) = operator.get("/metrics").await else { panic!("no text") };
    assert!(metrics.contains("gitstafette_store_damaged_events 1\n"), "{metrics}");
    assert!(matches!(
        server.store.redeliver(Sequence::new(2), Default::default()).await,
        Err(StoreError::DamagedEvent { .. })
    ));
    client.stop().await;
}

#[tokio::test]
async fn a_relay_passes_a_damaged_event() {
    let folder = TempDir::new().unwrap();
    let upstream =
        with_damaged(folder.path(), &["delivery-1", "delivery-2", "delivery-3"], "delivery-1").await;
    let downstream = TestServer::start(&relay("pull", "edge", upstream.addresses.grpc, "")).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(downstream.addresses.grpc, target.target()));
    assert_eq!(target.next_ids(2).await, ["delivery-2", "delivery-3"]);
    client.stop().await;
}
