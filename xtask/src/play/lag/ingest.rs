//! Webhooks as fast as the server takes them, spread evenly over repositories.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use gitstafette_core::secret::Secret;
use hyper::StatusCode;
use tokio::task::JoinSet;

use crate::http::Connection;
use crate::{relay, webhooks};

/// How many senders there are, each of which waits for an answer before it sends the next.
pub(crate) const CONNECTIONS: usize = 16;
/// The size of a webhook's body, in bytes.
pub(crate) const SIZE: usize = 2_000;

/// Sends `count` webhooks; how many a second were accepted. An error if one was not.
pub(crate) async fn run(
    server: SocketAddr,
    secret: &Secret,
    count: usize,
    repositories: usize,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, secret) = (Arc::clone(&next), secret.clone());
        senders.spawn(async move {
            let mut connection = Connection::open(server).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let request =
                    webhooks::webhook(&secret, &format!("lag-{number}"), number % repositories, SIZE);
                let headers = request.headers.iter().map(|(name, value)| (*name, value.as_str()));
                let (status, text) = connection.post(relay::PATH, headers, request.body.clone()).await?;
                let text = String::from_utf8_lossy(&text);
                ensure!(status == StatusCode::CREATED, "webhook {number} was refused with {status}: {text}");
            }
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// How many of `count` webhooks are of a repository.
pub(crate) fn share(count: usize, repositories: usize, repository: usize) -> u64 {
    let more = usize::from(repository < count % repositories);
    (count / repositories + more) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (count, repositories) in [(50_000, 100), (50_001, 100), (99, 100), (7, 1)] {
            let shares: Vec<_> = (0..repositories).map(|at| share(count, repositories, at)).collect();
            let counted = |at| (0..count).filter(|number| number % repositories == at).count() as u64;
            assert!(shares.iter().enumerate().all(|(at, share)| *share == counted(at)), "{shares:?}");
        }
    }
}
