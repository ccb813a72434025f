//! What an operator sees and sets: listings, cursors, the watchlist.

use std::sync::Arc;

use super::{HELLO, append, append_hay, append_to, client, fill, filter, outcome};
use crate::event::{Address, Sequence, Timestamp};
use crate::filter::Filter;
use crate::repository::RepositoryPattern;
use crate::store::{Acknowledgement, Entry, EventStore, Fate, FateFilter, Listing, Order, WatchlistChange};
use crate::target::OutcomeResult;

/// Everything that a listing selects, page by page, with the number of pages.
async fn list_all(store: &impl EventStore, listing: &Listing) -> (Vec<Entry>, usize) {
    let (mut entries, mut pages, mut listing) = (Vec::new(), 0, listing.clone());
    loop {
        let page = store.list(&listing).await.expect("the listing");
        assert!(page.entries.len() <= listing.limit.max(1));
        pages += 1;
        entries.extend(page.entries);
        let Some(next) = page.next else { return (entries, pages) };
        match listing.order {
            Order::OldestFirst => {
                assert!(next > listing.first, "it gets on");
                listing.first = next;
            }
            Order::NewestFirst => {
                assert!(next < listing.last, "it gets on");
                listing.last = next;
            }
        }
    }
}

/// The sequences that a listing selects, which must be the same in both orders and whatever fits a page.
async fn listed(store: &impl EventStore, listing: &Listing) -> Vec<Sequence> {
    let mut found = Vec::new();
    for limit in [1, 2, 100] {
        let oldest = Listing { order: Order::OldestFirst, limit, ..listing.clone() };
        let newest = Listing { order: Order::NewestFirst, limit, ..listing.clone() };
        let sequences = |entries: Vec<Entry>| entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>();
        let forwards = sequences(list_all(store, &oldest).await.0);
        let mut backwards = sequences(list_all(store, &newest).await.0);
        backwards.reverse();
        assert_eq!(forwards, backwards, "pages of {limit}");
        found.push(forwards);
    }
    found.dedup();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

pub(super) async fn lists_what_is_there(store: &impl EventStore) {
    assert_eq!(list_all(store, &Listing::default()).await, (Vec::new(), 1));
    let all = fill(store, 0..5).await;
    let reported = vec![Acknowledgement {
        sequence: all[1],
        outcomes: vec![outcome("argo", OutcomeResult::Failed), outcome("jenkins", OutcomeResult::Delivered)],
    }];
    store.acknowledge(&client("a"), reported, all[1]).await.expect("the acknowledgement");
    let address = Address { client: Some(client("a")), targets: vec!["argo".into()] };
    let copy = store.redeliver(all[1], address).await.expect("the redelivery").expect("the event");
    let mut expected = Vec::new();
    for event in super::read_all(store, Sequence::ZERO, &Filter::default()).await {
        let reports = store.reports(event.sequence).await.expect("the reports");
        expected.push(Entry::new(&event, reports));
    }
    assert_eq!((expected.len(), expected[5].sequence), (6, copy));
    let oldest = Listing { order: Order::OldestFirst, ..Listing::default() };
    assert_eq!(list_all(store, &oldest).await.0, expected);
    expected.reverse();
    assert_eq!(list_all(store, &Listing::default()).await.0, expected, "the newest come first if not told");
    let pages = list_all(store, &Listing { limit: 4, ..Listing::default() }).await;
    assert_eq!(pages, (expected, 2));
}

pub(super) async fn lists_what_is_selected(store: &impl EventStore) {
    // As events of other hooks share the delivery id, so do redeliveries.
    let mut all = fill(store, 0..4).await;
    all.push(append_to(store, 4, "octo/other").await.sequence());
    let copy = store.redeliver(all[2], Address::default()).await.expect("the redelivery");
    all.push(copy.expect("the event"));
    let every = Listing::default();
    assert_eq!(listed(store, &every).await, all);
    let other = Listing { filter: filter("octo/other"), ..every.clone() };
    assert_eq!(listed(store, &other).await, all[4..5]);
    let range = Listing { first: all[1], last: all[3], ..every.clone() };
    assert_eq!(listed(store, &range).await, all[1..4], "both ends are included");
    let nothing = Listing { first: all[3], last: all[1], ..every.clone() };
    assert_eq!(listed(store, &nothing).await, []);
    let delivery_id = Some("delivery-2".parse().expect("a valid id"));
    let delivery = Listing { delivery_id: delivery_id.clone(), ..every.clone() };
    assert_eq!(listed(store, &delivery).await, [all[2], all[5]]);
    let within = Listing { delivery_id, last: all[4], ..every.clone() };
    assert_eq!(listed(store, &within).await, [all[2]]);
    let unknown = Listing { delivery_id: Some("no-such".parse().expect("a valid id")), ..every.clone() };
    assert_eq!(listed(store, &unknown).await, []);
    let since = |number: u64| Some(Timestamp::from_millis(1_700_000_000_000 + number));
    let late = Listing { received_since: since(3), ..every.clone() };
    assert_eq!(listed(store, &late).await, all[3..5], "the copy was received when its original was");
    let earlier = Listing { received_since: since(2), ..every.clone() };
    assert_eq!(listed(store, &earlier).await, all[2..]);
    assert_eq!(listed(store, &Listing { received_since: since(5), ..every }).await, []);
}

pub(super) async fn lists_by_fate(store: &impl EventStore) {
    let all = fill(store, 0..6).await;
    for (name, at, target, result) in [
        ("a", 0, "argo", OutcomeResult::Delivered),
        ("a", 1, "argo", OutcomeResult::Failed),
        ("a", 1, "jenkins", OutcomeResult::Delivered),
        ("b", 1, "argo", OutcomeResult::Failed),
        ("b", 2, "argo", OutcomeResult::Filtered),
        ("b", 3, "jenkins", OutcomeResult::Failed),
        ("a", 4, "argo", OutcomeResult::Failed),
    ] {
        let reported = vec![Acknowledgement { sequence: all[at], outcomes: vec![outcome(target, result)] }];
        store.acknowledge(&client(name), reported, all[at]).await.expect("the acknowledgement");
    }
    let at = async |fate, by: Option<&str>, target: Option<&str>| {
        let fate = FateFilter { fate, client: by.map(client), target: target.map(Into::into) };
        listed(store, &Listing { fate: Some(fate), ..Listing::default() }).await
    };
    let places = |places: &[usize]| places.iter().map(|at| all[*at]).collect::<Vec<_>>();
    for (fate, by, target, expected) in [
        (Fate::Pending, None, None, &[5][..]),
        (Fate::Pending, Some("b"), None, &[0, 4, 5]),
        (Fate::Pending, None, Some("jenkins"), &[0, 2, 4, 5]),
        (Fate::Delivered, None, None, &[0, 1]),
        (Fate::Delivered, None, Some("jenkins"), &[1]),
        (Fate::Filtered, None, None, &[2]),
        (Fate::Filtered, Some("a"), None, &[]),
        (Fate::DeadLetter, None, None, &[1, 3, 4]),
        (Fate::DeadLetter, Some("a"), None, &[1, 4]),
        (Fate::DeadLetter, None, Some("jenkins"), &[3]),
        (Fate::DeadLetter, Some("b"), Some("argo"), &[1]),
        (Fate::DeadLetter, Some("c"), None, &[]),
    ] {
        assert_eq!(at(fate, by, target).await, places(expected), "{fate} {by:?} {target:?}");
    }
    // Both ends and the other selections hold for dead letters too.
    let dead = FateFilter { fate: Fate::DeadLetter, client: None, target: None };
    let dead = Listing { fate: Some(dead), ..Listing::default() };
    assert_eq!(listed(store, &Listing { first: all[2], last: all[3], ..dead.clone() }).await, [all[3]]);
    assert_eq!(listed(store, &Listing { filter: filter("octo/other"), ..dead.clone() }).await, []);
    let delivery_id = Some("delivery-4".parse().expect("a valid id"));
    assert_eq!(listed(store, &Listing { delivery_id, ..dead }).await, [all[4]]);

    // Redelivered to one client, it is a dead letter of the other still; to both, of nobody.
    let to_a = Address { client: Some(client("a")), targets: Vec::new() };
    for (address, left_to_a, left) in [(to_a, &[4][..], &[1, 3, 4][..]), (Address::default(), &[4], &[3, 4])]
    {
        store.redeliver(all[1], address).await.expect("the redelivery");
        assert_eq!(at(Fate::DeadLetter, Some("a"), None).await, places(left_to_a));
        assert_eq!(at(Fate::DeadLetter, None, None).await, places(left));
    }
}

/// However a store bounds one listing, going on finds the needle; and nothing is passed over or found twice.
pub(super) async fn goes_on_where_a_page_stopped<S: EventStore>(store: Arc<S>) {
    const HAY: u64 = 9_000;
    let first = append_to(&*store, HAY + 1, HELLO).await.sequence();
    append_hay(&store, HAY).await;
    let last = append_to(&*store, HAY + 2, HELLO).await.sequence();
    let needles = Listing { filter: filter(HELLO), ..Listing::default() };
    assert_eq!(listed(&*store, &needles).await, [first, last]);
    let nobody = Listing { filter: filter("octo/nobody"), ..Listing::default() };
    assert_eq!(listed(&*store, &nobody).await, []);
    let since = |number: u64| Some(Timestamp::from_millis(1_700_000_000_000 + number));
    let late = Listing { received_since: since(HAY + 1), ..Listing::default() };
    assert_eq!(listed(&*store, &late).await, [first, last]);
    let needles_since = Listing { received_since: since(0), ..needles };
    assert_eq!(listed(&*store, &needles_since).await, [first, last]);
    let every = Listing { limit: 1_000, ..Listing::default() };
    let (entries, _) = list_all(&*store, &every).await;
    assert_eq!(entries.len() as u64, HAY + 2);
    assert!(entries.is_sorted_by(|a, b| a.sequence > b.sequence));
}

/// What was reported of an event may be as much as it may: a page does not become larger for it.
pub(super) async fn bounds_the_bytes_of_a_page(store: &impl EventStore) {
    let all = fill(store, 0..20).await;
    for sequence in &all {
        let outcomes = (0..32).map(|number| outcome(&format!("{number:0200}"), OutcomeResult::Failed));
        let reported = vec![Acknowledgement { sequence: *sequence, outcomes: outcomes.collect() }];
        store.acknowledge(&client("a"), reported, *sequence).await.expect("the acknowledgement");
    }
    let dead = FateFilter { fate: Fate::DeadLetter, client: None, target: None };
    for fate in [None, Some(dead)] {
        let listing = Listing { bytes: 40_000, fate, ..Listing::default() };
        let page = store.list(&listing).await.expect("the listing");
        let bytes: usize = page.entries.iter().map(Entry::bytes).sum();
        let largest = page.entries.iter().map(Entry::bytes).max().expect("an entry");
        assert!(page.entries.len() > 1 && bytes < 40_000 + largest, "{bytes}");
        assert_eq!(listed(store, &listing).await, all, "all of it is on some page");
    }
    // One entry is listed whatever its size, and what is passed over counts as well.
    let one = store.list(&Listing { bytes: 1, ..Listing::default() }).await.expect("the listing");
    assert_eq!(one.entries.len(), 1);
    let pending = FateFilter { fate: Fate::Pending, client: None, target: None };
    let listing = Listing { bytes: 40_000, fate: Some(pending), ..Listing::default() };
    let (entries, pages) = list_all(store, &listing).await;
    assert!(entries.is_empty() && pages >= 5, "{pages}");
}

pub(super) async fn shows_every_cursor(store: &impl EventStore) {
    assert_eq!(store.cursors().await.expect("the cursors"), []);
    let all = fill(store, 0..3).await;
    store.seek(&client("b"), all[2]).await.expect("the seek");
    store.acknowledge(&client("a"), Vec::new(), all[0]).await.expect("the acknowledgement");
    store.seek(&client("C"), Sequence::ZERO).await.expect("the seek");
    assert_eq!(
        store.cursors().await.expect("the cursors"),
        [(client("C"), Sequence::ZERO), (client("a"), all[0]), (client("b"), all[2])]
    );
}

pub(super) async fn keeps_changes_of_the_watchlist(store: &impl EventStore) {
    let pattern = |text: &str| text.parse::<RepositoryPattern>().expect("a pattern");
    let changes = async || {
        let mut changes = store.watchlist_changes().await.expect("the changes");
        changes.sort_by_key(|(pattern, _)| pattern.to_string());
        changes
    };
    assert_eq!(changes().await, []);
    for (text, change) in [
        ("octo/hello", Some(WatchlistChange::Added)),
        ("octo/*", Some(WatchlistChange::Removed)),
        ("7", Some(WatchlistChange::Added)),
        ("7", None),
        ("*", None),
        ("octo/*", Some(WatchlistChange::Added)),
        ("Octo/hello", Some(WatchlistChange::Removed)),
    ] {
        store.change_watchlist(&pattern(text), change).await.expect("the change");
    }
    assert_eq!(
        changes().await,
        [
            (pattern("Octo/hello"), WatchlistChange::Removed),
            (pattern("octo/*"), WatchlistChange::Added),
            (pattern("octo/hello"), WatchlistChange::Added),
        ]
    );
    append(store, 1).await;
    assert_eq!(changes().await.len(), 3, "events have nothing to do with it");
}

pub(super) async fn keeps_the_state_of_relays(store: &impl EventStore) {
    assert_eq!(store.relay_state("push.site").await.expect("the state"), None);
    for state in ["one", "two"] {
        store.store_relay_state("push.site", state.to_owned()).await.expect("it is stored");
        assert_eq!(store.relay_state("push.site").await.expect("the state").as_deref(), Some(state));
    }
    assert_eq!(store.relay_state("pull.site").await.expect("the state"), None);
}

pub(super) async fn has_one_run_while_it_is_open(store: &impl EventStore) {
    let run = store.history().current().expect("a run");
    assert_eq!(run.start, Sequence::ZERO);
    fill(store, 0..5).await;
    assert_eq!(store.history().current(), Some(run));
}
