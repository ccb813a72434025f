//! Reading a body within bounds: of its own size, of all bodies in flight, and of time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::IngestLimits;
use super::account::Account;
use super::inflight::{InflightBudget, Reservation, SMALL_BYTES, pace_of};
use super::problem::Refusal;

/// How long the rest of a refused body is read and thrown away. Many senders read the answer only when they have sent
/// everything: closing at once would reset the connection, and they would never learn why.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// How many refused bodies are read to their end at once. The connections of the others are closed.
const MAX_DISCARDED: usize = 256;

/// Reads bodies.
#[derive(Debug)]
pub(crate) struct BodyReader {
    limits: IngestLimits,
    budget: InflightBudget,
    /// The turn of one large body to be verified and classified: a form is decoded into a second buffer meanwhile.
    check: Arc<Semaphore>,
    discarding: Arc<Semaphore>,
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
        let (check, discarding) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(MAX_DISCARDED)));
        Self { limits, budget, check, discarding, tasks }
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

    /// Reads the body of a request whose head is complete since `started`. Its memory is reserved as its bytes arrive. While
    /// the body waits for memory nothing is read, so that TCP and HTTP/2 slow the sender down. A body that is too large is refused
    /// unread if the request announces its length, else as soon as it exceeds the limit.
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
        let mut waited = Duration::ZERO;
        let collect = self.collect(&mut body, announced, connection, &mut waited);
        let read = timeout(self.limits.time_left(started), collect).await;
        let read = read.unwrap_or_else(|_| {
            // A request that waited for most of its time is not to blame.
            let is_slow = waited < started.elapsed() / 2;
            Err(if is_slow { Refusal::TooSlow(self.limits.request_timeout) } else { Refusal::Overloaded })
        });
        if matches!(read, Err(Refusal::TooLarge { .. } | Refusal::Overloaded)) {
            self.discard(body);
        }
        read
    }

    /// An empty reservation for a body of so many bytes.
    fn begin(&self, bytes: u64, connection: Option<SocketAddr>) -> Reservation {
        self.budget.begin(bytes, pace_of(bytes, self.limits.request_timeout), connection)
    }

    /// Collects a body in one buffer that never exceeds its reservation.
    async fn collect(
        &self,
        body: &mut Body,
        announced: Option<u64>,
        connection: Option<SocketAddr>,
        waited: &mut Duration,
    ) -> Result<ReadBody, Refusal> {
        let limit = self.limits.body_bytes;
        let most = announced.unwrap_or(limit);
        // Without a length it counts as small until it is larger.
        let mut expected = announced.unwrap_or(limit.min(SMALL_BYTES));
        let mut reservation = self.begin(expected, connection);
        let mut bytes = Vec::new();
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = reservation.needed_by_others() => return Err(Refusal::Behind),
            };
            let Some(frame) = frame else { break };
            let chunk = frame.map_err(|_| Refusal::Incomplete)?.into_data().unwrap_or_default();
            let length = (bytes.len() + chunk.len()) as u64;
            if length > most {
                return Err(announced.map_or(Refusal::TooLarge { limit }, |_| Refusal::Incomplete));
            }
            if length > expected {
                expected = limit;
                reservation = self.begin(expected, connection);
            }
            wait_for_memory(&reservation, length, waited).await?;
            // The pages of a buffer that nobody touches take no memory.
            let capacity = if announced.is_some() { most } else { length.max(2 * bytes.capacity() as u64) };
            let capacity = usize::try_from(capacity.min(most)).unwrap_or(usize::MAX);
            bytes.reserve_exact(capacity.saturating_sub(bytes.len()));
            bytes.extend_from_slice(&chunk);
        }
        // When its connection is dropped, an HTTP/1.1 body just ends.
        if announced.is_some_and(|length| bytes.len() as u64 != length) {
            return Err(Refusal::Incomplete);
        }
        // Copied and cut to size: a slice of the connection's buffer would keep all of that alive.
        let bytes = Bytes::from(bytes.into_boxed_slice());
        reservation.complete(bytes.len() as u64);
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
        let Ok(place) = Arc::clone(&self.discarding).try_acquire_owned() else { return };
        let most = self.limits.body_bytes.saturating_mul(2);
        self.tasks.spawn(async move {
            let _place = place;
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

/// Waits for the memory of bytes that have arrived, and adds the time that it takes.
async fn wait_for_memory(
    reservation: &Reservation,
    received: u64,
    waited: &mut Duration,
) -> Result<(), Refusal> {
    let Some(growing) = reservation.grow_to(received) else { return Ok(()) };
    let _measured = Waited { since: Instant::now(), total: waited };
    growing.granted().await.map_err(|_| Refusal::Overloaded)
}

/// Measures a wait, also one that is cut off.
struct Waited<'a> {
    since: Instant,
    total: &'a mut Duration,
}

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        *self.total += self.since.elapsed();
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
