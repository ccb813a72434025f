//! Signals: the first SIGTERM or SIGINT asks for an orderly end, the second ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code after a second signal: 128 and the number of SIGTERM, as shells report it.
const EXIT_CODE: i32 = 143;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal exits the process at once.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    // Ends with the process: there is nobody to join it.
    tokio::spawn(async move {
        next(&mut signals).await;
        cancelled.cancel();
        tracing::info!("stopping; a second signal stops at once");
        next(&mut signals).await;
        tracing::warn!("stopped by a second signal");
        std::process::exit(EXIT_CODE);
    });
    Ok(token)
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
