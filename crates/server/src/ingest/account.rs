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
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::IngestLimits;
use super::carrier::PREFIX_BYTES;
use super::inflight::{InflightBudget, Reservation, pace_of};

/// How long a message may take to arrive once its memory is reserved. Servers relay over slower lines than forges.
pub(crate) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call with one message may take to end after its message.
const END_TIMEOUT: Duration = Duration::from_secs(2);

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

    /// Begins a message of so many bytes, which must arrive within `pace` while others wait. Returns what tells that others need its
    /// memory while it is too slow.
    fn begin(&self, bytes: u64, pace: Duration) -> Result<BoxFuture<'static, ()>, Status> {
        let mut held = self.held();
        // tonic reads the next message only after the answer to the one before; a unary call has no second one.
        if held.is_some() {
            return Err(Status::invalid_argument("a second message came before the first was answered"));
        }
        let reservation = self.budget.begin(bytes, pace, self.connection);
        Ok(Box::pin(held.insert(reservation).needed_by_others()))
    }

    /// Reserves the memory of so many bytes, which have arrived. Returns the wait for it, if there is not enough now.
    fn grow_to(&self, bytes: u64) -> Option<BoxFuture<'static, Result<(), Status>>> {
        let growing = self.held().as_ref()?.grow_to(bytes)?;
        let granted = tokio::time::timeout(self.limits.request_timeout, growing.granted());
        Some(Box::pin(async {
            match granted.await {
                Ok(Ok(())) => Ok(()),
                _ => Err(Status::unavailable(
                    "too many bytes of webhooks are being received at once; try again",
                )),
            }
        }))
    }

    /// The message is complete.
    fn complete(&self, bytes: u64) {
        if let Some(reservation) = &*self.held() {
            reservation.complete(bytes);
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Reservation>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a call whose messages reserve their memory as they arrive. It ends with a [`Status`] when there is no memory for
/// a message in time, or when a message is too slow.
pub(crate) struct Counted<B> {
    body: B,
    account: Account,
    sender: Sender,
    /// When the first message of an unknown sender must have begun.
    first: Option<Pin<Box<Sleep>>>,
    /// Received, and not yet passed on.
    rest: Bytes,
    step: Step,
}

/// Who sends messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A server that has shown a token. Its line may be slow.
    Known,
    /// Anybody: a message must be as fast as the body of an HTTP request.
    Unknown,
}

/// What of a message comes next.
enum Step {
    /// Its prefix, of which so many bytes are here.
    Prefix([u8; PREFIX_BYTES], usize),
    /// Its bytes.
    Message(Message),
    /// Anything: the message is too large, and tonic refuses it for its prefix.
    Refused,
}

/// A message that is arriving.
struct Message {
    /// Its prefix, until that is passed on.
    prefix: Option<Bytes>,
    length: u64,
    passed: u64,
    /// The wait for the memory of what is received.
    growing: Option<BoxFuture<'static, Result<(), Status>>>,
    /// Tells that others need its memory while it is too slow.
    needed_by_others: BoxFuture<'static, ()>,
    deadline: Pin<Box<Sleep>>,
}

impl<B> Counted<B> {
    /// `body`, whose messages use the account. While others wait for memory, a message must be fast enough. Between two messages
    /// the body may rest.
    pub(crate) fn new(body: B, account: Account, sender: Sender) -> Self {
        let step = Step::Prefix([0; PREFIX_BYTES], 0);
        let first = (sender == Sender::Unknown).then(|| Box::pin(tokio::time::sleep(MESSAGE_TIMEOUT)));
        Self { body, account, sender, first, rest: Bytes::new(), step }
    }

    /// Adds received bytes to the prefix of the next message, and begins the message once the prefix is complete.
    fn read_prefix(&mut self) -> Result<(), Status> {
        let Step::Prefix(prefix, have) = &mut self.step else { return Ok(()) };
        let part = self.rest.split_to(self.rest.len().min(PREFIX_BYTES - *have));
        prefix[*have..*have + part.len()].copy_from_slice(&part);
        *have += part.len();
        if *have < PREFIX_BYTES {
            return Ok(());
        }
        // A flag and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
        let length = u64::from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]));
        let prefix = Bytes::copy_from_slice(prefix);
        if length > self.account.limits.message_bytes() {
            self.rest = [prefix, mem::take(&mut self.rest)].concat().into();
            self.step = Step::Refused;
            return Ok(());
        }
        let total = length + PREFIX_BYTES as u64;
        let pace = match self.sender {
            Sender::Known => MESSAGE_TIMEOUT,
            Sender::Unknown => pace_of(total, self.account.limits.request_timeout.min(MESSAGE_TIMEOUT)),
        };
        let needed_by_others = self.account.begin(total, pace)?;
        self.step = Step::Message(Message {
            prefix: Some(prefix),
            length,
            passed: 0,
            growing: self.account.grow_to(PREFIX_BYTES as u64),
            needed_by_others,
            deadline: Box::pin(tokio::time::sleep(MESSAGE_TIMEOUT)),
        });
        Ok(())
    }

    /// Passes on what is here of a message once its memory is reserved, and nothing of the next.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Step::Message(message) = &mut self.step else { return Poll::Pending };
        if let Some(growing) = &mut message.growing {
            ready!(growing.as_mut().poll(context))?;
            message.growing = None;
        }
        if let Some(prefix) = message.prefix.take() {
            self.end_message_if_complete();
            return Poll::Ready(Some(Ok(Frame::data(prefix))));
        }
        let left = usize::try_from(message.length - message.passed).unwrap_or(usize::MAX);
        let here = self.rest.len().min(left);
        let received = message.passed + here as u64;
        message.growing = self.account.grow_to(received + PREFIX_BYTES as u64);
        if let Some(growing) = &mut message.growing {
            ready!(growing.as_mut().poll(context))?;
            message.growing = None;
        }
        message.passed = received;
        let part = self.rest.split_to(here);
        self.end_message_if_complete();
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn end_message_if_complete(&mut self) {
        if let Step::Message(message) = &self.step
            && message.passed == message.length
        {
            self.account.complete(message.length + PREFIX_BYTES as u64);
            if let Some(first) = &mut self.first {
                // A unary call ends right after its message. Until then it holds the memory.
                first.as_mut().reset(Instant::now() + END_TIMEOUT);
            }
            self.step = Step::Prefix([0; PREFIX_BYTES], 0);
        }
    }

    /// Whether the message that is arriving is too slow.
    fn poll_slow(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let Step::Message(message) = &mut self.step else {
            let Some(first) = &mut self.first else { return Poll::Pending };
            return first.as_mut().poll(context).map(|()| late());
        };
        if message.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(late());
        }
        ready!(message.needed_by_others.as_mut().poll(context));
        Poll::Ready(Status::deadline_exceeded(
            "the message arrives too slowly while other webhooks wait for memory; try again",
        ))
    }

    /// Whether bytes must arrive before something can be passed on.
    fn awaits_bytes(&self) -> bool {
        let has_prefix = matches!(&self.step, Step::Message(message) if message.prefix.is_some());
        self.rest.is_empty() && !has_prefix
    }
}

fn late() -> Status {
    let seconds = MESSAGE_TIMEOUT.as_secs();
    Status::deadline_exceeded(format!(
        "the message, or the end of the call, did not arrive in time ({seconds} s)"
    ))
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
            if this.awaits_bytes() {
                match pin!(&mut this.body).poll_frame(context) {
                    Poll::Pending => return this.poll_slow(context).map(|slow| Some(Err(slow.into()))),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(frame)) => match frame.map_err(Into::into)?.into_data() {
                        Ok(data) => this.rest = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                }
                continue;
            }
            match this.step {
                Step::Prefix(..) => this.read_prefix()?,
                Step::Message(_) => return this.poll_message(context),
                Step::Refused => return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut this.rest))))),
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
        Counted::new(StreamBody::new(frames), account.clone(), Sender::Unknown)
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

    /// Complete bodies of others that hold these bytes.
    fn others(budget: &InflightBudget, bodies: usize, bytes: u64) -> Vec<Reservation> {
        let other = |number: usize| {
            let address = SocketAddr::from(([192, 0, 2, u8::try_from(number).unwrap()], 1));
            let body = budget.begin(bytes, MESSAGE_TIMEOUT, Some(address));
            assert!(body.grow_to(bytes).is_none());
            body.complete(bytes);
            body
        };
        (0..bodies).map(other).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_waits_for_its_memory_and_holds_it_until_it_is_settled() {
        let budget = budget();
        let others = others(&budget, 3, 4 * MIB);
        let account = account(&budget);
        let wire = message((4 << 20) - PREFIX_BYTES);
        let mut body = counted(&wire, 64 << 10, &account);
        let first = read(&mut body);
        assert!(first.is_empty(), "there is no memory for all of it: {}", first.len());
        assert!(budget.is_contended());
        drop(others);
        assert!(read(&mut body) == wire);
        assert_eq!(budget.held(), 4 * MIB, "the message is being stored");
        account.settle();
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_holds_what_has_arrived_and_not_what_it_announces() {
        let budget = budget();
        let account = account(&budget);
        let mut body = counted(&message(4 << 20)[..100_000], 4096, &account);
        assert_eq!(read(&mut body).len(), 100_000);
        assert!((100_000..=200_000).contains(&budget.held()), "{}", budget.held());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_memory_in_time_is_unavailable() {
        let budget = budget();
        let _held = others(&budget, 3, 4 * MIB);
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

        let mut silent = counted(&[], 4096, &account);
        assert_eq!(code(silent.frame().await), Code::DeadlineExceeded, "nobody knows its sender");

        let mut resting = counted(&whole, 4096, &account);
        (resting.sender, resting.first) = (Sender::Known, None);
        assert_eq!(read(&mut resting).len(), whole.len());
        account.settle();
        let rest = tokio::time::timeout(10 * MESSAGE_TIMEOUT, resting.frame()).await;
        assert!(rest.is_err(), "nothing is on its way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_message_makes_room_for_those_that_wait() {
        let budget = budget();
        let _held = others(&budget, 2, 4 * MIB);
        let slow = account(&budget);
        let mut body = counted(&message((4 << 20) - PREFIX_BYTES)[..4_000_000], 4096, &slow);
        assert_eq!(read(&mut body).len(), 4_000_000);
        let begun = Instant::now();
        let other = SocketAddr::from(([192, 0, 2, 99], 1));
        let waiting = budget.begin(4 * MIB, MESSAGE_TIMEOUT, Some(other));
        let growing = waiting.grow_to(1).unwrap();
        let granted = tokio::spawn(growing.granted());
        assert_eq!(code(body.frame().await), Code::DeadlineExceeded);
        assert!(begun.elapsed() < LIMITS.request_timeout / 4);
        drop((body, slow));
        granted.await.unwrap().unwrap();
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
