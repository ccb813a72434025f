//! Bounds the log lines about refused requests: anybody may cause one.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::queue::LineQueue;

/// How the targets of lines end whose rate is bounded.
const SUFFIX: &str = "::refusals";
/// How many lines of one kind are logged in one period; the others are counted.
const LINES: u64 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// Suppresses lines about refused requests beyond a rate. Lines of one place in the code are of one kind.
#[derive(Clone, Debug)]
pub(super) struct Refusals {
    kinds: Arc<Mutex<HashMap<Identifier, Kind>>>,
    queue: Arc<LineQueue>,
}

#[derive(Debug)]
struct Kind {
    message: String,
    begin: Instant,
    lines: u64,
    suppressed: u64,
}

impl Refusals {
    pub(super) fn new(queue: Arc<LineQueue>) -> Self {
        Self { kinds: Arc::default(), queue }
    }

    /// Logs how many lines were suppressed in periods that are over at `now`.
    pub(super) fn report(&self, now: Instant) {
        let mut reports = Vec::new();
        for kind in self.kinds().values_mut() {
            if kind.suppressed > 0 && kind.begin + PERIOD <= now {
                reports.push((kind.message.clone(), std::mem::take(&mut kind.suppressed)));
            } else if kind.suppressed > 0 {
                self.queue.set_alarm(kind.begin + PERIOD);
            }
        }
        // Not under the lock: these are events, too.
        for (message, lines) in reports {
            warn!(log.suppressed = lines, "similar log lines suppressed: {message}");
        }
    }

    /// Logs how many lines were suppressed, whether or not their period is over.
    pub(super) fn report_all(&self) {
        self.report(Instant::now() + PERIOD);
    }

    /// Whether a line of this kind may be logged now.
    fn admit(&self, kind: &mut Kind, now: Instant) -> bool {
        // What was suppressed is told before a new period begins for it.
        if kind.begin + PERIOD <= now && kind.suppressed == 0 {
            (kind.begin, kind.lines) = (now, 0);
        }
        if kind.lines < LINES {
            kind.lines += 1;
            return true;
        }
        kind.suppressed += 1;
        if kind.suppressed == 1 {
            self.queue.set_alarm(kind.begin + PERIOD);
        }
        false
    }

    /// Never held while something is logged.
    fn kinds(&self) -> MutexGuard<'_, HashMap<Identifier, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Refusals {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        if !event.metadata().target().ends_with(SUFFIX) {
            return true;
        }
        let now = Instant::now();
        let mut kinds = self.kinds();
        let kind = kinds.entry(event.metadata().callsite()).or_insert_with(|| {
            let mut message = Message(String::new());
            event.record(&mut message);
            Kind { message: message.0, begin: now, lines: 0, suppressed: 0 }
        });
        self.admit(kind, now)
    }
}

/// An event's text without its fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_bounded_per_period() {
        let queue = Arc::new(LineQueue::default());
        let refusals = Refusals::new(Arc::clone(&queue));
        let begin = Instant::now();
        let mut kind = Kind { message: "refused".into(), begin, lines: 0, suppressed: 0 };
        let admitted = |kind: &mut Kind, now| (0..100).filter(|_| refusals.admit(kind, now)).count() as u64;
        assert_eq!(admitted(&mut kind, begin), LINES);
        assert_eq!(kind.suppressed, 100 - LINES);
        assert_eq!(admitted(&mut kind, begin + PERIOD), 0, "what was suppressed is told first");
        kind.suppressed = 0;
        assert_eq!(admitted(&mut kind, begin + 2 * PERIOD), LINES);
    }

    #[test]
    fn only_lines_about_refusals_are_bounded_and_the_suppressed_ones_are_counted() {
        use tracing_subscriber::layer::SubscriberExt;

        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let (lines, refusals) = (Lines::default(), Refusals::new(Arc::default()));
        let written = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || lines.clone()).finish().with(refusals.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..100 {
                warn!(target: "gitstafette_client::refusals", number, "webhook refused");
                warn!(target: "gitstafette_client::refusals", "another kind");
                warn!("webhook {number} stored");
            }
            refusals.report_all();
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count() as u64;
        assert_eq!(count("stored"), 100);
        assert_eq!(count("webhook refused number"), LINES);
        assert_eq!(count("similar log lines suppressed: webhook refused log.suppressed=80"), 1, "{text}");
        assert_eq!(count("similar log lines suppressed: another kind log.suppressed=80"), 1);
    }
}
