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

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limit::{ConnectionLimit, IdleKey};

/// The largest part of a body that passes at once, in bytes: a slow peer that reads a large message shows part by part
/// that it does.
const PART_BYTES: usize = 64 << 10;

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
    /// Cancelled when the connection is to end because it is idle and others need its place.
    evicted: CancellationToken,
}

#[derive(Debug)]
struct State {
    has_begun: bool,
    is_http1: bool,
    /// Requests under way: their handlers and the bodies that still exist.
    parts: usize,
    /// Responses that wait for this server.
    waiting: usize,
    /// Whether a response announced that it is the last one.
    is_closing: bool,
    /// Whether the peer does not read what was written.
    is_write_blocked: bool,
    moved: Instant,
    /// When the first byte of the next head came.
    head_began: Option<Instant>,
    /// The place in the queue of idle connections.
    idle: Option<IdleKey>,
}

impl Activity {
    /// Of a connection that begins now.
    pub(super) fn new(limit: Arc<ConnectionLimit>) -> Self {
        let evicted = CancellationToken::new();
        let state = State {
            has_begun: false,
            is_http1: false,
            parts: 0,
            waiting: 0,
            is_closing: false,
            is_write_blocked: false,
            moved: Instant::now(),
            head_began: None,
            idle: Some(limit.enqueue_unused(evicted.clone())),
        };
        Self { state: Mutex::new(state), limit_changed: Notify::new(), limit, evicted }
    }

    /// A request begins.
    pub(super) fn begin_request(self: &Arc<Self>, version: Version) -> Part {
        {
            let mut state = self.state();
            state.has_begun = true;
            state.is_http1 = version < Version::HTTP_2;
        }
        self.limit_changed.notify_one();
        Part::new(Arc::clone(self))
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
        self.dequeue(&mut state);
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

    /// Whether a response that begins now is to announce that it is the last one: when connections are scarce.
    pub(super) fn closes_after_response(&self) -> bool {
        let is_scarce = self.limit.is_scarce();
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

    /// Waits until the connection is to end because it is idle and others need its place.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    fn dequeue(&self, state: &mut State) {
        if let Some(key) = state.idle.take() {
            self.limit.dequeue(key);
        }
    }

    /// Never held across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        let key = self.state().idle.take();
        if let Some(key) = key {
            self.limit.dequeue(key);
        }
    }
}

impl State {
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

/// A part of a request under way: its handler, or a body. The connection is idle when none is left.
#[derive(Debug)]
pub(super) struct Part(Arc<Activity>);

impl Part {
    fn new(activity: Arc<Activity>) -> Self {
        {
            let mut state = activity.state();
            state.parts += 1;
            state.head_began = None;
            state.moved = Instant::now();
            activity.dequeue(&mut state);
        }
        Self(activity)
    }

    /// One more part of the same request.
    pub(super) fn another(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let Self(activity) = self;
        let mut state = activity.state();
        state.parts -= 1;
        state.moved = Instant::now();
        if state.parts > 0 {
            return;
        }
        let is_kept = !state.is_closing;
        if is_kept {
            state.idle = Some(activity.limit.enqueue_idle(activity.evicted.clone()));
        }
        drop(state);
        activity.limit_changed.notify_one();
        if is_kept {
            activity.limit.relieve();
        }
    }
}

/// A body that tells the activity of its connection.
#[derive(Debug)]
pub(super) struct Watched<B> {
    body: B,
    /// What is left of a frame larger than a part.
    rest: Bytes,
    direction: Direction,
    is_waiting: bool,
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// It comes from the peer: to wait for it is to wait for the peer.
    In,
    /// It comes from this server.
    Out,
}

impl<B> Watched<B> {
    /// The body of a request.
    pub(super) fn request(body: B, part: Part) -> Self {
        Self::new(body, Direction::In, part)
    }

    /// The body of a response.
    pub(super) fn response(body: B, part: Part) -> Self {
        Self::new(body, Direction::Out, part)
    }

    fn new(body: B, direction: Direction, part: Part) -> Self {
        Self { body, rest: Bytes::new(), direction, is_waiting: false, part }
    }

    /// The next part of a frame that is larger than one. It is a copy: a slice would keep the whole frame in memory for as long
    /// as it waits in a buffer of the connection.
    fn next_part(&mut self) -> Bytes {
        Bytes::copy_from_slice(&self.rest.split_to(self.rest.len().min(PART_BYTES)))
    }

    /// Notes whether the body had something to give.
    fn note(&mut self, is_pending: bool) {
        let is_waiting = is_pending && self.direction == Direction::Out;
        let mut state = self.part.0.state();
        match (self.is_waiting, is_waiting) {
            (false, true) => state.waiting += 1,
            (true, false) => state.waiting -= 1,
            _ => {}
        }
        self.is_waiting = is_waiting;
        if !is_pending {
            state.moved = Instant::now();
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            this.note(false);
            return Poll::Ready(Some(Ok(Frame::data(this.next_part()))));
        }
        let polled = Pin::new(&mut this.body).poll_frame(context);
        this.note(polled.is_pending());
        polled.map_ok(|frame| {
            frame.map_data(|data| {
                if data.len() <= PART_BYTES {
                    return data;
                }
                this.rest = data;
                this.next_part()
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}

impl<B> Drop for Watched<B> {
    /// Its end is a movement, too: silence begins here.
    fn drop(&mut self) {
        self.note(false);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        stalled: Duration::from_secs(60),
        idle: Duration::from_secs(650),
        close: Duration::from_secs(10),
    };

    fn activity() -> Arc<Activity> {
        Arc::new(Activity::new(Arc::new(ConnectionLimit::new(100))))
    }

    /// How long the connection may be silent from now, in seconds. The time is paused.
    async fn seconds(activity: &Activity) -> u64 {
        let begin = Instant::now();
        activity.silence(TIMEOUTS).await;
        begin.elapsed().as_secs()
    }

    #[tokio::test]
    async fn a_large_frame_passes_in_parts() {
        let activity = activity();
        let whole = Bytes::from(vec![7; 3 * PART_BYTES + 1]);
        let mut body = Watched::response(Full::new(whole.clone()), activity.begin_request(Version::HTTP_11));
        let mut left = whole.len() as u64;
        let mut sizes = Vec::new();
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some(left));
            let part = body.frame().await.unwrap().unwrap().into_data().unwrap();
            left -= part.len() as u64;
            sizes.push(part.len());
        }
        assert_eq!(sizes, [PART_BYTES, PART_BYTES, PART_BYTES, 1]);
        assert!(body.frame().await.is_none());
    }

    fn pending() -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
        StreamBody::new(futures_util::stream::pending::<io::Result<Frame<Bytes>>>())
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_waits_for_this_server_may_be_silent() {
        let activity = activity();
        let mut body = Watched::response(pending(), activity.begin_request(Version::HTTP_11));
        assert!(body.frame().now_or_never().is_none());
        let long = tokio::time::timeout(Duration::from_secs(86_400), activity.silence(TIMEOUTS));
        assert!(long.await.is_err(), "the response was not reckoned with");
        drop(body);
        assert_eq!(seconds(&activity).await, 650);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_waits_for_the_peer_may_not() {
        let activity = activity();
        let handler = activity.begin_request(Version::HTTP_11);
        let mut request = Watched::request(pending(), handler.another());
        let _unread = Watched::response(pending(), handler);
        assert!(request.frame().now_or_never().is_none());
        assert_eq!(seconds(&activity).await, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_head_must_come_in_time_whatever_moves() {
        let activity = activity();
        tokio::time::advance(Duration::from_secs(4)).await;
        activity.bytes_came();
        assert_eq!(seconds(&activity).await, 6);
        assert!(activity.awaits_head());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_for_a_later_head_starts_with_its_first_byte() {
        let activity = activity();
        drop(activity.begin_request(Version::HTTP_11));
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(!activity.awaits_head());
        let silence = activity.silence(TIMEOUTS);
        let mut silence = std::pin::pin!(silence);
        assert!(silence.as_mut().now_or_never().is_none());
        activity.bytes_came();
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.bytes_came();
        let begin = Instant::now();
        silence.await;
        assert_eq!(begin.elapsed().as_secs(), 5, "it does not start again with each byte");
        assert!(activity.awaits_head());
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_between_requests_begin_no_head_over_http2() {
        let activity = activity();
        drop(activity.begin_request(Version::HTTP_2));
        activity.bytes_came();
        assert_eq!(seconds(&activity).await, 650);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_the_end_of_a_response_is_not_idle() {
        let activity = activity();
        drop(activity.begin_request(Version::HTTP_11));
        activity.wrote(true);
        assert_eq!(seconds(&activity).await, 60);
        activity.wrote(false);
        assert_eq!(seconds(&activity).await, 650);
    }
}
