//! The activity of one connection, and how long it may be silent.
//!
//! Three limits apply, one at a time:
//!
//! - The head of a request must be complete in time: the first one from the start of the connection, over HTTP/1.1 each
//!   further one from its first byte.
//! - While a request is under way, something must move: a part of a body, in or out. A response that waits for this server,
//!   as a subscription without news does, may be silent for any time. A response that waits for its peer may not: a peer that
//!   asks and never reads would hold its connection for ever, and so would one that asked once and answers PINGs since.
//! - Between requests a connection is idle. A load balancer keeps idle connections, and sends a webhook into one at any time.
//!
//! If places for connections are scarce, one ends earlier, see [`Rank`]. A request whose caller is authenticated keeps its
//! connection. All others do not.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Version;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limit::{ConnectionLimit, Key, Rank};

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For the TLS handshake, and for the head of a request.
    pub(crate) head: Duration,
    /// While a request is under way and does not wait for this server.
    pub(crate) stalled: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// For the end of a connection that was told to end.
    pub(crate) close: Duration,
}

/// The activity of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    /// Notified when another limit applies, which may end the silence earlier.
    limit_changed: Notify,
    limit: Arc<ConnectionLimit>,
    /// The address of the peer.
    caller: IpAddr,
    /// Cancelled when the connection is to end because others need its place.
    evicted: CancellationToken,
}

#[derive(Debug)]
pub(super) struct State {
    has_begun: bool,
    /// Whether a request was authenticated, or brought a webhook that was accepted.
    is_proven: bool,
    is_http1: bool,
    /// Requests under way: their handlers and the bodies that still exist.
    parts: usize,
    /// Requests under way whose caller is authenticated, and those that bring a webhook.
    authenticated: usize,
    webhooks: usize,
    /// Responses that wait for this server.
    pub(super) waiting: usize,
    /// Whether a response announced that it is the last one.
    is_closing: bool,
    /// Whether the peer does not read what was written.
    is_write_blocked: bool,
    pub(super) moved: Instant,
    /// When the first byte of the next head came.
    head_began: Option<Instant>,
    /// The place in the queue of connections that may end.
    queued: Option<Key>,
}

impl Activity {
    /// Of a connection of this peer that begins now.
    pub(super) fn new(limit: Arc<ConnectionLimit>, caller: IpAddr) -> Self {
        let state = State {
            has_begun: false,
            is_proven: false,
            is_http1: false,
            parts: 0,
            authenticated: 0,
            webhooks: 0,
            waiting: 0,
            is_closing: false,
            is_write_blocked: false,
            moved: Instant::now(),
            head_began: None,
            queued: None,
        };
        let (limit_changed, evicted) = (Notify::new(), CancellationToken::new());
        let activity = Self { state: Mutex::new(state), limit_changed, limit, caller, evicted };
        activity.requeue(&mut activity.state());
        activity
    }

    /// A request begins.
    pub(super) fn begin_request(self: &Arc<Self>, version: Version) -> Part {
        {
            let mut state = self.state();
            state.has_begun = true;
            state.is_http1 = version < Version::HTTP_2;
        }
        self.limit_changed.notify_one();
        let request = RequestUnderWay { activity: Arc::clone(self), standing: Mutex::default() };
        Part::new(Arc::new(request))
    }

    /// Something moves.
    pub(super) fn moves(&self) {
        self.state().moved = Instant::now();
    }

    /// Bytes came. Over HTTP/1.1 the first ones between two requests begin a head.
    pub(super) fn bytes_came(&self) {
        let mut state = self.state();
        if !(state.has_begun && state.is_http1) || state.parts > 0 || state.head_began.is_some() {
            return;
        }
        state.head_began = Some(Instant::now());
        self.requeue(&mut state);
        drop(state);
        self.limit_changed.notify_one();
    }

    /// The peer took what was written, or did not.
    pub(super) fn wrote(&self, is_blocked: bool) {
        let mut state = self.state();
        if !is_blocked && state.is_write_blocked {
            state.moved = Instant::now();
        }
        let is_new = is_blocked && !state.is_write_blocked;
        state.is_write_blocked = is_blocked;
        drop(state);
        if is_new {
            self.limit_changed.notify_one();
        }
    }

    /// Whether there was a request.
    pub(super) fn has_begun(&self) -> bool {
        self.state().has_begun
    }

    /// Whether nothing is under way that could be finished.
    pub(super) fn awaits_head(&self) -> bool {
        let state = self.state();
        !state.has_begun || state.parts == 0 && state.head_began.is_some()
    }

    /// Whether what is under way does not keep the connection: if it is to end, it is cut.
    pub(super) fn may_be_cut(&self) -> bool {
        let state = self.state();
        state.authenticated == 0 && state.parts > 0
    }

    /// Whether a response that begins now is to announce that it is the last one: when connections are scarce.
    pub(super) fn closes_after_response(&self) -> bool {
        let is_scarce = self.limit.is_scarce_for(self.caller);
        self.state().is_closing |= is_scarce;
        is_scarce
    }

    /// Waits until the connection was silent for too long.
    pub(super) async fn silence(&self, timeouts: Timeouts) {
        loop {
            let (end, now) = (self.state().end(timeouts), Instant::now());
            if end <= now {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(end) => {}
                () = self.limit_changed.notified() => {}
            }
        }
    }

    /// Waits until the connection is to end because others need its place.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Puts the connection where it belongs in the queue of those that may end.
    fn requeue(&self, state: &mut State) {
        let rank = state.rank();
        if state.queued.map(|key| key.rank) == rank {
            return;
        }
        if let Some(key) = state.queued.take() {
            self.limit.dequeue(key);
        }
        state.queued = rank.map(|rank| self.limit.enqueue(rank, self.caller, self.evicted.clone()));
    }

    /// A request, or a part of one, has ended.
    fn ended(&self, mut state: MutexGuard<'_, State>) {
        state.moved = Instant::now();
        self.requeue(&mut state);
        let (parts, rank) = (state.parts, state.rank());
        drop(state);
        if parts == 0 {
            self.limit_changed.notify_one();
        }
        if matches!(rank, Some(Rank::Idle | Rank::IdleUnproven)) {
            self.limit.relieve();
        }
    }

    /// Never held across a wait.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        let key = self.state().queued.take();
        if let Some(key) = key {
            self.limit.dequeue(key);
        }
    }
}

impl State {
    /// How soon the connection ends if places are scarce; `None`: not at all.
    fn rank(&self) -> Option<Rank> {
        if !self.has_begun {
            return Some(Rank::New);
        }
        if self.authenticated > 0 {
            return None;
        }
        if self.webhooks > 0 || self.parts == 0 && (self.head_began.is_some() || self.is_closing) {
            return Some(Rank::Busy);
        }
        Some(match (self.parts, self.is_proven) {
            (0, true) => Rank::Idle,
            (0, false) => Rank::IdleUnproven,
            _ => Rank::Unproven,
        })
    }

    /// When the silence has lasted too long, if nothing moves until then.
    fn end(&self, timeouts: Timeouts) -> Instant {
        if !self.has_begun {
            return self.moved + timeouts.head;
        }
        if self.parts > 0 {
            let since = if self.waiting > 0 { Instant::now() } else { self.moved };
            return since + timeouts.stalled;
        }
        if self.is_write_blocked || self.is_closing {
            return self.moved + timeouts.stalled;
        }
        match self.head_began {
            Some(began) => began + timeouts.head,
            None => self.moved + timeouts.idle,
        }
    }
}

/// What is known of the caller of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// Nothing.
    #[default]
    Unproven,
    /// It sends a webhook, which ends within a time limit.
    Webhook,
    /// It is authenticated.
    Authenticated,
}

/// A request of which parts exist.
#[derive(Debug)]
struct RequestUnderWay {
    activity: Arc<Activity>,
    standing: Mutex<Standing>,
}

impl RequestUnderWay {
    /// Changes what is known of the caller.
    fn is_from(&self, standing: Standing) {
        let mut known = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.activity.state();
        state.count(*known, |count| *count -= 1);
        state.count(standing, |count| *count += 1);
        *known = standing;
        self.activity.requeue(&mut state);
    }
}

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        let standing = *self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        self.activity.state().is_proven |= standing == Standing::Authenticated;
        self.is_from(Standing::Unproven);
        self.activity.ended(self.activity.state());
    }
}

impl State {
    fn count(&mut self, standing: Standing, change: impl FnOnce(&mut usize)) {
        match standing {
            Standing::Unproven => {}
            Standing::Webhook => change(&mut self.webhooks),
            Standing::Authenticated => change(&mut self.authenticated),
        }
    }
}

/// Lets a handler tell what it knows of the caller of a request. Without it, the request does not keep its connection. Put into
/// every request's extensions by the listener.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Weak<RequestUnderWay>);

impl Caller {
    /// The request keeps its connection: its caller is authenticated, or the server asks for nothing, or what is left to do does
    /// not depend on the caller.
    pub(crate) fn keeps_connection(&self) {
        self.is_from(Standing::Authenticated);
    }

    /// The request brings a webhook: its connection ends only if nothing else can.
    pub(crate) fn sends_webhook(&self) {
        self.is_from(Standing::Webhook);
    }

    fn is_from(&self, standing: Standing) {
        if let Some(request) = self.0.upgrade() {
            request.is_from(standing);
        }
    }
}

/// A part of a request under way: its handler, or a body. The connection is idle when none is left.
#[derive(Debug)]
pub(super) struct Part(Arc<RequestUnderWay>);

impl Part {
    fn new(request: Arc<RequestUnderWay>) -> Self {
        {
            let mut state = request.activity.state();
            state.parts += 1;
            state.head_began = None;
            state.moved = Instant::now();
            request.activity.requeue(&mut state);
        }
        Self(request)
    }

    /// One more part of the same request.
    pub(super) fn another(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }

    /// What the handler of the request tells with.
    pub(super) fn caller(&self) -> Caller {
        Caller(Arc::downgrade(&self.0))
    }

    /// Whether the request keeps its connection.
    fn is_authenticated(&self) -> bool {
        let standing = self.0.standing.lock().unwrap_or_else(PoisonError::into_inner);
        *standing == Standing::Authenticated
    }

    /// A place for the body of the answer, if its request is not authenticated. `None`: too many such answers wait for their peers.
    pub(super) fn answer(&self) -> Option<Option<OwnedSemaphorePermit>> {
        if self.is_authenticated() { Some(None) } else { self.activity().limit.answer().map(Some) }
    }

    pub(super) fn activity(&self) -> &Activity {
        &self.0.activity
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut state = self.activity().state();
        state.parts -= 1;
        self.activity().ended(state);
    }
}

#[cfg(test)]
mod tests;
