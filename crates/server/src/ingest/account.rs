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
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    limit: u64,
}

impl Account {
    /// An empty account over the bound that all share, with a limit of its own.
    pub(super) fn new(inflight: Arc<Semaphore>, limit: u64) -> Self {
        Self { inflight, held: Arc::default(), limit }
    }

    /// Counts bytes that came.
    fn take(&self, bytes: usize) -> Result<(), Status> {
        let mut held = self.held();
        let before = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if (before + bytes) as u64 > self.limit {
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
        match &mut *held {
            Some(all) => all.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }

    /// Gives bytes back that were dealt with; a stream of messages does it message by message.
    pub(crate) fn release(&self, bytes: usize) {
        let mut held = self.held();
        if let Some(all) = &mut *held {
            drop(all.split(bytes.min(all.num_permits())));
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body whose bytes are counted as they come. It ends with a [`Status`] when there is no room for them, or
/// when it takes too long.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    account: Account,
    deadline: Option<Deadline>,
}

#[derive(Debug)]
struct Deadline {
    sleep: Pin<Box<Sleep>>,
    after: Duration,
}

impl<B> Counted<B> {
    /// `body`, counted on `account`.
    pub(crate) fn new(body: B, account: Account) -> Self {
        Self { body, account, deadline: None }
    }

    /// It must have come as a whole by then.
    pub(crate) fn within(self, after: Duration) -> Self {
        Self { deadline: Some(Deadline { sleep: Box::pin(tokio::time::sleep(after)), after }), ..self }
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
            let Some(deadline) = &mut self.deadline else { return Poll::Pending };
            let after = deadline.after.as_secs();
            return deadline.sleep.as_mut().poll(context).map(|()| {
                Some(Err(
                    Status::deadline_exceeded(format!("the body did not arrive within {after} s")).into()
                ))
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
    use futures_util::stream;
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

    #[tokio::test]
    async fn what_came_is_held_until_it_is_dealt_with() {
        let inflight = Arc::new(Semaphore::new(100));
        let account = Account::new(Arc::clone(&inflight), 80);
        Counted::new(body(&[30, 40]), account.clone()).collect().await.unwrap();
        assert_eq!(inflight.available_permits(), 30);
        let more = Counted::new(body(&[5, 10]), account.clone()).collect().await.unwrap_err();
        assert_eq!(code(more), Code::ResourceExhausted, "its own limit");
        account.release(60);
        assert_eq!(inflight.available_permits(), 85);
        let other = Account::new(Arc::clone(&inflight), 1000);
        let no_room = Counted::new(body(&[86]), other).collect().await.unwrap_err();
        assert_eq!(code(no_room), Code::Unavailable, "the limit of all");
        account.release(1000);
        drop(account);
        assert_eq!(inflight.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, BoxError>>());
        let account = Account::new(Arc::new(Semaphore::new(100)), 100);
        let counted = Counted::new(never, account).within(Duration::from_secs(30));
        assert_eq!(code(counted.collect().await.unwrap_err()), Code::DeadlineExceeded);
    }
}
