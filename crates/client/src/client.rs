//! The client: keeps a subscription standing, stream after stream, until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::backoff::Backoff;
use gitstafette_proto::convert::{Seen, Start, Subscription};
use gitstafette_proto::v1::GoAwayReason;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{error, info, warn};

use crate::connect::{ServerAddress, Unconnected};
use crate::deliveries::Deliveries;
use crate::feed::{Feed, Keep};
use crate::route::{Destination, Route};
use crate::session::{self, End, Notice, Order};
use crate::state::{ClientState, TargetState};
use crate::window::Window;

/// Between tries to reach the server.
pub(crate) const RECONNECT: Backoff =
    Backoff { first: Duration::from_millis(250), most: Duration::from_secs(30) };
/// After the server refused for a reason that only a person can change.
const REFUSED: Backoff = Backoff { first: Duration::from_secs(30), most: Duration::from_secs(30) };

/// A stream that stood so long was a good one, even if nothing happened on it.
pub(crate) const STEADY: Duration = Duration::from_secs(30);
/// After a stream window that was shorter than this and brought nothing, the client waits before the next stream: a server
/// with a tiny window must not be asked without a pause.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

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
    /// How long one stream lives before the client ends it and goes on with the next; `None` is for ever.
    pub stream_window: Option<Duration>,
}

/// Receives webhooks from a server and delivers them to targets. A clone tells the same state.
#[derive(Clone, Debug)]
pub struct Client {
    feed: Feed,
    subscription: Subscription,
    destinations: Vec<Arc<Destination>>,
    stream_window: Option<Duration>,
    /// What only this client has.
    keep: Keep,
    state: watch::Sender<ClientState>,
}

/// How a stream went.
#[derive(Debug, Default)]
struct Course {
    /// When its subscription stood.
    started: Option<Instant>,
    /// Whether it brought something forward.
    progressed: bool,
    /// Whether the server's port could not be reached.
    is_away: bool,
}

impl Course {
    /// Whether the next failure is the first. A server that lets a stream begin and then fails (its disk may be full, so
    /// that it can store no acknowledgement) is not asked four times a second.
    fn was_good(&self, end: &End) -> bool {
        let ended_by_window = matches!(end, End::WindowOver | End::GoAway(GoAwayReason::Window, _));
        self.lived(if ended_by_window { SHORTEST_WINDOW } else { STEADY })
    }

    /// Whether it brought something forward, or stood so long.
    fn lived(&self, time: Duration) -> bool {
        self.progressed || self.started.is_some_and(|started| started.elapsed() >= time)
    }
}

impl Client {
    /// A client that is not connected yet: [`run`](Self::run) does that.
    pub fn new(options: ClientOptions) -> Self {
        let ClientOptions { server, subscription, routes, stream_window } = options;
        Self { stream_window, ..Self::of(Feed::Server(server), subscription, routes) }
    }

    /// A client of any feed, for a server that relays: subscribes to it and delivers to the routes.
    pub fn of(feed: Feed, subscription: Subscription, routes: Vec<Route>) -> Self {
        let destinations = Destination::all(routes);
        let targets = destinations.iter().map(|destination| TargetState::new(&destination.name)).collect();
        let state = watch::Sender::new(ClientState { targets, ..ClientState::default() });
        Self { feed, subscription, destinations, stream_window: None, keep: Keep::default(), state }
    }

    /// What the client is doing, to look at or to wait on.
    pub fn state(&self) -> watch::Receiver<ClientState> {
        self.state.subscribe()
    }

    /// The log that is known already, and how far, from an earlier client of the same id. If the server's cursor lies beyond,
    /// it moves back.
    #[must_use]
    pub fn knowing(mut self, seen: Option<Seen>) -> Self {
        self.subscription.resume_at_seen = seen.is_some();
        self.subscription.seen = seen;
        self
    }

    /// Runs until `stop` is cancelled: reconnects after every break, resumes at the cursor, never gives up. Then the
    /// tries under way are finished and acknowledged.
    pub async fn run(mut self, stop: CancellationToken) {
        let window = Window::of(&self.subscription);
        let seen = self.subscription.seen.clone();
        let mut deliveries = Deliveries::new(self.destinations.clone(), window, self.state.clone(), seen);
        let mut start = self.subscription.start;
        let mut failures = 0;
        loop {
            let mut course = Course::default();
            let end = self.stream(start, &mut deliveries, &stop, &mut course).await;
            self.state.send_if_modified(|state| std::mem::take(&mut state.subscribed));
            if course.started.is_some() {
                start = Start::Cursor;
                // From here on what the client has seen is in memory, and only its own process can lose it.
                self.subscription.resume_at_seen = false;
            }
            failures = if course.was_good(&end) { 1 } else { failures + 1 };
            self.note(&end);
            let Some(wait) = self.wait_after(end, &course, failures) else { break };
            let waiting = stop.run_until_cancelled(self.feed.wait(wait, course.is_away));
            if deliveries.during(waiting).await.is_none() {
                break;
            }
        }
        // Without a stream, these attempts are not acknowledged: their events come again with the next start.
        let deadline = deliveries.begin_stop();
        drop(tokio::time::timeout_at(deadline, deliveries.stopped()).await);
        self.keep.end(deliveries.done());
    }

    async fn stream(
        &self,
        start: Start,
        deliveries: &mut Deliveries,
        stop: &CancellationToken,
        course: &mut Course,
    ) -> End {
        let line = match deliveries.during(stop.run_until_cancelled(self.feed.connect(&self.keep))).await {
            None => return End::Stopped,
            Some(Err(Unconnected { status, is_away })) => {
                course.is_away = is_away;
                return End::Broken(status);
            }
            Some(Ok(line)) => line,
        };
        let subscription = Subscription { start, ..self.subscription.clone() };
        let order = Order { subscription, window: self.stream_window };
        session::run(line, order, deliveries, stop, |notice| match notice {
            Notice::Started => {
                course.started = Some(Instant::now());
                self.state.send_modify(|state| (state.subscribed, state.last_error) = (true, None));
            }
            Notice::Progress => course.progressed = true,
        })
        .await
    }

    /// Keeps what went wrong, for health checks.
    fn note(&self, end: &End) {
        let error = match end {
            End::GoAway(GoAwayReason::TakenOver, message) => message,
            End::Broken(status) => status.message(),
            _ => return,
        };
        self.state.send_modify(|state| state.last_error = Some(error.to_owned()));
    }

    /// How long to wait before the next stream; `None` if there is to be none.
    fn wait_after(&self, end: End, course: &Course, failures: u32) -> Option<Duration> {
        let server = self.feed.name();
        let random = fastrand::f64();
        let wait = match end {
            End::Stopped => return None,
            End::WindowOver | End::GoAway(GoAwayReason::Window, _) if course.was_good(&end) => {
                info!(server, "the stream window is over; going on with the next");
                return Some(Duration::ZERO);
            }
            End::OtherStore => {
                info!(server, "the server has another store; subscribing to it anew");
                return Some(Duration::ZERO);
            }
            End::GoAway(GoAwayReason::TakenOver, message) => {
                let wait = REFUSED.delay(failures, random);
                error!(server, client.id = %self.subscription.client_id, retry_in_s = wait.as_secs(), reason = message, "taken over");
                wait
            }
            End::WindowOver => RECONNECT.delay(failures, random),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_good_that_brings_something_or_stands() {
        let broken = End::Broken(Status::unavailable(""));
        assert!(!Course::default().was_good(&broken));
        let started = Course { started: Some(Instant::now()), ..Course::default() };
        assert!(!started.was_good(&broken), "it began, and no more");
        assert!(Course { progressed: true, ..Course::default() }.was_good(&broken));
        tokio::time::sleep(STEADY).await;
        assert!(started.was_good(&broken));
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_ends_at_once_is_followed_by_a_pause() {
        let server = ServerAddress { host: "relay.example".into(), port: 1, tls: None, token: None };
        let subscription = Subscription::new("a".parse().unwrap());
        let client = Client::of(Feed::Server(server), subscription, Vec::new());
        let started = Course { started: Some(Instant::now()), ..Course::default() };
        let go_away = || End::GoAway(GoAwayReason::Window, String::new());
        for end in [go_away(), End::WindowOver] {
            assert!(!Course::default().was_good(&end) && !started.was_good(&end));
        }
        let wait = |course: &Course| client.wait_after(go_away(), course, 9).unwrap();
        assert!(wait(&Course::default()) > Duration::from_secs(1), "it never started");
        assert!(wait(&started) > Duration::from_secs(1), "it ended at once");
        assert_eq!(wait(&Course { progressed: true, ..Course::default() }), Duration::ZERO);
        tokio::time::sleep(SHORTEST_WINDOW).await;
        assert_eq!(wait(&started), Duration::ZERO);
    }
}
