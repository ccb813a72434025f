//! Logging of both programs: one line per event on standard error, as text or JSON.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

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

/// Standard error, or nothing: whoever reads it may go away, and a webhook must not fail for want of a log line.
struct Lossy(std::io::Stderr);

impl std::io::Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.write_all(bytes) {
            // What could not be written is lost: trying again would not help.
            Ok(()) | Err(_) => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts logging to standard error. Later calls have no effect: the first one in the process counts.
pub fn start(format: LogFormat, level: &LogLevel) {
    let builder = tracing_subscriber::fmt()
        .with_writer(|| Lossy(std::io::stderr()))
        .log_internal_errors(false)
        // Without the feature for them, asking for colours is an error on every terminal.
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(&level.0))
        .with_target(false);
    // An embedding program may have its own subscriber: then ours is not wanted.
    drop(match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    });
}
