//! One sender: a webhook after another, each as often as it takes until the server has answered for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use gitstafette_core::secret::Secret;
use gitstafette_core::testing::Request;
use hyper::StatusCode;
use serde_json::Value;
use tokio::sync::watch;

use super::ledger::Ledger;
use crate::http::Connection;
use crate::{relay, webhooks};

/// How many accepted webhooks may be on their way before senders wait: it bounds what is to be waited for at the end.
const ON_THEIR_WAY: u64 = 1_000;
/// Between two webhooks of one sender, in milliseconds.
const PAUSE: std::ops::Range<u64> = 0..20;
/// Between two tries of one webhook, in milliseconds.
const RETRY: std::ops::Range<u64> = 10..50;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a webhook may be tried.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sender of webhooks of one repository.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) number: usize,
    pub(crate) repository: usize,
    pub(crate) server: SocketAddr,
    pub(crate) secret: Secret,
    pub(crate) ledger: Arc<Ledger>,
    /// Becomes true when no more are to be sent.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Sender {
    /// Sends until it is told to stop; the webhook under way is finished.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut connection = None;
        while !*self.stop.borrow() {
            tokio::select! {
                () = self.ledger.wait(|state| state.missing() < ON_THEIR_WAY) => {}
                _ = self.stop.changed() => continue,
            }
            self.send(&mut connection).await?;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(PAUSE))).await;
        }
        Ok(())
    }

    async fn send(&self, connection: &mut Option<Connection>) -> anyhow::Result<()> {
        let body = webhooks::payload(self.repository, size(fastrand::f64()));
        let name = self.ledger.write(|state| state.sends(self.number, body.as_bytes()));
        let request = webhooks::signed(&self.secret, &name.delivery_id(), &body);
        let deadline = Instant::now() + PATIENCE;
        let mut tries = 0;
        loop {
            tries += 1;
            let answered = tokio::time::timeout(ANSWER, self.try_once(connection, &request)).await;
            match answered {
                Ok(Ok((StatusCode::CREATED | StatusCode::NO_CONTENT, text))) => {
                    // A later try may have been stored anew, as a redelivery: the first arrival is not of that sequence.
                    let sequence = sequence(&text).filter(|_| tries == 1);
                    self.ledger.write(|state| state.accepts(name, sequence));
                    return Ok(());
                }
                Ok(Ok((StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _))) => {
                    self.ledger.write(|state| state.put_off += 1);
                }
                Ok(Ok((status, text))) => {
                    let text = String::from_utf8_lossy(&text);
                    bail!("{} was refused with {status}: {text}", name.delivery_id());
                }
                Ok(Err(_)) | Err(_) => {
                    *connection = None;
                    self.ledger.write(|state| state.unanswered += 1);
                }
            }
            if Instant::now() > deadline {
                bail!("{} was not accepted within {} s", name.delivery_id(), PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(RETRY))).await;
        }
    }

    async fn try_once(
        &self,
        connection: &mut Option<Connection>,
        request: &Request,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(self.server).await?),
        };
        let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str()));
        connection.post(relay::PATH, headers, request.body.clone()).await
    }
}

/// The size of a webhook: mostly some hundred bytes to some ten thousand, seldom a million. `random` is from 0 to 1.
fn size(random: f64) -> usize {
    const SMALLEST: f64 = 400.0;
    const LARGEST: f64 = 40_000.0;
    const HUGE: usize = 1_000_000;
    const SELDOM: f64 = 0.995;
    if random >= SELDOM {
        return HUGE;
    }
    (SMALLEST * (LARGEST / SMALLEST).powf(random / SELDOM)) as usize
}

/// The store's number of a webhook, in the server's answer.
fn sequence(answer: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(answer).ok()?.get("sequence")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_of_all_kinds() {
        assert_eq!([size(0.0), size(0.4975), size(0.995), size(1.0)], [400, 4_000, 1_000_000, 1_000_000]);
        assert!((39_000..40_000).contains(&size(0.9949)), "{}", size(0.9949));
    }

    #[test]
    fn the_sequence_is_read_from_the_answer() {
        assert_eq!(sequence(br#"{"sequence":7,"deliveryId":"x"}"#), Some(7));
        assert_eq!(sequence(b""), None);
    }
}
