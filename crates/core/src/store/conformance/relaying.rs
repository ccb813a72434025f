//! What came through other servers.

use std::sync::Arc;

use serde_json::json;

use super::{HELLO, acknowledgement, append, client, read_all, sequences_after, until_holds};
use crate::event::{Address, Event, Sequence, Timestamp, Webhook};
use crate::filter::Filter;
use crate::hop::{Hop, Hops, MAX_HOPS};
use crate::repository::RepositoryId;
use crate::store::{Appended, Entry, EventStore, Listing, StoreId};
use crate::testing;

/// The server with this store, where the event is number `sequence`.
fn hop(store: u64, sequence: u64) -> Hop {
    Hop {
        store: StoreId::new(store),
        server: format!("server-{store}").into(),
        sequence: Sequence::new(sequence),
        received_at: Timestamp::from_millis(1_700_000_000_000 + sequence),
        redelivery: false,
    }
}

/// Test webhook `number` as it comes by way of these servers.
fn relayed(number: u64, hops: Vec<Hop>) -> Webhook {
    let mut webhook = testing::webhook(number, HELLO, 1000);
    webhook.facts.hops = Hops::new(hops);
    webhook
}

async fn take(store: &impl EventStore, number: u64, hops: Vec<Hop>) -> Appended {
    store.append(relayed(number, hops)).await.expect("the append")
}

async fn deliver(store: &impl EventStore, sequence: Sequence) {
    let reported = vec![acknowledgement(sequence)];
    store.acknowledge(&client("a"), reported, sequence).await.expect("the acknowledgement");
}

async fn events(store: &impl EventStore) -> Vec<Arc<Event>> {
    read_all(store, Sequence::ZERO, &Filter::default()).await
}

/// Also a store that drops redeliveries: a repeat is none.
pub(super) async fn stores_an_origin_once(store: &impl EventStore) {
    let first = take(store, 1, vec![hop(7, 1)]).await;
    let Appended::Stored { sequence, redelivery: false } = first else { panic!("{first:?}") };
    let repeat = Appended::Repeat { sequence };
    assert_eq!(take(store, 1, vec![hop(7, 1)]).await, repeat);
    assert_eq!(take(store, 1, vec![hop(7, 1), hop(8, 5)]).await, repeat, "it came another way");
    deliver(store, sequence).await;
    assert_eq!(take(store, 1, vec![hop(7, 1)]).await, repeat, "whatever was reported of it");
    let marked = Hop { redelivery: true, ..hop(7, 1) };
    assert_eq!(take(store, 1, vec![marked]).await, repeat, "however it is marked");
    // Only both make an origin, and only the first server does.
    for (number, hops) in [(2, vec![hop(7, 2)]), (3, vec![hop(8, 1)]), (4, vec![hop(9, 9), hop(7, 1)])] {
        let other = take(store, number, hops).await;
        assert!(matches!(other, Appended::Stored { redelivery: false, .. }), "{number}: {other:?}");
    }
    assert_eq!(sequences_after(store, Sequence::ZERO).await.len(), 4);
}

/// A store that was restored from a backup counts on from there: other events have origins that are known. Also one that
/// drops redeliveries: these are none.
pub(super) async fn tells_events_of_one_origin_apart(store: &impl EventStore) {
    let mut stored = Vec::new();
    for number in 1..=3 {
        let appended = take(store, number, vec![hop(7, 1)]).await;
        let Appended::Stored { sequence, redelivery: false } = appended else {
            panic!("{number}: {appended:?}")
        };
        stored.push(sequence);
    }
    let mut of_another_hook = relayed(1, vec![hop(7, 1)]);
    of_another_hook.facts.hook_id = Some("9".parse().expect("a valid id"));
    let appended = store.append(of_another_hook).await.expect("the append");
    assert!(matches!(appended, Appended::Stored { redelivery: false, .. }), "{appended:?}");
    for (number, sequence) in (1..).zip(stored) {
        let repeat = Appended::Repeat { sequence };
        assert_eq!(take(store, number, vec![hop(7, 1)]).await, repeat, "{number} is pending");
        deliver(store, sequence).await;
        assert_eq!(
            take(store, number, vec![hop(7, 1), hop(8, 1)]).await,
            repeat,
            "{number} is known by both"
        );
    }
    assert_eq!(sequences_after(store, Sequence::ZERO).await.len(), 4);
}

pub(super) async fn answers_concurrent_origins_alike(store: &impl EventStore) {
    let (a, b, c, d) = tokio::join!(
        take(store, 1, vec![hop(7, 1)]),
        take(store, 1, vec![hop(7, 1), hop(8, 1)]),
        take(store, 2, vec![hop(7, 1)]),
        take(store, 1, vec![hop(7, 1), hop(9, 1)]),
    );
    let same = [a, b, d];
    let stored = same.iter().filter(|appended| matches!(appended, Appended::Stored { .. })).count();
    assert_eq!(stored, 1, "{same:?}");
    assert!(same.iter().all(|appended| appended.sequence() == a.sequence()), "{same:?}");
    assert!(matches!(c, Appended::Stored { .. }), "{c:?}");
    assert_eq!(sequences_after(store, Sequence::ZERO).await.len(), 2);
}

pub(super) async fn carries_a_redelivery_over(store: &impl EventStore) {
    let marked = |store, sequence| Hop { redelivery: true, ..hop(store, sequence) };
    let cases = [
        (1, vec![marked(7, 1)], true),
        (2, vec![hop(7, 2), marked(8, 1)], true),
        (3, vec![marked(7, 3), hop(8, 2)], false),
    ];
    let mut expected = Vec::new();
    for (number, hops, wanted) in cases {
        let appended = take(store, number, hops).await;
        let Appended::Stored { sequence, redelivery } = appended else { panic!("{appended:?}") };
        assert_eq!(redelivery, wanted, "what the last server says of {number}");
        expected.push((sequence, redelivery));
    }
    let events = events(store).await;
    let stored: Vec<_> = events.iter().map(|event| (event.sequence, event.redelivery)).collect();
    assert_eq!(stored, expected);
}

/// Whichever of them came from where, an event with another origin or none is judged by its identity.
pub(super) async fn judges_other_origins_by_identity(store: &impl EventStore) {
    let ways = [
        (vec![], vec![hop(7, 1)]),
        (vec![hop(7, 2)], vec![]),
        (vec![hop(7, 3)], vec![hop(7, 4)]),
        (vec![hop(7, 5)], vec![hop(8, 5)]),
        (vec![hop(7, 6)], vec![Hop { redelivery: true, ..hop(7, 7) }]),
    ];
    for (number, (first, second)) in (1..).zip(ways) {
        let first = take(store, number, first).await.sequence();
        let repeat = Appended::Repeat { sequence: first };
        assert_eq!(take(store, number, second.clone()).await, repeat, "{number} is pending");
        deliver(store, first).await;
        let again = take(store, number, second).await;
        assert!(matches!(again, Appended::Stored { redelivery: true, .. }), "{number}: {again:?}");
    }
}

/// The store drops redeliveries.
pub(super) async fn drops_other_origins_if_told(store: &impl EventStore) {
    let first = append(store, 1).await.sequence();
    deliver(store, first).await;
    assert_eq!(take(store, 1, vec![hop(7, 1)]).await, Appended::Repeat { sequence: first });
    // What was delivered elsewhere is new here.
    let marked = take(store, 2, vec![Hop { redelivery: true, ..hop(7, 2) }]).await;
    assert!(matches!(marked, Appended::Stored { redelivery: true, .. }), "{marked:?}");
}

pub(super) async fn a_copy_begins_here(store: &impl EventStore) {
    let first = take(store, 1, vec![hop(7, 1), hop(8, 1)]).await.sequence();
    let copy = store.redeliver(first, Address::default()).await.expect("the redelivery");
    let copy = copy.expect("the event is there");
    let second = store.redeliver(copy, Address::default()).await.expect("the redelivery");
    let all = events(store).await;
    assert_eq!(all[0].webhook, relayed(1, vec![hop(7, 1), hop(8, 1)]), "that stays as it came");
    for (event, sequence) in all[1..].iter().zip([Some(copy), second]) {
        assert_eq!((Some(event.sequence), event.redelivery), (sequence, true));
        assert_eq!(event.webhook, relayed(1, Vec::new()));
    }
    deliver(store, copy).await;
    assert_eq!(take(store, 1, vec![hop(7, 1)]).await, Appended::Repeat { sequence: first });
}

/// The store keeps one event.
pub(super) async fn forgets_a_removed_origin(store: &impl EventStore) {
    let first = take(store, 1, vec![hop(7, 1)]).await.sequence();
    let copy = store.redeliver(first, Address::default()).await.expect("the redelivery");
    until_holds(store, 1).await;
    assert_eq!(sequences_after(store, Sequence::ZERO).await, Vec::from_iter(copy), "the copy is there");
    for way in [vec![hop(7, 1)], vec![hop(7, 1), hop(8, 1)]] {
        let again = take(store, 1, way.clone()).await;
        let Appended::Stored { sequence, redelivery: false } = again else { panic!("{again:?}") };
        assert_eq!(take(store, 1, way).await, Appended::Repeat { sequence });
        append(store, 2).await;
        until_holds(store, 1).await;
    }
}

pub(super) async fn keeps_every_hop(store: &impl EventStore) {
    let extreme = |number: u64, server: &str| Hop {
        store: StoreId::new(number),
        server: server.into(),
        sequence: Sequence::new(number),
        received_at: Timestamp::from_millis(number),
        redelivery: number.is_multiple_of(2),
    };
    let long = (0..=MAX_HOPS as u64).map(|at| extreme(u64::MAX - at, &"ü".repeat(at as usize)));
    let ways = [
        long.collect(),
        vec![extreme(0, ""), extreme(u64::MAX, "Straße 🚢"), extreme(1 << 63, "東京-1"), extreme(127, "a")],
        vec![extreme(128, "one")],
        Vec::new(),
    ];
    assert_eq!(ways[0].len(), 33);
    let sent: Vec<_> = (1..).zip(ways).map(|(number, way)| relayed(number, way)).collect();
    for webhook in &sent {
        store.append(webhook.clone()).await.expect("the append");
    }
    let events = events(store).await;
    assert_eq!(events.iter().map(|event| event.webhook.clone()).collect::<Vec<_>>(), sent);
    for webhook in &sent[..3] {
        let again = store.append(webhook.clone()).await.expect("the append");
        assert!(matches!(again, Appended::Repeat { .. }), "{again:?}");
    }
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!(statistics.bytes, sent.iter().map(Webhook::size).sum::<u64>(), "hops do not count");

    let listed = store.list(&Listing::default()).await.expect("the listing").entries;
    let entries: Vec<_> = events.iter().rev().map(|event| Entry::new(event, Vec::new())).collect();
    assert_eq!(listed, entries);
    let hops = |entry: &Entry| serde_json::to_value(entry).expect("it can be written")["hops"].take();
    assert_eq!(hops(&listed[0]), json!([]));
    let one = json!([{
        "store": "0000000000000080",
        "server": "one",
        "sequence": 128,
        "receivedAt": "1970-01-01T00:00:00.128Z",
        "redelivery": true,
    }]);
    assert_eq!(hops(&listed[1]), one);
}

/// The store keeps four events.
pub(super) async fn counts_by_repository(store: &impl EventStore) {
    let page = async |from, limit| store.counts(RepositoryId(from), limit).await.expect("the counts");
    let counts = async || page(0, 100).await;
    assert_eq!(counts().await, []);
    let ids = [Some(5), Some(u64::MAX), None, Some(5), Some(1 << 63), Some(5), Some(0)];
    let mut sequences = Vec::new();
    for (number, id) in (0..).zip(ids) {
        if number == 4 {
            assert_eq!(counts().await, [(RepositoryId(5), 2), (RepositoryId(u64::MAX), 1)]);
        }
        let mut webhook = relayed(number, vec![hop(7, number)]);
        webhook.facts.repository_id = id.map(RepositoryId);
        sequences.push(store.append(webhook).await.expect("the append").sequence());
    }
    until_holds(store, 4).await;
    let of = |id| (RepositoryId(id), 1);
    assert_eq!(counts().await, [of(0), (RepositoryId(5), 2), of(1 << 63)]);
    assert_eq!(page(0, 1).await, [of(0)]);
    assert_eq!(page(1, 2).await, [(RepositoryId(5), 2), of(1 << 63)]);
    assert_eq!(page(6, 2).await, [of(1 << 63)]);
    assert_eq!(page((1 << 63) + 1, 2).await, []);
    // A copy is an event as well.
    store.redeliver(sequences[6], Address::default()).await.expect("the redelivery");
    until_holds(store, 4).await;
    assert_eq!(counts().await, [(RepositoryId(0), 2), of(5), of(1 << 63)]);
}
