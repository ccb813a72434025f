//! kill -9 under load: every webhook that was answered 201 arrives, byte for byte, in order, and the next start needs
//! no help.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::StatusCode;

use crate::programs::Program;
use crate::support::{Sender, TestClient, TestTarget, options, payload};

/// How often the server is killed.
const ROUNDS: usize = 5;
/// How many senders there are at once.
const SENDERS: usize = 8;

/// Sends until the server is gone; returns what was answered 201, by delivery id.
async fn send_until_gone(url: String, round: usize, sender: usize) -> BTreeMap<String, String> {
    let http = Sender::to(url);
    let mut accepted = BTreeMap::new();
    for number in 0.. {
        let id = format!("{round}-{sender}-{number}");
        let payload = payload(&format!("{id} {}", "x".repeat(number * 37 % 5000)));
        let request =
            crate::support::hook(gitstafette_core::testing::Format::Json).request("push", &id, &payload);
        match http.request(&request).await {
            Ok(answer) if answer.status() == StatusCode::CREATED => {
                accepted.insert(id, payload);
            }
            Ok(answer) => panic!("{id}: {}", answer.status()),
            Err(_) => break,
        }
    }
    accepted
}

#[tokio::test]
async fn what_was_answered_201_arrives_whenever_the_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut accepted = BTreeMap::new();
    for round in 0..ROUNDS {
        let program = Program::start(folder.path(), &[]).await;
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| tokio::spawn(send_until_gone(program.http.clone(), round, sender)))
            .collect();
        // At another moment of the load each time: the moment is what is random here.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..400))).await;
        program.kill_9().await;
        for sender in senders {
            accepted.extend(sender.await.unwrap());
        }
    }
    assert!(accepted.len() > ROUNDS, "there was load");

    let program = Program::start(folder.path(), &[]).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(program.grpc, target.target()));
    let mut missing: BTreeSet<_> = accepted.keys().cloned().collect();
    let mut arrived = BTreeSet::new();
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    while !missing.is_empty() {
        let webhook = target.next().await;
        let id = webhook.delivery_id().to_owned();
        assert!(arrived.insert(id.clone()), "{id} is doubled");
        // What was not answered before the kill may be there or not, but never in part.
        if let Some(payload) = accepted.get(&id) {
            assert_eq!(webhook.body, payload.as_bytes(), "{id}");
        }
        missing.remove(&id);
        let (sender, number) = id.rsplit_once('-').unwrap();
        let number = number.parse().unwrap();
        let before = last.insert(sender.to_owned(), number);
        assert!(before.is_none_or(|before| before < number), "{id} came after {before:?}");
    }
    client.stop().await;
}
