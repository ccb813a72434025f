//! Attacks with the token of an operator, or of a client where clients are operators.

use std::time::Duration;

use bytes::Bytes;
use gitstafette_proto::v1::{FollowEventsRequest, ListEventsRequest, ShowEventBodyRequest, ShowEventRequest};
use tokio::task::JoinSet;

use super::attacker::{Call, Connection, message, raw_message};
use super::server::Attacked;
use crate::memory::fill;

/// How long an attack lasts once all of it is there.
const LASTING: Duration = Duration::from_secs(4);
const MIB: usize = 1 << 20;

/// Makes so many calls on each of some connections and reads no answer.
async fn call(
    server: &Attacked,
    connections: usize,
    calls: usize,
    method: &str,
    request: Bytes,
) -> Vec<(Connection, Vec<Call>)> {
    let mut opening = JoinSet::new();
    for _ in 0..connections {
        let path = format!("/gitstafette.v1.Gitstafette/{method}");
        let (address, request) = (server.grpc(), request.clone());
        opening.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut held = Vec::new();
            for _ in 0..calls {
                let call = connection.client_call(&path, request.clone());
                let Ok(Some(mut call)) = tokio::time::timeout(LASTING, call).await else { break };
                drop(call.request.send_data(Bytes::new(), true));
                held.push(call);
            }
            Some((connection, held))
        });
    }
    opening.join_all().await.into_iter().flatten().collect()
}

async fn attack(sizes: &[usize], calls: usize, method: &str, request: Bytes) {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), sizes).await;
    let server = Attacked::start_in(folder, &[]).await;
    let held = call(&server, 4, calls, method, request).await;
    server.hold(LASTING).await;
    drop(held);
    server.end().await;
}

#[tokio::test]
async fn shown_events_that_are_not_read() {
    let request = message(&ShowEventRequest { sequence: 1 });
    attack(&[7 * MIB], 50, "ShowEvent", request).await;
}

#[tokio::test]
async fn shown_bodies_that_are_not_read() {
    let request = message(&ShowEventBodyRequest { sequence: 1 });
    attack(&[7 * MIB], 50, "ShowEventBody", request).await;
}

#[tokio::test]
async fn listings_that_are_not_read() {
    let request = message(&ListEventsRequest { limit: 1000, ..ListEventsRequest::default() });
    attack(&[1000; 2000], 200, "ListEvents", request).await;
}

#[tokio::test]
async fn followers_that_do_not_read() {
    let request = message(&FollowEventsRequest::default());
    attack(&[1000; 10], 200, "FollowEvents", request).await;
}

#[tokio::test]
async fn other_answers_that_are_not_read() {
    let server = Attacked::start(&[]).await;
    for method in ["ListSubscriptions", "ShowStatistics", "ListWatchlist", "ListRelays"] {
        let held = call(&server, 4, 200, method, raw_message(&[])).await;
        server.hold(LASTING / 4).await;
        drop(held);
    }
    server.end().await;
}
