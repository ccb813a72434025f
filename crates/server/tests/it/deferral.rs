//! Events that a client puts down and asks for again, and what retention does to them and to a cursor.

use gitstafette_core::event::Sequence;
use gitstafette_core::testing;
use gitstafette_proto::convert::MAX_DEFERRED;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{Deferral, Recall, Subscription};
use http::StatusCode;
use tonic::Code;
use tonic::transport::Channel;

use crate::streams::{Raw, acknowledgement, open, open_on, subscribe, subscription};
use crate::support::{Sender, TOKEN, TestServer, soon};

fn deferral(sequences: impl IntoIterator<Item = u64>) -> Wire {
    Wire::Deferral(Deferral { sequences: sequences.into_iter().collect() })
}

fn recall(sequences: impl IntoIterator<Item = u64>) -> Wire {
    Wire::Recall(Recall { sequences: sequences.into_iter().collect() })
}

async fn with_pushes(settings: &str, count: u64) -> TestServer {
    let server = TestServer::start(settings).await;
    let sender = Sender::new(&server);
    for number in 1..=count {
        sender.push(&format!("delivery-{number}")).await;
    }
    server
}

async fn open_narrow(server: &TestServer, deferred: &[u64]) -> Raw {
    let narrow =
        Subscription { max_unacknowledged_events: 2, deferred: deferred.to_vec(), ..subscription("a") };
    open(server, Some(TOKEN), Some(Wire::Subscription(narrow))).await.unwrap()
}

async fn cursor(server: &TestServer) -> u64 {
    let progress = server.store.progress(&"a".parse().unwrap()).await.unwrap();
    progress.map_or(0, |progress| progress.cursor.get())
}

/// Waits until this is stored. What came together is stored together.
async fn stored(raw: &mut Raw, sequence: u64) {
    loop {
        match raw.next().await.unwrap() {
            Response::Receipt(receipt) if receipt.sequences.contains(&sequence) => return,
            Response::Event(event) => panic!("event {} instead of a receipt", event.sequence),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_is_put_down_makes_room_and_comes_again() {
    let server = with_pushes("", 5).await;
    let mut raw = open_narrow(&server, &[]).await;
    assert_eq!((raw.event().await, raw.event().await), (1, 2));
    raw.send(deferral([1])).await;
    assert_eq!(raw.event().await, 3, "there is room");
    for sequence in [2, 3] {
        raw.send(acknowledgement(sequence)).await;
    }
    assert_eq!((raw.event().await, raw.event().await), (4, 5));
    assert_eq!(cursor(&server).await, 0, "1 is undone");
    raw.send(recall([1])).await;
    raw.send(acknowledgement(4)).await;
    assert_eq!(raw.event().await, 1);
    for sequence in [1, 5] {
        raw.send(acknowledgement(sequence)).await;
    }
    stored(&mut raw, 5).await;
    assert_eq!(cursor(&server).await, 5);
}

#[tokio::test]
async fn what_was_put_down_stays_down_over_a_reconnect() {
    let server = with_pushes("", 4).await;
    let mut raw = open_narrow(&server, &[]).await;
    assert_eq!((raw.event().await, raw.event().await), (1, 2));
    raw.send(deferral([1, 2])).await;
    assert_eq!(raw.event().await, 3);
    drop(raw);
    let mut raw = open_narrow(&server, &[1, 2]).await;
    assert_eq!((raw.event().await, raw.event().await), (3, 4));
    raw.send(recall([2, 1])).await;
    raw.send(deferral([3, 4])).await;
    assert_eq!((raw.event().await, raw.event().await), (1, 2), "the oldest first");
    drop(raw);
    // A client that died knows of none: it gets all again.
    let mut raw = open_narrow(&server, &[]).await;
    assert_eq!((raw.event().await, raw.event().await), (1, 2));
}

#[tokio::test]
async fn a_stream_begins_behind_what_is_done_or_put_down() {
    let server = with_pushes("", 8).await;
    let mut raw = open_narrow(&server, &[]).await;
    assert_eq!((raw.event().await, raw.event().await), (1, 2));
    raw.send(deferral([1])).await;
    assert_eq!(raw.event().await, 3);
    for sequence in [2, 3, 4] {
        raw.send(acknowledgement(sequence)).await;
        assert_eq!(raw.event().await, sequence + 2);
    }
    raw.send(deferral([5])).await;
    raw.send(acknowledgement(6)).await;
    assert_eq!((raw.event().await, raw.event().await), (7, 8));
    drop(raw);
    let progress = async || server.store.progress(&"a".parse().unwrap()).await.unwrap().unwrap();
    let stored_6 = async {
        while !progress().await.ahead.contains(Sequence::new(6)) {
            tokio::task::yield_now().await;
        }
    };
    soon(stored_6).await;
    let ranges = [(2, 4), (6, 6)].map(|(first, last)| (Sequence::new(first), Sequence::new(last)));
    assert_eq!(progress().await.ahead.iter().collect::<Vec<_>>(), ranges);

    let one = Subscription { max_unacknowledged_events: 1, deferred: vec![1, 5], ..subscription("a") };
    let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(one))).await.unwrap();
    assert_eq!(raw.event().await, 7, "all before it is done or put down");
    raw.send(recall([1])).await;
    for (sequence, next) in [(7, 1), (1, 8)] {
        raw.send(acknowledgement(sequence)).await;
        assert_eq!(raw.event().await, next);
    }
    raw.send(acknowledgement(8)).await;
    stored(&mut raw, 8).await;
    assert_eq!(cursor(&server).await, 4, "5 is still down");
    raw.send(recall([5])).await;
    assert_eq!(raw.event().await, 5);
    raw.send(acknowledgement(5)).await;
    stored(&mut raw, 5).await;
    assert_eq!((cursor(&server).await, progress().await.ahead.is_empty()), (8, true));
}

#[tokio::test]
async fn what_retention_took_meanwhile_is_missed() {
    let server = with_pushes("retention-count = 2", 2).await;
    let mut raw = open_narrow(&server, &[]).await;
    assert_eq!((raw.event().await, raw.event().await), (1, 2));
    raw.send(deferral([1, 2])).await;
    Sender::new(&server).push("delivery-3").await;
    assert_eq!(raw.event().await, 3);
    raw.send(recall([1])).await;
    let missed = loop {
        match raw.next().await.unwrap() {
            Response::Missed(missed) => break (missed.first, missed.last),
            Response::Event(event) => panic!("event {}", event.sequence),
            _ => {}
        }
    };
    assert_eq!(missed, (1, 1));
    raw.send(recall([2])).await;
    assert_eq!(raw.event().await, 2);
    for sequence in [2, 3] {
        raw.send(acknowledgement(sequence)).await;
    }
    stored(&mut raw, 3).await;
    assert_eq!(cursor(&server).await, 3, "what is gone holds nobody");
}

#[tokio::test]
async fn not_everything_can_be_put_down() {
    let server = TestServer::start("").await;
    for number in 0..=MAX_DEFERRED as u64 {
        server.store.append(testing::webhook(number, "octo-harbor/lighthouse", 1)).await.unwrap();
    }
    let mut raw = subscribe(&server, "a").await;
    let status = loop {
        match raw.next().await {
            Ok(Response::Event(event)) => raw.send(deferral([event.sequence])).await,
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let all = Subscription { deferred: (1..=MAX_DEFERRED as u64 + 1).collect(), ..subscription("b") };
    let status = open(&server, Some(TOKEN), Some(Wire::Subscription(all))).await.err().expect("a refusal");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn a_cursor_passes_what_is_not_selected() {
    let server = TestServer::start("heartbeat-interval = \"20ms\"").await;
    let pings = Subscription { events: vec!["ping".into()], ..subscription("a") };
    let mut raw = open(&server, Some(TOKEN), Some(Wire::Subscription(pings))).await.unwrap();
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    let ping = r#"{"repository":{"id":537845873,"full_name":"octo-harbor/lighthouse"}}"#;
    assert_eq!(sender.send("ping", "delivery-2", ping).await.status(), StatusCode::CREATED);
    sender.push("delivery-3").await;
    assert_eq!(raw.event().await, 2);
    raw.send(acknowledgement(2)).await;
    let passed = async {
        while cursor(&server).await < 3 {
            tokio::task::yield_now().await;
        }
    };
    soon(passed).await;
    assert_eq!(*server.store.head().borrow(), Sequence::new(3));
}

#[tokio::test]
async fn what_is_unacknowledged_goes_to_the_stream_that_takes_over() {
    let server = with_pushes("", 3).await;
    let mut first = subscribe(&server, "a").await;
    assert_eq!((first.event().await, first.event().await, first.event().await), (1, 2, 3));
    first.send(acknowledgement(2)).await;
    stored(&mut first, 2).await;
    let mut second = subscribe(&server, "a").await;
    assert_eq!((second.event().await, second.event().await), (1, 3), "2 was acknowledged");
    let mut other = subscribe(&server, "b").await;
    assert_eq!((other.event().await, other.event().await, other.event().await), (1, 2, 3));
}

#[tokio::test]
async fn who_does_not_take_a_large_event_is_cut_off_before_others_starve() {
    // One event of these fits on its way.
    let server = TestServer::start("heartbeat-interval = \"50ms\"\noutgoing-limit = \"350KB\"").await;
    server.store.append(testing::webhook(1, "octo-harbor/lighthouse", 300_000)).await.unwrap();
    let narrow = Channel::from_shared(format!("http://{}", server.addresses.grpc)).unwrap();
    let narrow = narrow.initial_stream_window_size(1 << 16).connect().await.unwrap();
    let mut asleep =
        open_on(narrow, Some(TOKEN), Some(Wire::Subscription(subscription("asleep")))).await.unwrap();
    assert!(matches!(asleep.next().await, Ok(Response::Started(_))));
    // Started was read, and nothing since: the window of its HTTP/2 is full before the event is there.
    let mut awake = subscribe(&server, "awake").await;
    assert_eq!(awake.event().await, 1, "its turn comes");
    let ended = async {
        while let Ok(message) = asleep.next().await {
            assert!(!matches!(message, Response::GoAway(_)), "{message:?}");
        }
    };
    soon(ended).await;
}

#[tokio::test]
async fn what_retention_takes_before_the_first_acknowledgement_is_missed() {
    let server = with_pushes("retention-count = 2", 1).await;
    let mut raw = open_narrow(&server, &[]).await;
    assert_eq!(raw.event().await, 1);
    drop(raw);
    let sender = Sender::new(&server);
    for number in 2..=4 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let mut raw = open_narrow(&server, &[]).await;
    let Response::Started(_) = raw.next().await.unwrap() else { panic!("Started comes first") };
    let Response::Missed(missed) = raw.next().await.unwrap() else { panic!("it is told first") };
    assert_eq!((missed.first, missed.last), (1, 2));
    assert_eq!(raw.event().await, 3);
}
