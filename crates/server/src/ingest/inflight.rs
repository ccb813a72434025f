//! The memory for webhooks in flight: those that are being received or stored.
//!
//! A webhook reserves its whole size before its body is read, so a body that has begun always finds room for its rest.
//! If there is no room, the request waits. Requests are served in the order of arrival, in two queues:
//!
//! - *Small* requests have a share of the memory that large ones cannot use, so they never wait behind large ones. They
//!   use the other memory, too, but only while no large request waits for it.
//! - *Large* requests share the rest.
//!
//! The caller bounds the time: a request whose future is dropped leaves its queue.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The largest small request, in bytes. Most webhooks have 10 to 30 KB.
const SMALL_BYTES: u64 = 256 << 10;
/// Small requests that may wait. Each holds a connection or a stream, and up to one HTTP/2 window of its body.
const MAX_WAITING_SMALL: usize = 256;
/// Large requests that may wait, likewise.
const MAX_WAITING_LARGE: usize = 128;
/// Requests of one connection that may wait. Their bodies fill their windows, and HTTP/2 has one window for the whole
/// connection: the listener makes it larger than those of so many streams.
pub(crate) const MAX_WAITING_PER_CONNECTION: u32 = 24;

/// The bytes that webhooks in flight may use together. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct InflightBudget(Arc<Mutex<State>>);

/// Bytes that belong to one webhook until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: InflightBudget,
    class: Class,
    bytes: u64,
}

/// Why a request cannot even wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many webhooks are waiting for memory; try again")]
pub(crate) struct TooManyWaiting;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Small,
    Large,
}

#[derive(Debug)]
struct State {
    total: u64,
    /// The bytes that only small requests use.
    small_share: u64,
    small: Queue,
    large: Queue,
}

/// The requests of one class.
#[derive(Debug, Default)]
struct Queue {
    used: u64,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    connection: Option<SocketAddr>,
    granted: oneshot::Sender<Reservation>,
}

impl InflightBudget {
    /// A budget of `total` bytes, of which one request may use `largest`.
    pub(crate) fn new(total: u64, largest: u64) -> Self {
        let state = State {
            total,
            small_share: small_share(total, largest),
            small: Queue::default(),
            large: Queue::default(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Reserves bytes for a request of this connection, as soon as its turn comes. A request for more than large requests
    /// may use gets all of that.
    pub(crate) async fn reserve(
        &self,
        bytes: u64,
        connection: Option<SocketAddr>,
    ) -> Result<Reservation, TooManyWaiting> {
        let granted = {
            let mut state = self.state();
            let bytes = bytes.min(state.total - state.small_share);
            let class = state.class(bytes);
            if state.queue(class).waiting.is_empty() && state.fits(class, bytes) {
                state.queue(class).used += bytes;
                return Ok(Reservation { budget: self.clone(), class, bytes });
            }
            state.wait(class, bytes, connection)?
        };
        let mut waiting = Waiting { budget: self, granted };
        // The sender stays in the queue until it is used, or until its receiver is gone.
        (&mut waiting.granted).await.map_err(|_| TooManyWaiting)
    }

    /// Whether requests wait.
    pub(crate) fn is_contended(&self) -> bool {
        let state = self.state();
        !(state.small.waiting.is_empty() && state.large.waiting.is_empty())
    }

    /// Takes bytes back, and gives them to those whose turn it is.
    fn release(&self, class: Class, bytes: u64) {
        self.serve_after(|state| state.queue(class).used -= bytes);
    }

    /// Removes the requests that no longer wait.
    fn remove_gone(&self) {
        self.serve_after(|state| {
            for class in [Class::Small, Class::Large] {
                state.queue(class).waiting.retain(|waiter| !waiter.granted.is_closed());
            }
        });
    }

    fn serve_after(&self, change: impl FnOnce(&mut State)) {
        let granted = {
            let mut state = self.state();
            change(&mut state);
            state.grant()
        };
        // The lock is free: a receiver that has gone meanwhile gives its bytes back here.
        for (class, Waiter { bytes, granted, .. }) in granted {
            drop(granted.send(Reservation { budget: self.clone(), class, bytes }));
        }
    }

    /// Never held across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a budget that only small requests use: at most half of what the largest request leaves.
pub(super) fn small_share(total: u64, largest: u64) -> u64 {
    (total / 16).min(total.saturating_sub(largest) / 2)
}

impl State {
    fn class(&self, bytes: u64) -> Class {
        if bytes <= self.small_share.min(SMALL_BYTES) { Class::Small } else { Class::Large }
    }

    fn queue(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Small => &mut self.small,
            Class::Large => &mut self.large,
        }
    }

    /// Whether there is room for the next request of a class.
    fn fits(&self, class: Class, bytes: u64) -> bool {
        let (small, large) = (self.small.used, self.large.used);
        match class {
            Class::Small => {
                small + bytes <= self.small_share
                    || (self.large.waiting.is_empty() && small + large + bytes <= self.total)
            }
            Class::Large => small.max(self.small_share) + large + bytes <= self.total,
        }
    }

    fn wait(
        &mut self,
        class: Class,
        bytes: u64,
        connection: Option<SocketAddr>,
    ) -> Result<oneshot::Receiver<Reservation>, TooManyWaiting> {
        let of_connection =
            |queue: &Queue| queue.waiting.iter().filter(|waiter| waiter.connection == connection).count();
        let same = of_connection(&self.small) + of_connection(&self.large);
        let limit = match class {
            Class::Small => MAX_WAITING_SMALL,
            Class::Large => MAX_WAITING_LARGE,
        };
        let waiting = &mut self.queue(class).waiting;
        if waiting.len() >= limit || same >= MAX_WAITING_PER_CONNECTION as usize {
            return Err(TooManyWaiting);
        }
        let (granted, receiver) = oneshot::channel();
        waiting.push_back(Waiter { bytes, connection, granted });
        Ok(receiver)
    }

    /// Takes those out of the queues for whom there is room now. Large ones come first: small ones have their share.
    fn grant(&mut self) -> Vec<(Class, Waiter)> {
        let mut granted = Vec::new();
        for class in [Class::Large, Class::Small] {
            while let Some(bytes) = self.queue(class).waiting.front().map(|waiter| waiter.bytes)
                && self.fits(class, bytes)
            {
                let queue = self.queue(class);
                queue.used += bytes;
                granted.extend(queue.waiting.pop_front().map(|waiter| (class, waiter)));
            }
        }
        granted
    }
}

/// A place in a queue.
struct Waiting<'a> {
    budget: &'a InflightBudget,
    granted: oneshot::Receiver<Reservation>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.granted.close();
        self.budget.remove_gone();
    }
}

impl Reservation {
    /// Gives back all but so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let unused = self.bytes.saturating_sub(bytes);
        if unused > 0 {
            self.bytes -= unused;
            self.budget.release(self.class, unused);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.release(self.class, self.bytes);
    }
}

#[cfg(test)]
mod tests;
