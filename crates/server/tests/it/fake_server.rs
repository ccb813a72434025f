//! The client against a server that misbehaves: every way a stream can break.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::response::IntoResponse;
use gitstafette_core::event::{Address, Event, Sequence};
use gitstafette_core::testing;
use gitstafette_proto::v1;
use gitstafette_proto::v1::gitstafette_server::{Gitstafette, GitstafetteServer};
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response as Answer;
use gitstafette_proto::v1::{GoAway, GoAwayReason, Started, SubscribeRequest, SubscribeResponse};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::support::{TestClient, TestTarget, options, soon};

type Answers = BoxStream<SubscribeResponse>;

type Script = dyn Fn(usize) -> Result<Answers, Status> + Send + Sync;

/// Plays a script: what the n-th stream (from 0) is answered. Notes the first messages and the acknowledgements.
struct Fake {
    script: Arc<Script>,
    streams: AtomicUsize,
    heard: mpsc::UnboundedSender<Wire>,
}

#[tonic::async_trait]
impl Gitstafette for Fake {
    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<BoxStream<SubscribeResponse>>, Status> {
        let mut requests = request.into_inner();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(SubscribeRequest { request: Some(request) })) = requests.message().await {
                drop(heard.send(request));
            }
        });
        (self.script)(self.streams.fetch_add(1, Ordering::SeqCst)).map(Response::new)
    }
}

/// Starts the fake; returns its address and what it hears.
async fn fake(
    script: impl Fn(usize) -> Result<Answers, Status> + Send + Sync + 'static,
) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<Wire>) {
    let (heard, hears) = mpsc::unbounded_channel();
    let service = Fake { script: Arc::new(script), streams: AtomicUsize::new(0), heard };
    let router = Routes::new(GitstafetteServer::new(service)).into_axum_router();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, hears)
}

fn answer(response: Answer) -> Result<SubscribeResponse, Status> {
    Ok(SubscribeResponse { response: Some(response) })
}

fn started(heartbeat_millis: u64) -> Result<SubscribeResponse, Status> {
    let interval = gitstafette_proto::convert::duration(Duration::from_millis(heartbeat_millis));
    answer(Answer::Started(Started { heartbeat_interval: Some(interval), ..Started::default() }))
}

fn event(sequence: u64) -> Result<SubscribeResponse, Status> {
    let mut webhook = testing::webhook(sequence, "octo/hello", 10);
    webhook.headers.append("x-github-delivery", format!("delivery-{sequence}"));
    let event =
        Event { sequence: Sequence::new(sequence), redelivery: false, address: Address::default(), webhook };
    answer(Answer::Event(v1::Event::from(&event)))
}

fn stream(items: Vec<Result<SubscribeResponse, Status>>) -> Result<Answers, Status> {
    Ok(Box::pin(tokio_stream::iter(items)))
}

/// These items, and then nothing for ever.
fn open_stream(items: Vec<Result<SubscribeResponse, Status>>) -> Result<Answers, Status> {
    Ok(Box::pin(tokio_stream::iter(items).chain(tokio_stream::pending())))
}

#[tokio::test]
async fn it_reconnects_after_every_kind_of_break() {
    // As a proxy's cut shows: UNAVAILABLE, INTERNAL, UNKNOWN, an end without a word, and refusals of the call itself.
    let (address, _heard) = fake(|number| match number {
        0 => Err(Status::unavailable("not yet")),
        1 => stream(vec![started(1000), Err(Status::internal("RST_STREAM"))]),
        2 => stream(vec![started(1000), Err(Status::new(Code::Unknown, "missing trailers"))]),
        3 => stream(vec![started(1000)]),
        4 => stream(vec![started(1000), answer(Answer::GoAway(GoAway::default()))]),
        _ => open_stream(vec![started(30_000), event(1)]),
    })
    .await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(address, target.target()));
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    client.kill();
}

#[tokio::test]
async fn a_stream_without_heartbeats_is_ended() {
    let (address, _heard) = fake(|number| match number {
        0 => open_stream(vec![started(50)]),
        _ => open_stream(vec![started(30_000), event(1)]),
    })
    .await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(address, target.target()));
    assert_eq!(target.next_ids(1).await, ["delivery-1"]);
    client.kill();
}

#[tokio::test]
async fn what_was_delivered_on_a_broken_stream_is_acknowledged_on_the_next_and_not_delivered_again() {
    // No stream ever gives a receipt: the client must remember.
    let (address, mut heard) = fake(|number| match number {
        0 => Ok(Box::pin(tokio_stream::iter(vec![started(1000), event(1), event(2)]).chain(
            tokio_stream::iter(vec![answer(Answer::GoAway(GoAway {
                reason: GoAwayReason::Window.into(),
                message: String::new(),
            }))]),
        ))),
        _ => open_stream(vec![started(30_000), event(1), event(2), event(3)]),
    })
    .await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(address, target.target()));
    assert_eq!(target.next_ids(3).await, ["delivery-1", "delivery-2", "delivery-3"]);
    let mut acknowledged = std::collections::BTreeSet::new();
    while !acknowledged.is_superset(&[1, 2, 3].into()) {
        if let Wire::Acknowledgements(message) = soon(heard.recv()).await.unwrap() {
            acknowledged.extend(message.acknowledgements.iter().map(|one| one.sequence));
        }
    }
    assert!(target.is_quiet());
    client.kill();
}

#[tokio::test]
async fn the_same_sequence_of_another_store_is_another_event() {
    let of_store = |id: &str| {
        let interval = gitstafette_proto::convert::duration(Duration::from_secs(30));
        let started =
            Started { heartbeat_interval: Some(interval), store_id: id.to_owned(), ..Started::default() };
        answer(Answer::Started(started))
    };
    let other = || {
        let mut webhook = testing::webhook(1, "octo/hello", 10);
        webhook.headers.append("x-github-delivery", "other");
        answer(Answer::Event(v1::Event::from(&Event {
            sequence: Sequence::new(1),
            redelivery: false,
            address: Address::default(),
            webhook,
        })))
    };
    let (address, _heard) = fake(move |number| match number {
        0 => stream(vec![of_store("a"), event(1), answer(Answer::GoAway(GoAway::default()))]),
        _ => open_stream(vec![of_store("b"), other()]),
    })
    .await;
    // The first target's answer is a failure: the event of the first store is still in its lane.
    let mut target = TestTarget::answering(|number| match number {
        1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    let client = TestClient::start(options(address, target.target()));
    // It is tried again or not, as the second stream comes; but nothing of the first store comes after the other's.
    let mut ids = target.next_ids(2).await;
    while ids.last().is_some_and(|id| id != "other") {
        ids.extend(target.next_ids(1).await);
    }
    assert_eq!(ids[0], "delivery-1");
    client.kill();
}

/// A stream whose window is over after these items.
fn window_over(mut items: Vec<Result<SubscribeResponse, Status>>) -> Result<Answers, Status> {
    let reason = GoAwayReason::Window.into();
    items.push(answer(Answer::GoAway(GoAway { reason, message: String::new() })));
    stream(items)
}

#[tokio::test]
async fn what_a_blocked_lane_cannot_hold_is_deferred_named_on_reconnect_and_recalled() {
    const EVENTS: u64 = 40;
    let (address, mut heard) = fake(|number| match number {
        0 => open_stream(std::iter::once(started(100)).chain((1..=EVENTS).map(event)).collect()),
        _ => open_stream(vec![started(30_000)]),
    })
    .await;
    let answers = Arc::new(AtomicUsize::new(503));
    let told = Arc::clone(&answers);
    let mut target = TestTarget::answering(move |_| {
        StatusCode::from_u16(told.load(Ordering::SeqCst) as u16).unwrap().into_response()
    })
    .await;
    let mut client = TestClient::start(options(address, target.target()));
    let deferred = std::cell::RefCell::new(std::collections::BTreeSet::new());
    // The heartbeats that do not come end the first stream; the second subscription says what was put down.
    let (mut subscriptions, mut named) = (0, Vec::new());
    while subscriptions < 2 {
        match soon(heard.recv()).await.unwrap() {
            Wire::Deferral(deferral) => deferred.borrow_mut().extend(deferral.sequences),
            Wire::Subscription(subscription) => {
                subscriptions += 1;
                named = subscription.deferred;
            }
            // The attempt of the first event has failed.
            Wire::FirstAttempts(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(named.len() > 20 && named.iter().eq(deferred.borrow().iter()), "{named:?}");
    assert_eq!(client.state.borrow_and_update().deferred, named.len());
    answers.store(200, Ordering::SeqCst);
    let mut recalled = Vec::new();
    while recalled.len() < 5 {
        if let Wire::Recall(recall) = soon(heard.recv()).await.unwrap() {
            recalled.extend(recall.sequences);
        }
    }
    assert_eq!(recalled, named[..recalled.len()], "the oldest first");
    target.next().await;
    client.kill();
}

#[tokio::test]
async fn what_was_deferred_in_another_store_is_not_named_to_this_one() {
    let of_store = |id: &str| {
        let interval = gitstafette_proto::convert::duration(Duration::from_secs(30));
        let started =
            Started { heartbeat_interval: Some(interval), store_id: id.to_owned(), ..Started::default() };
        answer(Answer::Started(started))
    };
    let (address, mut heard) = fake(move |number| match number {
        0 => window_over(std::iter::once(of_store("a")).chain((1..=40).map(event)).collect()),
        _ => open_stream(vec![of_store("b")]),
    })
    .await;
    let target = TestTarget::answering(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    let client = TestClient::start(options(address, target.target()));
    let mut named = Vec::new();
    while named.len() < 3 {
        if let Wire::Subscription(subscription) = soon(heard.recv()).await.unwrap() {
            named.push(!subscription.deferred.is_empty());
        }
    }
    assert_eq!(named, [false, true, false]);
    client.kill();
}

#[tokio::test]
async fn a_server_that_fails_every_stream_it_begins_is_not_hammered() {
    let (address, mut heard) =
        fake(|_| stream(vec![started(1000), Err(Status::internal("disk full"))])).await;
    let target = TestTarget::start().await;
    let client = TestClient::start(options(address, target.target()));
    // The fifth comes after waits of at least 125, 250, 500 and 1000 ms.
    let begin = std::time::Instant::now();
    for _ in 0..5 {
        soon(heard.recv()).await.unwrap();
    }
    assert!(begin.elapsed() >= Duration::from_millis(1875), "{:?}", begin.elapsed());
    client.kill();
}

#[tokio::test]
async fn missed_events_are_counted() {
    let missed = || answer(Answer::Missed(v1::Missed { first: 3, last: 7, ..Default::default() }));
    let (address, _heard) = fake(move |_| open_stream(vec![started(30_000), missed()])).await;
    let target = TestTarget::start().await;
    let mut client = TestClient::start(options(address, target.target()));
    soon(client.state.wait_for(|state| state.missed == 5)).await.unwrap();
    client.kill();
}

#[tokio::test]
async fn the_start_is_asked_for_once() {
    let (address, mut heard) = fake(|number| match number {
        0 => stream(vec![started(1000)]),
        _ => open_stream(vec![started(30_000)]),
    })
    .await;
    let target = TestTarget::start().await;
    let mut latest = options(address, target.target());
    latest.subscription.start = gitstafette_client::Start::Latest;
    let client = TestClient::start(latest);
    let mut starts = Vec::new();
    while starts.len() < 2 {
        if let Wire::Subscription(subscription) = soon(heard.recv()).await.unwrap() {
            starts.push(subscription.start.is_some());
        }
    }
    assert_eq!(starts, [true, false]);
    client.kill();
}

#[tokio::test]
async fn an_event_that_cannot_be_decoded_is_a_dead_letter_and_the_stream_goes_on() {
    let nonsense = || {
        let mut event = v1::Event::from(&Event {
            sequence: Sequence::new(1),
            redelivery: false,
            address: Address::default(),
            webhook: testing::webhook(1, "octo/hello", 1),
        });
        event.delivery_id = "not\nan id".into();
        answer(Answer::Event(event))
    };
    // A server sends what is not acknowledged on each stream. The first stream ends before anything is stored.
    let (address, mut heard) = fake(move |number| match number {
        0 => stream(vec![started(30_000), nonsense()]),
        _ => open_stream(vec![started(30_000), nonsense(), event(2)]),
    })
    .await;
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(options(address, target.target()));
    assert_eq!(target.next_ids(1).await, ["delivery-2"]);
    let mut outcomes = Vec::new();
    while outcomes.is_empty() {
        if let Wire::Acknowledgements(message) = soon(heard.recv()).await.unwrap() {
            let of_first = message.acknowledgements.into_iter().find(|one| one.sequence == 1);
            outcomes.extend(of_first.into_iter().flat_map(|one| one.outcomes));
        }
    }
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    assert_eq!(outcomes[0].result(), v1::OutcomeResult::Failed);
    assert_eq!(outcomes[0].target, "decoder");
    assert!(outcomes[0].detail.contains("delivery_id: "), "{outcomes:?}");
    let state = soon(client.state.wait_for(|state| state.received.get() == 2)).await.unwrap().clone();
    assert_eq!((state.dead_letters, state.last_error), (1, None));
    client.kill();
}

#[tokio::test]
async fn an_event_is_delivered_whatever_its_metadata() {
    let odd = || {
        let webhook = testing::webhook(1, "octo/hello", 1);
        let event =
            Event { sequence: Sequence::new(1), redelivery: false, address: Address::default(), webhook };
        answer(Answer::Event(v1::Event {
            source: "A NEW SOURCE".into(),
            event: "a\nb".into(),
            action: Some("\u{1b}[31m".into()),
            repository_name: Some("no name".into()),
            owner: Some("x".repeat(1000)),
            received_at: Some(prost_types::Timestamp { seconds: -1, nanos: -1 }),
            hops: vec![v1::Hop::default(); 100],
            address: Some(v1::Address { client_id: Some("not an id".into()), targets: vec![String::new()] }),
            ..v1::Event::from(&event)
        }))
    };
    let (address, _heard) = fake(move |_| open_stream(vec![started(30_000), odd(), event(2)])).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(address, target.target()));
    assert_eq!(target.next().await.body.len(), 1);
    assert_eq!(target.next_ids(1).await, ["delivery-2"]);
    client.kill();
}
