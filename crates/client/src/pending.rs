//! One event while its outcomes are awaited.

use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::event::Event;
use gitstafette_core::target::Outcome;
use tokio::time::Instant;

use crate::queue::Parcel;

/// An event that is not done: one outcome per lane is awaited.
#[derive(Debug)]
pub(crate) struct Pending {
    /// When it first came.
    pub(crate) arrived: Instant,
    pub(crate) size: u64,
    pub(crate) body: Body,
    /// The lanes that are not through with it.
    pub(crate) awaited: usize,
    /// Those of them that have it in their backlog.
    pub(crate) queued: usize,
    pub(crate) outcomes: Vec<Outcome>,
    /// For how long it was tried before this client was started, by the route.
    tried_before: Vec<(usize, Duration)>,
    /// The routes at which its first attempt failed here.
    failed_at: Vec<usize>,
}

/// Where an event's headers and body are.
#[derive(Debug)]
pub(crate) enum Body {
    Here(Arc<Event>),
    /// Left to the server.
    Deferred,
    /// On its way here again.
    Recalled,
}

impl Pending {
    /// An event that has just come, for so many lanes.
    pub(crate) fn new(event: &Arc<Event>, lanes: usize, tried_before: Vec<(usize, Duration)>) -> Self {
        Self {
            arrived: Instant::now(),
            size: event.webhook.size(),
            body: Body::Here(Arc::clone(event)),
            awaited: lanes,
            queued: lanes,
            outcomes: Vec::new(),
            tried_before,
            failed_at: Vec::new(),
        }
    }

    /// The event for a lane of this route, if it is here.
    pub(crate) fn parcel(&self, route: usize) -> Option<Parcel> {
        let Body::Here(event) = &self.body else { return None };
        let before = self.tried_before.iter().find(|(tried, _)| *tried == route);
        Some(Parcel {
            event: Arc::clone(event),
            arrived: self.arrived,
            tried_before: before.map_or(Duration::ZERO, |(_, age)| *age),
        })
    }

    /// Notes that an attempt at this route failed. `true` if it is the first since the event was accepted.
    pub(crate) fn fails_first(&mut self, route: usize) -> bool {
        let is_known =
            self.failed_at.contains(&route) || self.tried_before.iter().any(|(tried, _)| *tried == route);
        if !is_known {
            self.failed_at.push(route);
        }
        !is_known
    }

    /// The routes at which its first attempt failed here.
    pub(crate) fn failed_at(&self) -> &[usize] {
        &self.failed_at
    }
}
