//! Answering those who ask after the client: a bounded number of connections at once, and none awaited in the accept loop.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Probes at once. More wait: the port is open to the local network.
const PROBES: usize = 32;

/// Accepts connections until `stop` is cancelled, and has each answered in a task. An answer must end within a time of its
/// own; those under way when it stops are dropped.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    stop: CancellationToken,
    answer: impl Fn(TcpStream) -> F + Send,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(PROBES));
    let mut probes = JoinSet::new();
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (listener.accept().await, slot)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = probes.join_next() => {}
            (accepted, slot) = accepted => match accepted {
                Ok((stream, _)) => {
                    let answering = answer(stream);
                    probes.spawn(async move {
                        answering.await;
                        drop(slot);
                    });
                }
                Err(error) => debug!(%error, "a probe could not be accepted"),
            },
        }
    }
}
