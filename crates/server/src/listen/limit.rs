//! How many connections a listener serves at once, and which idle ones end when they are scarce.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection may take this long for its handshake and its first request before it counts as one that asks nothing.
const FIRST_REQUEST_TIME: Duration = Duration::from_secs(2);
/// One in so many places is for connections that are that new, while there are free places.
const SPARED_DIVISOR: usize = 20;

/// The connections of one listener. One more waits accepted, the others wait in the system's queue.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    most: usize,
    places: Arc<Semaphore>,
    idle: Mutex<IdleQueue>,
}

/// The idle connections: first the ones that never made a request, then the ones that have been idle for the longest time.
#[derive(Debug, Default)]
struct IdleQueue {
    connections: BTreeMap<IdleKey, Idle>,
    next: u64,
}

/// An idle connection.
#[derive(Debug)]
struct Idle {
    since: Instant,
    evicted: CancellationToken,
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
        let spared = if self.places.available_permits() == 0 { 0 } else { self.most / SPARED_DIVISOR };
        if let Some(connection) = self.idle().next_to_end(spared) {
            connection.evicted.cancel();
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
        self.connections.insert(key, Idle { since: Instant::now(), evicted });
        key
    }

    /// Takes out the connection that ends next. So many new ones are spared: the first request of one may be a webhook that
    /// is on its way. More of them are a flood.
    fn next_to_end(&mut self, spared: usize) -> Option<Idle> {
        const USED: IdleKey = IdleKey { has_begun: true, number: 0 };
        let new = self.connections.range(..USED).take(spared + 1).count();
        let first = self.connections.first_entry()?;
        if first.key().has_begun || new > spared || first.get().since.elapsed() >= FIRST_REQUEST_TIME {
            return Some(first.remove());
        }
        let longest_idle = *self.connections.range(USED..).next()?.0;
        self.connections.remove(&longest_idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_spared_while_places_are_free() {
        let limit = ConnectionLimit::new(40);
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        limit.enqueue_idle(tokens[0].clone());
        limit.enqueue_unused(tokens[1].clone());
        limit.enqueue_unused(tokens[2].clone());
        let mut places = Vec::new();
        for _ in 0..39 {
            places.push(limit.acquire().await);
        }
        limit.relieve();
        assert!(tokens[0].is_cancelled() && !tokens[1].is_cancelled());
        places.push(limit.acquire().await);
        assert!(tokens[1].is_cancelled() && !tokens[2].is_cancelled(), "no place is free");
        places.pop();
        limit.relieve();
        assert!(!tokens[2].is_cancelled());
        tokio::time::advance(FIRST_REQUEST_TIME).await;
        limit.relieve();
        assert!(tokens[2].is_cancelled());
    }

    #[tokio::test(start_paused = true)]
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
        tokio::time::advance(FIRST_REQUEST_TIME).await;
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
