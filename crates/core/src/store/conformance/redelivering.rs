//! What an operator has delivered again.

use std::sync::Arc;
use std::task::Poll;

use super::{
    HELLO, append, append_hay, client, fill, outcome, read_all, report, sequences_after, until_holds,
};
use crate::event::{Address, Sequence};
use crate::filter::Filter;
use crate::store::{Acknowledgement, Appended, EventStore, Report};
use crate::target::{Outcome, OutcomeResult};
use crate::testing;

fn address(only_client: Option<&str>, target: Option<&str>) -> Address {
    Address { client: only_client.map(client), targets: target.map(Into::into).into_iter().collect() }
}

async fn redeliver(store: &impl EventStore, sequence: Sequence, address: Address) -> Sequence {
    let redelivered = store.redeliver(sequence, address).await.expect("the redelivery");
    redelivered.expect("the event is there")
}

async fn acknowledge(store: &impl EventStore, name: &str, sequence: Sequence, outcomes: Vec<Outcome>) {
    let reported = vec![Acknowledgement { sequence, outcomes }];
    store.acknowledge(&client(name), reported, sequence).await.expect("the acknowledgement");
}

/// Redelivers events in one go; the copies.
pub(in crate::store) async fn redeliver_together(
    store: &impl EventStore,
    sequences: &[Sequence],
) -> Vec<Option<Sequence>> {
    let mut calls: Vec<_> =
        sequences.iter().map(|sequence| store.redeliver(*sequence, Address::default())).collect();
    let mut copies = vec![None; calls.len()];
    let mut pending: Vec<_> = (0..calls.len()).collect();
    std::future::poll_fn(|context| {
        pending.retain(|at| match calls[*at].as_mut().poll(context) {
            Poll::Ready(copy) => {
                copies[*at] = copy.expect("the redelivery");
                false
            }
            Poll::Pending => true,
        });
        if pending.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    copies
}

pub(super) async fn keeps_the_order_of_the_calls<S: EventStore>(store: Arc<S>) {
    append_hay(&store, 500).await;
    let mut sequences = sequences_after(&*store, Sequence::ZERO).await;
    sequences.push(Sequence::MAX); // not there
    let copies = redeliver_together(&*store, &sequences).await;
    assert_eq!(copies[500], None);
    assert!(copies[..500].is_sorted_by(|one, other| one.is_some() && one < other), "{copies:?}");
}

pub(super) async fn appends_a_copy_for_those_addressed(store: &impl EventStore) {
    let sent = testing::webhook(1, HELLO, 70_000);
    let first = store.append(sent.clone()).await.expect("the append").sequence();
    let addresses = [
        address(Some("a"), Some("jenkins ci")),
        address(None, Some("argo")),
        address(Some("b"), None),
        Address::default(),
    ];
    let mut last = append(store, 2).await.sequence();
    for wanted in addresses {
        let mut head = store.head();
        head.mark_unchanged();
        let copy = redeliver(store, first, wanted.clone()).await;
        assert!(copy > last, "it has a sequence of its own");
        assert_eq!(*head.borrow_and_update(), copy, "who waits for the head hears of it");
        let events = read_all(store, last, &Filter::default()).await;
        let [event] = &events[..] else { panic!("one event: {events:?}") };
        assert_eq!((event.sequence, event.redelivery, &event.address), (copy, true, &wanted));
        assert_eq!(event.webhook, sent, "byte for byte");
        last = copy;
    }
    // A copy can be redelivered as well.
    let copy = redeliver(store, last, address(Some("c"), None)).await;
    let again = read_all(store, last, &Filter::default()).await;
    assert_eq!((again[0].sequence, &again[0].webhook), (copy, &sent));
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!(statistics.events, 7);
    assert_eq!(statistics.bytes, events.iter().map(|event| event.webhook.size()).sum::<u64>());
    assert!(events[..2].iter().all(|event| event.address == Address::default()));
}

pub(super) async fn does_not_find_what_is_not_there(store: &impl EventStore) {
    let first = append(store, 1).await.sequence();
    for sequence in [Sequence::ZERO, first.next(), Sequence::MAX] {
        assert_eq!(store.redeliver(sequence, Address::default()).await.expect("no error"), None);
    }
    assert_eq!(*store.head().borrow(), first);
}

pub(super) async fn marks_the_dead_letters_of_the_address(store: &impl EventStore) {
    let all = fill(store, 0..2).await;
    let failed = |target: &str| outcome(target, OutcomeResult::Failed);
    let delivered = outcome("shell", OutcomeResult::Delivered);
    let filtered = outcome("mail", OutcomeResult::Filtered);
    let of_a = vec![failed("argo"), failed("jenkins"), filtered.clone(), delivered.clone()];
    acknowledge(store, "a", all[0], of_a).await;
    acknowledge(store, "b", all[0], vec![failed("argo"), failed("jenkins")]).await;
    acknowledge(store, "a", all[1], vec![failed("argo")]).await;

    let marked = |client: &str, target: &str, copy: Option<Sequence>| Report {
        redelivered_as: copy,
        ..report(client, failed(target))
    };
    let one = redeliver(store, all[0], address(Some("a"), Some("argo"))).await;
    let jenkins = redeliver(store, all[0], address(None, Some("jenkins"))).await;
    let untouched = redeliver(store, all[0], address(Some("c"), None)).await;
    // What is marked stays as it is: its second try has a sequence already.
    let rest = redeliver(store, all[0], Address::default()).await;
    assert_eq!(
        store.reports(all[0]).await.expect("the reports"),
        [
            marked("a", "argo", Some(one)),
            marked("a", "jenkins", Some(jenkins)),
            report("a", filtered),
            report("a", delivered),
            marked("b", "argo", Some(rest)),
            marked("b", "jenkins", Some(jenkins)),
        ]
    );
    assert_eq!(store.reports(all[1]).await.expect("the reports"), [marked("a", "argo", None)]);
    assert_eq!(store.reports(untouched).await.expect("the reports"), [], "a copy begins anew");

    // It fails again, as the copy and as itself: both are dead letters that nobody has redelivered.
    acknowledge(store, "a", one, vec![failed("argo")]).await;
    acknowledge(store, "a", all[0], vec![failed("argo")]).await;
    for sequence in [one, all[0]] {
        let reports = store.reports(sequence).await.expect("the reports");
        assert_eq!(reports[0], marked("a", "argo", None));
    }
}

pub(super) async fn leaves_the_sender_s_next_alone(store: &impl EventStore) {
    let delivered = || vec![outcome("jenkins", OutcomeResult::Delivered)];
    for (number, address) in [(1, Address::default()), (2, address(Some("a"), None))] {
        let first = append(store, number).await.sequence();
        let copy = redeliver(store, first, address.clone()).await;
        acknowledge(store, "a", copy, delivered()).await;
        let repeat = append(store, number).await;
        assert_eq!(repeat, Appended::Repeat { sequence: first }, "only the copy was delivered");

        acknowledge(store, "a", first, delivered()).await;
        redeliver(store, first, address).await;
        let again = append(store, number).await;
        assert!(matches!(again, Appended::Stored { redelivery: true, .. }), "that is new: {again:?}");
    }
}

/// The store keeps one event.
pub(super) async fn outlives_what_it_copies(store: &impl EventStore) {
    let first = append(store, 0).await.sequence();
    let copy = redeliver(store, first, Address::default()).await;
    until_holds(store, 1).await;
    assert_eq!(store.redeliver(first, Address::default()).await.expect("no error"), None, "it is gone");
    let second = redeliver(store, copy, Address::default()).await;
    until_holds(store, 1).await;
    let again = append(store, 0).await;
    assert!(matches!(again, Appended::Stored { redelivery: false, .. }), "its identity is gone: {again:?}");
    assert!(again.sequence() > second);
}
