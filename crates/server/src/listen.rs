//! Listeners: accept, TLS, HTTP/1.1 and HTTP/2 on one port, and an orderly end.

mod activity;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use gitstafette_client::explain::listen_error;
use gitstafette_client::tls::TlsError;
use gitstafette_core::store::StoreError;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{debug, info, warn};

use crate::auth::{Peer, PeerCertificate};
use crate::ingest::MAX_WAITING_PER_CONNECTION;
use activity::{Activity, Patience, Watched};

/// From the first byte of a connection to the end of its first request's header, and between two requests of one
/// HTTP/1.1 connection; also how long a connection that was told to end may be silent. GitHub gives up after 10 s as a
/// whole (GitHub Docs, "Best practices for using webhooks").
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent after its first request, see [`Activity`].
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that answers no HTTP/2 PING is gone: its subscription must not stay attached for ever.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The header of a request at most, in bytes. GitHub's is about 1 KB.
const HEADER_BYTES: usize = 64 << 10;
/// What HTTP/2 may buffer on the way in, per stream and per connection, in bytes: anybody may fill it.
const STREAM_WINDOW: u32 = 128 << 10;
/// Two streams more than may wait for memory unread: those must not hold up the others.
const CONNECTION_WINDOW: u32 = (MAX_WAITING_PER_CONNECTION + 2) * STREAM_WINDOW;
/// What HTTP/2 may buffer on the way out, per stream, in bytes.
const SEND_BUFFER: usize = 64 << 10;
/// Calls on one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 256;
/// The wait after a failed accept (out of file descriptors): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a listener is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address; `None` is all of them, IPv6 and IPv4.
    pub ip: Option<IpAddr>,
    /// The port; 0 lets the system choose.
    pub port: u16,
}

impl Address {
    /// Binds it.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn bind(self) -> io::Result<TcpListener> {
        let Some(ip) = self.ip else {
            // The IPv6 wildcard takes IPv4, too, on every system that has IPv6 at all.
            return match TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)).await {
                Ok(listener) => Ok(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
                Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port)).await,
            };
        };
        TcpListener::bind((ip, self.port)).await
    }
}

/// What a listener speaks.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// Plain text: a proxy in front does TLS.
    Plain,
    /// TLS only.
    Tls(Arc<rustls::ServerConfig>),
    /// TLS and plain text, told apart by the first byte.
    Either(Arc<rustls::ServerConfig>),
}

/// The time-outs of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For the TLS handshake, the first request, a header, and the end of a connection that was told to end.
    header: Duration,
    /// For silence after the first request.
    idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { header: HEADER_TIMEOUT, idle: IDLE_TIMEOUT }
    }
}

/// How all connections end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    /// Finish what is under way and begin nothing.
    pub(crate) stop: CancellationToken,
    /// Finish nothing.
    pub(crate) cut: CancellationToken,
}

/// One bound listener and what it serves.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) tcp: TcpListener,
    pub(crate) security: Security,
    pub(crate) router: Router,
    /// Connections that may be served at once, over all listeners. One more of each waits accepted, the others wait in
    /// the system's queue.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) timeouts: Timeouts,
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("silent for too long")]
    Silent,
    #[error("cut when the server ended")]
    Cut,
    #[error("it did not take a large event in time")]
    Stalled,
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

impl Listener {
    /// Accepts until the server stops. Connections run in `tasks`.
    pub(crate) async fn serve(self, tasks: TaskTracker, ending: Ending) {
        loop {
            let accepted = async {
                let accepted = self.tcp.accept().await;
                // Not before: a listener that nobody comes to would hold a place.
                let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
                    return std::future::pending().await; // never closed
                };
                (accepted, permit)
            };
            let Some((accepted, permit)) = ending.stop.run_until_cancelled(accepted).await else { return };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = self.connection(&tasks, &ending);
                    tasks.spawn(async move {
                        connection.run(stream, peer).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, tasks: &TaskTracker, ending: &Ending) -> Connection {
        Connection {
            security: self.security.clone(),
            router: self.router.clone(),
            timeouts: self.timeouts,
            tasks: tasks.clone(),
            ending: ending.clone(),
            activity: Arc::new(Activity::new()),
        }
    }
}

/// One connection, start to end.
#[derive(Debug)]
struct Connection {
    security: Security,
    router: Router,
    timeouts: Timeouts,
    tasks: TaskTracker,
    ending: Ending,
    activity: Arc<Activity>,
}

impl Connection {
    /// Serves it and logs an early end. Those who take a place and ask nothing are of interest to the operator.
    async fn run(&self, stream: TcpStream, peer: SocketAddr) {
        let served = self.ending.cut.run_until_cancelled(self.serve(stream, peer)).await;
        let Err(error) = served.unwrap_or(Err(ConnectionError::Cut)) else { return };
        if self.activity.has_begun() {
            debug!(client.address = %peer, %error, "a connection ended early");
        } else {
            info!(client.address = %peer, %error, "a connection ended without a request");
        }
    }

    /// The handshake runs here, not in the accept loop: a silent peer stops only itself.
    async fn serve(&self, stream: TcpStream, address: SocketAddr) -> Result<(), ConnectionError> {
        stream.set_nodelay(true)?;
        let tls = match &self.security {
            Security::Plain => None,
            Security::Tls(config) => Some(config),
            Security::Either(config) => self.in_time(is_tls(&stream)).await??.then_some(config),
        };
        let Some(config) = tls else {
            return self.http(stream, address, PeerCertificate::None).await;
        };
        let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
        let stream = self.in_time(handshake).await?.map_err(ConnectionError::Handshake)?;
        let certificate = match stream.get_ref().1.peer_certificates() {
            Some([_, ..]) => PeerCertificate::Verified,
            _ => PeerCertificate::None,
        };
        self.http(stream, address, certificate).await
    }

    async fn in_time<T>(&self, step: impl Future<Output = T>) -> Result<T, ConnectionError> {
        tokio::time::timeout(self.timeouts.header, step).await.map_err(|_| ConnectionError::Silent)
    }

    /// Serves HTTP on a connection whose TLS, if any, stands.
    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: SocketAddr,
        certificate: PeerCertificate,
    ) -> Result<(), ConnectionError> {
        let peer = Peer { address, certificate, cut: CancellationToken::new() };
        let service = service_fn(|request| self.call(request, peer.clone()));
        let builder = self.builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let Timeouts { header, idle } = self.timeouts;
        let (reason, patience) = tokio::select! {
            ended = connection.as_mut() => return ended.map_err(ConnectionError::Http),
            () = peer.cut.cancelled() => return Err(ConnectionError::Stalled),
            () = self.ending.stop.cancelled() => (Ok(()), Patience { first: header, later: idle }),
            () = self.activity.silence(Patience { first: header, later: idle }) => {
                (Err(ConnectionError::Silent), Patience { first: header, later: header })
            }
        };
        // What is under way is finished, as long as it moves. A peer need not react to being told.
        connection.as_mut().graceful_shutdown();
        self.activity.moves();
        tokio::select! {
            ended = connection => reason.and(ended.map_err(ConnectionError::Http)),
            () = peer.cut.cancelled() => Err(ConnectionError::Stalled),
            () = self.activity.silence(patience) => Err(ConnectionError::Silent),
        }
    }

    /// One request. Its body and that of its answer tell the activity.
    fn call(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Result<Response<Watched<Body>>, Infallible>> + Send + 'static + use<> {
        self.activity.request();
        let activity = Arc::clone(&self.activity);
        let mut request = request.map(|body| Body::new(Watched::request(body, Arc::clone(&activity))));
        request.extensions_mut().insert(peer);
        // A router is always ready: its clone is cheap and holds no state of its own.
        let answering = self.router.clone().call(request);
        async move { Ok(answering.await?.map(|body| Watched::response(body, activity))) }
    }

    fn builder(&self) -> auto::Builder<Executor> {
        let executor = Executor { tasks: self.tasks.clone(), cut: self.ending.cut.clone() };
        let mut builder = auto::Builder::new(executor);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.header)
            .max_buf_size(HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER);
        builder
    }
}

/// Whether the first byte opens a TLS handshake (RFC 8446 §5.1: content type 22). No HTTP request starts so.
async fn is_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first[0] == 22)
}

/// Runs the calls of HTTP/2 connections, which hyper does not run in the connection's own task.
#[derive(Clone, Debug)]
struct Executor {
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        self.tasks.spawn(self.cut.clone().run_until_cancelled_owned(call));
    }
}

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address} for {purpose}: {}", listen_error(source))]
    Listen {
        /// Where.
        address: String,
        /// What for.
        purpose: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
