//! What a client is doing, for health checks and for programs that embed it.

use std::sync::Arc;

use gitstafette_core::event::{Sequence, Timestamp};
use gitstafette_core::target::{Outcome, OutcomeResult};
use gitstafette_proto::convert::Seen;
use serde::Serialize;

/// What the client is doing. The counters start with the process; an event that goes to two targets counts at both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientState {
    /// Whether a subscription stands now.
    pub subscribed: bool,
    /// Why the last stream ended or none came about, until one stands again.
    pub last_error: Option<String>,
    /// The newest event of the server's log, as it was last told.
    pub head: Sequence,
    /// How far the server has stored acknowledgements, as it was last told.
    pub cursor: Sequence,
    /// The log that the cursor is of, as the last stream began with it.
    #[serde(skip)]
    pub log: Option<Arc<Seen>>,
    /// The newest event that came.
    pub received: Sequence,
    /// Deliveries that succeeded.
    pub delivered: u64,
    /// Deliveries that were refused for good or given up, and events that this client cannot decode.
    pub dead_letters: u64,
    /// Events that no route wanted.
    pub filtered: u64,
    /// Events that the server's retention removed before they came here, as far as the server can tell, those that are damaged
    /// in its store, and those of a server of the Go implementation that cannot be read.
    pub missed: u64,
    /// Events that came and are not done at every target.
    pub waiting: usize,
    /// Those of them that the server keeps for the time being, because their targets do not take them fast enough.
    pub deferred: usize,
    /// The targets, in the order of the routes.
    pub targets: Vec<TargetState>,
}

/// How a target is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetState {
    /// Its name among the client's targets.
    pub name: String,
    /// Whether an event waits for another try.
    pub failing: bool,
    /// Why the last try that will be repeated failed, until none waits for another.
    pub last_error: Option<String>,
    /// What became of the last event that was done.
    pub last_outcome: Option<OutcomeResult>,
    /// When that was.
    pub last_outcome_at: Option<Timestamp>,
}

impl TargetState {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            failing: false,
            last_error: None,
            last_outcome: None,
            last_outcome_at: None,
        }
    }

    /// Shows whether an event waits for another try; if none does, there is no error any more.
    pub(crate) fn shows(&mut self, failing: bool) {
        self.failing = failing;
        if !failing {
            self.last_error = None;
        }
    }
}

impl ClientState {
    /// Counts what became of an event at the target at `route`.
    pub(crate) fn count(&mut self, route: usize, outcome: &Outcome) {
        match outcome.result {
            OutcomeResult::Delivered => self.delivered += 1,
            OutcomeResult::Failed => self.dead_letters += 1,
            OutcomeResult::Filtered => self.filtered += 1,
        }
        if let Some(target) = self.targets.get_mut(route) {
            target.last_outcome = Some(outcome.result);
            target.last_outcome_at = Some(outcome.at);
        }
    }
}
