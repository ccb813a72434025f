//! The public HTTP surface: webhooks in, health, and the two listings of the Go implementation.

mod account;
mod body;
mod carrier;
mod inflight;
mod jenkins;
mod listing;
mod pace;
mod problem;
mod receive;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, http::Request};
use gitstafette_core::store::EventStore;
use gitstafette_core::verify::GitHubSignature;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answers::Answers;
use crate::auth::{ClientAuth, Peer, unknown_method};
use crate::metrics::Metrics;
use crate::relay::{Connected, Relays};
use crate::watchlist::LiveWatchlist;

pub(crate) use account::{Account, Counted, Sender};
pub(crate) use body::BodyReader;
pub(crate) use carrier::CarrierCodec;
pub(crate) use inflight::{MAX_WAITING_PER_CONNECTION, UNREAD_BYTES};
pub(crate) use problem::{Problem, Refusal};
pub(crate) use receive::{Accepted, PING_ANSWER, Seen, Trust, end_to_end};

/// Bounds of what one request and all together may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngestLimits {
    /// The largest body, in bytes.
    pub body_bytes: u64,
    /// The bytes of all bodies that are being received or stored at once.
    pub inflight_bytes: u64,
    /// How long a request may take from the end of its head: waiting for memory, the body, and the commit.
    pub request_timeout: Duration,
}

/// What a message that carries a webhook may have beside the body, in bytes: as much as the wire between our own ends has
/// room for (`MAX_MESSAGE_BYTES`).
const ENVELOPE_BYTES: u64 = 1 << 20;

impl IngestLimits {
    /// The largest message that carries a webhook, in bytes: never more than may be in flight, or it would be tried for ever.
    pub(crate) fn message_bytes(&self) -> u64 {
        let small_share = inflight::small_share(self.inflight_bytes, self.body_bytes);
        let most = self.inflight_bytes.saturating_sub(small_share + carrier::PREFIX_BYTES as u64);
        self.body_bytes.saturating_add(ENVELOPE_BYTES).min(most)
    }

    /// What is left of the time of a request whose head is complete since `started`.
    fn time_left(&self, started: Instant) -> Duration {
        self.request_timeout.saturating_sub(started.elapsed())
    }
}

/// What handlers need.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) watchlist: Arc<LiveWatchlist>,
    /// `None` takes unsigned webhooks.
    pub(crate) signature: Option<GitHubSignature>,
    pub(crate) auth: ClientAuth,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) relays: Arc<Relays>,
    pub(crate) bodies: BodyReader,
    /// Where webhooks are taken: they outlive the connection they came on.
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: CancellationToken,
}

impl Ingest {
    pub(crate) fn limits(&self) -> IngestLimits {
        self.bodies.limits()
    }

    /// An account for the messages of one call of this peer, which use the same memory as all bodies in flight.
    pub(crate) fn account(&self, peer: Option<&Peer>) -> Account {
        self.bodies.account(peer.map(|peer| peer.address))
    }

    /// Whether webhooks are verified.
    pub(crate) fn verifies(&self) -> bool {
        self.signature.is_some()
    }

    /// Takes a webhook in a task of its own, which outlives the connection it came on.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        taking: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(taking)
    }
}

/// The whole HTTP surface.
pub(crate) fn router(ingest: Arc<Ingest>) -> Router {
    let listings = Router::new()
        .route("/v1/watchlist", get(listing::watchlist))
        .route("/v1/events/{repository}", get(listing::events))
        .route("/v1/events/{owner}/{name}", get(listing::events));
    let listings = Answers::new(listing::LISTINGS_BYTES, listing::RESERVED_BYTES)
        .hold(listings)
        .route_layer(from_fn_with_state(Arc::clone(&ingest), listing::require_token));
    Router::new()
        .route("/v1/github", post(receive::github))
        .route("/v1/github/", post(receive::github))
        // The Go implementation answers here, and load balancers ask here unless told otherwise.
        .route("/", get(healthz))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(listings)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(ingest)
}

/// What answers every path that is none: to gRPC in gRPC, to others in HTTP.
pub(crate) async fn not_found(request: Request<axum::body::Body>) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    if content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
        return unknown_method().into_http();
    }
    Problem::new(StatusCode::NOT_FOUND, "there is nothing here; webhooks go to POST /v1/github/")
        .into_response()
}

/// What answers every other method on a path that is one. The router adds the methods that it takes (`Allow`).
async fn method_not_allowed() -> Problem {
    let detail = "this path takes other methods, see the header Allow; webhooks come by POST";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

#[derive(Debug, Serialize)]
struct Status {
    status: &'static str,
}

/// What `GET /readyz` tells. A neighbour that is away is no reason to send webhooks elsewhere: they wait on the disk.
#[derive(Debug, Serialize)]
struct Readiness<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Connected::is_empty")]
    relays: Connected<'a>,
}

/// The process lives.
async fn healthz() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Webhooks are taken: not while the server goes down, nor while the store cannot write.
async fn readyz(State(ingest): State<Arc<Ingest>>) -> Response {
    let (code, status) = if ingest.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else {
        match ingest.store.statistics().await {
            Ok(statistics) if !statistics.writable => {
                (StatusCode::SERVICE_UNAVAILABLE, "the store cannot write")
            }
            Ok(_) => (StatusCode::OK, "ok"),
            Err(error) => return Problem::from(error).into_response(),
        }
    };
    (code, Json(Readiness { status, relays: ingest.relays.are_connected() })).into_response()
}
