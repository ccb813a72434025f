//! Reading a body within bounds: of its own size, of all bodies in flight, and of time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::IngestLimits;
use super::account::Account;
use super::problem::Refusal;

/// How long the rest of a refused body is read and thrown away. Many senders read the answer only when they have sent
/// everything: closing at once would reset the connection, and they would never learn why.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads bodies.
#[derive(Debug)]
pub(crate) struct BodyReader {
    limits: IngestLimits,
    inflight: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// A whole body. Its bytes count as in flight as long as this lives.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) bytes: Bytes,
    _inflight: Option<OwnedSemaphorePermit>,
}

impl BodyReader {
    pub(crate) fn new(limits: IngestLimits, tasks: TaskTracker) -> Self {
        let permits =
            usize::try_from(limits.inflight_bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { limits, inflight: Arc::new(Semaphore::new(permits)), tasks }
    }

    pub(super) fn limits(&self) -> IngestLimits {
        self.limits
    }

    /// An account of bytes in flight that do not come as a body of their own, at most `limit` at once.
    pub(super) fn account(&self, limit: u64) -> Account {
        Account::new(Arc::clone(&self.inflight), limit)
    }

    /// Reads the body. What is too large is refused before it is read if it says so, else as soon as it shows.
    pub(super) async fn read(&self, headers: &HeaderMap, mut body: Body) -> Result<ReadBody, Refusal> {
        let limit = self.limits.body_bytes;
        if announced(headers).is_some_and(|length| length > limit) {
            self.refuse(headers, body);
            return Err(Refusal::TooLarge { limit });
        }
        let timeout = self.limits.request_timeout;
        let read = tokio::time::timeout(timeout, self.collect(&mut body)).await;
        let read = read.unwrap_or(Err(Refusal::TooSlow(timeout)));
        // When its connection is dropped, an HTTP/1.1 body just ends.
        if let (Ok(read), Some(length)) = (&read, announced(headers))
            && read.bytes.len() as u64 != length
        {
            return Err(Refusal::Incomplete);
        }
        if matches!(read, Err(Refusal::TooLarge { .. } | Refusal::Overloaded)) {
            self.discard(body);
        }
        read
    }

    async fn collect(&self, body: &mut Body) -> Result<ReadBody, Refusal> {
        let limit = self.limits.body_bytes;
        let mut bytes = Vec::new();
        let mut inflight: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let Ok(chunk) = frame.map_err(|_| Refusal::Incomplete)?.into_data() else { continue };
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(Refusal::TooLarge { limit });
            }
            let permit = u32::try_from(chunk.len())
                .ok()
                .and_then(|length| Arc::clone(&self.inflight).try_acquire_many_owned(length).ok())
                .ok_or(Refusal::Overloaded)?;
            match &mut inflight {
                Some(all) => all.merge(permit),
                None => inflight = Some(permit),
            }
            bytes.extend_from_slice(&chunk);
        }
        // Copied and cut to size: a slice of the connection's buffer would keep all of that alive.
        Ok(ReadBody { bytes: Bytes::from(bytes.into_boxed_slice()), _inflight: inflight })
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
            drop(tokio::time::timeout(DISCARD_TIMEOUT, reading).await);
        });
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
