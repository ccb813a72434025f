//! Listeners: accept, TLS, HTTP/1.1 and HTTP/2 on one port, and an orderly end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use gitstafette_client::tls::TlsError;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{debug, warn};

use crate::auth::PeerCertificate;

/// From the first byte of a connection to the end of its first request's header, and between two requests of one
/// HTTP/1.1 connection. GitHub gives up after 10 s as a whole (GitHub Docs, "Best practices for using webhooks").
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that answers no HTTP/2 PING is gone: its subscription must not stay attached for ever.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The header of a request at most, in bytes. GitHub's is about 1 KB.
const HEADER_BYTES: usize = 64 << 10;
/// What HTTP/2 may buffer on the way in, per stream and per connection, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
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

/// One bound listener and what it serves.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) tcp: TcpListener,
    pub(crate) security: Security,
    pub(crate) router: Router,
    /// Connections that may be open at once, over all listeners.
    pub(crate) connections: Arc<Semaphore>,
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("no request within {} s", HEADER_TIMEOUT.as_secs())]
    Idle,
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

impl Listener {
    /// Accepts until `stop` is cancelled. Connections run in `tasks`; they finish what they are doing and close.
    pub(crate) async fn serve(self, tasks: TaskTracker, stop: CancellationToken) {
        loop {
            let accepted = async {
                let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
                    return std::future::pending().await; // never closed
                };
                (self.tcp.accept().await, permit)
            };
            let Some((accepted, permit)) = stop.run_until_cancelled(accepted).await else { return };
            match accepted {
                Ok((stream, peer)) => {
                    let (security, router, stop) = (self.security.clone(), self.router.clone(), stop.clone());
                    tasks.spawn(async move {
                        if let Err(error) = connection(stream, security, router, stop).await {
                            debug!(client.address = %peer, %error, "a connection ended early");
                        }
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
}

/// One connection, start to end. The handshake runs here, not in the accept loop: a silent peer stops only itself.
async fn connection(
    stream: TcpStream,
    security: Security,
    router: Router,
    stop: CancellationToken,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let tls = match security {
        Security::Plain => None,
        Security::Tls(config) => Some(config),
        Security::Either(config) => is_tls(&stream).await?.then_some(config),
    };
    let Some(config) = tls else {
        return http(stream, PeerCertificate::None, router, stop).await;
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(HEADER_TIMEOUT, handshake)
        .await
        .map_err(|_| ConnectionError::Idle)?
        .map_err(ConnectionError::Handshake)?;
    let certificate = match stream.get_ref().1.peer_certificates() {
        Some([_, ..]) => PeerCertificate::Verified,
        _ => PeerCertificate::None,
    };
    http(stream, certificate, router, stop).await
}

/// Whether the peer starts with a TLS handshake record (RFC 8446 §5.1: content type 22). No HTTP request starts so.
async fn is_tls(stream: &TcpStream) -> Result<bool, ConnectionError> {
    let mut first = [0];
    let peeked = tokio::time::timeout(HEADER_TIMEOUT, stream.peek(&mut first)).await;
    let read = peeked.map_err(|_| ConnectionError::Idle)??;
    Ok(read == 1 && first[0] == 22)
}

/// Serves HTTP on a connection whose TLS, if any, stands.
async fn http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    certificate: PeerCertificate,
    router: Router,
    stop: CancellationToken,
) -> Result<(), ConnectionError> {
    let first_request = Arc::new(Notify::new());
    let seen = Arc::clone(&first_request);
    let service = service_fn(move |mut request: Request<Incoming>| {
        seen.notify_one();
        request.extensions_mut().insert(certificate);
        // A router is always ready: its clone is cheap and holds no state of its own.
        router.clone().call(request.map(Body::new))
    });
    let builder = builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper's own time-outs start when it knows the protocol: this one covers a peer that never says.
    let silent = async {
        if tokio::time::timeout(HEADER_TIMEOUT, first_request.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let mut silent = pin!(silent);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(ConnectionError::Http),
            () = &mut silent => return Err(ConnectionError::Idle),
            () = stop.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES);
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

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address} for {purpose}: {source}")]
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
}
