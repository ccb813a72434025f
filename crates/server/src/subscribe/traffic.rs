//! The bound on the bytes of large events on their way to all clients.
//!
//! Two pools share the bytes: an eighth is for events up to a thirty-second of all bytes, the rest is for every event. In each
//! pool one event may exceed the bytes alone. A client has at most a quarter of all bytes. Events that wait are admitted in
//! the order of their arrival, and pass those that do not fit. A large event that has waited for long is not passed
//! any more in the pool that it needs, so that its turn comes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gitstafette_core::event::ClientId;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// After this time a waiting event is not passed any more.
const PASSED_FOR: Duration = Duration::from_secs(5);

/// The bound that all subscribers share: bytes of large events on their way.
#[derive(Debug)]
pub(crate) struct Traffic {
    bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the pool for small events.
    small: u64,
    /// Of the pool for all events.
    general: u64,
    by_client: HashMap<ClientId, u64>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    client: ClientId,
    bytes: u64,
    since: Instant,
    admit: oneshot::Sender<Share>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Small,
    General,
}

/// An event's share of the traffic. Its bytes are free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    traffic: Arc<Traffic>,
    client: ClientId,
    bytes: u64,
    pool: Pool,
}

impl Traffic {
    /// So many bytes.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, state: Mutex::default() }
    }

    /// A share for an event of this size, if there is room now.
    pub(crate) fn try_share(self: &Arc<Self>, client: &ClientId, bytes: u64) -> Option<Share> {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.admit.is_closed());
        let is_blocked = state.waiting.iter().any(|waiting| self.is_first(&state, waiting));
        self.admit(&mut state, client, bytes, is_blocked)
    }

    /// A share for an event of this size, as soon as there is room; `None` if the traffic ends.
    pub(crate) async fn share(self: &Arc<Self>, client: &ClientId, bytes: u64) -> Option<Share> {
        let admitted = {
            if let Some(share) = self.try_share(client, bytes) {
                return Some(share);
            }
            let (admit, admitted) = oneshot::channel();
            let waiting = Waiting { client: client.clone(), bytes, since: Instant::now(), admit };
            self.state().waiting.push_back(waiting);
            // There may have been room between the two.
            self.admit_waiting();
            admitted
        };
        admitted.await.ok()
    }

    /// Whether an event waits for room.
    pub(crate) fn has_waiting(&self) -> bool {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.admit.is_closed());
        !state.waiting.is_empty()
    }

    /// Admits those that wait and fit.
    fn admit_waiting(self: &Arc<Self>) {
        let mut admitted = Vec::new();
        {
            let mut state = self.state();
            state.waiting.retain(|waiting| !waiting.admit.is_closed());
            let mut is_blocked = false;
            let mut next = 0;
            while let Some(waiting) = state.waiting.get(next) {
                let (client, bytes, is_first) =
                    (waiting.client.clone(), waiting.bytes, self.is_first(&state, waiting));
                match self.admit(&mut state, &client, bytes, is_blocked) {
                    Some(share) => admitted.extend(state.waiting.remove(next).map(|one| (one.admit, share))),
                    None => {
                        is_blocked |= is_first;
                        next += 1;
                    }
                }
            }
        }
        // Not under the lock: the share of one that has given up meanwhile is dropped here.
        for (admit, share) in admitted {
            drop(admit.send(share));
        }
    }

    /// Whether no other event may pass this one in the general pool. An event that waits for its own client's bytes blocks
    /// nobody.
    fn is_first(&self, state: &State, waiting: &Waiting) -> bool {
        waiting.bytes > self.small_event()
            && waiting.since.elapsed() >= PASSED_FOR
            && self.has_share(state, &waiting.client, waiting.bytes)
    }

    /// Whether the client's own share has room for so many bytes.
    fn has_share(&self, state: &State, client: &ClientId, bytes: u64) -> bool {
        let own = state.by_client.get(client).copied().unwrap_or(0);
        own == 0 || own.saturating_add(bytes) <= self.bytes / 4
    }

    fn admit(
        self: &Arc<Self>,
        state: &mut State,
        client: &ClientId,
        bytes: u64,
        is_general_blocked: bool,
    ) -> Option<Share> {
        if !self.has_share(state, client, bytes) {
            return None;
        }
        let fits = |used: u64, bound: u64| used == 0 || used.saturating_add(bytes) <= bound;
        let small_pool = self.bytes / 8;
        let pool = if bytes <= self.small_event() && fits(state.small, small_pool) {
            state.small += bytes;
            Pool::Small
        } else if !is_general_blocked && fits(state.general, self.bytes - small_pool) {
            state.general += bytes;
            Pool::General
        } else {
            return None;
        };
        *state.by_client.entry(client.clone()).or_default() += bytes;
        Some(Share { traffic: Arc::clone(self), client: client.clone(), bytes, pool })
    }

    /// The largest event that the small pool admits.
    fn small_event(&self) -> u64 {
        self.bytes / 32
    }

    /// Never held across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        {
            let mut state = self.traffic.state();
            match self.pool {
                Pool::Small => state.small -= self.bytes,
                Pool::General => state.general -= self.bytes,
            }
            if let Some(own) = state.by_client.get_mut(&self.client) {
                *own -= self.bytes;
                if *own == 0 {
                    state.by_client.remove(&self.client);
                }
            }
        }
        self.traffic.admit_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const MIB: u64 = 1 << 20;

    fn client(number: usize) -> ClientId {
        format!("client-{number}").parse().unwrap()
    }

    #[tokio::test]
    async fn events_that_fit_pass_events_that_wait() {
        let (traffic, seven) = (Arc::new(Traffic::new(32 * MIB)), client(7));
        let held: Vec<_> =
            (0..7).map(|number| traffic.try_share(&client(number), 4 * MIB).unwrap()).collect();
        assert!(traffic.try_share(&client(7), 4 * MIB).is_none());
        assert!(!traffic.has_waiting());
        let mut waiting = std::pin::pin!(traffic.share(&seven, 4 * MIB));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(traffic.has_waiting());
        let small = traffic.try_share(&client(8), 100 << 10).expect("a part is for small events");
        let more: Vec<_> = (9..12).map(|number| traffic.try_share(&client(number), MIB).unwrap()).collect();
        assert!(traffic.try_share(&client(12), MIB).is_none(), "that part is full, too");
        drop(held);
        assert!(waiting.now_or_never().flatten().is_some());
        drop((small, more));
        assert!(!traffic.has_waiting());
        assert!(traffic.state().by_client.is_empty());
    }

    #[tokio::test]
    async fn a_client_has_a_quarter() {
        let traffic = Arc::new(Traffic::new(32 * MIB));
        let first = traffic.try_share(&client(1), 5 * MIB).unwrap();
        assert!(traffic.try_share(&client(1), 4 * MIB).is_none());
        let second = traffic.try_share(&client(1), 3 * MIB).unwrap();
        let other = traffic.try_share(&client(2), 20 * MIB).expect("one event of a client may exceed it");
        drop((first, second));
        assert!(traffic.try_share(&client(3), 25 * MIB).is_none());
        drop(other);
        assert!(traffic.try_share(&client(3), 64 * MIB).is_some(), "one event may exceed the bound alone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_event_is_not_passed_for_ever() {
        let traffic = Arc::new(Traffic::new(32 * MIB));
        let (one, two) = (client(1), client(2));
        let held = traffic.try_share(&client(0), 8 * MIB).unwrap();
        let mut large = std::pin::pin!(traffic.share(&one, 25 * MIB));
        assert!(large.as_mut().now_or_never().is_none());
        drop(traffic.try_share(&client(2), 4 * MIB).expect("it fits, and passes"));
        tokio::time::advance(PASSED_FOR).await;
        assert!(traffic.try_share(&client(2), 4 * MIB).is_none());
        let mut later = std::pin::pin!(traffic.share(&two, 4 * MIB));
        assert!(later.as_mut().now_or_never().is_none());
        drop(traffic.try_share(&client(3), MIB).expect("small events have a part of their own"));
        drop(held);
        let large = large.now_or_never().flatten().unwrap();
        assert!(later.as_mut().now_or_never().is_none());
        drop(large);
        assert!(later.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn those_that_give_up_hold_nothing() {
        let traffic = Arc::new(Traffic::new(32 * MIB));
        let held = traffic.try_share(&client(0), 28 * MIB).unwrap();
        for number in 1..100 {
            assert!(traffic.share(&client(number), 4 * MIB).now_or_never().is_none());
        }
        assert!(!traffic.has_waiting());
        drop(held);
        let state = traffic.state();
        assert_eq!((state.general, state.small, state.by_client.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_its_own_share_holds_up_no_other() {
        let traffic = Arc::new(Traffic::new(32 * MIB));
        let _held = traffic.try_share(&client(1), 5 * MIB).unwrap();
        let mut waiting = Box::pin({
            let traffic = Arc::clone(&traffic);
            async move { traffic.share(&client(1), 5 * MIB).await }
        });
        assert!((&mut waiting).now_or_never().is_none());
        tokio::time::advance(2 * PASSED_FOR).await;
        assert!(traffic.try_share(&client(2), 4 * MIB).is_some());
    }
}
