//! The memory of messages that subscribers send, while they arrive.
//!
//! tonic collects a message until it is complete. Every stream may send one, so a caller with many streams could make the server
//! hold a part of a large message for each. Messages beyond a small size share a budget: each waits for its room before it
//! is read, and must then arrive in time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use gitstafette_proto::MAX_REQUEST_BYTES;
use hyper::body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;

/// Bytes of all messages beyond [`SMALL`] that are arriving.
const ROOM: usize = 8 << 20;
/// A message of so many bytes needs no room: the buffers of a connection may hold as much.
const SMALL: usize = 16 << 10;
/// How long a message may take once it has its room.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// What stands before each message: whether it is compressed, and its length (gRPC over HTTP2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The room that the messages of all streams share.
#[derive(Clone, Debug)]
pub(crate) struct MessageMemory(Arc<Semaphore>);

impl MessageMemory {
    /// All of it is free.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }

    /// The body of a call, whose messages wait for their room.
    pub(crate) fn bound<B>(&self, body: B) -> BoundedBody<B> {
        BoundedBody {
            body,
            memory: self.clone(),
            prefix: [0; PREFIX_BYTES],
            prefix_bytes: 0,
            missing: 0,
            rest: Bytes::new(),
            waiting: None,
            held: None,
        }
    }
}

/// The body of a call. It ends with a [`Status`] if a large message does not arrive in time.
pub(crate) struct BoundedBody<B> {
    body: B,
    memory: MessageMemory,
    /// The prefix of the next message, as far as it has come.
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// What is missing of the message.
    missing: usize,
    /// What has come and is not passed on.
    rest: Bytes,
    /// Until the message has its room.
    waiting: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    /// The room of the message, and the end of its time.
    held: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

impl<B> BoundedBody<B> {
    /// Takes as much of the rest as may be passed on now.
    fn pass(&mut self) -> Bytes {
        let mut at = 0;
        while at < self.rest.len() {
            if self.missing > 0 {
                let part = self.missing.min(self.rest.len() - at);
                at += part;
                self.missing -= part;
                if self.missing == 0 {
                    self.held = None;
                }
                continue;
            }
            self.prefix[self.prefix_bytes] = self.rest[at];
            (self.prefix_bytes, at) = (self.prefix_bytes + 1, at + 1);
            if self.prefix_bytes < PREFIX_BYTES {
                continue;
            }
            self.prefix_bytes = 0;
            let [_, length @ ..] = self.prefix;
            let length = u32::from_be_bytes(length);
            self.missing = length as usize;
            // tonic refuses a larger one for its prefix.
            if (SMALL + 1..=MAX_REQUEST_BYTES).contains(&self.missing) {
                let room = Arc::clone(&self.memory.0).acquire_many_owned(length);
                self.waiting = Some(Box::pin(async { room.await.ok() }));
                break;
            }
        }
        self.rest.split_to(at)
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for BoundedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            if let Some(waiting) = &mut this.waiting {
                let room = ready!(waiting.as_mut().poll(context));
                this.waiting = None;
                this.held = room.map(|room| (room, Box::pin(tokio::time::sleep(MESSAGE_TIMEOUT))));
            }
            if !this.rest.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.pass()))));
            }
            if let Some((_, timeout)) = &mut this.held
                && timeout.as_mut().poll(context).is_ready()
            {
                this.held = None;
                let message = format!("a message did not arrive within {} s", MESSAGE_TIMEOUT.as_secs());
                return Poll::Ready(Some(Err(Status::deadline_exceeded(message).into())));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};

    fn message(bytes: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(u32::try_from(bytes).unwrap().to_be_bytes());
        message.resize(PREFIX_BYTES + bytes, 7);
        message
    }

    /// A body of these parts, which does not end.
    fn body(parts: Vec<Vec<u8>>) -> impl Body<Data = Bytes, Error: Into<BoxError>> + Unpin {
        let frames = parts.into_iter().map(|part| Ok::<_, BoxError>(Frame::data(Bytes::from(part))));
        StreamBody::new(stream::iter(frames).chain(stream::pending()))
    }

    fn passed(body: &mut (impl Body<Data = Bytes, Error = BoxError> + Unpin)) -> Vec<u8> {
        let mut passed = Vec::new();
        while let Some(Some(Ok(frame))) = body.frame().now_or_never() {
            passed.extend(frame.into_data().unwrap());
        }
        passed
    }

    #[tokio::test]
    async fn all_bytes_pass_however_they_are_cut() {
        let bytes = [message(3), message(0), message(SMALL + 1), message(100_000), message(7)].concat();
        for size in [1, 4, 1000, bytes.len()] {
            let memory = MessageMemory::new();
            let mut body = memory.bound(body(bytes.chunks(size).map(<[u8]>::to_vec).collect()));
            assert_eq!(passed(&mut body), bytes);
            assert_eq!(memory.0.available_permits(), ROOM);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn parts_of_large_messages_share_the_room() {
        let memory = MessageMemory::new();
        let large = message(MAX_REQUEST_BYTES);
        let part = || body(vec![large[..large.len() - 1].to_vec()]);
        let mut bodies: Vec<_> = (0..100).map(|_| memory.bound(part())).collect();
        let held: usize = bodies.iter_mut().map(|body| passed(body).len()).sum();
        assert!(held <= ROOM + 100 * PREFIX_BYTES, "{held}");
        let mut small = memory.bound(body(vec![message(SMALL)]));
        assert_eq!(passed(&mut small), message(SMALL));
        // Those that do not go on lose their room.
        let mut others = bodies.split_off(ROOM / MAX_REQUEST_BYTES);
        for body in &mut bodies {
            let error = body.frame().await.unwrap().unwrap_err();
            assert!(error.to_string().contains("did not arrive"), "{error}");
        }
        assert!(passed(&mut others[0]).len() > SMALL);
        drop((bodies, others));
        assert_eq!(memory.0.available_permits(), ROOM);
    }
}
