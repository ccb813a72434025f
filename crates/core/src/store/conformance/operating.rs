//! What operators ask and do: listings, redelivery, cursors, the watchlist.

use super::{
    HELLO, acknowledgement, append, append_to, client, fill, filter, outcome, read_all, until_holds,
};
use crate::event::{Address, Sequence, Timestamp};
use crate::filter::Filter;
use crate::repository::RepositoryPattern;
use crate::store::{
    Acknowledgement, Appended, EventStore, Fate, FateFilter, Listed, Listing, Order, WatchlistChange,
};
use crate::target::OutcomeResult;

async fn list(store: &impl EventStore, listing: Listing) -> Listed {
    store.list(&listing).await.expect("the listing")
}

async fn sequences(store: &impl EventStore, listing: Listing) -> Vec<Sequence> {
    list(store, listing).await.entries.iter().map(|entry| entry.sequence).collect()
}

fn oldest_first() -> Listing {
    Listing { order: Order::OldestFirst, ..Listing::default() }
}

fn of(fate: Fate, target: Option<&str>) -> Listing {
    let fate = FateFilter { fate, client: None, target: target.map(Into::into) };
    Listing { fate: Some(fate), ..oldest_first() }
}

/// Client `a` reports one outcome of an event at a target.
async fn report(store: &impl EventStore, sequence: Sequence, target: &str, result: OutcomeResult) {
    let reported = vec![Acknowledgement { sequence, outcomes: vec![outcome(target, result)] }];
    store.acknowledge(&client("a"), reported, Sequence::ZERO).await.expect("the acknowledgement");
}

async fn redeliver(store: &impl EventStore, sequence: Sequence, address: &Address) -> Option<Sequence> {
    store.redeliver(sequence, address.clone()).await.expect("the redelivery")
}

pub(super) async fn lists_page_by_page_in_both_orders(store: &impl EventStore) {
    let all = fill(store, 0..5).await;
    let mut newest = Vec::new();
    let mut listing = Listing { limit: 2, ..Listing::default() };
    loop {
        let page = list(store, listing.clone()).await;
        assert!(page.entries.len() <= 2);
        newest.extend(page.entries.iter().map(|entry| entry.sequence));
        let Some(next) = page.next else { break };
        listing.last = next;
    }
    assert_eq!(newest, all.iter().rev().copied().collect::<Vec<_>>());
    let page = list(store, Listing { first: all[1], last: all[3], limit: 2, ..oldest_first() }).await;
    assert_eq!(page.next, Some(all[3]));
    let rest = sequences(store, Listing { first: all[3], last: all[3], ..oldest_first() }).await;
    assert_eq!(rest, [all[3]]);
    let entry = &page.entries[0];
    let event = &read_all(store, all[0], &Filter::default()).await[0];
    assert_eq!((&entry.facts, entry.size), (&event.webhook.facts, event.webhook.size()));
    assert!(entry.reports.is_empty() && !entry.redelivery && entry.address == Address::default());
    assert!(list(store, Listing { first: all[4].next(), ..oldest_first() }).await.entries.is_empty());
}

pub(super) async fn lists_what_is_selected(store: &impl EventStore) {
    let hello = append(store, 1).await.sequence();
    let other = append_to(store, 2, "octo/other").await.sequence();
    let third = append(store, 3).await.sequence();
    let by = |filter| Listing { filter, ..oldest_first() };
    assert_eq!(sequences(store, by(filter("octo/other"))).await, [other]);
    assert_eq!(sequences(store, by(filter(HELLO))).await, [hello, third]);
    let delivery_id = Some("delivery-3".parse().expect("an id"));
    assert_eq!(sequences(store, Listing { delivery_id, ..oldest_first() }).await, [third]);
    let received_since = Some(Timestamp::from_millis(1_700_000_000_002));
    assert_eq!(sequences(store, Listing { received_since, ..oldest_first() }).await, [other, third]);
}

pub(super) async fn lists_by_fate(store: &impl EventStore) {
    let all = fill(store, 0..4).await;
    report(store, all[0], "jenkins", OutcomeResult::Delivered).await;
    report(store, all[1], "jenkins", OutcomeResult::Failed).await;
    report(store, all[1], "argo", OutcomeResult::Failed).await;
    report(store, all[2], "none", OutcomeResult::Filtered).await;
    assert_eq!(sequences(store, of(Fate::Pending, None)).await, [all[3]]);
    assert_eq!(sequences(store, of(Fate::Delivered, None)).await, [all[0]]);
    assert_eq!(sequences(store, of(Fate::DeadLetter, None)).await, [all[1]], "once, whatever the targets");
    assert_eq!(sequences(store, of(Fate::DeadLetter, Some("argo"))).await, [all[1]]);
    assert!(sequences(store, of(Fate::DeadLetter, Some("elsewhere"))).await.is_empty());
    assert_eq!(sequences(store, of(Fate::Filtered, None)).await, [all[2]]);
    let elsewhere = FateFilter { fate: Fate::Pending, client: Some(client("b")), target: None };
    assert_eq!(sequences(store, Listing { fate: Some(elsewhere), ..oldest_first() }).await, all);
    let entry = list(store, of(Fate::DeadLetter, None)).await.entries.remove(0);
    assert_eq!(entry.reports, store.reports(all[1]).await.expect("the reports"));
}

pub(super) async fn redelivers_the_same_bytes(store: &impl EventStore) {
    let all = fill(store, 0..2).await;
    let address = Address { client: Some(client("a")), target: Some("jenkins".into()) };
    let new = redeliver(store, all[0], &address).await.expect("it is there");
    assert!(new > all[1]);
    assert_eq!(*store.head().borrow(), new);
    let events = read_all(store, Sequence::ZERO, &Filter::default()).await;
    let (first, last) = (&events[0], &events[2]);
    assert_eq!((last.sequence, &last.webhook), (new, &first.webhook));
    assert!(last.redelivery && last.address == address && !first.redelivery);
    assert_eq!(redeliver(store, new.next(), &Address::default()).await, None, "it is not there");
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!((statistics.events, statistics.bytes), (3, 3 * first.webhook.size()));
    let again = append(store, 7).await.sequence();
    assert!(again > new);
    assert_eq!(read_all(store, all[1], &Filter::default()).await.len(), 2);
}

pub(super) async fn marks_the_dead_letters_that_are_redelivered(store: &impl EventStore) {
    let all = fill(store, 0..1).await;
    report(store, all[0], "jenkins", OutcomeResult::Failed).await;
    report(store, all[0], "argo", OutcomeResult::Failed).await;
    let to_argo = Address { client: None, target: Some("argo".into()) };
    let new = redeliver(store, all[0], &to_argo).await;
    let reports = store.reports(all[0]).await.expect("the reports");
    let marks: Vec<_> =
        reports.iter().map(|report| (&*report.outcome.target, report.redelivered_as)).collect();
    assert_eq!(marks, [("argo", new), ("jenkins", None)]);
    assert_eq!(sequences(store, of(Fate::DeadLetter, Some("jenkins"))).await, all);
    assert!(sequences(store, of(Fate::DeadLetter, Some("argo"))).await.is_empty());
    redeliver(store, all[0], &Address::default()).await;
    assert!(sequences(store, of(Fate::DeadLetter, None)).await.is_empty());
    let reports = store.reports(all[0]).await.expect("the reports");
    assert_eq!(reports[0].redelivered_as, new, "the first second try stays");
}

pub(super) async fn keeps_redeliveries_out_of_identities(store: &impl EventStore) {
    let first = append(store, 0).await.sequence();
    let new = redeliver(store, first, &Address::default()).await.expect("it is there");
    assert_eq!(
        append(store, 0).await,
        Appended::Repeat { sequence: first },
        "nobody has reported an outcome"
    );
    store
        .acknowledge(&client("a"), vec![acknowledgement(new)], Sequence::ZERO)
        .await
        .expect("the acknowledgement");
    assert_eq!(append(store, 0).await, Appended::Repeat { sequence: first }, "of the sender's own");
    store
        .acknowledge(&client("a"), vec![acknowledgement(first)], Sequence::ZERO)
        .await
        .expect("the acknowledgement");
    redeliver(store, first, &Address::default()).await;
    let again = append(store, 0).await;
    assert!(matches!(again, Appended::Stored { redelivery: true, .. }), "{again:?}");
}

pub(super) async fn tells_every_cursor(store: &impl EventStore) {
    let all = fill(store, 0..3).await;
    assert_eq!(store.cursors().await.expect("the cursors"), []);
    for (name, cursor) in [("b", all[1]), ("a", all[2])] {
        store.seek(&client(name), cursor).await.expect("the seek");
    }
    let expected = [(client("a"), all[2]), (client("b"), all[1])];
    assert_eq!(store.cursors().await.expect("the cursors"), expected);
}

pub(super) async fn keeps_changes_of_the_watchlist(store: &impl EventStore) {
    let pattern = |text: &str| text.parse::<RepositoryPattern>().expect("a pattern");
    let change = async |text: &str, change| {
        store.change_watchlist(&pattern(text), change).await.expect("the change");
    };
    change("octo/hello", Some(WatchlistChange::Added)).await;
    change("7", Some(WatchlistChange::Added)).await;
    change("cat/*", Some(WatchlistChange::Removed)).await;
    change("7", Some(WatchlistChange::Removed)).await;
    change("octo/hello", None).await;
    change("never/there", None).await;
    let mut changes = store.watchlist_changes().await.expect("the changes");
    changes.sort_by_key(|(pattern, _)| pattern.to_string());
    let removed = |text| (pattern(text), WatchlistChange::Removed);
    assert_eq!(changes, [removed("7"), removed("cat/*")]);
}

/// The store keeps three events.
pub(super) async fn says_how_far_it_removed(store: &impl EventStore) {
    let all = fill(store, 0..3).await;
    let read = async |after| {
        let limit = crate::store::ReadLimit { events: 10, bytes: u64::MAX };
        store.read(after, &Filter::default(), limit).await.expect("the read")
    };
    let page = read(Sequence::ZERO).await;
    assert_eq!(page.removed_to, all[0].previous());
    let more = fill(store, 3..8).await;
    until_holds(store, 3).await;
    let statistics = store.statistics().await.expect("the statistics");
    assert_eq!((statistics.removed, statistics.removed_to()), (5, more[1]));
    for after in [Sequence::ZERO, all[1], more[1], more[4]] {
        assert_eq!(read(after).await.removed_to, more[1], "after {after}");
    }
    assert_eq!(read(Sequence::ZERO).await.events[0].sequence, more[2]);
}
