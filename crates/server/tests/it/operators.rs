//! What operators ask stays within bounds, whatever clients reported.

use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::Acknowledgement;
use gitstafette_core::target::{Outcome, OutcomeResult};
use gitstafette_core::testing;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::{
    self, EventFate, EventSelection, ListEventsRequest, RedeliverEventsRequest, RedeliverEventsResponse,
};
use gitstafette_server::config::Config;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::json;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::admin::{ADMIN, Operator};
use crate::listening::Gated;
use crate::streams::{channel, open, subscribe, with_token};
use crate::support::{Sender, TOKEN, TestServer, http_client, payload, settings, soon};

async fn calls(server: &TestServer) -> GitstafetteClient<Channel> {
    GitstafetteClient::new(channel(server).await)
}

async fn push(server: &TestServer, count: u64) {
    let sender = Sender::new(server);
    for number in 1..=count {
        sender.push(&format!("delivery-{number}")).await;
    }
}

fn failed(target: &str, detail: &str) -> v1::Outcome {
    v1::Outcome {
        target: target.into(),
        result: v1::OutcomeResult::Failed.into(),
        detail: detail.into(),
        ..v1::Outcome::default()
    }
}

/// Everything that one redelivery tells.
async fn redeliver(
    server: &TestServer,
    request: RedeliverEventsRequest,
) -> Result<Vec<RedeliverEventsResponse>, Status> {
    let mut messages = soon(calls(server).await.redeliver_events(with_token(request, Some(TOKEN)))).await?;
    let mut all = Vec::new();
    while let Some(message) = soon(messages.get_mut().message()).await? {
        all.push(message);
    }
    Ok(all)
}

fn dead_letters(first: u64, limit: u32) -> RedeliverEventsRequest {
    let fate = EventFate::DeadLetter.into();
    let selection = EventSelection { fate, first, ..EventSelection::default() };
    RedeliverEventsRequest { selection: Some(selection), address: None, limit }
}

/// The outcomes of this many targets, all of them failed.
async fn fail(server: &TestServer, client: &str, events: u64, targets: u32) {
    for sequence in (1..=events).map(Sequence::new) {
        let outcomes = (0..targets).map(|number| Outcome {
            target: format!("target-{number}"),
            result: OutcomeResult::Failed,
            code: None,
            attempts: 1,
            duration: Duration::ZERO,
            at: gitstafette_core::event::Timestamp::from_millis(1),
            detail: "x".repeat(2000),
        });
        let reported = vec![Acknowledgement { sequence, outcomes: outcomes.collect() }];
        server.store.acknowledge(&client.parse().unwrap(), reported, sequence).await.unwrap();
    }
}

#[tokio::test]
async fn a_redelivery_appends_no_more_events_than_its_limit() {
    let server = TestServer::start("retention-count = 100\n").await;
    push(&server, 10).await;
    for client in ["a", "b", "c"] {
        fail(&server, client, 10, 200).await;
    }
    fail(&server, "d", 10, 3).await;
    let told = redeliver(&server, dead_letters(0, 10)).await.unwrap();
    let last = told.last().unwrap();
    assert_eq!((server.events().await, last.total), (20, 10), "{told:?}");
    assert_eq!((last.next, last.last), (3, 10), "two clients of the third event are not done");

    // It goes on from there, and appends each event once for each client.
    let told = redeliver(&server, dead_letters(last.next, 0)).await.unwrap();
    let last = told.last().unwrap();
    assert_eq!((server.events().await, last.total, last.next), (50, 30, 0), "{told:?}");
    assert!(redeliver(&server, dead_letters(0, 0)).await.unwrap().iter().all(|told| told.total == 0));
    let events = server.store.list(&Default::default()).await.unwrap().entries;
    let of = |client: &str| {
        let mut addressed = events
            .iter()
            .filter(move |event| event.address.client.as_ref().is_some_and(|id| id.as_str() == client));
        (addressed.clone().count(), addressed.next().unwrap().address.targets.clone())
    };
    assert_eq!(of("d"), (10, ["target-0", "target-1", "target-2"].map(Into::into).to_vec()));
    assert_eq!(of("a"), (10, vec![]), "more targets than have outcomes of their own");
}

#[tokio::test]
async fn what_clients_report_is_bounded_on_disk_and_in_listings() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), &format!("{ADMIN}retention-bytes = \"1MiB\"\n")).await;
    push(&server, 30).await;
    let detail = "x".repeat(2048);
    for client in ["a", "b", "c"] {
        let mut stream = subscribe(&server, client).await;
        for sequence in 1..=30 {
            let outcomes = (0..256).map(|number| failed(&format!("target-{number}"), &detail)).collect();
            let acknowledgements = vec![v1::Acknowledgement { sequence, outcomes }];
            stream.send(Wire::Acknowledgements(v1::Acknowledgements { acknowledgements })).await;
            stream.receipt().await;
        }
    }
    let statistics = server.store.statistics().await.unwrap();
    // 90 reports of about 12 KiB each were stored: retention takes them below the limit.
    let within = async {
        while server.store.statistics().await.unwrap().bytes > 1 << 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(within).await;
    assert!(statistics.disk_bytes < 20 << 20, "{statistics:?}");

    let operator = Operator::of(&server);
    let (mut last, mut listed) = (u64::MAX >> 1, 0);
    while last > 0 {
        let page = operator.get(&format!("/v1/events?limit=1000&last={last}")).await;
        assert!(page.to_string().len() < 3 << 20, "{}", page.to_string().len());
        listed += page["events"].as_array().unwrap().len() as u64;
        last = page["next"].as_u64().unwrap_or(0);
    }
    assert_eq!(listed, server.events().await);
    let request = with_token(ListEventsRequest::default(), Some(TOKEN));
    let page = soon(calls(&server).await.list_events(request)).await.unwrap().into_inner();
    assert!(page.entries.iter().all(|entry| entry.reports.len() <= 3 * 33));
    server.stop().await;
}

#[tokio::test]
async fn an_outcome_of_the_year_10000_spoils_no_listing() {
    let server = TestServer::start(ADMIN).await;
    push(&server, 3).await;
    let mut stream = subscribe(&server, "a").await;
    for (sequence, seconds, nanos) in [(1, 253_402_300_800, 0), (2, i64::MAX, i32::MAX), (3, -1, -1)] {
        let outcome = v1::Outcome {
            result: v1::OutcomeResult::Delivered.into(),
            at: Some(prost_types::Timestamp { seconds, nanos }),
            duration: Some(prost_types::Duration { seconds, nanos }),
            ..failed("t", "")
        };
        let acknowledgements = vec![v1::Acknowledgement { sequence, outcomes: vec![outcome] }];
        stream.send(Wire::Acknowledgements(v1::Acknowledgements { acknowledgements })).await;
        stream.receipt().await;
    }
    // The store of a library may also be told such a time.
    let mut stored = server.store.reports(Sequence::new(1)).await.unwrap().remove(0).outcome;
    stored.at = gitstafette_core::event::Timestamp::from_millis(u64::MAX);
    let reported = vec![Acknowledgement { sequence: Sequence::new(1), outcomes: vec![stored] }];
    server.store.acknowledge(&"b".parse().unwrap(), reported, Sequence::ZERO).await.unwrap();

    let request = http_client().get(server.url("/v1/events/octo-harbor/lighthouse"));
    let answer = soon(request.header("authorization", format!("Bearer {TOKEN}")).send()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let text = soon(answer.text()).await.unwrap();
    assert_eq!(text.matches("\"isRelayed\":true").count(), 3, "{text}");
    let listed = Operator::of(&server).get("/v1/events").await;
    let reports = listed["events"][2]["reports"].as_array().unwrap();
    assert_eq!(reports[1]["at"], "9999-12-31T23:59:59.999Z");
}

#[tokio::test]
async fn a_range_beyond_the_log_and_too_many_patterns_are_refused() {
    let server = TestServer::start(ADMIN).await;
    push(&server, 3).await;
    let operator = Operator::of(&server);
    let last = (u64::MAX >> 1) - 1;
    for wrong in [
        json!({"events": {"first": 1, "last": last}}),
        json!({"events": {"first": 1, "last": 4}}),
        json!({"events": {"first": 1, "last": 3, "repository": vec!["1"; 300_000].join(",")}}),
        json!({"events": {"first": 1, "last": 3, "event": vec!["x"; 1001].join(",")}}),
    ] {
        let (status, problem) = operator.call(Method::POST, "/v1/events/redeliver", Some(wrong)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    }
    let selection = EventSelection { first: 1, last: Some(last), ..EventSelection::default() };
    let request = RedeliverEventsRequest { selection: Some(selection), ..Default::default() };
    let refused = redeliver(&server, request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("a last up to 3"), "{refused}");
    let many = ",x".repeat(1001);
    let (status, _) = operator.call(Method::GET, &format!("/v1/events?event={many}"), None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(server.events().await, 3);
}

/// A batch that the disk does not take is no silence, and the caller knows where to go on.
#[tokio::test]
async fn a_redelivery_that_takes_long_tells_its_progress() {
    let store = Gated::new().with_gated_redeliveries();
    for number in 1..=3 {
        store.fill(testing::webhook(number, "octo-harbor/lighthouse", 10)).await;
    }
    let store = Arc::new(store);
    let server = TestServer::run(Config::from_toml(&settings(ADMIN)).unwrap(), Arc::clone(&store) as _).await;
    let selection = EventSelection { first: 1, last: Some(3), ..EventSelection::default() };
    let request = RedeliverEventsRequest { selection: Some(selection), ..Default::default() };
    let mut calls = calls(&server).await;
    let call = calls.redeliver_events(with_token(request, Some(TOKEN)));
    let mut messages: Streaming<RedeliverEventsResponse> = soon(call).await.unwrap().into_inner();
    let waiting = soon(messages.message()).await.unwrap().unwrap();
    let expected = RedeliverEventsResponse { redelivered: Vec::new(), next: 1, last: 3, total: 0 };
    assert_eq!(waiting, expected);
    store.gate.add_permits(3);
    let mut done = waiting;
    while done.total < 3 {
        done = soon(messages.message()).await.unwrap().expect("it goes on");
    }
    assert_eq!((done.redelivered.len(), done.next), (3, 0));
    assert_eq!(soon(messages.message()).await.unwrap(), None);
}

/// Answers that nobody reads take no more than their room, and what comes on top is refused.
#[tokio::test]
async fn unread_answers_have_a_bound() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    let large = payload(&"x".repeat(1_000_000));
    assert_eq!(sender.send("push", "delivery-1", &large).await.status(), StatusCode::CREATED);

    let stream = TcpStream::connect(server.addresses.grpc).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1024);
    let (calls, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let message = v1::ShowEventRequest { sequence: 1 }.encode_to_vec();
    let framed = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()][..], &message].concat();
    let show = || {
        let request = http::Request::post("http://x/gitstafette.v1.Gitstafette/ShowEvent")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(framed.clone())))
            .unwrap();
        calls.clone().send_request(request)
    };
    // As many as one connection may have open.
    let answers = soon(futures_util::future::join_all((0..24).map(|_| show()))).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap()).collect();
    let (unread, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| !answer.headers().contains_key("grpc-status"));
    assert!((10..=16).contains(&unread.len()), "{} answers, {} refused", unread.len(), refused.len());
    assert!(refused.iter().all(|answer| answer.headers()["grpc-status"] == "8"));

    // Webhooks have memory of their own, and what is not wanted any more gives its room back.
    sender.push("delivery-2").await;
    drop(unread);
    let answer = soon(show()).await.unwrap();
    let collected = soon(answer.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert!(collected.to_bytes().len() > 1_000_000);
}

/// A filter with many patterns does not make the list of subscriptions large.
#[tokio::test]
async fn a_list_of_subscriptions_shows_some_patterns_of_each() {
    let server = TestServer::start(ADMIN).await;
    let wanted = v1::Subscription {
        client_id: "a".into(),
        repositories: (1..=100).map(|number| format!("octo-harbor/{number}")).collect(),
        events: (1..=40).map(|number| format!("event-{number}")).collect(),
        ..v1::Subscription::default()
    };
    let mut stream = open(&server, Some(TOKEN), Some(Wire::Subscription(wanted))).await.unwrap();
    stream.next().await.unwrap();
    let listed = Operator::of(&server).get("/v1/subscriptions").await;
    let attached = &listed["subscriptions"][0]["attached"];
    let length = |key: &str| attached[key].as_array().unwrap().len();
    assert_eq!((length("repositories"), length("events"), &attached["morePatterns"]), (32, 32, &json!(76)));
}
