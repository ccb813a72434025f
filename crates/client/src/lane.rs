//! One lane: the events of one repository on their way to one target, in order. The only retry loop there is.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gitstafette_core::backoff::Backoff;
use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::target::{Attempt, Outcome, OutcomeResult, Target, Verdict};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::route::LaneKey;

/// When a delivery is tried again, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How long to wait between tries.
    pub backoff: Backoff,
    /// An event that could not be delivered for so long becomes a dead letter.
    pub give_up_after: Duration,
}

/// A lane's report: what became of an event at its target.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) lane: LaneKey,
    pub(crate) sequence: Sequence,
    pub(crate) outcome: Outcome,
}

/// Delivers what comes in, one after the other, until the sender is gone or `stop` is cancelled. What is being tried
/// then is finished; what waits is left: it was not acknowledged and comes again.
pub(crate) async fn run(
    key: LaneKey,
    target: Arc<dyn Target>,
    retry: RetryPolicy,
    mut events: mpsc::UnboundedReceiver<Arc<Event>>,
    completions: mpsc::UnboundedSender<Completion>,
    stop: CancellationToken,
) {
    while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
        let Some(outcome) = deliver(&event, &*target, retry, &stop).await else { return };
        let completion = Completion { lane: key.clone(), sequence: event.sequence, outcome };
        // Nobody listens when the store of these events is gone: they are delivered all the same.
        drop(completions.send(completion));
    }
}

/// Tries until the target has the event, refuses it for good, or the time is up; `None` if it was stopped between
/// two tries.
async fn deliver(
    event: &Event,
    target: &dyn Target,
    retry: RetryPolicy,
    stop: &CancellationToken,
) -> Option<Outcome> {
    let started = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tried = Instant::now();
        let Attempt { verdict, code, detail } = target.attempt(event).await;
        let outcome = |result, detail| Outcome {
            target: target.name().to_owned(),
            result,
            code,
            attempts,
            duration: started.elapsed(),
            at: SystemTime::now().into(),
            detail,
        };
        let wait = match verdict {
            Verdict::Delivered => {
                log(event, target, attempts, tried, code, "delivered", "");
                return Some(outcome(OutcomeResult::Delivered, detail));
            }
            Verdict::Final => {
                log(event, target, attempts, tried, code, "refused for good", &detail);
                return Some(outcome(OutcomeResult::Failed, detail));
            }
            Verdict::Unreachable => retry.backoff.delay(attempts, fastrand::f64()),
            Verdict::Retry(wish) => {
                let wait = retry.backoff.delay(attempts, fastrand::f64());
                // A target may ask for more patience than the backoff has, up to the last try.
                let left = retry.give_up_after.saturating_sub(started.elapsed());
                wait.max(wish.unwrap_or_default().min(left))
            }
        };
        if started.elapsed() + wait > retry.give_up_after {
            log(event, target, attempts, tried, code, "given up", &detail);
            return Some(outcome(OutcomeResult::Failed, detail));
        }
        log(event, target, attempts, tried, code, "will be tried again", &detail);
        stop.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
}

/// The one line per delivery attempt.
fn log(
    event: &Event,
    target: &dyn Target,
    attempt: u32,
    tried: Instant,
    code: Option<u16>,
    what: &'static str,
    detail: &str,
) {
    let facts = &event.webhook.facts;
    let duration_ms = u64::try_from(tried.elapsed().as_millis()).unwrap_or(u64::MAX);
    macro_rules! line {
        ($level:ident, $($detail:tt)*) => {
            $level!(
                event.sequence = event.sequence.get(),
                delivery.id = %facts.delivery_id,
                event.type = %facts.event_type,
                repository.name = %facts.repository_label(),
                target.name = target.name(),
                attempt.number = attempt,
                status = code,
                duration_ms,
                $($detail)*
                "{what}"
            )
        };
    }
    match detail {
        "" => line!(info,),
        detail => line!(warn, detail = detail.lines().next(),),
    }
}

#[cfg(test)]
mod tests;
