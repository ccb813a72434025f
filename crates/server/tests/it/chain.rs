//! Chains of server programs: killed with -9 under load, in a ring, over two ways, with a neighbour that is away, through
//! TLS. Every event ends exactly once in each store and at the target, in the order in which the first server took it.

mod load;
mod restoring;
mod station;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;

use crate::memory::{MOST, is_bounded};
use crate::relay::relay;
use crate::support::{Sender, TOKEN, TestClient, TestTarget, at_length, options, payload, soon};
use crate::tls::Authority;
use load::{Book, Load};
use station::{Order, Station, log_lines};

/// Short waits between tries.
const IMPATIENT: &str = "retry-first = \"20ms\"";

fn pushing(to: &Station, name: &str) -> String {
    relay("push", name, to.grpc(), IMPATIENT)
}

fn pulling(from: &Station, name: &str) -> String {
    relay("pull", name, from.grpc(), IMPATIENT)
}

/// A number of events in an order.
fn count(order: &Order) -> usize {
    order.values().map(Vec::len).sum()
}

/// Sends to the first station under load, kills the one at `victim` again and again, and follows what arrives at a client
/// of the last. In the end every station has everything once, in the order of the first.
async fn survive(mut stations: Vec<Station>, victim: usize) {
    let (events, kills) = at_length((400, 3), (10_000, 10));
    let started = Instant::now();
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(stations.last().unwrap().grpc(), target.target()));
    let load = Load::start(&stations[0].url(), "d", events, events / 4);
    let (mut book, mut killed) = (Book::new(), 0);
    for arrived in 1..=events {
        if let Err(doubled) = book.next(&mut target).await {
            let stories = stations.iter().map(|station| (station.name(), story(&station.log(), &doubled)));
            panic!("{doubled} is doubled: {:#?}", stories.collect::<Vec<_>>());
        }
        load.arrived();
        // By what has arrived, and not by time: so there is always something on its way when it dies.
        if killed < kills && arrived == (killed + 1) * events / (kills + 1) {
            stations[victim].kill_9().await;
            stations[victim].start().await;
            killed += 1;
        }
    }
    load.sent().await;
    for station in &stations {
        station.settled(events).await;
    }
    let elapsed = started.elapsed().as_secs();
    assert!(target.is_quiet(), "nothing comes twice");
    client.stop().await;
    for station in &mut stations {
        station.stop().await;
    }
    let accepted = stations[0].stored().await;
    assert_eq!(count(&accepted), events);
    assert_eq!(*book.order(), accepted, "what arrived");
    for station in &stations[1..] {
        assert!(station.stored().await == accepted, "{} has others, or in another order", station.name());
    }
    let repeats: Vec<_> = stations[1..]
        .iter()
        .map(|station| (station.name(), station.logged("event of another server is a repeat")))
        .collect();
    println!("{events} events, {killed} kills, {elapsed} s; repeats, not stored again: {repeats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_pushes_survives_kills_of_its_middle() {
    let last = Station::running("last", "").await;
    let middle = Station::running("middle", &pushing(&last, "last")).await;
    let edge = Station::running("edge", &pushing(&middle, "middle")).await;
    survive(vec![edge, middle, last], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_pulls_survives_kills_of_its_middle() {
    let edge = Station::running("edge", "").await;
    let middle = Station::running("middle", &pulling(&edge, "edge")).await;
    let last = Station::running("last", &pulling(&middle, "middle")).await;
    survive(vec![edge, middle, last], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ways_survive_kills_of_one() {
    let last = Station::running("last", "").await;
    let left = Station::running("left", &pushing(&last, "last")).await;
    let right = Station::running("right", &pushing(&last, "last")).await;
    let ways = pushing(&left, "left") + &pushing(&right, "right");
    let edge = Station::running("edge", &ways).await;
    survive(vec![edge, left, right, last], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_circulates_in_a_ring() {
    let each = at_length(60, 1_000);
    let names = ["a", "b", "c"];
    let mut ring = Vec::new();
    for name in names {
        ring.push(Station::new(name).await);
    }
    for at in 0..3 {
        ring[at].configure(&pushing(&ring[(at + 1) % 3], names[(at + 1) % 3]));
        ring[at].start().await;
    }
    let loads: Vec<_> =
        ring.iter().zip(names).map(|(station, name)| Load::start(&station.url(), name, each, each)).collect();
    for load in loads {
        load.sent().await;
    }
    // When all cursors stand at their heads, nobody has anything to hand on.
    for station in &ring {
        station.settled(3 * each).await;
    }
    for station in &ring {
        assert_eq!(station.relayed("stored").await, 2 * each as u64, "of the two others");
        assert_eq!(station.relayed("loop").await, each as u64, "its own come back once");
        assert_eq!(station.relayed("repeat").await, 0);
        assert_eq!(station.metric("gitstafette_store_events").await, 3 * each as u64);
    }
    for station in &mut ring {
        station.stop().await;
    }
    let mut stored = Vec::new();
    for station in &ring {
        assert_eq!(station.logged("event of another server dropped"), each);
        stored.push(station.stored().await);
    }
    // What entered at one has the same order everywhere.
    for name in names {
        let of = |order: &Order| {
            let mut order = order.clone();
            order.values_mut().for_each(|ids| ids.retain(|id| id.starts_with(&format!("{name}-"))));
            order
        };
        assert_eq!(count(&of(&stored[0])), each);
        assert!(of(&stored[0]) == of(&stored[1]) && of(&stored[1]) == of(&stored[2]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_is_away_costs_the_edge_no_memory() {
    // More than the process may take.
    let (events, bytes) = at_length((130, 1 << 20), (3_000, 60_000));
    let minute = at_length(Duration::ZERO, Duration::from_secs(60));
    let mut away = Station::new("away").await;
    let mut edge = Station::running("edge", &pushing(&away, "away")).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(edge.grpc(), target.target()));
    let sender = Sender::to(edge.url());
    let started = Instant::now();
    for number in 0..events {
        let text = payload(&"x".repeat(bytes));
        let answer = sender.send("push", &format!("d-{number}"), &text).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let arrived = target.next().await;
        assert_eq!(arrived.delivery_id(), format!("d-{number}"), "its own client is served meanwhile");
        assert_eq!(arrived.body.len(), text.len());
        // At length, spread over the minute.
        tokio::time::sleep_until((started + minute * number / events).into()).await;
    }
    let state = edge.relays().await.remove(0);
    assert_eq!((&state["connected"], &state["lag"]), (&false.into(), &events.into()));
    is_bounded(edge.program(), MOST);
    away.start().await;
    away.settled(events as usize).await;
    edge.settled(events as usize).await;
    is_bounded(edge.program(), MOST);
    is_bounded(away.program(), MOST);
    println!("{events} events of {bytes} bytes, {} s", started.elapsed().as_secs());
    client.stop().await;
    edge.stop().await;
    away.stop().await;
    assert!(away.stored().await == edge.stored().await);
}

/// What is logged about an event.
fn story(log: &[Value], delivery_id: &str) -> BTreeSet<String> {
    let of_it = log.iter().filter(|line| line["delivery.id"] == delivery_id);
    of_it.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

/// On one thread, so that the client's log is apart from those of other tests.
#[tokio::test]
async fn the_logs_tell_an_events_whole_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("client.log");
    let file = std::sync::Arc::new(std::fs::File::create(&path).unwrap());
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(file).finish();
    let logging = tracing::subscriber::set_default(subscriber);

    let mut last = Station::running("last", "").await;
    let mut middle = Station::running("middle", &pushing(&last, "last")).await;
    let mut edge = Station::running("edge", &pushing(&middle, "middle")).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(last.grpc(), target.target()));
    let sender = Sender::to(edge.url());
    for id in ["before", "followed", "after"] {
        sender.push(id).await;
    }
    assert_eq!(target.next_ids(3).await, ["before", "followed", "after"]);
    for station in [&edge, &middle, &last] {
        station.settled(3).await;
    }
    client.stop().await;
    drop(logging);
    for station in [&mut edge, &mut middle, &mut last] {
        station.stop().await;
    }

    // A line is written when its writer gets to it: what follows from a store may be logged a little before the store.
    let messages =
        [edge.log(), middle.log(), last.log(), log_lines(&path)].map(|log| story(&log, "followed"));
    let expected = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(messages[0], expected(&["webhook stored", "delivered"]));
    assert_eq!(messages[1], expected(&["event of another server stored", "delivered"]));
    assert_eq!(messages[2], expected(&["event of another server stored"]));
    assert_eq!(messages[3], expected(&["delivered"]));
    // A relay's lines say which it is, and where to.
    let line = edge.log().into_iter().find(|line| line["message"] == "delivered").unwrap();
    assert_eq!(line["span"]["relay.name"], "push.middle", "{line}");
    assert_eq!(line["target.name"], middle.grpc().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_over_tls_loses_nothing() {
    let authority = Authority::new();
    let identity = authority.sign("last");
    // The certificate is for this address.
    let mut last = Station::at("last", std::net::Ipv4Addr::LOCALHOST.into()).await;
    last.configure(&format!(
        "publisher-token = \"the right one\"\ncert-file-location = {:?}\ncert-key-file-location = {:?}\n",
        identity.certificate, identity.key
    ));
    last.start().await;
    let mut edge = Station::new("edge").await;
    let tls = format!("secure = true\nca-file-location = {:?}\n{IMPATIENT}", authority.ca());
    let with_token = |token: &str| relay("push", "last", last.grpc(), &tls).replace(TOKEN, token);
    edge.configure(&with_token("a wrong one"));
    edge.start().await;
    let sender = Sender::to(edge.url());
    for number in 0..20 {
        sender.push(&format!("d-{number}")).await;
    }
    let refused = async {
        loop {
            let state = edge.relays().await.remove(0);
            if let Some(error) = state["lastError"].as_str() {
                return (error.to_owned(), state);
            }
            tokio::time::sleep(Duration::from_millis(10)).await; // from outside there is nothing to wait on
        }
    };
    let (error, state) = soon(refused).await;
    assert!(error.contains("PermissionDenied") || error.contains("Unauthenticated"), "{error}");
    assert_eq!((&state["lag"], &state["deadLetters"]), (&20.into(), &0.into()));
    assert_eq!(last.metric("gitstafette_store_events").await, 0);

    edge.stop().await;
    edge.configure(&with_token("the right one"));
    edge.start().await;
    last.settled(20).await;
    edge.settled(20).await;
    for station in [&mut edge, &mut last] {
        station.stop().await;
    }
    let stored = last.stored().await;
    assert_eq!(count(&stored), 20);
    assert_eq!(stored, edge.stored().await);
}
