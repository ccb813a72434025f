//! Cursors, acknowledgements, outcomes, first attempts.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{acknowledgement, append, client, fill, outcome, report, until_holds};
use crate::event::Sequence;
use crate::outcomes::{MAX_DETAILS_BYTES, MAX_TARGETS, OTHER_TARGETS};
use crate::store::{Acknowledgement, EventStore, FirstAttempt, MAX_FIRST_ATTEMPTS};
use crate::subscription::Progress;
use crate::target::{Outcome, OutcomeResult};

async fn progress(store: &impl EventStore, name: &str) -> Option<Progress> {
    store.progress(&client(name)).await.expect("the progress")
}

async fn acknowledge(store: &impl EventStore, name: &str, sequences: &[Sequence], cursor: Sequence) {
    let acknowledgements = sequences.iter().copied().map(acknowledgement).collect();
    store.acknowledge(&client(name), acknowledgements, cursor).await.expect("the acknowledgement");
}

fn at(cursor: Sequence, ahead: &[Sequence]) -> Option<Progress> {
    Some(Progress { cursor, ahead: ahead.iter().copied().collect() })
}

pub(super) async fn a_new_client_has_none(store: &impl EventStore) {
    let all = fill(store, 0..3).await;
    assert_eq!(progress(store, "a").await, None);
    acknowledge(store, "a", &all[1..2], Sequence::ZERO).await;
    assert_eq!(progress(store, "a").await, at(Sequence::ZERO, &all[1..2]));
    assert_eq!(progress(store, "b").await, None, "each client has its own");
}

pub(super) async fn acknowledging_moves_forwards_only(store: &impl EventStore) {
    let all = fill(store, 0..5).await;
    acknowledge(store, "a", &all[..3], all[2]).await;
    assert_eq!(progress(store, "a").await, at(all[2], &[]));
    acknowledge(store, "a", &all[..1], all[0]).await;
    assert_eq!(progress(store, "a").await, at(all[2], &[]));
    acknowledge(store, "a", &[], all[4]).await;
    assert_eq!(progress(store, "a").await, at(all[4], &[]));
    acknowledge(store, "a", &[], all[4]).await;
    assert_eq!(progress(store, "a").await, at(all[4], &[]), "twice is as good as once");
}

pub(super) async fn keeps_what_is_done_ahead(store: &impl EventStore) {
    let all = fill(store, 0..6).await;
    acknowledge(store, "a", &[all[2], all[4]], Sequence::ZERO).await;
    acknowledge(store, "a", &[all[4], all[5]], all[0]).await;
    assert_eq!(progress(store, "a").await, at(all[0], &[all[2], all[4], all[5]]));
    acknowledge(store, "a", &[all[1], all[3]], all[4]).await;
    assert_eq!(progress(store, "a").await, at(all[4], &[all[5]]));
    // A late acknowledgement with an old cursor is measured by the cursor that is.
    acknowledge(store, "a", &[all[3]], all[1]).await;
    assert_eq!(progress(store, "a").await, at(all[4], &[all[5]]));
    acknowledge(store, "a", &[], all[5]).await;
    assert_eq!(progress(store, "a").await, at(all[5], &[]));
}

/// While one event is stuck, all others are done ahead of it, in whatever order.
pub(super) async fn keeps_ranges_of_what_is_ahead(store: &impl EventStore) {
    let all = fill(store, 0..60).await;
    let ahead = &all[1..];
    for step in [2, 3, 1] {
        let sequences: Vec<_> = ahead.iter().rev().step_by(step).copied().collect();
        for some in sequences.chunks(7) {
            acknowledge(store, "a", some, Sequence::ZERO).await;
        }
    }
    let kept = progress(store, "a").await.expect("a cursor");
    assert_eq!(Some(&kept), at(Sequence::ZERO, ahead).as_ref());
    let gaps = ahead.windows(2).filter(|pair| pair[0].next() < pair[1]).count();
    assert_eq!(kept.ahead.ranges(), 1 + gaps, "what follows each other is one");
    for passed in [0, 30, 58, 59] {
        acknowledge(store, "a", &[], all[passed]).await;
        assert_eq!(progress(store, "a").await, at(all[passed], &all[passed + 1..]));
    }
}

pub(super) async fn seeking_forgets_what_is_ahead(store: &impl EventStore) {
    let all = fill(store, 0..4).await;
    acknowledge(store, "a", &[all[1], all[3]], Sequence::ZERO).await;
    acknowledge(store, "b", &[all[3]], Sequence::ZERO).await;
    for cursor in [all[2], all[0], Sequence::ZERO, Sequence::MAX] {
        store.seek(&client("a"), cursor).await.expect("the seek");
        assert_eq!(progress(store, "a").await, at(cursor, &[]));
    }
    store.seek(&client("new"), all[1]).await.expect("the seek");
    assert_eq!(progress(store, "new").await, at(all[1], &[]));
    assert_eq!(progress(store, "b").await, at(Sequence::ZERO, &[all[3]]), "others are left alone");
}

pub(super) async fn keeps_outcomes_by_client_and_target(store: &impl EventStore) {
    let all = fill(store, 0..2).await;
    let delivered = outcome("jenkins", OutcomeResult::Delivered);
    let failed = outcome("argo", OutcomeResult::Failed);
    let mut filtered = outcome("argo", OutcomeResult::Filtered);
    filtered.code = None;
    let reported =
        vec![Acknowledgement { sequence: all[0], outcomes: vec![delivered.clone(), failed.clone()] }];
    store.acknowledge(&client("b"), reported, all[0]).await.expect("the acknowledgement");
    let reported = vec![Acknowledgement { sequence: all[0], outcomes: vec![filtered.clone()] }];
    store.acknowledge(&client("a"), reported, all[0]).await.expect("the acknowledgement");
    assert_eq!(
        store.reports(all[0]).await.expect("the reports"),
        [report("a", filtered), report("b", failed), report("b", delivered)]
    );
    assert_eq!(store.reports(all[1]).await.expect("the reports"), []);
    assert_eq!(store.reports(all[1].next()).await.expect("the reports"), [], "of an event that is not there");
}

pub(super) async fn a_second_report_replaces_the_first(store: &impl EventStore) {
    let all = fill(store, 0..1).await;
    let first = outcome("jenkins", OutcomeResult::Failed);
    let mut second = outcome("jenkins", OutcomeResult::Delivered);
    second.code = None;
    second.attempts = 9;
    for outcome in [first, second.clone()] {
        let reported = vec![Acknowledgement { sequence: all[0], outcomes: vec![outcome] }];
        store.acknowledge(&client("a"), reported, all[0]).await.expect("the acknowledgement");
    }
    assert_eq!(store.reports(all[0]).await.expect("the reports"), [report("a", second)]);
}

pub(super) async fn stores_a_bounded_number_of_outcomes(store: &impl EventStore) {
    let (name, sequence) = (client("a"), append(store, 0).await.sequence());
    let failed = |number: u32| Outcome {
        detail: "x".repeat(3000),
        ..outcome(&format!("target-{number:03}"), OutcomeResult::Failed)
    };
    // All at once, one after the other, and again.
    let mut reports = vec![(0..100).map(failed).collect::<Vec<_>>()];
    reports.extend((0..100).map(|number| vec![failed(number)]));
    for outcomes in reports {
        let reported = vec![Acknowledgement { sequence, outcomes }];
        store.acknowledge(&name, reported, sequence).await.expect("no error");
        let stored = store.reports(sequence).await.expect("the reports");
        assert_eq!(stored.len(), MAX_TARGETS + 1);
        assert!(stored[0].outcome.target == OTHER_TARGETS && stored[1].outcome.target == "target-000");
        let text: usize = stored.iter().map(|report| report.outcome.detail.len()).sum();
        assert!(text <= MAX_DETAILS_BYTES + 3 * stored.len(), "{text}");
        assert!(stored.iter().all(|report| report.outcome.detail.ends_with('…')), "the cut is visible");
    }
    let bytes = store.statistics().await.expect("the statistics").bytes;
    assert!(bytes < 16 << 10, "what is replaced does not count twice: {bytes}");
    // Another client's are its own.
    let reported =
        vec![Acknowledgement { sequence, outcomes: vec![outcome("argo", OutcomeResult::Delivered)] }];
    store.acknowledge(&client("b"), reported, sequence).await.expect("the acknowledgement");
    let stored = store.reports(sequence).await.expect("the reports");
    assert_eq!(stored.last(), Some(&report("b", outcome("argo", OutcomeResult::Delivered))));
}

/// A cursor passes events that a subscription does not select, which nobody acknowledges.
pub(super) async fn passes_over_events_without_acknowledging(store: &impl EventStore) {
    let all = fill(store, 0..5).await;
    acknowledge(store, "a", &[], all[1]).await;
    assert_eq!(progress(store, "a").await, at(all[1], &[]), "a client without a cursor gets one");
    acknowledge(store, "a", &[all[2], all[4]], all[1]).await;
    acknowledge(store, "a", &[], all[3]).await;
    assert_eq!(progress(store, "a").await, at(all[3], &[all[4]]));
    acknowledge(store, "a", &[], all[0]).await;
    assert_eq!(progress(store, "a").await, at(all[3], &[all[4]]), "it never moves back");
    for passed in [all[0], all[1], all[3]] {
        assert_eq!(store.reports(passed).await.expect("the reports"), [], "nothing is said of {passed}");
    }
}

const ALL_EVENTS: RangeInclusive<Sequence> = Sequence::ZERO..=Sequence::new(u64::MAX >> 1);

/// What is recorded of a client's first attempts, without their ages.
async fn tried(store: &impl EventStore, name: &str) -> Vec<(Sequence, String)> {
    let first_attempts = store.first_attempts(&client(name), ALL_EVENTS).await.expect("the first attempts");
    let last = store.last_first_attempt(&client(name)).await.expect("the last first attempt");
    assert_eq!(last, first_attempts.last().map_or(Sequence::ZERO, |one| one.sequence));
    first_attempts.into_iter().map(|one| (one.sequence, one.target)).collect()
}

async fn record(store: &impl EventStore, name: &str, attempts: &[(Sequence, &str)], age: Duration) {
    let of = |(sequence, target): &(Sequence, &str)| FirstAttempt {
        sequence: *sequence,
        target: (*target).to_owned(),
        age,
    };
    let attempts = attempts.iter().map(of).collect();
    store.record_first_attempts(&client(name), attempts).await.expect("the record");
}

pub(super) async fn keeps_first_attempts_until_the_event_is_done(store: &impl EventStore) {
    let all = fill(store, 0..5).await;
    for name in ["a", "b"] {
        acknowledge(store, name, &[], Sequence::ZERO).await;
    }
    let attempts: Vec<_> = all.iter().flat_map(|sequence| [(*sequence, "x"), (*sequence, "y")]).collect();
    record(store, "a", &attempts, Duration::ZERO).await;
    record(store, "b", &attempts[..1], Duration::ZERO).await;
    let owned = |attempts: &[(Sequence, &str)]| -> Vec<_> {
        attempts.iter().map(|(sequence, target)| (*sequence, (*target).to_owned())).collect()
    };
    assert_eq!(tried(store, "a").await, owned(&attempts));
    acknowledge(store, "a", &[all[2]], all[0]).await;
    let left: Vec<_> = attempts.iter().filter(|(sequence, _)| ![all[0], all[2]].contains(sequence)).collect();
    assert_eq!(tried(store, "a").await, owned(&left.into_iter().copied().collect::<Vec<_>>()));
    assert_eq!(tried(store, "b").await, owned(&attempts[..1]), "each client has its own");
    let some = store.first_attempts(&client("a"), all[2]..=all[3]).await.expect("the first attempts");
    assert_eq!(some.iter().map(|one| one.sequence).collect::<Vec<_>>(), [all[3], all[3]]);
    store.seek(&client("a"), Sequence::ZERO).await.expect("the seek");
    assert_eq!(tried(store, "a").await, []);
    record(store, "b", &attempts[..1], Duration::ZERO).await;
    assert!(store.remove_client(&client("b")).await.expect("the removal"));
    assert_eq!(tried(store, "b").await, []);
    record(store, "a", &[(Sequence::new(1_000_000), "x")], Duration::ZERO).await;
    assert_eq!(tried(store, "a").await, [], "there is no such event");
    record(store, "c", &attempts, Duration::ZERO).await;
    assert_eq!(tried(store, "c").await, [], "the client has no cursor");
}

pub(super) async fn the_earliest_first_attempt_counts(store: &impl EventStore) {
    const PAUSE: Duration = Duration::from_millis(30);
    let all = fill(store, 0..1).await;
    acknowledge(store, "a", &[], Sequence::ZERO).await;
    let age =
        async || store.first_attempts(&client("a"), ALL_EVENTS).await.expect("the first attempts")[0].age;
    // Nothing was tried before it was accepted, whatever a client says.
    record(store, "a", &[(all[0], "x")], Duration::MAX).await;
    assert!(age().await < Duration::from_secs(3600), "{:?}", age().await);
    tokio::time::sleep(PAUSE).await;
    record(store, "a", &[(all[0], "x")], Duration::ZERO).await;
    // Stores count in milliseconds.
    assert!(age().await >= PAUSE - Duration::from_millis(2), "{:?}", age().await);
}

pub(super) async fn first_attempts_are_bounded(store: &impl EventStore) {
    let all = fill(store, 0..1).await;
    acknowledge(store, "a", &[], Sequence::ZERO).await;
    let names: Vec<_> = (0..MAX_FIRST_ATTEMPTS + 10).map(|number| format!("{number:05}")).collect();
    let attempts: Vec<_> = names.iter().map(|name| (all[0], name.as_str())).collect();
    record(store, "a", &attempts, Duration::ZERO).await;
    record(store, "a", &attempts[MAX_FIRST_ATTEMPTS..], Duration::ZERO).await;
    assert_eq!(tried(store, "a").await.len(), MAX_FIRST_ATTEMPTS);
}

/// For a store that keeps one event.
pub(super) async fn forgets_first_attempts_of_removed_events(store: &impl EventStore) {
    acknowledge(store, "a", &[], Sequence::ZERO).await;
    let first = fill(store, 0..1).await[0];
    record(store, "a", &[(first, "x")], Duration::ZERO).await;
    assert_eq!(tried(store, "a").await.len(), 1);
    fill(store, 1..3).await;
    until_holds(store, 1).await;
    assert_eq!(tried(store, "a").await, []);
}
