//! How many connections a listener serves at once, and which idle ones end when they are scarce.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The connections of one listener. One more waits accepted, the others wait in the system's queue.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    most: usize,
    places: Arc<Semaphore>,
    idle: Mutex<IdleQueue>,
}

/// The idle connections, those that end first in front: first the ones that never made a request, then the ones that have
/// been idle for the longest time.
#[derive(Debug, Default)]
struct IdleQueue {
    connections: BTreeMap<IdleKey, CancellationToken>,
    next: u64,
}

/// A connection's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IdleKey {
    has_begun: bool,
    number: u64,
}

impl ConnectionLimit {
    /// At most so many at once.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { most, places: Arc::new(Semaphore::new(most)), idle: Mutex::default() }
    }

    /// Waits for a place. An idle connection ends if places are scarce then, or if there is none.
    pub(super) async fn acquire(&self) -> OwnedSemaphorePermit {
        if self.places.available_permits() == 0 {
            self.relieve();
        }
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return std::future::pending().await; // never closed
        };
        self.relieve();
        place
    }

    /// Whether more than 80 % of the places are taken.
    pub(super) fn is_scarce(&self) -> bool {
        let taken = self.most - self.places.available_permits();
        taken.saturating_mul(5) > self.most.saturating_mul(4)
    }

    /// Ends one idle connection if places are scarce.
    pub(super) fn relieve(&self) {
        if !self.is_scarce() {
            return;
        }
        let first = self.idle().connections.pop_first();
        if let Some((_, connection)) = first {
            connection.cancel();
        }
    }

    /// A connection that has made no request yet.
    pub(super) fn enqueue_unused(&self, evicted: CancellationToken) -> IdleKey {
        self.idle().enqueue(false, evicted)
    }

    /// A connection that becomes idle after a request.
    pub(super) fn enqueue_idle(&self, evicted: CancellationToken) -> IdleKey {
        self.idle().enqueue(true, evicted)
    }

    /// The connection is idle no more.
    pub(super) fn dequeue(&self, key: IdleKey) {
        self.idle().connections.remove(&key);
    }

    /// Never held across a wait.
    fn idle(&self) -> MutexGuard<'_, IdleQueue> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleQueue {
    fn enqueue(&mut self, has_begun: bool, evicted: CancellationToken) -> IdleKey {
        let key = IdleKey { has_begun, number: self.next };
        self.next += 1;
        self.connections.insert(key, evicted);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_connection_ends_first_and_only_when_places_are_scarce() {
        let limit = ConnectionLimit::new(10);
        let tokens: Vec<_> = (0..4).map(|_| CancellationToken::new()).collect();
        let ended = |tokens: &[CancellationToken]| {
            tokens.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>()
        };
        let first = limit.enqueue_idle(tokens[0].clone());
        limit.enqueue_idle(tokens[1].clone());
        limit.enqueue_idle(tokens[2].clone());
        limit.enqueue_unused(tokens[3].clone());
        limit.dequeue(first);
        let mut places = Vec::new();
        for _ in 0..8 {
            places.push(limit.acquire().await);
        }
        limit.relieve();
        assert_eq!(ended(&tokens), [false; 4], "8 of 10 places are taken");
        places.push(limit.acquire().await);
        assert!(limit.is_scarce());
        assert_eq!(ended(&tokens), [false, false, false, true], "it never made a request");
        limit.relieve();
        assert_eq!(ended(&tokens), [false, true, false, true]);
        drop(places);
        limit.relieve();
        assert_eq!(ended(&tokens), [false, true, false, true]);
    }
}
