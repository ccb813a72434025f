//! The bodies of requests and responses, which tell the activity of their connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::activity::Part;

/// The largest part of a body that passes at once, in bytes: a slow peer that reads a large message shows part by part
/// that it does.
pub(super) const PART_BYTES: usize = 64 << 10;

/// A body that tells the activity of its connection.
#[derive(Debug)]
pub(super) struct Watched<B> {
    body: B,
    /// What is left of a frame larger than a part.
    rest: Bytes,
    direction: Direction,
    is_waiting: bool,
    part: Part,
    _place: Option<OwnedSemaphorePermit>,
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
        Self::new(body, Direction::In, part, None)
    }

    /// The body of a response, which holds this place.
    pub(super) fn response(body: B, part: Part, place: Option<OwnedSemaphorePermit>) -> Self {
        Self::new(body, Direction::Out, part, place)
    }

    fn new(body: B, direction: Direction, part: Part, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { body, rest: Bytes::new(), direction, is_waiting: false, part, _place: place }
    }

    /// The next part of a frame that is larger than one. It is a copy: a slice would keep the whole frame in memory for as long
    /// as it waits in a buffer of the connection.
    fn next_part(&mut self) -> Bytes {
        Bytes::copy_from_slice(&self.rest.split_to(self.rest.len().min(PART_BYTES)))
    }

    /// Notes whether the body had something to give.
    fn note(&mut self, is_pending: bool) {
        let is_waiting = is_pending && self.direction == Direction::Out;
        let mut state = self.part.activity().state();
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
