//! The memory for webhooks in flight: those that are being received or stored.
//!
//! A body reserves memory as its bytes arrive. A body whose bytes do not arrive holds nothing. There are two pools:
//!
//! - A *small* body reserves its whole size with its first bytes. Large bodies cannot use the pool of small ones.
//! - A *large* body reserves memory step by step. A step is granted only if all bodies that have begun can still be
//!   completed, one after the other. So no two bodies ever wait for each other's memory.
//!
//! One caller has a share of each pool, together a quarter of the memory. A single body larger than that share is allowed.
//! Requests that do not fit wait. The pool serves them in the order of arrival, and larger ones of the small a little later.
//! While others wait, a body that is too slow gives its memory back (see `pace`). If too many requests wait, the pool refuses one
//! of the caller that has the most of them.
//!
//! The caller of these functions bounds the time: a request whose future is dropped stops waiting.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use pool::{Class, Pool};

mod pool;

/// The largest small request, in bytes. Most webhooks have 10 to 30 KB.
pub(super) const SMALL_BYTES: u64 = 256 << 10;
/// What a request that waits may have sent unread, in bytes: one HTTP/2 window.
pub(crate) const UNREAD_BYTES: u32 = 128 << 10;
/// Requests of one connection that may wait with a full window each. HTTP/2 has one window for the whole connection, too: the
/// listener makes it larger than those of so many streams, and more waiting streams would hold up all others.
pub(crate) const MAX_WAITING_PER_CONNECTION: u32 = 24;
/// The time in which a small body must arrive while others wait.
const SMALL_PACE: Duration = Duration::from_secs(1);
/// How often a request that waits looks for bodies that have become too slow.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The bytes that webhooks in flight may use together. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct InflightBudget(Arc<Mutex<Pools>>);

/// The memory of one body, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: InflightBudget,
    class: Class,
    number: u64,
    late: Arc<Notify>,
}

/// Why a request cannot even wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many webhooks are waiting for memory; try again")]
pub(crate) struct TooManyWaiting;

#[derive(Debug)]
struct Pools {
    small: Pool,
    large: Pool,
}

impl InflightBudget {
    /// A budget of `total` bytes, of which one request may use `largest`.
    pub(crate) fn new(total: u64, largest: u64) -> Self {
        let small = small_share(total, largest);
        // Half a quarter of each pool.
        let caller_share = total / 8;
        let pools = Pools {
            small: Pool::new(Class::Small, small, caller_share),
            large: Pool::new(Class::Large, total - small, caller_share),
        };
        Self(Arc::new(Mutex::new(pools)))
    }

    /// An empty reservation for a body of at most so many bytes. While others wait, the body must arrive within `pace`. A body
    /// larger than all large ones together may use all of that.
    pub(crate) fn begin(&self, bytes: u64, pace: Duration, peer: Option<SocketAddr>) -> Reservation {
        let mut pools = self.pools();
        let class =
            if bytes <= pools.small.capacity().min(SMALL_BYTES) { Class::Small } else { Class::Large };
        let (number, late) = pools.pool(class).begin(bytes, pace, peer);
        Reservation { budget: self.clone(), class, number, late }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        let pools = self.pools();
        pools.small.held() + pools.large.held()
    }

    #[cfg(test)]
    pub(super) fn is_contended(&self) -> bool {
        let pools = self.pools();
        pools.small.is_contended() || pools.large.is_contended()
    }

    /// Never held across a wait.
    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a budget that only small requests use: at most half of what the largest request leaves.
pub(super) fn small_share(total: u64, largest: u64) -> u64 {
    (total / 4).min(total.saturating_sub(largest) / 2)
}

/// The time in which a body of so many bytes must arrive while others wait, if its sender has shown no token.
pub(super) fn pace_of(bytes: u64, request_timeout: Duration) -> Duration {
    if bytes <= SMALL_BYTES { request_timeout.min(SMALL_PACE) } else { request_timeout }
}

impl Pools {
    fn pool(&mut self, class: Class) -> &mut Pool {
        match class {
            Class::Small => &mut self.small,
            Class::Large => &mut self.large,
        }
    }
}

impl Reservation {
    /// Reserves memory for the first `received` bytes of the body, which have arrived. Returns the wait for it, if there is
    /// not enough now.
    pub(crate) fn grow_to(&self, received: u64) -> Option<Growing> {
        let granted = self.budget.pools().pool(self.class).grow(self.number, received)?;
        Some(Growing { budget: self.budget.clone(), class: self.class, number: self.number, granted })
    }

    /// The body is complete with so many bytes. It gives the rest back, and is never too slow.
    pub(crate) fn complete(&self, bytes: u64) {
        self.budget.pools().pool(self.class).complete(self.number, bytes);
    }

    /// Waits until others need the memory of this body, and it is too slow.
    pub(crate) fn needed_by_others(&self) -> impl Future<Output = ()> + Send + use<> {
        let (budget, class, number) = (self.budget.clone(), self.class, self.number);
        let late = Arc::clone(&self.late);
        async move {
            loop {
                late.notified().await;
                // Bytes may have arrived meanwhile.
                if budget.pools().pool(class).is_late(number) {
                    return;
                }
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.pools().pool(self.class).end(self.number);
    }
}

/// A wait for memory.
#[derive(Debug)]
pub(crate) struct Growing {
    budget: InflightBudget,
    class: Class,
    number: u64,
    granted: oneshot::Receiver<()>,
}

impl Growing {
    /// Waits for the memory.
    pub(crate) async fn granted(mut self) -> Result<(), TooManyWaiting> {
        loop {
            tokio::select! {
                biased;
                granted = &mut self.granted => return granted.map_err(|_| TooManyWaiting),
                () = tokio::time::sleep(CHECK_INTERVAL) => self.budget.pools().pool(self.class).relieve(),
            }
        }
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.budget.pools().pool(self.class).stop_waiting(self.number);
    }
}

#[cfg(test)]
mod tests;
