//! What came from a server of the Go implementation and is not done.
//!
//! That server gives each webhook out once: what it has sent counts as relayed there, and is removed two minutes later. So
//! here is the only place that has it. It is kept, headers and body, until its outcome is known, over broken streams and
//! while the client has put it down. It lives as long as this process. The subscription's window bounds it: nothing more is
//! read while it is full. One message may go beyond that, as nothing can be sent back.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gitstafette_core::event::{Address, DeliveryId, Event, Sequence, Webhook};
use gitstafette_core::repository::RepositoryId;

use crate::window::Load;

/// The keep of one client, which its streams share one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keep(Arc<Mutex<Kept>>);

/// What is kept, and what is known of the server that it came from.
#[derive(Debug)]
pub(super) struct Kept {
    /// Stands for the server's store, which has no id.
    pub(super) store: String,
    /// The last sequence that was given out. The server knows none.
    newest: Sequence,
    events: BTreeMap<Sequence, Entry>,
    /// The identities of these events, as far as the server can tell one from another.
    identities: HashSet<(RepositoryId, DeliveryId)>,
    taken: Load,
    /// Whether the last thing heard from the server was good: the next stream need not wait to find out.
    pub(super) is_trusted: bool,
    /// Whether it was said what this server means for what it sends.
    pub(super) was_explained: bool,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    size: u64,
    /// Which repository it was fetched for.
    repository: RepositoryId,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            store: format!("go-{:016x}", fastrand::u64(..)),
            newest: Sequence::ZERO,
            events: BTreeMap::new(),
            identities: HashSet::new(),
            taken: Load::default(),
            is_trusted: false,
            was_explained: false,
        }
    }
}

impl Keep {
    /// Looks in. Never held over a wait.
    pub(super) fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is lost when the client ends, which has done these since it last told.
    pub(crate) fn end(&self, done: impl Iterator<Item = Sequence>) {
        let mut kept = self.lock();
        if kept.is_empty() {
            return; // what is done is of another server
        }
        done.for_each(|sequence| kept.done(sequence));
        if !kept.is_empty() {
            tracing::warn!(
                events = kept.events.len(),
                "lost: they came from a server of the Go implementation, which does not send them again, and are not delivered; \
                 have them redelivered where they came from"
            );
            for Entry { event, .. } in kept.events.values() {
                let facts = &event.webhook.facts;
                tracing::warn!(
                    delivery.id = %facts.delivery_id,
                    event.type = %facts.event_type,
                    repository.name = %facts.repository_label(),
                    "lost"
                );
            }
        }
    }
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether so much is kept.
    pub(super) fn fills(&self, window: Load) -> bool {
        self.taken.events >= window.events || self.taken.bytes >= window.bytes
    }

    /// The last sequence that was given out.
    pub(super) fn newest(&self) -> Sequence {
        self.newest
    }

    /// Up to here everything is done.
    pub(super) fn cursor(&self) -> Sequence {
        let first = self.events.keys().next();
        first.map_or(self.newest, |first| Sequence::new(first.get() - 1))
    }

    /// Gives out a sequence.
    pub(super) fn number(&mut self) -> Sequence {
        self.newest = self.newest.next();
        self.newest
    }

    /// Keeps a webhook; `None` if it is here already.
    pub(super) fn put(&mut self, repository: RepositoryId, webhook: Webhook) -> Option<Sequence> {
        if !self.identities.insert((repository, webhook.facts.delivery_id.clone())) {
            return None;
        }
        let (sequence, size) = (self.number(), webhook.size());
        let event = Event { sequence, redelivery: false, address: Address::default(), webhook };
        self.taken.add(size);
        self.events.insert(sequence, Entry { event, size, repository });
        Some(sequence)
    }

    pub(super) fn event(&self, sequence: Sequence) -> Option<&Event> {
        self.events.get(&sequence).map(|entry| &entry.event)
    }

    /// What is kept, in order.
    pub(super) fn sequences(&self) -> impl Iterator<Item = Sequence> {
        self.events.keys().copied()
    }

    /// What became of it is known.
    pub(super) fn done(&mut self, sequence: Sequence) {
        if let Some(Entry { event, size, repository }) = self.events.remove(&sequence) {
            self.taken.remove(size);
            self.identities.remove(&(repository, event.webhook.facts.delivery_id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::testing;

    #[test]
    fn it_is_bounded_counts_on_and_knows_what_it_has() {
        let keep = Keep::default();
        let mut kept = keep.lock();
        let (here, there) = (RepositoryId(1), RepositoryId(2));
        let webhook = |number| testing::webhook(number, "octo/hello", 100);
        let window = Load { events: 2, bytes: 10_000 };
        assert_eq!(kept.put(here, webhook(1)), Some(Sequence::new(1)));
        assert_eq!(kept.put(here, webhook(1)), None);
        assert!(!kept.fills(window));
        assert_eq!(kept.put(there, webhook(1)), Some(Sequence::new(2)), "of another repository");
        assert!(kept.fills(window) && kept.fills(Load { events: 9, bytes: 200 }));
        assert_eq!((kept.cursor(), kept.newest()), (Sequence::ZERO, Sequence::new(2)));
        kept.done(Sequence::new(1));
        kept.done(Sequence::new(1));
        assert!(!kept.fills(window));
        assert_eq!(kept.cursor(), Sequence::new(1));
        assert_eq!(kept.put(here, webhook(1)), Some(Sequence::new(3)), "redelivered");
        kept.done(Sequence::new(3));
        kept.done(Sequence::new(2));
        assert!(kept.is_empty() && kept.taken == Load::default());
        assert_eq!(kept.cursor(), Sequence::new(3));
    }
}
