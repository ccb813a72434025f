//! Since when events are tried at a target, so that giving up is measured across restarts of a client.

use std::time::Duration;

use crate::event::Sequence;

/// How many first attempts a store keeps for one client at most. A client has about one for each lane.
pub const MAX_FIRST_ATTEMPTS: usize = 4096;

/// An event whose first attempt at a target failed. The client tries it again, also after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstAttempt {
    /// The event.
    pub sequence: Sequence,
    /// The target's name.
    pub target: String,
    /// For how long the event has been tried. An age and not a point in time: the clocks of clients may be wrong.
    pub age: Duration,
}
