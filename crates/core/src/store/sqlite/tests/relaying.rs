//! What came through other servers, on the disk.

use super::*;
use crate::hop::{Hop, Hops};

fn relayed(number: u64, origin: u64) -> Webhook {
    let hop = Hop {
        store: StoreId::new(u64::MAX - 1),
        server: "edge".into(),
        sequence: Sequence::new(origin),
        received_at: Timestamp::from_millis(5),
        redelivery: false,
    };
    let mut webhook = testing::webhook(number, HELLO, 10);
    webhook.facts.hops = Hops::new(vec![hop]);
    webhook
}

#[tokio::test]
async fn origins_survive_reopening() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let sent = [relayed(1, 1), relayed(2, 2), testing::webhook(3, HELLO, 10)];
    for webhook in &sent {
        store.append(webhook.clone()).await.unwrap();
    }
    store.acknowledge(&client(), vec![acknowledgement(Sequence::new(2))], Sequence::new(2)).await.unwrap();
    store.close().await;

    let store = open(&folder);
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    assert_eq!(page.events.iter().map(|event| event.webhook.clone()).collect::<Vec<_>>(), sent);
    let repeat = Appended::Repeat { sequence: Sequence::new(2) };
    assert_eq!(store.append(relayed(2, 2)).await.unwrap(), repeat);
    store.close().await;
    let without =
        "SELECT count(*) FROM events WHERE hops IS NULL AND origin_store IS NULL AND origin_sequence IS NULL";
    let without = shell(&folder).query_row(without, (), |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(without, 1, "nothing is kept for one without hops");
}

#[tokio::test]
async fn an_origin_is_found_by_an_index() {
    let folder = TempDir::new().unwrap();
    open(&folder).close().await;
    let explain = format!("EXPLAIN QUERY PLAN {}", statements::OF_ORIGIN);
    let plan = shell(&folder)
        .query_row(&explain, (1, 9, "delivery", "hook", "source"), |row| row.get::<_, String>(3))
        .unwrap();
    let found = "SEARCH events USING INDEX events_by_origin (origin_store=? AND origin_sequence=?)";
    assert_eq!(plan, found);
}

#[tokio::test]
async fn one_group_sees_its_own_origins() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let held = hold_up(&store).await;
    let mut answers = Vec::new();
    for webhook in [relayed(1, 1), relayed(2, 1), relayed(1, 1), relayed(2, 1), relayed(3, 2)] {
        let webhook = Box::new(webhook);
        answers.push(store.queue.offer(|answer| Task::Append { webhook, answer }).await.unwrap());
    }
    drop(held);
    let mut sequences = Vec::new();
    for answer in answers {
        sequences.push(answer.await.unwrap().unwrap().sequence().get());
    }
    assert_eq!(sequences, [1, 2, 1, 2, 3]);
}

#[tokio::test]
async fn damaged_hops_count_as_none() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    for number in 1..=3 {
        store.append(relayed(number, number)).await.unwrap();
    }
    store.acknowledge(&client(), vec![acknowledgement(Sequence::new(2))], Sequence::ZERO).await.unwrap();
    store.close().await;
    shell(&folder).execute("UPDATE events SET hops = x'0102' WHERE sequence = 2", ()).unwrap();
    let store = open(&folder);
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    let hops: Vec<_> = page.events.iter().map(|event| event.webhook.facts.hops.iter().len()).collect();
    assert_eq!((hops, page.damaged), (vec![1, 0, 1], vec![]));
    assert_eq!(store.list(&Listing::default()).await.unwrap().entries.len(), 3);
    // Where it came from is kept beside them.
    let repeat = Appended::Repeat { sequence: Sequence::new(2) };
    assert_eq!(store.append(relayed(2, 2)).await.unwrap(), repeat);
}
