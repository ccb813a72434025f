//! A steady load: webhooks leave by the clock, whether or not earlier ones were answered (an open loop). So a server
//! that is slow for a while shows as latency, not as fewer webhooks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use gitstafette_core::secret::Secret;
use hyper::StatusCode;
use tokio::time::Instant;

use super::book::Book;
use crate::http::Connection;
use crate::{relay, webhooks};

/// The size of a webhook's body, in bytes.
pub(crate) const SIZE: usize = 10_000;
/// Webhooks are spread over so many repositories.
pub(crate) const REPOSITORIES: u64 = 10;
/// How long an answer may take: GitHub waits no longer.
const ANSWER: Duration = Duration::from_secs(10);

/// When each webhook leaves. Shared by all senders, each of which takes the next when it is free.
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Instant,
    per_second: u32,
    count: u64,
    next: AtomicU64,
}

impl Schedule {
    /// So many webhooks a second from now on, for `duration`.
    pub(crate) fn new(per_second: u32, duration: Duration) -> Self {
        let count = u64::from(per_second) * duration.as_secs();
        Self { start: Instant::now(), per_second, count, next: AtomicU64::new(0) }
    }

    /// The next webhook's number, and when it is to leave. `None` when all have left.
    fn next(&self) -> Option<(u64, Instant)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let after = Duration::from_secs_f64(number as f64 / f64::from(self.per_second));
        (number < self.count).then(|| (number, self.start + after))
    }
}

/// One connection's part: sends what is due until all is sent.
pub(crate) async fn send(
    server: SocketAddr,
    secret: Secret,
    schedule: Arc<Schedule>,
    book: Arc<Book>,
) -> anyhow::Result<()> {
    let mut connection = Some(Connection::open(server).await?);
    while let Some((number, due)) = schedule.next() {
        tokio::time::sleep_until(due).await;
        let repository = usize::try_from(number % REPOSITORIES)?;
        let request = webhooks::webhook(&secret, &delivery_id(number), repository, SIZE);
        // From when it was due: the time that it waited for a free connection counts, too.
        book.sends(number, due.into_std());
        let answered = async {
            let connection = match &mut connection {
                Some(connection) => connection,
                none => none.insert(Connection::open(server).await?),
            };
            let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str()));
            connection.post(relay::PATH, headers, request.body.clone()).await
        };
        match tokio::time::timeout(ANSWER, answered).await.context("no answer in time") {
            Ok(Ok((StatusCode::CREATED, _))) => book.accepts(),
            Ok(Ok((status, text))) => {
                book.refuses(number, format!("{status}: {}", String::from_utf8_lossy(&text)));
            }
            Ok(Err(error)) | Err(error) => {
                connection = None;
                book.refuses(number, format!("{error:#}"));
            }
        }
    }
    Ok(())
}

fn delivery_id(number: u64) -> String {
    format!("soak-{number}")
}

/// The number in a delivery id.
pub(crate) fn number(delivery_id: &str) -> Option<u64> {
    delivery_id.strip_prefix("soak-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_leave_by_the_clock() {
        let schedule = Schedule::new(200, Duration::from_secs(1));
        let due: Vec<_> = std::iter::from_fn(|| schedule.next()).collect();
        assert_eq!(due.len(), 200);
        assert_eq!(due[0], (0, schedule.start));
        assert_eq!(due[100], (100, schedule.start + Duration::from_millis(500)));
    }

    #[test]
    fn delivery_ids_hold_the_number() {
        assert_eq!(number(&delivery_id(360_000)), Some(360_000));
        assert_eq!(number("chaos-1-1"), None);
    }
}
