//! Where a client delivers to, and what becomes of an event there.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Serialize, Serializer};

use crate::event::{Event, Timestamp};

/// The target's name in the outcome of an event that the client itself cannot decode: it reached no target.
pub const DECODER: &str = "decoder";

/// A place that takes events: an HTTP endpoint, standard output, later a command or another server.
///
/// An implementation makes **one** try and says how it went. It never retries and never sleeps: there is one retry
/// loop in the workspace, the client's lane. It is cancel safe: dropping the future ends the try.
#[async_trait]
pub trait Target: Send + Sync + fmt::Debug {
    /// The target's name in outcomes, logs and metrics: short, stable, without secrets.
    fn name(&self) -> &str;

    /// Tries to deliver once. The future ends within the target's own time-out.
    async fn attempt(&self, event: &Event) -> Attempt;

    /// Looks once whether the target can be reached, without sending it anything. Asked after
    /// [`Verdict::Unreachable`], so that a target that comes back is tried at once.
    async fn is_reachable(&self) -> bool {
        true
    }
}

/// How one try went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What is to happen next.
    pub verdict: Verdict,
    /// The target's answer in a number: the HTTP status, if there was an answer.
    pub code: Option<u16>,
    /// One line for people: the reason phrase, the error. No secrets.
    pub detail: String,
}

/// What a try means for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target has it.
    Delivered,
    /// Not now: try again, not before the given time if the target asked for one (`Retry-After`).
    Retry(Option<Duration>),
    /// The target is not there: no connection came about, nothing was sent. Try again.
    Unreachable,
    /// Never: trying again would give the same answer.
    Final,
    /// The target does not want it, and nothing is wrong: another server that has had it already, or does not watch its
    /// repository.
    Unwanted,
}

/// What became of one event at one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The target's name.
    pub target: String,
    /// How it ended.
    pub result: OutcomeResult,
    /// The target's last answer in a number.
    pub code: Option<u32>,
    /// How many tries there were.
    pub attempts: u32,
    /// From the first try to the end of the last.
    #[serde(rename = "durationMs", serialize_with = "millis")]
    pub duration: Duration,
    /// When it ended.
    pub at: Timestamp,
    /// The last try's line for people, or the start of the target's answer, at most 2 KiB. A `…` at its end shows that
    /// it was cut.
    pub detail: String,
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// How it ended at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeResult {
    /// The target has it.
    Delivered,
    /// It was given up: a dead letter.
    Failed,
    /// Nobody wanted it: no route of the client, or not the server that it was to be relayed to.
    Filtered,
}

impl OutcomeResult {
    /// The word for logs, stores and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Filtered => "filtered",
        }
    }
}

impl fmt::Display for OutcomeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for OutcomeResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl FromStr for OutcomeResult {
    type Err = OutcomeResultError;

    fn from_str(text: &str) -> Result<Self, OutcomeResultError> {
        [Self::Delivered, Self::Failed, Self::Filtered]
            .into_iter()
            .find(|result| result.as_str() == text)
            .ok_or(OutcomeResultError)
    }
}

/// The text names no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an outcome is delivered, failed or filtered")]
pub struct OutcomeResultError;
