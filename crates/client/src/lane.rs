//! One lane: the events of one repository on their way to one target, in order. The only retry loop there is.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::target::{Attempt, Outcome, OutcomeResult};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::gate::{Pause, Trouble};
use crate::policy::Next;
use crate::queue::{Parcel, Queue};
use crate::route::{Destination, LaneKey};

/// An event that takes so long holds up those behind it: others must not wait for them.
const SLOW: Duration = Duration::from_secs(1);

/// What a lane tells its owner.
#[derive(Debug)]
pub(crate) enum Report {
    /// A try failed, for this reason, and there will be more.
    Retrying { lane: LaneKey, sequence: Sequence, reason: String },
    /// An event takes long.
    Slow(LaneKey),
    /// This became of an event.
    Completed { lane: LaneKey, sequence: Sequence, outcome: Outcome },
}

/// A lane before it runs.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) key: LaneKey,
    pub(crate) destination: Arc<Destination>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
    pub(crate) stop: CancellationToken,
}

impl Lane {
    /// Delivers what comes in, one after the other, until the queue is closed or `stop` is cancelled. What is being tried
    /// then is finished; what waits is left: it was not acknowledged and comes again.
    pub(crate) async fn run(self) {
        while let Some(Some(parcel)) = self.stop.run_until_cancelled(self.queue.next()).await {
            let mut delivery = pin!(self.deliver(&parcel));
            let outcome = tokio::select! {
                outcome = &mut delivery => outcome,
                () = tokio::time::sleep(SLOW) => {
                    self.report(Report::Slow(self.key.clone()));
                    delivery.await
                }
            };
            let Some(outcome) = outcome else { return };
            let sequence = parcel.event.sequence;
            self.report(Report::Completed { lane: self.key.clone(), sequence, outcome });
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens when the store of these events is gone.
        drop(self.reports.send(report));
    }

    /// Tries until the target has the event, refuses it for good, or patience is at its end; `None` if it was stopped
    /// between two tries.
    async fn deliver(&self, parcel: &Parcel) -> Option<Outcome> {
        let Destination { target, policy, gate, .. } = &*self.destination;
        let mut started = None;
        let (mut attempts, mut cut_short) = (0, 0);
        loop {
            let permit = self.stop.run_until_cancelled(gate.admit()).await?;
            let tried = Instant::now();
            let started = *started.get_or_insert(tried);
            attempts += 1;
            let news = gate.listen();
            let attempt = target.attempt(&parcel.event).await;
            drop(permit);
            gate.tried(attempt.verdict);
            let age = parcel.tried_before.saturating_add(parcel.arrived.elapsed());
            let next = policy.after(attempt.verdict, attempts, age, fastrand::f64());
            self.log(&parcel.event, attempts, tried, &attempt, next);
            let result = match next {
                Next::Delivered => OutcomeResult::Delivered,
                Next::Refused | Next::GivenUp => OutcomeResult::Failed,
                Next::Unwanted => OutcomeResult::Filtered,
                Next::Again(longest) => {
                    let reason = attempt.detail.lines().next().unwrap_or_default().to_owned();
                    let (lane, sequence) = (self.key.clone(), parcel.event.sequence);
                    self.report(Report::Retrying { lane, sequence, reason });
                    // Early tries back off, too: what others get delivered may not help this event.
                    let shortest = policy.backoff.delay(cut_short + 1, 1.0);
                    let pause = Pause { longest, shortest, trouble: Trouble::of(&attempt) };
                    cut_short +=
                        u32::from(self.stop.run_until_cancelled(gate.wait(&**target, pause, news)).await?);
                    continue;
                }
            };
            return Some(self.outcome(result, attempt, attempts, started.elapsed()));
        }
    }

    fn outcome(&self, result: OutcomeResult, last: Attempt, attempts: u32, duration: Duration) -> Outcome {
        Outcome {
            target: self.destination.name.to_string(),
            result,
            code: last.code.map(Into::into),
            attempts,
            duration,
            at: SystemTime::now().into(),
            detail: last.detail,
        }
    }

    /// The one line per delivery attempt.
    fn log(&self, event: &Event, number: u32, tried: Instant, attempt: &Attempt, next: Next) {
        let facts = &event.webhook.facts;
        let duration_ms = u64::try_from(tried.elapsed().as_millis()).unwrap_or(u64::MAX);
        macro_rules! line {
            ($level:ident, $($what:tt)*) => {
                $level!(
                    event.sequence = event.sequence.get(),
                    delivery.id = %facts.delivery_id,
                    event.type = %facts.event_type,
                    repository.name = %facts.repository_label(),
                    target.name = &*self.destination.name,
                    attempt.number = number,
                    status = attempt.code,
                    duration_ms,
                    $($what)*
                )
            };
        }
        let detail = attempt.detail.lines().next();
        match next {
            Next::Delivered => line!(info, "delivered"),
            Next::Refused => line!(warn, detail, "refused for good"),
            Next::Unwanted => line!(info, detail, "not wanted there"),
            Next::GivenUp => line!(warn, detail, "given up"),
            Next::Again(_) => line!(warn, detail, "will be tried again"),
        }
    }
}

#[cfg(test)]
mod tests;
