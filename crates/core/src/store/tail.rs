//! The newest events, in memory.
//!
//! Followers that keep up read only here, so that one event sent to a hundred subscribers is read from the disk not
//! once. The tail is a window on the log: every event of the store after its *floor* is in it. A read that starts
//! before the floor is not its business. Two things shorten it, and they differ:
//!
//! - *Eviction*, because a bound is reached: the event is still in the store, so the floor rises over it.
//! - *Retention*, because the store removed the event: there is nothing left to miss, so the floor stays.
//!
//! A tail without bounds is a whole log: the memory store is built on that.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{DamagedEvents, Page, ReadLimit};
use crate::event::{Event, Facts, Sequence};
use crate::filter::Filter;

/// How many events one read looks at, selected or not: neither a lock nor a connection is held for longer because a
/// filter selects little of a long log.
pub(super) const SCAN_LIMIT: usize = 4096;

/// The newest events of a log.
#[derive(Debug)]
pub(super) struct Tail {
    events: VecDeque<Arc<Event>>,
    bytes: u64,
    floor: Sequence,
    head: Sequence,
    /// What retention has removed, this and all before.
    removed_to: Sequence,
    bounds: Bounds,
}

/// What a tail holds at most. The newest event may exceed the bytes, and is then not held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Events.
    pub(super) count: usize,
    /// Bytes of headers and bodies.
    pub(super) bytes: u64,
}

impl Bounds {
    /// None: everything is held until it is removed.
    pub(super) const NONE: Self = Self { count: usize::MAX, bytes: u64::MAX };
}

impl Tail {
    /// A tail of a log that ends at `head`, holding nothing of it. Retention has removed it up to `removed_to`.
    pub(super) fn new(head: Sequence, removed_to: Sequence, bounds: Bounds) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor: head, head, removed_to, bounds }
    }

    /// Adds the log's newest event and evicts what no longer fits.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        debug_assert!(event.sequence > self.head, "sequences grow");
        self.head = event.sequence;
        self.bytes += event.webhook.size();
        self.events.push_back(event);
        while self.events.len() > self.bounds.count || self.bytes > self.bounds.bytes {
            match self.pop() {
                Some(evicted) => self.floor = evicted.sequence,
                None => break,
            }
        }
    }

    /// Removes the oldest event because the store did.
    pub(super) fn remove_first(&mut self) -> Option<Arc<Event>> {
        let event = self.pop()?;
        self.removed_to = event.sequence;
        Some(event)
    }

    fn pop(&mut self) -> Option<Arc<Event>> {
        let event = self.events.pop_front()?;
        self.bytes -= event.webhook.size();
        Some(event)
    }

    /// Removes every event up to `sequence` because the store did.
    #[cfg_attr(
        not(feature = "sqlite"),
        expect(dead_code, reason = "only the durable store has a log apart from it")
    )]
    pub(super) fn remove_through(&mut self, sequence: Sequence) {
        while self.events.front().is_some_and(|event| event.sequence <= sequence) {
            self.pop();
        }
        self.removed_to = self.removed_to.max(sequence);
    }

    /// Reads as [`EventStore::read`](super::EventStore::read) does; `None` if that takes events before the floor.
    pub(super) fn read(&self, after: Sequence, filter: &Filter, limit: ReadLimit) -> Option<Page> {
        if after < self.floor {
            return None;
        }
        let start = self.events.partition_point(|event| event.sequence <= after);
        let mut gather = Gather::new(after, self.removed_to, limit);
        for event in self.events.iter().skip(start) {
            match gather.look(event.sequence, &event.webhook.facts, event.webhook.size(), filter) {
                Look::Take => gather.take(Arc::clone(event)),
                Look::Pass => {}
                Look::Stop => return Some(gather.stop()),
            }
        }
        Some(gather.finish(self.head))
    }

    /// The oldest event held.
    pub(super) fn first(&self) -> Option<&Arc<Event>> {
        self.events.front()
    }

    /// The events held from `first` to `last`, both included.
    pub(super) fn range(
        &self,
        first: Sequence,
        last: Sequence,
    ) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let start = self.events.partition_point(|event| event.sequence < first);
        let end = self.events.partition_point(|event| event.sequence <= last);
        self.events.range(start.min(end)..end)
    }

    /// The event, if it is held.
    pub(super) fn find(&self, sequence: Sequence) -> Option<&Arc<Event>> {
        let found = self.events.binary_search_by_key(&sequence, |event| event.sequence);
        found.ok().map(|at| &self.events[at])
    }

    /// Whether the event is held.
    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        self.find(sequence).is_some()
    }

    /// How many events are held.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// Bytes of headers and bodies held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The newest event ever pushed, or what the log had before.
    pub(super) fn head(&self) -> Sequence {
        self.head
    }
}

/// A page in the making: the one place that knows what filter and limits mean for a read.
#[derive(Debug)]
pub(super) struct Gather {
    page: Page,
    limit: ReadLimit,
    bytes: u64,
    looked_at: usize,
}

/// What becomes of the next event of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It belongs to the page.
    Take,
    /// It was not selected.
    Pass,
    /// The page is complete without it.
    Stop,
}

impl Gather {
    /// An empty page that was read to `after`, of a log that was removed up to `removed_to`.
    pub(super) fn new(after: Sequence, removed_to: Sequence, limit: ReadLimit) -> Self {
        let page = Page { read_to: after, removed_to, ..Page::default() };
        Self { page, limit, bytes: 0, looked_at: 0 }
    }

    /// Decides about the next event, which has `size` bytes. One that is to be taken follows with
    /// [`take`](Self::take) or [`pass_damaged`](Self::pass_damaged).
    pub(super) fn look(&mut self, sequence: Sequence, facts: &Facts, size: u64, filter: &Filter) -> Look {
        if self.is_full() {
            return Look::Stop;
        }
        if filter.matches(facts) {
            let exceeds = self.bytes.saturating_add(size) > self.limit.bytes;
            return if exceeds && !self.page.events.is_empty() { Look::Stop } else { Look::Take };
        }
        self.looked_at += 1;
        self.page.read_to = sequence;
        Look::Pass
    }

    /// Adds the event that was to be taken.
    pub(super) fn take(&mut self, event: Arc<Event>) {
        self.looked_at += 1;
        self.bytes = self.bytes.saturating_add(event.webhook.size());
        self.page.read_to = event.sequence;
        self.page.events.push(event);
    }

    /// Passes events that cannot be read, and reports them.
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "memory is not damaged"))]
    pub(super) fn pass_damaged(&mut self, first: Sequence, last: Sequence, reason: &str) {
        let count = last.get().saturating_sub(first.get()).saturating_add(1);
        self.looked_at = self.looked_at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
        self.page.read_to = last;
        match self.page.damaged.last_mut() {
            Some(before) if before.last.next() == first && *before.reason == *reason => before.last = last,
            _ => self.page.damaged.push(DamagedEvents { first, last, reason: reason.into() }),
        }
    }

    /// Whether no further event belongs to the page.
    pub(super) fn is_full(&self) -> bool {
        self.looked_at >= SCAN_LIMIT || self.page.events.len() >= self.limit.events.max(1)
    }

    /// How far the log was read.
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "only a scan of a table begins anew"))]
    pub(super) fn read_to(&self) -> Sequence {
        self.page.read_to
    }

    /// The page, stopped where it is.
    pub(super) fn stop(self) -> Page {
        self.page
    }

    /// The page, when the log has nothing more up to `head`.
    pub(super) fn finish(mut self, head: Sequence) -> Page {
        self.page.read_to = self.page.read_to.max(head);
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Address;
    use crate::testing;

    const ALL: ReadLimit = ReadLimit { events: 100, bytes: u64::MAX };

    fn event(number: u64, size: usize) -> Arc<Event> {
        let webhook = testing::webhook(number, "octo/hello", size);
        Arc::new(Event {
            sequence: Sequence::new(number),
            redelivery: false,
            address: Address::default(),
            webhook,
        })
    }

    /// The events after `after`, or nothing if that is not the tail's business.
    fn read(tail: &Tail, after: u64) -> Option<Vec<u64>> {
        let page = tail.read(Sequence::new(after), &Filter::default(), ALL)?;
        Some(page.events.iter().map(|event| event.sequence.get()).collect())
    }

    #[test]
    fn eviction_raises_the_floor() {
        let mut tail = Tail::new(Sequence::new(10), Sequence::ZERO, Bounds { count: 3, bytes: u64::MAX });
        assert_eq!((read(&tail, 9), read(&tail, 10)), (None, Some(vec![])));
        for number in [11, 12, 15, 16] {
            tail.push(event(number, 10));
        }
        assert_eq!(read(&tail, 10), None);
        assert_eq!(read(&tail, 11), Some(vec![12, 15, 16]));
        assert_eq!(read(&tail, 13), Some(vec![15, 16]), "a gap is no event");
        assert_eq!(read(&tail, 16), Some(vec![]));
    }

    #[test]
    fn retention_leaves_the_floor() {
        let mut tail = Tail::new(Sequence::ZERO, Sequence::ZERO, Bounds { count: 10, bytes: u64::MAX });
        (1..=4).for_each(|number| tail.push(event(number, 10)));
        tail.remove_through(Sequence::new(2));
        assert_eq!(read(&tail, 0), Some(vec![3, 4]), "what is gone cannot be missed");
        tail.remove_through(Sequence::new(9));
        assert_eq!((read(&tail, 0), tail.len(), tail.bytes()), (Some(vec![]), 0, 0));
    }

    #[test]
    fn an_event_that_is_too_large_is_not_held() {
        let mut tail = Tail::new(Sequence::ZERO, Sequence::ZERO, Bounds { count: 10, bytes: 1000 });
        tail.push(event(1, 10));
        tail.push(event(2, 2000));
        assert_eq!((read(&tail, 1), read(&tail, 2), tail.bytes()), (None, Some(vec![]), 0));
        tail.push(event(3, 10));
        assert_eq!(read(&tail, 2), Some(vec![3]));
    }
}
