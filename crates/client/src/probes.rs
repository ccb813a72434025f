//! Answering those who ask after the client: a bounded number of connections at once, and none awaited in the accept loop.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::logging::REFUSALS;

/// Probes at once. The port is open to the local network: if there are more, the oldest ends for the newest, so that silent
/// connections keep no probe waiting.
const PROBES: usize = 32;
/// The wait after a failed accept (out of file descriptors): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `stop` is cancelled, and has each answered in a task. An answer must end within a time of its
/// own; those under way when it stops are dropped.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    stop: CancellationToken,
    answer: impl Fn(TcpStream) -> F + Send,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut probes = JoinSet::new();
    let mut running: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = probes.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                running.retain(|probe| !probe.is_finished());
                if running.len() >= PROBES
                    && let Some(oldest) = running.pop_front()
                {
                    oldest.abort();
                }
                running.push_back(probes.spawn(answer(stream)));
            }
            Err(error) => {
                warn!(target: REFUSALS, %error, "cannot accept a probe");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn silent_connections_keep_no_probe_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let serving = serve(listener, CancellationToken::new(), move |stream| {
            let arrived = arrived.clone();
            async move {
                arrived.send(()).unwrap();
                let _held = stream;
                std::future::pending::<()>().await;
            }
        });
        let _serving = JoinSet::from_iter([serving]);
        let mut connections = Vec::new();
        for _ in 0..PROBES + 8 {
            connections.push(TcpStream::connect(address).await.unwrap());
            let arrival = tokio::time::timeout(Duration::from_secs(60), arrivals.recv());
            arrival.await.expect("it waits").unwrap();
        }
        for oldest in &mut connections[..8] {
            assert_eq!(oldest.read(&mut [0]).await.unwrap(), 0);
        }
    }
}
