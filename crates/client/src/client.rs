//! The client: keeps a subscription standing, stream after stream, until it is told to stop.

use std::time::Duration;

use gitstafette_core::backoff::Backoff;
use gitstafette_core::event::Sequence;
use gitstafette_proto::convert::{Start, Subscription};
use gitstafette_proto::v1::GoAwayReason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{error, info, warn};

use crate::connect::ServerAddress;
use crate::deliveries::Deliveries;
use crate::lane::RetryPolicy;
use crate::route::Route;
use crate::session::{self, End, Notice};

/// Between tries to reach the server.
pub(crate) const RECONNECT: Backoff =
    Backoff { first: Duration::from_millis(250), most: Duration::from_secs(30) };
/// After the server refused for a reason that only a person can change.
const REFUSED: Backoff = Backoff { first: Duration::from_secs(30), most: Duration::from_secs(30) };

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The server.
    pub server: ServerAddress,
    /// What to ask it for. Only the first stream starts where this says; later ones go on at the cursor. Each client
    /// needs an id of its own.
    pub subscription: Subscription,
    /// Where events go.
    pub routes: Vec<Route>,
    /// How often and how long to try.
    pub retry: RetryPolicy,
}

/// What the client is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientState {
    /// Whether a subscription stands now.
    pub subscribed: bool,
    /// The last event received.
    pub received: Sequence,
}

/// Receives webhooks from a server and delivers them to targets.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    state: watch::Sender<ClientState>,
}

impl Client {
    /// A client that is not connected yet: [`run`](Self::run) does that.
    pub fn new(options: ClientOptions) -> Self {
        Self { options, state: watch::Sender::default() }
    }

    /// What the client is doing, to look at or to wait on.
    pub fn state(&self) -> watch::Receiver<ClientState> {
        self.state.subscribe()
    }

    /// Runs until `stop` is cancelled: reconnects after every break, resumes at the cursor, never gives up. Then the
    /// tries under way are finished and acknowledged.
    pub async fn run(self, stop: CancellationToken) {
        let mut deliveries = Deliveries::new(self.options.routes.clone(), self.options.retry);
        let mut start = self.options.subscription.start;
        let mut failures = 0;
        loop {
            let mut started = false;
            let end = self.stream(start, &mut deliveries, &stop, &mut started).await;
            self.state.send_if_modified(|state| std::mem::take(&mut state.subscribed));
            if started {
                (start, failures) = (Start::Cursor, 0);
            }
            failures += 1;
            let Some(wait) = self.wait_after(end, failures) else { break };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
        }
        // Nobody is left to hear of what ends now: it comes again with the next start.
        drop(tokio::time::timeout(session::FAREWELL, deliveries.stop()).await);
    }

    async fn stream(
        &self,
        start: Start,
        deliveries: &mut Deliveries,
        stop: &CancellationToken,
        started: &mut bool,
    ) -> End {
        let connection = match stop.run_until_cancelled(self.options.server.connect()).await {
            None => return End::Stopped,
            Some(Err(status)) => return End::Broken(status),
            Some(Ok(connection)) => connection,
        };
        let subscription = Subscription { start, ..self.options.subscription.clone() };
        session::run(connection, subscription, deliveries, stop, |notice| {
            *started = true;
            self.state.send_modify(|state| match notice {
                Notice::Started => state.subscribed = true,
                Notice::Received(sequence) => state.received = sequence,
            });
        })
        .await
    }

    /// How long to wait before the next stream; `None` if there is to be none.
    fn wait_after(&self, end: End, failures: u32) -> Option<Duration> {
        let server = self.options.server.url();
        let random = fastrand::f64();
        let wait = match end {
            End::Stopped => return None,
            End::GoAway(GoAwayReason::Window, _) => {
                info!(server, "the stream window is over; going on with the next");
                return Some(Duration::ZERO);
            }
            End::GoAway(GoAwayReason::TakenOver, message) => {
                let wait = REFUSED.delay(failures, random);
                error!(server, client.id = %self.options.subscription.client_id, retry_in_s = wait.as_secs(), reason = message, "taken over");
                wait
            }
            End::GoAway(_, message) => {
                let wait = RECONNECT.delay(failures, random);
                info!(server, retry_in_ms = millis(wait), reason = message, "the server ended the stream");
                wait
            }
            End::Broken(status) if is_refusal(&status) => {
                let wait = REFUSED.delay(failures, random);
                let code = status.code();
                error!(server, status = ?code, retry_in_s = wait.as_secs(), reason = status.message(), "the server refuses");
                wait
            }
            End::Broken(status) => {
                let wait = RECONNECT.delay(failures, random);
                let code = status.code();
                warn!(server, status = ?code, retry_in_ms = millis(wait), reason = status.message(), "no stream");
                wait
            }
        };
        Some(wait)
    }
}

/// Whether only a person can change it (gRPC status codes, "retry" in the gRPC docs). A stream that a proxy cut shows
/// as UNAVAILABLE, INTERNAL or UNKNOWN alike: those come back by themselves.
pub(crate) fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::OutOfRange
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
