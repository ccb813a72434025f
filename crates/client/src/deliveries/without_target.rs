//! Events that reach no target: those that no route wants, and those that cannot be decoded.

use std::time::{Duration, SystemTime};

use gitstafette_core::event::Sequence;
use gitstafette_core::target::{DECODER, Outcome, OutcomeResult};

use super::Deliveries;

/// The target's name in the outcome of an event that no route wanted.
pub(super) const NO_TARGET: &str = "none";

impl Deliveries {
    /// Takes an event that no route wants.
    pub(super) fn filtered(&mut self, sequence: Sequence) {
        self.finished(sequence, vec![outcome(NO_TARGET, OutcomeResult::Filtered, String::new())]);
        self.publish(|state| {
            state.filtered += 1;
            state.received = state.received.max(sequence);
        });
    }

    /// Takes an event from the stream that cannot be decoded, as a dead letter; `true` if it is new.
    pub(crate) fn reject(&mut self, sequence: Sequence, reason: &str) -> bool {
        if let Some(acknowledgement) = self.unconfirmed.get(&sequence) {
            self.outbox.acknowledge(acknowledgement.clone());
            return false;
        }
        // One that was decoded before is on its way to its targets, or was deferred.
        self.forget(sequence..=sequence);
        if self.pending.contains_key(&sequence) {
            return false;
        }
        tracing::error!(
            event.sequence = sequence.get(),
            reason,
            "an event cannot be decoded: it becomes a dead letter; a newer client may be able to"
        );
        let detail = format!("the client cannot decode the event: {reason}");
        let outcome = outcome(DECODER, OutcomeResult::Failed, detail);
        self.finished(sequence, vec![outcome]);
        self.publish(|state| {
            state.dead_letters += 1;
            state.received = state.received.max(sequence);
        });
        true
    }
}

fn outcome(target: &str, result: OutcomeResult, detail: String) -> Outcome {
    Outcome {
        target: target.into(),
        result,
        code: None,
        attempts: 0,
        duration: Duration::ZERO,
        at: SystemTime::now().into(),
        detail,
    }
}
