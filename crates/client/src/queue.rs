//! A lane's entrance: what it is to deliver next, in order, and can be taken back until its turn has come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gitstafette_core::event::Event;
use tokio::sync::Notify;
use tokio::time::Instant;

/// An event for a lane.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) event: Arc<Event>,
    /// When it first came to this client: from then on it grows old.
    pub(crate) arrived: Instant,
    /// How old it was already, if the target was tried before this client was started.
    pub(crate) tried_before: Duration,
}

/// Parcels between the one who owns the lanes and one lane.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    inside: Mutex<Inside>,
    /// Rung at every change; the lane is the only one that listens.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    parcels: VecDeque<Parcel>,
    is_closed: bool,
}

impl Queue {
    pub(crate) fn push(&self, parcel: Parcel) {
        self.inside().parcels.push_back(parcel);
        self.changed.notify_one();
    }

    /// Takes the last one out again, unless the lane has begun with it.
    pub(crate) fn take_back(&self) -> Option<Parcel> {
        self.inside().parcels.pop_back()
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.inside().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for the first; `None` if the queue is empty and closed. Cancel safe.
    pub(crate) async fn next(&self) -> Option<Parcel> {
        loop {
            {
                let mut inside = self.inside();
                match inside.parcels.pop_front() {
                    None if !inside.is_closed => {}
                    parcel => return parcel,
                }
            }
            self.changed.notified().await;
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Whoever holds it does nothing that can panic.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
