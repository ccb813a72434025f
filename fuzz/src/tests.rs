//! Feeds the seeds to the targets: so that seeds and targets stay usable where nobody runs the fuzzer.

use std::fs;
use std::path::Path;

use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{Event, SubscribeRequest, SubscribeResponse};
use prost::Message;

use crate::{convert, filter, payload, sessions, webhook};

/// The seeds of a target with their names.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let seeds: Vec<_> = fs::read_dir(&folder)
        .expect("every target has seeds")
        .map(|file| file.expect("a file").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("a file that can be read")))
        .collect();
    assert!(!seeds.is_empty(), "{}", folder.display());
    seeds
}

#[test]
fn webhooks_hold() {
    for (_, seed) in seeds("webhook") {
        webhook::run(&seed);
    }
}

#[test]
fn payloads_hold() {
    for (_, seed) in seeds("payload") {
        payload::run(&seed);
    }
}

#[test]
fn filters_hold() {
    for (_, seed) in seeds("filter") {
        filter::run(&seed);
    }
}

#[test]
fn conversions_hold() {
    for (_, seed) in seeds("convert") {
        convert::run(&seed);
    }
}

#[test]
fn sessions_hold() {
    let events: usize = seeds("sessions").iter().map(|(_, seed)| sessions::run(seed)).sum();
    assert!(events > 0, "the seeds make the server send events");
}

#[test]
fn the_messages_among_the_seeds_are_taken_in() {
    for (name, seed) in seeds("convert") {
        if name.ends_with("event") {
            convert::event(Event::decode(&*seed).expect(&name)).expect(&name);
        } else if name.contains("subscription") || name.contains("acknowledgements") {
            match SubscribeRequest::decode(&*seed).expect(&name).request.expect(&name) {
                Request::Subscription(wire) => drop(convert::subscription(wire).expect(&name)),
                Request::Acknowledgements(wire) => {
                    assert!(!wire.acknowledgements.is_empty(), "{name}");
                    for wire in wire.acknowledgements {
                        convert::acknowledgement(wire).expect(&name);
                    }
                }
                Request::Deferral(_) | Request::Recall(_) | Request::FirstAttempts(_) => {}
            }
        } else if let Response::Event(wire) =
            SubscribeResponse::decode(&*seed).expect(&name).response.expect(&name)
        {
            convert::event(wire).expect(&name);
        }
    }
}
