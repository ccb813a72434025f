//! Signals: the first SIGTERM or SIGINT asks for an orderly end, the second ends the process at once.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::logging::Log;

/// How long calls that block, such as writing to standard output, may hold up the end of the process.
pub const BLOCKING_TIMEOUT: Duration = Duration::from_secs(1);

/// What shells add to the number of a signal that ended a program, to make its exit code.
const SIGNALLED: i32 = 128;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal exits the process at once, after the last lines
/// of the log, with the exit code 143 or 130.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn on_signal(log: Log) -> io::Result<CancellationToken> {
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    // Ends with the process: there is nobody to join it.
    tokio::spawn(async move {
        next(&mut signals).await;
        cancelled.cancel();
        tracing::info!("stopping; a second signal stops at once");
        let second = next(&mut signals).await;
        tracing::warn!("stopped by a second signal");
        log.flush();
        std::process::exit(SIGNALLED + second.as_raw_value());
    });
    Ok(token)
}

/// Waits for the next signal.
async fn next((terminate, interrupt): &mut (Signal, Signal)) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}
