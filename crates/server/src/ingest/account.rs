//! Bytes in flight of messages that carry webhooks: the same bound holds for them as for the bodies of HTTP requests.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;

/// What one request or one stream of requests has in flight: received and not yet dealt with. Clones share it; what is
/// left is given back with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    inflight: Arc<Semaphore>,
    held: Arc<Mutex<Held>>,
    limit: u64,
}

#[derive(Debug, Default)]
struct Held {
    permit: Option<OwnedSemaphorePermit>,
    /// Bytes of the messages that were decoded and not dealt with.
    decoded: usize,
    /// How often messages were dealt with.
    settled: u64,
}

impl Held {
    fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl Account {
    /// An empty account over the bound that all share, with a limit of its own.
    pub(super) fn new(inflight: Arc<Semaphore>, limit: u64) -> Self {
        Self { inflight, held: Arc::default(), limit }
    }

    /// Counts bytes that came.
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let mut held = self.held();
        if (held.bytes() + bytes) as u64 > self.limit {
            return Err(Status::resource_exhausted(format!(
                "more than {} bytes at once; the server's limit is set with --body-limit",
                self.limit
            )));
        }
        let permit = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&self.inflight).try_acquire_many_owned(bytes).ok())
            .ok_or_else(|| {
                Status::unavailable("too many bytes of webhooks are being received at once; try again")
            })?;
        match &mut held.permit {
            Some(all) => all.merge(permit),
            None => held.permit = Some(permit),
        }
        Ok(())
    }

    /// Notes that a message of so many bytes was decoded.
    pub(super) fn decoded(&self, bytes: usize) {
        self.held().decoded += bytes;
    }

    /// Gives back what the messages take that were decoded: they are dealt with. A stream does it message by message.
    pub(crate) fn settle(&self) {
        let mut held = self.held();
        held.settled += 1;
        let bytes = std::mem::take(&mut held.decoded);
        if let Some(all) = &mut held.permit {
            drop(all.split(bytes.min(all.num_permits())));
        }
    }

    /// How often messages were dealt with; `None` if nothing is held.
    fn progress(&self) -> Option<u64> {
        let held = self.held();
        (held.bytes() > 0).then_some(held.settled)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body whose bytes are counted as they come. It ends with a [`Status`] when there is no room for them, or
/// when it takes too long.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    account: Account,
    /// How long a message may take to come.
    patience: Duration,
    /// When the message that is coming must be there, and how many were dealt with before it.
    deadline: Option<(Pin<Box<Sleep>>, u64)>,
}

impl<B> Counted<B> {
    /// `body`, counted on `account`. Each of its messages must have come within `patience` of its first bytes; between two it
    /// may rest.
    pub(crate) fn new(body: B, account: Account, patience: Duration) -> Self {
        Self { body, account, patience, deadline: None }
    }

    /// Whether the message that is coming takes too long.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(settled) = self.account.progress() else {
            self.deadline = None;
            return Poll::Pending;
        };
        if self.deadline.as_ref().is_none_or(|(_, before)| *before != settled) {
            self.deadline = Some((Box::pin(tokio::time::sleep(self.patience)), settled));
        }
        match &mut self.deadline {
            Some((sleep, _)) => sleep.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = pin!(&mut self.body).poll_frame(context) else {
            let seconds = self.patience.as_secs();
            return self.poll_stalled(context).map(|()| {
                Some(Err(Status::deadline_exceeded(format!("the message did not arrive within {seconds} s"))
                    .into()))
            });
        };
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(Into::into)?;
            if let Some(data) = frame.data_ref() {
                self.account.take(data.len())?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tonic::Code;

    fn body(chunks: &[usize]) -> impl Body<Data = Bytes, Error = BoxError> + Unpin + use<> {
        let frames: Vec<_> =
            chunks.iter().map(|length| Ok(Frame::data(Bytes::from(vec![0; *length])))).collect();
        StreamBody::new(stream::iter(frames))
    }

    fn code(error: BoxError) -> Code {
        error.downcast::<Status>().unwrap().code()
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_came_is_held_until_it_is_dealt_with() {
        let inflight = Arc::new(Semaphore::new(100));
        let account = Account::new(Arc::clone(&inflight), 80);
        let counted = |chunks: &[usize], account: &Account| {
            Counted::new(body(chunks), account.clone(), PATIENCE).collect()
        };
        counted(&[30, 40], &account).await.unwrap();
        assert_eq!(inflight.available_permits(), 30);
        let more = counted(&[5, 10], &account).await.unwrap_err();
        assert_eq!(code(more), Code::ResourceExhausted, "its own limit");
        account.decoded(60);
        account.settle();
        assert_eq!(inflight.available_permits(), 85);
        let other = Account::new(Arc::clone(&inflight), 1000);
        let no_room = counted(&[86], &other).await.unwrap_err();
        assert_eq!(code(no_room), Code::Unavailable, "the limit of all");
        account.settle();
        assert_eq!(inflight.available_permits(), 85, "nothing was decoded since");
        drop(account);
        assert_eq!(inflight.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_not_waited_for_and_rest_between_two_is() {
        let chunks = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(vec![0; 10])))]);
        let never = StreamBody::new(chunks.chain(stream::pending()));
        let account = Account::new(Arc::new(Semaphore::new(100)), 100);
        let mut counted = Counted::new(never, account.clone(), PATIENCE);
        counted.frame().await.unwrap().unwrap();
        account.decoded(10);
        account.settle();
        assert!(tokio::time::timeout(10 * PATIENCE, counted.frame()).await.is_err(), "nothing is on its way");
        account.take(3).unwrap();
        assert_eq!(code(counted.frame().await.unwrap().unwrap_err()), Code::DeadlineExceeded);
    }
}
