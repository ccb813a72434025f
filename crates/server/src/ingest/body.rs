//! Reading a body within bounds: of its own size, of all bodies in flight, and of time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::IngestLimits;
use super::account::Account;
use super::inflight::{InflightBudget, Reservation};
use super::pace::Pace;
use super::problem::Refusal;

/// How long the rest of a refused body is read and thrown away. Many senders read the answer only when they have sent
/// everything: closing at once would reset the connection, and they would never learn why.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The first buffer of a body without a Content-Length, in bytes: most webhooks fit.
const FIRST_BUFFER_BYTES: usize = 32 << 10;

/// Reads bodies.
#[derive(Debug)]
pub(crate) struct BodyReader {
    limits: IngestLimits,
    budget: InflightBudget,
    /// The turn of one large body to be verified and classified: a form is decoded into a second buffer meanwhile.
    check: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// A whole body, and the memory that it uses.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    pub(super) reservation: Reservation,
}

impl BodyReader {
    pub(crate) fn new(limits: IngestLimits, tasks: TaskTracker) -> Self {
        let budget = InflightBudget::new(limits.inflight_bytes, limits.body_bytes);
        Self { limits, budget, check: Arc::new(Semaphore::new(1)), tasks }
    }

    pub(super) fn limits(&self) -> IngestLimits {
        self.limits
    }

    /// An account for the messages of one call, which use the same memory as bodies.
    pub(super) fn account(&self, connection: Option<SocketAddr>) -> Account {
        Account::new(self.budget.clone(), self.limits, connection)
    }

    /// Waits until no other large body is verified.
    pub(super) async fn check_turn(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.check).acquire_owned().await
    }

    /// Reads the body of a request whose head is complete since `started`: waits for memory, then reads. Nothing is read
    /// before, so that TCP and HTTP/2 slow the sender down meanwhile. A body that is too large is refused unread if the
    /// request announces its length, else as soon as it exceeds the limit.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Body,
        connection: Option<SocketAddr>,
        started: Instant,
    ) -> Result<ReadBody, Refusal> {
        let limit = self.limits.body_bytes;
        let announced = announced(headers);
        if announced.is_some_and(|length| length > limit) {
            self.refuse(headers, body);
            return Err(Refusal::TooLarge { limit });
        }
        let reserve = self.budget.reserve(announced.unwrap_or(limit), connection);
        let Ok(Ok(reservation)) = timeout(self.limits.time_left(started), reserve).await else {
            self.refuse(headers, body);
            return Err(Refusal::Overloaded);
        };
        let begun = Instant::now();
        let collect = self.collect(&mut body, announced, reservation);
        let read = timeout(self.limits.time_left(started), collect).await;
        let read = read.unwrap_or_else(|_| {
            // A request that waited for most of its time is not to blame.
            let is_slow = begun.duration_since(started) < begun.elapsed();
            Err(if is_slow { Refusal::TooSlow(self.limits.request_timeout) } else { Refusal::Overloaded })
        });
        if matches!(read, Err(Refusal::TooLarge { .. } | Refusal::Overloaded)) {
            self.discard(body);
        }
        read
    }

    /// Collects a body in one buffer that never exceeds its reservation.
    async fn collect(
        &self,
        body: &mut Body,
        announced: Option<u64>,
        mut reservation: Reservation,
    ) -> Result<ReadBody, Refusal> {
        let limit = self.limits.body_bytes;
        let most = usize::try_from(announced.unwrap_or(limit)).unwrap_or(usize::MAX);
        let pace = Pace::new(most as u64, self.limits.request_timeout);
        let mut bytes = Vec::with_capacity(announced.map_or(0, |_| most));
        loop {
            let frame = match timeout(pace.interval(), body.frame()).await {
                Err(_) => None,
                Ok(None) => break,
                Ok(Some(frame)) => Some(frame.map_err(|_| Refusal::Incomplete)?),
            };
            let chunk = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
            let received = (bytes.len() + chunk.len()) as u64;
            // A body that has ended is never too slow.
            if pace.is_behind(received) && !HttpBody::is_end_stream(body) && self.budget.is_contended() {
                return Err(Refusal::Behind);
            }
            let length = bytes.len() + chunk.len();
            if length > most {
                return Err(announced.map_or(Refusal::TooLarge { limit }, |_| Refusal::Incomplete));
            }
            if length > bytes.capacity() {
                let capacity = length.max(2 * bytes.capacity()).max(FIRST_BUFFER_BYTES).min(most);
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&chunk);
        }
        // When its connection is dropped, an HTTP/1.1 body just ends.
        if announced.is_some_and(|length| bytes.len() as u64 != length) {
            return Err(Refusal::Incomplete);
        }
        // Copied and cut to size: a slice of the connection's buffer would keep all of that alive.
        let bytes = Bytes::from(bytes.into_boxed_slice());
        reservation.shrink_to(bytes.len() as u64);
        Ok(ReadBody { bytes, reservation })
    }

    /// Deals with a body that is refused unread. A sender that waits for a go-ahead (RFC 9110 §10.1.1) gets none.
    pub(super) fn refuse(&self, headers: &HeaderMap, body: Body) {
        if !headers.contains_key(EXPECT) {
            self.discard(body);
        }
    }

    /// Reads what is left of a refused body and throws it away, for a while and not for ever.
    fn discard(&self, mut body: Body) {
        let most = self.limits.body_bytes.saturating_mul(2);
        self.tasks.spawn(async move {
            let mut left = most;
            let reading = async {
                while let Some(Ok(frame)) = body.frame().await {
                    left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                    if left == 0 {
                        return;
                    }
                }
            };
            drop(timeout(DISCARD_TIMEOUT, reading).await);
        });
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
