//! What moves on a connection, and how long nothing has.
//!
//! A connection is worth its place while something moves on it: a request begins, or a part of a body passes, in or
//! out. It may be silent for long only while a response waits for this server, as a subscription without news does. A
//! response that waits for its peer is no excuse: one that asks and never reads would hold its place for ever, and so
//! would one that asked once and answers PINGs since.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// The largest part of a body that passes at once, in bytes: a slow peer that reads a large message shows part by part
/// that it does.
const PART_BYTES: usize = 64 << 10;

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Before its first request.
    pub(super) first: Duration,
    /// After it.
    pub(super) later: Duration,
}

/// What moves on one connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    has_begun: bool,
    moved: Instant,
    /// Responses that wait for this server.
    waiting: usize,
}

impl Activity {
    /// Of a connection that begins now.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { has_begun: false, moved: Instant::now(), waiting: 0 }))
    }

    /// A request begins.
    pub(super) fn request(&self) {
        let mut state = self.state();
        state.has_begun = true;
        state.moved = Instant::now();
    }

    /// Something moves.
    pub(super) fn moves(&self) {
        self.state().moved = Instant::now();
    }

    /// Whether there was a request.
    pub(super) fn has_begun(&self) -> bool {
        self.state().has_begun
    }

    /// Waits until the connection was silent for too long.
    pub(super) async fn silence(&self, patience: Patience) {
        loop {
            let (end, now) = (self.state().end(patience), Instant::now());
            if end <= now {
                return;
            }
            // The first request may bring the end forward.
            tokio::time::sleep_until(end.min(now + patience.later)).await;
        }
    }

    /// Never held across a wait.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When there was silence for too long, if nothing moves until then.
    fn end(&self, patience: Patience) -> Instant {
        let since = if self.waiting > 0 { Instant::now() } else { self.moved };
        since + if self.has_begun { patience.later } else { patience.first }
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
    activity: Arc<Activity>,
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
    pub(super) fn request(body: B, activity: Arc<Activity>) -> Self {
        Self::new(body, Direction::In, activity)
    }

    /// The body of a response.
    pub(super) fn response(body: B, activity: Arc<Activity>) -> Self {
        Self::new(body, Direction::Out, activity)
    }

    fn new(body: B, direction: Direction, activity: Arc<Activity>) -> Self {
        Self { body, rest: Bytes::new(), direction, is_waiting: false, activity }
    }

    fn part(&mut self) -> Bytes {
        self.rest.split_to(self.rest.len().min(PART_BYTES))
    }

    /// Notes whether the body had something to give.
    fn note(&mut self, is_pending: bool) {
        let is_waiting = is_pending && self.direction == Direction::Out;
        let mut state = self.activity.state();
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
            return Poll::Ready(Some(Ok(Frame::data(this.part()))));
        }
        let polled = Pin::new(&mut this.body).poll_frame(context);
        this.note(polled.is_pending());
        polled.map_ok(|frame| {
            frame.map_data(|data| {
                this.rest = data;
                this.part()
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

    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const PATIENCE: Patience = Patience { first: SHORT, later: SHORT };

    #[tokio::test]
    async fn a_large_frame_passes_in_parts() {
        let activity = Arc::new(Activity::new());
        let whole = Bytes::from(vec![7; 3 * PART_BYTES + 1]);
        let mut body = Watched::response(Full::new(whole.clone()), activity);
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

    #[tokio::test]
    async fn a_response_that_waits_for_this_server_may_be_silent() {
        let activity = Arc::new(Activity::new());
        activity.request();
        let mut body = Watched::response(pending(), Arc::clone(&activity));
        // Others run out of patience one after the other.
        let others = async {
            for _ in 0..3 {
                Activity::new().silence(PATIENCE).await;
            }
        };
        tokio::select! {
            _ = body.frame() => unreachable!("it is pending"),
            () = activity.silence(PATIENCE) => panic!("the response was not reckoned with"),
            () = others => {}
        }
        drop(body);
        activity.silence(PATIENCE).await;
    }

    #[tokio::test]
    async fn a_body_that_waits_for_the_peer_may_not() {
        let activity = Arc::new(Activity::new());
        activity.request();
        let mut request = Watched::request(pending(), Arc::clone(&activity));
        let _unread = Watched::response(pending(), Arc::clone(&activity));
        tokio::select! {
            _ = request.frame() => unreachable!("it is pending"),
            () = activity.silence(PATIENCE) => {}
        }
    }
}
