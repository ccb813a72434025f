//! `GET /health`: whether the client lives, and whether its subscription stands.

use std::io;

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::ClientState;

/// The answer. Its status is 200 as long as the process lives: a server that is away is no reason to restart a client.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health {
    status: &'static str,
    subscribed: bool,
    received: u64,
}

/// Serves `GET /health` until `stop` is cancelled.
///
/// # Errors
/// The listener broke.
pub async fn serve(
    listener: TcpListener,
    state: watch::Receiver<ClientState>,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = axum::Router::new().route("/health", get(health)).with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn health(State(state): State<watch::Receiver<ClientState>>) -> Json<Health> {
    let ClientState { subscribed, received } = *state.borrow();
    Json(Health { status: "ok", subscribed, received: received.get() })
}
