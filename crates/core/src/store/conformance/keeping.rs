//! Retention, totals, the end.

use super::{
    ALL, HELLO, acknowledgement, append, client, fill, outcome, read_all, sequences_after, until_holds,
};
use crate::event::{Address, Sequence, Timestamp};
use crate::filter::Filter;
use crate::repository::{RepositoryId, RepositoryPattern};
use crate::store::{Acknowledgement, Appended, EventStore, Listing, ReadLimit, Statistics, StoreError};
use crate::target::{Outcome, OutcomeResult};
use crate::testing;

/// The store keeps three events.
pub(super) async fn by_count(store: &impl EventStore) {
    let all = fill(store, 0..10).await;
    until_holds(store, 3).await;
    assert_eq!(sequences_after(store, Sequence::ZERO).await, all[7..], "the oldest go first");
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!((statistics.first, statistics.head, statistics.removed), (all[7], all[9], 7));
}

/// The store keeps 5,000 bytes, and one webhook has a good thousand.
pub(super) async fn by_bytes(store: &impl EventStore) {
    let all = fill(store, 0..10).await;
    until_holds(store, 4).await;
    assert_eq!(sequences_after(store, Sequence::ZERO).await, all[6..]);
    assert!(store.statistics().await.expect("the statistics").bytes <= 5_000);
}

/// The store keeps 50,000 bytes, and ten webhooks have a fifth of that.
pub(super) async fn by_bytes_of_outcomes(store: &impl EventStore) {
    let all = fill(store, 0..10).await;
    let only_events = store.statistics().await.expect("the statistics").bytes;
    for sequence in &all {
        let outcomes = (0..30).map(|number| Outcome {
            detail: "x".repeat(1000),
            ..outcome(&format!("target-{number}"), OutcomeResult::Failed)
        });
        let reported = vec![Acknowledgement { sequence: *sequence, outcomes: outcomes.collect() }];
        store.acknowledge(&client("a"), reported, Sequence::ZERO).await.expect("the acknowledgement");
    }
    until_holds(store, 3).await;
    assert_eq!(sequences_after(store, Sequence::ZERO).await, all[7..], "the oldest go first");
    let bytes = store.statistics().await.expect("the statistics").bytes;
    assert!(bytes <= 50_000 && bytes > only_events, "{bytes}");
    // Without outcomes there is room for as many events as before.
    fill(store, 10..50).await;
    until_holds(store, 40).await;
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!(statistics.bytes, events.iter().map(|event| event.webhook.size()).sum::<u64>());
}

/// The store keeps ten bytes.
pub(super) async fn one_event_may_exceed_the_bytes(store: &impl EventStore) {
    let all = fill(store, 0..3).await;
    until_holds(store, 1).await;
    assert_eq!(sequences_after(store, Sequence::ZERO).await, all[2..]);
}

/// The store keeps nothing for longer than no time at all.
pub(super) async fn by_age(store: &impl EventStore) {
    let first = append(store, 0).await.sequence();
    until_holds(store, 0).await;
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!((statistics.bytes, statistics.first, statistics.head), (0, Sequence::ZERO, first));
    assert_eq!(*store.head().borrow(), first, "the head stays");
    assert!(sequences_after(store, Sequence::ZERO).await.is_empty());
    let second = append(store, 1).await.sequence();
    assert!(second > first, "a sequence is never used again");
    until_holds(store, 0).await;
    assert_eq!(store.before(Timestamp::default()).await.expect("the answer"), second);
}

/// The store keeps one event.
pub(super) async fn forgets_all_about_a_removed_event(store: &impl EventStore) {
    let (name, first) = (client("a"), append(store, 0).await.sequence());
    store
        .acknowledge(&name, vec![acknowledgement(first)], Sequence::ZERO)
        .await
        .expect("the acknowledgement");
    let second = append(store, 1).await.sequence();
    until_holds(store, 1).await;
    assert_eq!(store.reports(first).await.expect("the reports"), []);
    let progress = store.progress(&name).await.expect("the progress").expect("a cursor");
    assert!(progress.ahead.is_empty(), "it can never be sent again");

    // Its acknowledgement comes late, together with one that counts.
    let late = vec![acknowledgement(first), acknowledgement(second)];
    store.acknowledge(&name, late, Sequence::ZERO).await.expect("no error");
    assert_eq!(store.reports(first).await.expect("the reports"), []);
    assert_eq!(store.reports(second).await.expect("the reports").len(), 1);
    let progress = store.progress(&name).await.expect("the progress").expect("a cursor");
    assert_eq!(progress.ahead, [second].into_iter().collect());

    let again = append(store, 0).await;
    assert!(
        matches!(again, Appended::Stored { redelivery: false, .. }),
        "its identity is forgotten: {again:?}"
    );
}

/// The store keeps three events.
pub(super) async fn forgets_what_is_ahead_and_removed(store: &impl EventStore) {
    let all = fill(store, 0..3).await;
    for name in ["a", "b"] {
        let done = all.iter().copied().map(acknowledgement).collect();
        store.acknowledge(&client(name), done, Sequence::ZERO).await.expect("the acknowledgement");
    }
    for removed in 1..=3 {
        fill(store, [2 + removed as u64]).await;
        until_holds(store, 3).await;
        for name in ["a", "b"] {
            let progress = store.progress(&client(name)).await.expect("the progress").expect("a cursor");
            assert_eq!(progress.ahead, all[removed..].iter().copied().collect());
        }
    }
}

/// The store keeps three events. Whoever reads can tell what was removed before they came to it.
pub(super) async fn says_what_was_removed(store: &impl EventStore) {
    let read = async |after| {
        let limit = ReadLimit { events: 1, bytes: u64::MAX };
        store.read(after, &Filter::default(), limit).await.expect("the read")
    };
    let all = fill(store, 0..3).await;
    assert!(read(Sequence::ZERO).await.removed_to < all[0], "nothing yet");
    let more = fill(store, 3..8).await;
    until_holds(store, 3).await;
    for after in [Sequence::ZERO, all[0], more[1], more[2], more[4]] {
        let removed_to = read(after).await.removed_to;
        assert!((more[1]..more[2]).contains(&removed_to), "after {after}: {removed_to}");
    }
    let page = read(Sequence::ZERO).await;
    assert_eq!(page.events[0].sequence, more[2], "the read goes on with what is there");
}

pub(super) async fn counts_what_it_holds(store: &impl EventStore) {
    let empty = store.statistics().await.expect("the statistics");
    assert_eq!(Statistics { disk_bytes: 0, ..empty }, Statistics { writable: true, ..Statistics::default() });
    let all = fill(store, [0, 1, 1, 2]).await;
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!(statistics.events, 3);
    assert_eq!(statistics.bytes, events.iter().map(|event| event.webhook.size()).sum::<u64>());
    assert_eq!((statistics.first, statistics.head), (all[0], all[3]));
    assert_eq!((statistics.removed, statistics.writable), (0, true));
}

pub(super) async fn closes(store: &impl EventStore) {
    let sequence = append(store, 0).await.sequence();
    let mut head = store.head();
    head.mark_unchanged();
    store.close().await;
    store.close().await;
    assert!(head.changed().await.is_err(), "who waits for the head wakes");
    assert_eq!(*head.borrow(), sequence);

    let name = client("a");
    let closed =
        |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Closed)), "{result:?}");
    closed(store.append(testing::webhook(1, HELLO, 1)).await.map(drop));
    closed(store.read(Sequence::ZERO, &Filter::default(), ALL).await.map(drop));
    closed(store.before(Timestamp::default()).await.map(drop));
    closed(store.progress(&name).await.map(drop));
    closed(store.seek(&name, sequence).await);
    closed(store.acknowledge(&name, Vec::new(), sequence).await);
    closed(store.reports(sequence).await.map(drop));
    closed(store.list(&Listing::default()).await.map(drop));
    closed(store.redeliver(sequence, Address::default()).await.map(drop));
    closed(store.counts(RepositoryId(0), 1).await.map(drop));
    closed(store.cursors().await.map(drop));
    closed(store.watchlist_changes().await.map(drop));
    closed(store.change_watchlist(&RepositoryPattern::All, None).await);
    closed(store.statistics().await.map(drop));
}
