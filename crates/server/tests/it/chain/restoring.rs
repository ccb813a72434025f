//! Chains of server programs whose middle loses its store: it is set back to an older copy, or emptied. Every event reaches the
//! last server all the same, in the order in which the first one took it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::IntoResponse;
use http::StatusCode;

use super::load::Load;
use super::station::Station;
use super::{count, pulling, pushing};
use crate::support::{Sender, TestClient, TestTarget, at_length, options};

/// What becomes of the middle's store.
#[derive(Clone, Copy, Debug)]
enum Fault {
    SetBack,
    Emptied,
}

/// Sends events and waits until the station has so many.
async fn load(edge: &Station, prefix: &'static str, events: usize, station: &Station, total: usize) {
    Load::start(&edge.url(), prefix, events, events).sent().await;
    station.holds(total).await;
}

/// The last server lags while the middle loses what it took meanwhile.
async fn survive(mut edge: Station, mut middle: Station, mut last: Station, fault: Fault) {
    let events = at_length(60, 1500);
    load(&edge, "before", events, &last, events).await;
    edge.settled(events).await;
    middle.settled(events).await;
    middle.stop().await;
    let copy = middle.copy_store();
    middle.start().await;

    last.stop().await;
    load(&edge, "lost", events, &middle, 2 * events).await;
    edge.settled(2 * events).await;
    middle.kill_9().await;
    match fault {
        Fault::SetBack => middle.restore_store(&copy),
        Fault::Emptied => middle.empty_store(),
    }
    middle.start().await;
    // No new event is needed: the middle is filled again by itself.
    middle.holds(2 * events).await;
    last.start().await;
    load(&edge, "after", events, &last, 3 * events).await;
    for station in [&edge, &middle, &last] {
        station.settled(3 * events).await;
    }
    for station in [&mut edge, &mut middle, &mut last] {
        station.stop().await;
    }
    let accepted = edge.stored().await;
    assert_eq!(count(&accepted), 3 * events);
    for station in [&middle, &last] {
        assert!(station.stored().await == accepted, "{} has others, or in another order", station.name());
    }
}

async fn chain_that_pulls() -> (Station, Station, Station) {
    let edge = Station::running("edge", "").await;
    let middle = Station::running("middle", &pulling(&edge, "edge")).await;
    let last = Station::running("last", &pulling(&middle, "middle")).await;
    (edge, middle, last)
}

async fn chain_that_pushes() -> (Station, Station, Station) {
    let last = Station::running("last", "").await;
    let middle = Station::running("middle", &pushing(&last, "last")).await;
    let edge = Station::running("edge", &pushing(&middle, "middle")).await;
    (edge, middle, last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_that_pulls_is_filled_again_when_it_was_set_back() {
    let (edge, middle, last) = chain_that_pulls().await;
    survive(edge, middle, last, Fault::SetBack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_that_pulls_is_filled_again_when_it_was_emptied() {
    let (edge, middle, last) = chain_that_pulls().await;
    survive(edge, middle, last, Fault::Emptied).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_that_is_pushed_to_is_filled_again_when_it_was_set_back() {
    let (edge, middle, last) = chain_that_pushes().await;
    survive(edge, middle, last, Fault::SetBack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_that_is_pushed_to_is_filled_again_when_it_was_emptied() {
    let (edge, middle, last) = chain_that_pushes().await;
    survive(edge, middle, last, Fault::Emptied).await;
}

/// The edge is set back, and so gives new events the numbers of those that the others have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_events_under_old_numbers_pass_a_chain() {
    for pushes in [false, true] {
        let (mut edge, mut middle, mut last) =
            if pushes { chain_that_pushes().await } else { chain_that_pulls().await };
        load(&edge, "before", 30, &last, 30).await;
        edge.settled(30).await;
        edge.stop().await;
        let copy = edge.copy_store();
        edge.start().await;
        load(&edge, "lost", 30, &last, 60).await;
        edge.settled(60).await;
        edge.kill_9().await;
        edge.restore_store(&copy);
        edge.start().await;
        load(&edge, "after", 30, &last, 90).await;
        for station in [&middle, &last] {
            station.settled(90).await;
        }
        for station in [&mut edge, &mut middle, &mut last] {
            station.stop().await;
        }
        assert_eq!(count(&edge.stored().await), 60);
        let stored = middle.stored().await;
        assert_eq!(count(&stored), 90, "pushes: {pushes}");
        assert!(last.stored().await == stored);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_client_gets_new_events_under_the_numbers_of_old_ones() {
    let is_up = Arc::new(AtomicBool::new(true));
    let answer = {
        let is_up = Arc::clone(&is_up);
        move |_| {
            let is_up = is_up.load(Ordering::SeqCst);
            if is_up { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }.into_response()
        }
    };
    let mut target = TestTarget::answering(answer).await;
    let mut server = Station::running("server", "").await;
    let client = TestClient::start(options(server.grpc(), target.target()));
    let sender = Sender::to(server.url());
    sender.push("first").await;
    assert_eq!(target.next_ids(1).await, ["first"]);
    server.stop().await;
    let copy = server.copy_store();
    server.start().await;

    // The client has these in hand, and the server forgets them.
    is_up.store(false, Ordering::SeqCst);
    for number in 0..10 {
        sender.push(&format!("lost-{number}")).await;
    }
    assert_eq!(target.next_ids(1).await, ["lost-0"]);
    let mut state = client.state.clone();
    crate::support::soon(state.wait_for(|state| state.waiting == 10)).await.unwrap();
    server.kill_9().await;
    server.restore_store(&copy);
    server.start().await;
    for number in 0..10 {
        sender.push(&format!("new-{number}")).await;
    }
    is_up.store(true, Ordering::SeqCst);
    let mut arrived = Vec::new();
    while arrived.last().is_none_or(|last| last != "new-9") {
        arrived.push(target.next().await.delivery_id().to_owned());
    }
    arrived.dedup(); // by retries
    arrived.retain(|id| id != "first"); // its acknowledgement may have come too late for the copy
    let expected: Vec<_> = ["lost", "new"]
        .iter()
        .flat_map(|name| (0..10).map(move |number| format!("{name}-{number}")))
        .collect();
    assert_eq!(arrived, expected, "the known ones first, then the new ones");
    client.stop().await;
    server.stop().await;
}
