//! Writes the seeds of the target `convert`, which no editor can: `cargo run --example seeds` in this folder.

use std::path::Path;
use std::{fs, io};

use gitstafette_core::event::{Address, Event, Sequence};
use gitstafette_core::testing;
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::subscription::Start;
use gitstafette_proto::v1::{
    Acknowledgement, Acknowledgements, GoAway, Heartbeat, Latest, Outcome, OutcomeResult, Receipt, Run,
    Started, SubscribeRequest, SubscribeResponse, Subscription,
};
use prost::Message;
use prost_types::{Duration, Timestamp};

const AT: Timestamp = Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 };
const TOOK: Duration = Duration { seconds: 1, nanos: 500_000 };

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/convert");
    let requests = [
        ("subscription", Request::Subscription(subscription(None))),
        ("subscription-after", Request::Subscription(subscription(Some(Start::AfterSequence(9))))),
        ("subscription-since", Request::Subscription(subscription(Some(Start::ReceivedSince(AT))))),
        ("subscription-latest", Request::Subscription(subscription(Some(Start::Latest(Latest {}))))),
        ("acknowledgements", Request::Acknowledgements(acknowledgements())),
    ];
    for (name, request) in requests {
        fs::write(folder.join(name), SubscribeRequest { request: Some(request) }.encode_to_vec())?;
    }
    let event = Event {
        sequence: Sequence::new(7),
        redelivery: true,
        address: Address {
            client: Some("home".parse().expect("an id")),
            targets: vec!["jenkins:8080".into()],
        },
        webhook: testing::webhook(7, "octo/hello", 20),
    };
    let started = Started {
        server_name: "harbour".into(),
        cursor: 6,
        head: 7,
        heartbeat_interval: Some(TOOK),
        store_id: "00000000000000ff".into(),
        max_unacknowledged_events: 256,
        max_unacknowledged_bytes: 32 << 20,
        run_id: "00000000000000aa".into(),
        common_sequence: Some(5),
        runs: runs(),
    };
    let responses = [
        ("started", Response::Started(started)),
        ("event-response", Response::Event((&event).into())),
        ("heartbeat", Response::Heartbeat(Heartbeat { head: 7, cursor: 6 })),
        ("receipt", Response::Receipt(Receipt { sequences: vec![6, 7] })),
        ("go-away", Response::GoAway(GoAway { reason: 1, message: "reconnect".into() })),
    ];
    for (name, response) in responses {
        fs::write(folder.join(name), SubscribeResponse { response: Some(response) }.encode_to_vec())?;
    }
    let mut event = gitstafette_proto::v1::Event::from(&event);
    event.action = Some("opened".into());
    event.installation_id = Some(5);
    fs::write(folder.join("event"), event.encode_to_vec())
}

fn subscription(start: Option<Start>) -> Subscription {
    Subscription {
        client_id: "homelab".into(),
        repositories: vec!["7".into(), "octo/*".into(), "octo/hello".into()],
        events: vec!["push".into(), "pull_request.opened".into()],
        start,
        max_unacknowledged_events: 5,
        max_unacknowledged_bytes: 1000,
        keep_cursor: true,
        deferred: vec![3, 9],
        store_id: "00000000000000ff".into(),
        run_id: "00000000000000aa".into(),
        seen_sequence: Some(7),
        runs: runs(),
    }
}

fn runs() -> Vec<Run> {
    vec![Run { run_id: "00000000000000aa".into(), start_sequence: 4 }]
}

fn acknowledgements() -> Acknowledgements {
    let outcome = |target: &str, result: OutcomeResult| Outcome {
        target: target.into(),
        result: result.into(),
        code: 200,
        attempts: 2,
        duration: Some(TOOK),
        at: Some(AT),
        detail: "OK".into(),
    };
    let outcomes = vec![
        outcome("jenkins", OutcomeResult::Delivered),
        outcome("flux", OutcomeResult::Failed),
        outcome("argo", OutcomeResult::Filtered),
    ];
    Acknowledgements {
        acknowledgements: vec![
            Acknowledgement { sequence: 7, outcomes: outcomes.clone() },
            Acknowledgement { sequence: 9, outcomes },
        ],
    }
}
