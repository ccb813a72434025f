//! The memory of gRPC messages that carry webhooks. They share it with the bodies of HTTP requests.

use std::mem;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;

use super::IngestLimits;
use super::carrier::PREFIX_BYTES;
use super::inflight::{InflightBudget, Reservation};
use super::pace::Pace;

/// How long a message may take to arrive once its memory is reserved. Servers relay over slower lines than forges.
pub(crate) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The memory of the message that one call is receiving or storing. Clones share it. It is given back when the message
/// is settled, at the latest with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    budget: InflightBudget,
    held: Arc<Mutex<Option<Reservation>>>,
    limits: IngestLimits,
    connection: Option<SocketAddr>,
}

impl Account {
    /// An empty account of a call on this connection.
    pub(super) fn new(budget: InflightBudget, limits: IngestLimits, connection: Option<SocketAddr>) -> Self {
        Self { budget, held: Arc::default(), limits, connection }
    }

    /// Gives back the memory of the message that was stored or refused.
    pub(crate) fn settle(&self) {
        // Dropped after the lock.
        let settled = self.held().take();
        drop(settled);
    }

    /// Waits for the memory of a message.
    async fn hold(self, bytes: u64) -> Result<(), Status> {
        // tonic reads the next message only after the answer to the one before; a unary call has no second one.
        if self.held().is_some() {
            return Err(Status::invalid_argument("a second message came before the first was answered"));
        }
        let reserve = self.budget.reserve(bytes, self.connection);
        let reserved = tokio::time::timeout(self.limits.request_timeout, reserve).await;
        let Ok(Ok(reservation)) = reserved else {
            return Err(Status::unavailable(
                "too many bytes of webhooks are being received at once; try again",
            ));
        };
        *self.held() = Some(reservation);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Reservation>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a call whose messages reserve their memory before they are read. It ends with a [`Status`] when there is
/// no memory for a message in time, or when a message is too slow.
pub(crate) struct Counted<B> {
    body: B,
    account: Account,
    /// The time whose rate a message must keep while others wait.
    pace: Duration,
    /// Received, and not yet passed on.
    rest: Bytes,
    step: Step,
}

/// What of a message comes next.
enum Step {
    /// Its prefix, of which so many bytes are here.
    Prefix([u8; PREFIX_BYTES], usize),
    /// Its memory.
    Memory { prefix: [u8; PREFIX_BYTES], length: u64, reserve: BoxFuture<'static, Result<(), Status>> },
    /// Its bytes.
    Message { length: u64, received: u64, pace: Pace, check: Pin<Box<Sleep>> },
    /// Anything: the message is too large, and tonic refuses it for its prefix.
    Refused,
}

impl<B> Counted<B> {
    /// `body`, whose messages use the account. While others wait for memory, a message must arrive at the rate that
    /// completes it within `pace`. Between two messages the body may rest.
    pub(crate) fn new(body: B, account: Account, pace: Duration) -> Self {
        let step = Step::Prefix([0; PREFIX_BYTES], 0);
        Self { body, account, pace, rest: Bytes::new(), step }
    }

    /// Adds received bytes to the prefix of the next message, and reserves the memory of the message once the prefix is
    /// complete.
    fn read_prefix(&mut self) {
        let Step::Prefix(prefix, have) = &mut self.step else { return };
        let part = self.rest.split_to(self.rest.len().min(PREFIX_BYTES - *have));
        prefix[*have..*have + part.len()].copy_from_slice(&part);
        *have += part.len();
        if *have < PREFIX_BYTES {
            return;
        }
        // A flag and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
        let prefix = *prefix;
        let length = u64::from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]));
        let account = self.account.clone();
        let is_too_large = length > account.limits.message_bytes();
        let reserve: BoxFuture<'static, _> = if is_too_large {
            Box::pin(std::future::ready(Ok(())))
        } else {
            Box::pin(account.hold(length + PREFIX_BYTES as u64))
        };
        self.step = Step::Memory { prefix, length, reserve };
    }

    /// Passes on the prefix once the memory of its message is reserved.
    fn poll_memory(&mut self, context: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, BoxError>> {
        let Step::Memory { prefix, length, reserve } = &mut self.step else { return Poll::Pending };
        ready!(reserve.as_mut().poll(context))?;
        let (prefix, length) = (*prefix, *length);
        self.step = if length > self.account.limits.message_bytes() {
            Step::Refused
        } else if length == 0 {
            Step::Prefix([0; PREFIX_BYTES], 0)
        } else {
            let pace = Pace::new(length, self.pace);
            let check = Box::pin(tokio::time::sleep(pace.interval()));
            Step::Message { length, received: 0, pace, check }
        };
        Poll::Ready(Ok(Frame::data(Bytes::copy_from_slice(&prefix))))
    }

    /// Passes on what is here of a message, and nothing of the next: that has no memory yet.
    fn pass_on(&mut self) -> Frame<Bytes> {
        let Step::Message { length, received, .. } = &mut self.step else {
            return Frame::data(mem::take(&mut self.rest));
        };
        let left = usize::try_from(*length - *received).unwrap_or(usize::MAX);
        let part = self.rest.split_to(self.rest.len().min(left));
        *received += part.len() as u64;
        if *received == *length {
            self.step = Step::Prefix([0; PREFIX_BYTES], 0);
        }
        Frame::data(part)
    }

    /// Whether the message that is arriving is too slow.
    fn poll_slow(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let Step::Message { received, pace, check, .. } = &mut self.step else { return Poll::Pending };
        loop {
            if pace.elapsed() >= MESSAGE_TIMEOUT {
                let seconds = MESSAGE_TIMEOUT.as_secs();
                return Poll::Ready(Status::deadline_exceeded(format!(
                    "the message did not arrive within {seconds} s"
                )));
            }
            if pace.is_behind(*received) && self.account.budget.is_contended() {
                return Poll::Ready(Status::deadline_exceeded(
                    "the message arrives too slowly while other webhooks wait for memory; try again",
                ));
            }
            ready!(check.as_mut().poll(context));
            check.as_mut().reset(tokio::time::Instant::now() + pace.interval());
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
        let this = &mut *self;
        loop {
            if let Step::Memory { .. } = this.step {
                return this.poll_memory(context).map(Some);
            }
            if this.rest.is_empty() {
                if let Poll::Ready(slow) = this.poll_slow(context) {
                    return Poll::Ready(Some(Err(slow.into())));
                }
                match ready!(pin!(&mut this.body).poll_frame(context)) {
                    None => return Poll::Ready(None),
                    Some(frame) => match frame.map_err(Into::into)?.into_data() {
                        Ok(data) => this.rest = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                }
            } else if let Step::Prefix(..) = this.step {
                this.read_prefix();
            } else {
                return Poll::Ready(Some(Ok(this.pass_on())));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && matches!(self.step, Step::Prefix(_, 0)) && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, Stream, StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tonic::Code;

    const MIB: u64 = 1 << 20;
    const LIMITS: IngestLimits = IngestLimits {
        body_bytes: 4 * MIB,
        inflight_bytes: 16 * MIB,
        request_timeout: Duration::from_secs(8),
    };

    fn budget() -> InflightBudget {
        InflightBudget::new(LIMITS.inflight_bytes, LIMITS.body_bytes)
    }

    fn account(budget: &InflightBudget) -> Account {
        Account::new(budget.clone(), LIMITS, None)
    }

    /// A message on the wire.
    fn message(length: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        message.resize(PREFIX_BYTES + length, 7);
        message
    }

    type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, BoxError>> + Send>>;

    /// These bytes in frames of this size, and then nothing, without an end.
    fn counted(bytes: &[u8], frame: usize, account: &Account) -> Counted<StreamBody<Frames>> {
        let frames: Vec<_> =
            bytes.chunks(frame).map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let frames: Frames = Box::pin(stream::iter(frames).chain(stream::pending()));
        Counted::new(StreamBody::new(frames), account.clone(), LIMITS.request_timeout)
    }

    /// What comes until nothing more comes.
    fn read(body: &mut Counted<StreamBody<Frames>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().now_or_never() {
            bytes.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
        bytes
    }

    fn code(frame: Option<Result<Frame<Bytes>, BoxError>>) -> Code {
        frame.unwrap().unwrap_err().downcast::<Status>().unwrap().code()
    }

    #[tokio::test(start_paused = true)]
    async fn messages_pass_unchanged_in_frames_of_any_size() {
        let wire = [message(0), message(1), message(100_000), message(3)].concat();
        for size in [1, 2, 3, 5, 7, 64, 4096, 1 << 20] {
            let budget = budget();
            let account = account(&budget);
            let mut body = counted(&wire, size, &account);
            let mut passed = Vec::new();
            for _ in 0..4 {
                while passed.len() < wire.len()
                    && let Some(Some(Ok(frame))) = body.frame().now_or_never()
                {
                    passed.extend_from_slice(&frame.into_data().unwrap());
                    // Each message is settled before the next is asked for.
                    if matches!(body.step, Step::Prefix(..)) {
                        break;
                    }
                }
                account.settle();
            }
            assert!(passed == wire, "{size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_waits_for_its_memory_and_holds_it_until_it_is_settled() {
        let budget = budget();
        let others: Vec<_> =
            (0..3).map(|_| budget.reserve(4 * MIB, None).now_or_never().unwrap().unwrap()).collect();
        let account = account(&budget);
        let wire = message(4 << 20);
        let mut body = counted(&wire, 64 << 10, &account);
        assert!(read(&mut body).is_empty(), "there is no memory yet");
        assert!(budget.is_contended());
        drop(others);
        assert!(read(&mut body) == wire);
        let rest = || budget.reserve(12 * MIB, None).now_or_never();
        assert!(rest().is_none(), "the message is being stored");
        account.settle();
        assert!(rest().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_memory_in_time_is_unavailable() {
        let budget = budget();
        let _held = budget.reserve(15 * MIB, None).now_or_never().unwrap().unwrap();
        let mut body = counted(&message(4 << 20), 64 << 10, &account(&budget));
        assert_eq!(code(body.frame().await), Code::Unavailable);
        assert!(!budget.is_contended());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stops_is_refused_and_a_pause_between_two_is_not() {
        let budget = budget();
        let account = account(&budget);
        let whole = message(1000);
        let mut body = counted(&[&whole[..], &whole[..900]].concat(), 4096, &account);
        let mut passed = 0;
        while passed < whole.len() {
            passed += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        account.settle();
        assert_eq!(read(&mut body).len(), 900);
        assert_eq!(code(body.frame().await), Code::DeadlineExceeded);
        account.settle();

        let mut resting = counted(&whole, 4096, &account);
        assert_eq!(read(&mut resting).len(), whole.len());
        account.settle();
        let rest = tokio::time::timeout(10 * MESSAGE_TIMEOUT, resting.frame()).await;
        assert!(rest.is_err(), "nothing is on its way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_message_makes_room_for_those_that_wait() {
        let budget = budget();
        let slow = account(&budget);
        let mut body = counted(&message(4 << 20)[..1000], 4096, &slow);
        assert_eq!(read(&mut body).len(), 1000);
        let begun = tokio::time::Instant::now();
        let mut waiting = Box::pin(budget.reserve(13 * MIB, None));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(code(body.frame().await), Code::DeadlineExceeded);
        assert!(begun.elapsed() < LIMITS.request_timeout / 4);
        drop((body, slow));
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_message_before_the_answer_and_one_that_is_too_large() {
        let budget = budget();
        let account = account(&budget);
        let mut body = counted(&[message(10), message(10)].concat(), 4096, &account);
        for _ in 0..2 {
            body.frame().await.unwrap().unwrap();
        }
        assert_eq!(code(body.frame().await), Code::InvalidArgument);

        let too_large = [message(6 << 20), message(10)].concat();
        let mut body = counted(&too_large, 64 << 10, &account);
        assert!(read(&mut body) == too_large, "tonic refuses it when it sees the prefix");
    }
}
