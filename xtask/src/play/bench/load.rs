//! Load: as many webhooks as the server takes, over some connections that are kept.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gitstafette_core::testing::Request;
use tokio::task::JoinSet;

use super::disk::FsyncRate;
use crate::http::Connection;
use crate::{delivery, relay, text};

/// How many senders there are, each of which waits for an answer before it sends the next.
pub(crate) const CONNECTIONS: usize = 16;

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Webhooks answered with 201.
    pub(crate) accepted: u64,
    /// All others.
    refused: u64,
    elapsed: Duration,
}

impl Load {
    /// Sends `webhooks` again and again, each time under another delivery id.
    pub(crate) async fn run(
        address: SocketAddr,
        webhooks: &[Request],
        duration: Duration,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut senders = JoinSet::new();
        for _ in 0..CONNECTIONS {
            senders.spawn(send(address, webhooks.to_vec(), started + duration));
        }
        let mut load = Self::default();
        while let Some(sent) = senders.join_next().await {
            let (accepted, refused) = sent??;
            load.accepted += accepted;
            load.refused += refused;
        }
        load.elapsed = started.elapsed();
        Ok(load)
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.accepted as f64 / self.elapsed.as_secs_f64()
    }

    /// Webhooks per second, for people.
    pub(crate) fn rate(&self) -> String {
        text::thousands(self.per_second())
    }

    /// What must be known about the rate.
    pub(crate) fn remark(&self) -> String {
        if self.refused == 0 {
            String::new()
        } else {
            format!("{} refused", text::thousands(self.refused as f64))
        }
    }

    /// How it compares with a server that does less, and with the disk.
    pub(crate) fn compared(&self, bare: &Self, fsync: &FsyncRate) -> String {
        let per_second = self.per_second();
        let (to_bare, to_disk) = (per_second / bare.per_second(), per_second / fsync.per_second);
        format!("{to_bare:.2} x bare, {to_disk:.2} x fsync {}", self.remark())
    }
}

async fn send(address: SocketAddr, webhooks: Vec<Request>, until: Instant) -> anyhow::Result<(u64, u64)> {
    let mut connection = Connection::open(address).await?;
    let (mut accepted, mut refused) = (0, 0);
    for webhook in webhooks.iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        let request = renewed(webhook, &delivery::new_delivery_id());
        let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let answer = connection.post(relay::PATH, headers, request.body.clone()).await?;
        if super::accepted(&answer) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    Ok((accepted, refused))
}

/// The same webhook under another delivery id, which the signature does not cover.
pub(crate) fn renewed(webhook: &Request, delivery_id: &str) -> Request {
    let mut webhook = webhook.clone();
    for (name, value) in &mut webhook.headers {
        if name.eq_ignore_ascii_case("x-github-delivery") {
            delivery_id.clone_into(value);
        }
    }
    webhook
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_renewed_webhook_differs_in_its_id_alone() {
        let headers = vec![("X-GitHub-Delivery", "1".to_owned()), ("Accept", "*/*".to_owned())];
        let webhook = Request { headers, body: Bytes::from("{}") };
        let renewed = renewed(&webhook, "2");
        assert_eq!(renewed.headers[0].1, "2");
        assert_eq!((&renewed.headers[1], &renewed.body), (&webhook.headers[1], &webhook.body));
    }

    #[test]
    fn loads_are_compared() {
        let load = |accepted, refused| Load { accepted, refused, elapsed: Duration::from_secs(2) };
        let fsync = FsyncRate { per_second: 250.0, median: Duration::from_millis(4) };
        assert_eq!(load(1000, 0).rate(), "500");
        assert_eq!(load(1000, 0).compared(&load(4000, 0), &fsync).trim_end(), "0.25 x bare, 2.00 x fsync");
        assert_eq!(load(1000, 7).remark(), "7 refused");
    }
}
