//! Attacks with one client token.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use gitstafette_core::store::{EventStore, Options, SqliteStore};
use gitstafette_core::testing;
use gitstafette_proto::MAX_MESSAGE_BYTES;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::subscription::Start;
use gitstafette_proto::v1::{
    Acknowledgement, Acknowledgements, Deferral, Latest, ListEventsRequest, Outcome, OutcomeResult, Recall,
    SubscribeRequest, SubscribeResponse, Subscription,
};
use http::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::attacker::{Call, Connection, message, raw_message};
use super::server::Attacked;
use crate::memory::fill;
use crate::streams::with_token;
use crate::support::{Sender, TOKEN, at_length, payload, soon};

const SUBSCRIBE: &str = "/gitstafette.v1.Gitstafette/Subscribe";
/// How long an attack lasts once all of it is there.
const LASTING: Duration = Duration::from_secs(4);
const MIB: usize = 1 << 20;

fn subscription(client_id: &str) -> Bytes {
    let subscription = Subscription { client_id: client_id.to_owned(), ..Subscription::default() };
    message(&SubscribeRequest { request: Some(Wire::Subscription(subscription)) })
}

/// Subscribes with these ids, with so many calls on each connection. Nothing is read.
async fn subscribe(address: SocketAddr, ids: Vec<String>, on_each: usize) -> Vec<(Connection, Vec<Call>)> {
    let mut opening = JoinSet::new();
    for ids in ids.chunks(on_each).map(<[String]>::to_vec) {
        opening.spawn(async move {
            let mut calls = Vec::new();
            let mut connection = Connection::open(address).await?;
            for id in ids {
                // A server that takes no more streams on a connection makes the attacker wait.
                let call = connection.client_call(SUBSCRIBE, subscription(&id));
                let Ok(Some(call)) = tokio::time::timeout(LASTING, call).await else { break };
                calls.push(call);
            }
            Some((connection, calls))
        });
    }
    opening.join_all().await.into_iter().flatten().collect()
}

#[tokio::test]
async fn many_streams_with_one_client_id() {
    let server = Attacked::start(&[]).await;
    let ids = vec!["attacker".to_owned(); at_length(4_000, 16_000)];
    let held = subscribe(server.grpc(), ids, 200).await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

#[tokio::test]
async fn many_client_ids() {
    let server = Attacked::start(&[]).await;
    let ids = (0..5_000).map(|number| format!("attacker-{number}")).collect();
    let held = subscribe(server.grpc(), ids, 200).await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

/// Sends a message again and again on so many streams that are never read.
async fn flood(server: &Attacked, streams: usize, flood: SubscribeRequest) {
    let bytes = message(&flood);
    let mut sending = JoinSet::new();
    for number in 0..streams {
        let (address, bytes) = (server.grpc(), bytes.clone());
        sending.spawn(async move {
            loop {
                let Some(mut connection) = Connection::open(address).await else { continue };
                let first = subscription(&format!("attacker-{number}"));
                let Some(mut call) = connection.client_call(SUBSCRIBE, first).await else { continue };
                while call.send(bytes.clone()).await.is_ok() {}
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    server.hold(2 * LASTING).await;
}

/// Sequences that no stream was ever sent.
fn unsent(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|number| 1_000_000 + number)
}

#[tokio::test]
async fn acknowledgements_of_events_that_were_never_sent() {
    let server = Attacked::start(&[]).await;
    let outcome =
        Outcome { target: "t".to_owned(), result: OutcomeResult::Delivered.into(), ..Outcome::default() };
    let acknowledgements = unsent(381_290 / 2)
        .map(|sequence| Acknowledgement { sequence, outcomes: vec![outcome.clone()] })
        .collect();
    let acknowledgements = Acknowledgements { acknowledgements };
    flood(&server, 4, SubscribeRequest { request: Some(Wire::Acknowledgements(acknowledgements)) }).await;
    server.end().await;
}

#[tokio::test]
async fn acknowledgements_without_content() {
    let server = Attacked::start(&[]).await;
    let acknowledgements = vec![Acknowledgement::default(); 2 * MIB - 16];
    let acknowledgements = Acknowledgements { acknowledgements };
    flood(&server, 4, SubscribeRequest { request: Some(Wire::Acknowledgements(acknowledgements)) }).await;
    server.end().await;
}

#[tokio::test]
async fn deferrals_and_recalls_of_events_that_were_never_sent() {
    let server = Attacked::start(&[]).await;
    let sequences: Vec<_> = unsent(1_000_000).collect();
    let deferral = Deferral { sequences: sequences.clone() };
    flood(&server, 2, SubscribeRequest { request: Some(Wire::Deferral(deferral)) }).await;
    flood(&server, 2, SubscribeRequest { request: Some(Wire::Recall(Recall { sequences })) }).await;
    server.end().await;
}

#[tokio::test]
async fn messages_without_content() {
    let server = Attacked::start(&[]).await;
    flood(&server, 4, SubscribeRequest { request: None }).await;
    server.end().await;
}

async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    let window = 4 << 20;
    endpoint
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .connect()
        .await
        .unwrap()
}

/// A subscriber that reads what comes.
async fn reader_of(
    server: &Attacked,
    subscription: Subscription,
) -> (mpsc::Sender<SubscribeRequest>, Streaming<SubscribeResponse>) {
    let client = GitstafetteClient::new(channel(server.grpc()).await);
    let (requests, receiver) = mpsc::channel(1);
    requests.send(SubscribeRequest { request: Some(Wire::Subscription(subscription)) }).await.unwrap();
    let request = with_token(ReceiverStream::new(receiver), Some(TOKEN));
    let responses = client.max_decoding_message_size(MAX_MESSAGE_BYTES).subscribe(request).await;
    (requests, responses.unwrap().into_inner())
}

#[tokio::test]
async fn subscribers_that_do_not_read_delay_no_other_client() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), &[4 * MIB]).await;
    let server = Attacked::start_in(folder, &[]).await;
    let ids = (0..17).map(|number| format!("attacker-{number}")).collect();
    let held = subscribe(server.grpc(), ids, 1).await;
    server.hold(LASTING).await;
    // It begins after the large event.
    let start = Some(Start::Latest(Latest {}));
    let reader = Subscription { client_id: "reader".to_owned(), start, ..Subscription::default() };
    let (_requests, mut responses) = reader_of(&server, reader).await;
    let medium = Sender::to(server.program.http.clone());
    let text = format!("{}{}", payload("medium"), " ".repeat(100_000));
    assert_eq!(medium.send("push", "medium", &text).await.status(), StatusCode::CREATED);
    let arrives = async {
        loop {
            let response = responses.message().await.unwrap().expect("the stream ended").response;
            if matches!(response, Some(Response::Event(event)) if event.delivery_id == "medium") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), arrives)
        .await
        .expect("the event waits for clients that do not read");
    drop(held);
    server.end().await;
}

/// A store with events, and many long outcomes of each, as several clients reported them.
async fn report_outcomes(server: &Attacked, events: usize) {
    for id in 0..6 {
        let first = Subscription { client_id: format!("attacker-{id}"), ..Subscription::default() };
        let (requests, mut responses) = reader_of(server, first).await;
        let mut reported = 0;
        while reported < events {
            let Ok(Some(response)) = soon(responses.message()).await else { break };
            let Some(Response::Event(event)) = response.response else { continue };
            let outcomes = (0..256).map(|number| Outcome {
                target: format!("target-{number}"),
                result: OutcomeResult::Failed.into(),
                detail: "x".repeat(2 << 10),
                ..Outcome::default()
            });
            let acknowledgement = Acknowledgement { sequence: event.sequence, outcomes: outcomes.collect() };
            let acknowledgements = Acknowledgements { acknowledgements: vec![acknowledgement] };
            let request = SubscribeRequest { request: Some(Wire::Acknowledgements(acknowledgements)) };
            if requests.send(request).await.is_err() {
                break;
            }
            reported += 1;
        }
    }
}

#[tokio::test]
async fn many_long_outcomes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let store = SqliteStore::open(&path, Options::default()).unwrap();
    for number in 0..60 {
        store.append(testing::webhook(number, "octo-harbor/lighthouse", 200)).await.unwrap();
    }
    store.close().await;
    let server = Attacked::start_in(folder, &["--retention-bytes", "1MiB"]).await;
    report_outcomes(&server, 40).await;
    let bytes: u64 =
        std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("{} KiB on disk", bytes >> 10);
    assert!(bytes < 32 << 20, "{bytes}");
    let mut client = GitstafetteClient::new(channel(server.grpc()).await);
    let request = with_token(ListEventsRequest::default(), Some(TOKEN));
    // A client with the default limit of 4 MiB can read the page.
    soon(client.list_events(request)).await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn messages_that_are_not_protobuf() {
    let server = Attacked::start(&[]).await;
    let mut connection = Connection::with_window(server.grpc(), 1 << 16).await.unwrap();
    let first = raw_message(&[0xff; 100]);
    let call = connection.client_call(SUBSCRIBE, first).await.unwrap();
    assert_eq!(call.status().await.as_deref(), Some("3"), "INVALID_ARGUMENT");
    assert!(connection.is_open(), "other calls on the connection go on");
    server.hold(LASTING / 4).await;
    server.end().await;
}
