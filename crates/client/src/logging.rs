//! Logging of both programs: one line per event on standard error, as text or JSON. No log line makes a caller wait: a thread
//! of its own writes them, and lines that anybody may cause are bounded.

mod queue;
mod refusals;

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use queue::{LineQueue, LineWriter, Work};
use refusals::Refusals;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("a log format is text or json"),
        }
    }
}

/// What is logged: a level (`info`) or directives (`info,gitstafette_server=debug`).
#[derive(Clone, Debug)]
pub struct LogLevel(String);

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".into())
    }
}

impl LogLevel {
    /// What goes wrong, and nothing else: for a command that is over at once.
    pub fn warnings() -> Self {
        Self("warn".into())
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let known =
            |part: &str| part.contains('=') || levels.contains(&part.trim().to_ascii_lowercase().as_str());
        if !text.split(',').all(known) {
            return Err(format!("{text:?} is not a level: {}", levels.join(", ")));
        }
        EnvFilter::try_new(text).map(|_| Self(text.into())).map_err(|error| {
            format!("{text:?} is neither a level (error, warn, info, debug, trace) nor directives: {error}")
        })
    }
}

/// The target of log lines about refused requests. Anybody may cause such a line, so their rate is bounded: a few of each kind
/// are logged, the others counted. Every target that ends like this one is.
pub const REFUSALS: &str = "gitstafette_client::refusals";

/// How long the last lines may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The running log. The lines that wait are written when it is dropped.
#[derive(Clone, Debug)]
#[must_use = "the lines that wait are written when it is dropped"]
pub struct Log {
    queue: Arc<LineQueue>,
    refusals: Refusals,
}

impl Log {
    /// Writes the lines that wait, unless standard error does not take them for a second.
    pub fn flush(&self) {
        self.refusals.report_all();
        self.queue.flush(FLUSH_TIMEOUT);
    }

    /// Writes lines until the process ends.
    fn write(&self) {
        loop {
            match self.queue.next() {
                Work::Write { bytes, dropped } => {
                    // First, as it must come after these bytes and before all that come now.
                    if dropped > 0 {
                        warn!(log.dropped = dropped, "log lines dropped: standard error was not read");
                    }
                    // Whoever reads it may be gone. What cannot be written is lost: trying again would not help.
                    drop(io::stderr().write_all(&bytes));
                }
                Work::Alarm => self.refusals.report(Instant::now()),
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Starts logging to standard error. Later calls have no effect: the first one in the process counts.
///
/// # Errors
/// The thread that writes the lines cannot be started.
pub fn start(format: LogFormat, level: &LogLevel) -> io::Result<Log> {
    let queue = Arc::new(LineQueue::default());
    let log = Log { queue: Arc::clone(&queue), refusals: Refusals::new(Arc::clone(&queue)) };
    let builder = tracing_subscriber::fmt()
        .with_writer(move || LineWriter(Arc::clone(&queue)))
        .log_internal_errors(false)
        // Without the feature for them, asking for colours is an error on every terminal.
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(&level.0))
        .with_target(false);
    let refusals = log.refusals.clone();
    let started = match format {
        LogFormat::Text => builder.finish().with(refusals).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().with(refusals).try_init(),
    };
    // An embedding program may have its own subscriber: then ours is not wanted.
    if started.is_ok() {
        let writer = Log { queue: Arc::clone(&log.queue), refusals: log.refusals.clone() };
        std::thread::Builder::new().name("log".into()).spawn(move || writer.write())?;
    }
    Ok(log)
}
