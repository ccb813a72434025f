//! Pages, limits, filters.

use std::sync::Arc;

use super::{ALL, HELLO, append, append_hay, append_to, fill, filter, read_all};
use crate::event::{Sequence, Timestamp};
use crate::filter::Filter;
use crate::store::{EventStore, Listing, Page, ReadLimit};
use crate::testing;

async fn read(store: &impl EventStore, after: Sequence, filter: &Filter, events: usize, bytes: u64) -> Page {
    store.read(after, filter, ReadLimit { events, bytes }).await.expect("the read")
}

fn sequences(page: &Page) -> Vec<Sequence> {
    page.events.iter().map(|event| event.sequence).collect()
}

pub(super) async fn an_empty_store_has_nothing(store: &impl EventStore) {
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.expect("the read");
    assert_eq!(page, Page::default());
    assert_eq!(*store.head().borrow(), Sequence::ZERO);
    assert_eq!(store.before(Timestamp::default()).await.expect("the answer"), Sequence::ZERO);
    let after = Sequence::new(7);
    let beyond = store.read(after, &Filter::default(), ALL).await.expect("the read");
    assert!(beyond.events.is_empty() && beyond.read_to <= after, "{beyond:?}");
}

pub(super) async fn stops_at_the_limits(store: &impl EventStore) {
    let all = fill(store, 0..10).await;
    let every = Filter::default();
    let size = read(store, Sequence::ZERO, &every, 1, 0).await.events[0].webhook.size();

    let two = read(store, Sequence::ZERO, &every, 2, u64::MAX).await;
    assert_eq!((sequences(&two), two.read_to), (all[..2].to_vec(), all[1]));
    let three = read(store, two.read_to, &every, 10, size * 3 + size / 2).await;
    assert_eq!((sequences(&three), three.read_to), (all[2..5].to_vec(), all[4]));
    let exact = read(store, Sequence::ZERO, &every, 10, size * 2).await;
    assert_eq!(sequences(&exact), all[..2]);
    let least = read(store, all[4], &every, 0, 0).await;
    assert_eq!(sequences(&least), all[5..6], "the first event comes whatever its size");
    let last = read(store, all[8], &every, 10, u64::MAX).await;
    assert_eq!((sequences(&last), last.read_to), (all[9..].to_vec(), all[9]));
    let none = read(store, all[9], &every, 10, u64::MAX).await;
    assert!(none.events.is_empty() && none.read_to <= all[9], "{none:?}");
}

pub(super) async fn selects_and_says_how_far_it_read(store: &impl EventStore) {
    let mut wanted = Vec::new();
    for number in 0..12 {
        let repository = if number % 3 == 0 { HELLO } else { "octo/other" };
        let sequence = append_to(store, number, repository).await.sequence();
        if number % 3 == 0 {
            wanted.push(sequence);
        }
    }
    let head = *store.head().borrow();
    let hello = filter(HELLO);
    let two = read(store, Sequence::ZERO, &hello, 2, u64::MAX).await;
    assert_eq!(sequences(&two), wanted[..2]);
    assert!(two.read_to >= wanted[1] && two.read_to < wanted[2], "nothing that is selected is passed over");
    let rest = read(store, two.read_to, &hello, 10, u64::MAX).await;
    assert_eq!((sequences(&rest), rest.read_to), (wanted[2..].to_vec(), head));
    let end = read(store, wanted[3], &hello, 10, u64::MAX).await;
    assert_eq!(
        (sequences(&end), end.read_to),
        (Vec::new(), head),
        "read to the head, though nothing was selected"
    );
    // What is not selected does not count towards the limits.
    let one = read(store, wanted[0], &hello, 1, 1).await;
    assert_eq!(sequences(&one), wanted[1..2]);
}

/// However a store bounds one read, reading on finds the needle.
pub(super) async fn passes_over_what_is_not_selected<S: EventStore>(store: Arc<S>) {
    const HAY: u64 = 9_000;
    append_hay(&store, HAY).await;
    let needle = append_to(&*store, HAY + 1, HELLO).await.sequence();
    append_to(&*store, HAY + 2, "octo/hay").await;
    let found = read_all(&*store, Sequence::ZERO, &filter(HELLO)).await;
    assert_eq!(found.iter().map(|event| event.sequence).collect::<Vec<_>>(), [needle]);
    assert!(read_all(&*store, Sequence::ZERO, &filter("octo/nobody")).await.is_empty());
}

pub(super) async fn starts_before_a_time(store: &impl EventStore) {
    // Their times are 1,700,000,000,000 and the number; the third was received long before it was relayed here.
    let mut all = fill(store, [10, 20]).await;
    all.push(append(store, 5).await.sequence());
    all.extend(fill(store, [30]).await);
    let time = |number: u64| Timestamp::from_millis(1_700_000_000_000 + number);
    for (number, first) in [(0, all[0]), (10, all[0]), (11, all[1]), (20, all[1]), (21, all[3]), (30, all[3])]
    {
        let before = store.before(time(number)).await.expect("the answer");
        assert_eq!(before, first.previous(), "{number}");
    }
    let head = *store.head().borrow();
    assert_eq!(store.before(time(31)).await.expect("the answer"), head);
    assert_eq!(store.before(Timestamp::from_millis(u64::MAX)).await.expect("the answer"), head);
}

/// However a store looks for a time.
pub(super) async fn finds_a_time_in_a_long_log<S: EventStore>(store: Arc<S>) {
    const HAY: u64 = 9_000;
    append_hay(&store, HAY).await;
    let mut sequences = Vec::new();
    // The last but one was received before all others.
    for number in [HAY + 10, HAY + 20, 0, HAY + 30] {
        let webhook = testing::webhook(number, "octo/other", 1);
        sequences.push(store.append(webhook).await.expect("the append").sequence());
    }
    for (number, first) in [(HAY + 5, 0), (HAY + 15, 1), (HAY + 21, 3)] {
        let time = Timestamp::from_millis(1_700_000_000_000 + number);
        let before = store.before(time).await.expect("the answer");
        assert_eq!(before, sequences[first].previous(), "{number}");
        let listing = Listing { received_since: Some(time), ..Listing::default() };
        let listed = store.list(&listing).await.expect("the listing");
        let found: Vec<_> = listed.entries.iter().map(|entry| entry.sequence).collect();
        let expected = [0, 1, 3].into_iter().filter(|at| *at >= first).map(|at| sequences[at]);
        assert_eq!(found, expected.rev().collect::<Vec<_>>(), "{number}");
        assert_eq!(listed.next, None, "the log before that time is not looked through");
    }
}
