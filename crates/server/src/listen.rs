//! Listeners: accept, TLS, HTTP/1.1 and HTTP/2 on one port, and an orderly end.

mod activity;
mod limit;
mod observed;
#[cfg(test)]
mod tests;
mod watched;

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
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{debug, info, warn};

use crate::REFUSALS;
use crate::auth::{Peer, PeerCertificate};
use crate::ingest::{MAX_WAITING_PER_CONNECTION, UNREAD_BYTES};
use activity::Activity;
use observed::Observed;
use watched::Watched;

pub(crate) use activity::{Caller, Timeouts};
pub(crate) use limit::ConnectionLimit;

/// From the start of a connection to the end of its first head, and from the first byte of a later head to its end. GitHub
/// gives up after 10 s as a whole (GitHub Docs, "Best practices for using webhooks").
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request under way may be silent while it waits for the peer, see [`Activity`].
const STALLED_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection that was told to end may be silent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a connection that ends because others need its place.
const EVICTED_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that answers no HTTP/2 PING is gone: its subscription must not stay attached for ever.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The header of a request at most, in bytes. GitHub's is about 1 KB.
const HEADER_BYTES: usize = 16 << 10;
/// What HTTP/2 may buffer on the way in, per stream and per connection, in bytes: anybody may fill it.
const STREAM_WINDOW: u32 = UNREAD_BYTES;
/// Two streams more than may wait for memory unread: those must not hold up the others.
const CONNECTION_WINDOW: u32 = (MAX_WAITING_PER_CONNECTION + 2) * STREAM_WINDOW;
/// What HTTP/2 may buffer on the way out, per stream, in bytes.
const SEND_BUFFER: usize = 64 << 10;
/// Streams of one HTTP/2 connection at once, where it carries gRPC: a client has one for each subscription. RFC 9113 §6.5.2
/// recommends 100 at least.
pub(crate) const MAX_CALLS: u32 = 100;
/// The same where it carries only webhooks. A stream takes about 6 KiB, and anybody may open one. Proxies with more webhooks at
/// once open more connections.
pub(crate) const MAX_WEBHOOKS: u32 = 24;
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

impl Timeouts {
    /// The usual ones, and so long between two requests.
    pub(crate) fn new(idle: Duration) -> Self {
        Self { head: HEAD_TIMEOUT, stalled: STALLED_TIMEOUT, idle, close: CLOSE_TIMEOUT }
    }

    /// For a connection that was told to end.
    fn closing(self, idle: Duration) -> Self {
        Self { head: self.close, stalled: self.stalled, idle, close: self.close }
    }
}

/// How all connections end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    /// Health tells that the server goes down, while everything still works.
    pub(crate) announced: CancellationToken,
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
    /// Its own: a flood on one listener leaves the others their connections.
    pub(crate) limit: Arc<ConnectionLimit>,
    /// Streams of one HTTP/2 connection at once.
    pub(crate) max_streams: u32,
    pub(crate) timeouts: Timeouts,
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("silent for too long")]
    Silent,
    #[error("other connections needed its place")]
    Evicted,
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
                // Not before: idle connections end for those that come.
                (accepted, self.limit.acquire().await)
            };
            let Some((accepted, place)) = ending.stop.run_until_cancelled(accepted).await else { return };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = self.limit.admit(place, peer.ip()) else {
                        let reason = "its address has too many connections";
                        info!(target: REFUSALS, { client.address = %peer, reason }, "connection refused");
                        continue;
                    };
                    let connection = self.connection(&tasks, &ending, peer.ip());
                    tasks.spawn(async move {
                        connection.run(stream, peer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(target: REFUSALS, { %error }, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, tasks: &TaskTracker, ending: &Ending, address: IpAddr) -> Connection {
        Connection {
            security: self.security.clone(),
            router: self.router.clone(),
            max_streams: self.max_streams,
            timeouts: self.timeouts,
            tasks: tasks.clone(),
            ending: ending.clone(),
            activity: Arc::new(Activity::new(Arc::clone(&self.limit), address)),
        }
    }
}

/// One connection, start to end.
#[derive(Debug)]
struct Connection {
    security: Security,
    router: Router,
    max_streams: u32,
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
            info!(target: REFUSALS, { client.address = %peer, %error }, "a connection ended without a request");
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
        tokio::select! {
            step = tokio::time::timeout(self.timeouts.head, step) => step.map_err(|_| ConnectionError::Silent),
            () = self.activity.evicted() => Err(ConnectionError::Evicted),
        }
    }

    /// Serves HTTP on a connection whose TLS, if any, stands.
    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        address: SocketAddr,
        certificate: PeerCertificate,
    ) -> Result<(), ConnectionError> {
        let peer = Peer::new(address, certificate);
        let service = service_fn(|request| self.call(request, peer.clone()));
        let builder = self.builder();
        let stream = Observed::new(stream, Arc::clone(&self.activity));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let (activity, timeouts) = (&self.activity, self.timeouts);
        let (reason, timeouts) = tokio::select! {
            // A request that is in the socket already is read before the connection ends for another reason.
            biased;
            ended = connection.as_mut() => return ended.map_err(ConnectionError::Http),
            () = peer.cut.cancelled() => return Err(ConnectionError::Stalled),
            () = self.ending.stop.cancelled() => (Ok(()), timeouts.closing(timeouts.close)),
            () = activity.silence(timeouts) => {
                let closing = Timeouts { stalled: timeouts.close, ..timeouts.closing(timeouts.close) };
                (Err(ConnectionError::Silent), closing)
            }
            () = activity.evicted() => {
                if activity.may_be_cut() {
                    return Err(ConnectionError::Evicted);
                }
                (Err(ConnectionError::Evicted), timeouts.closing(timeouts.close.min(EVICTED_TIMEOUT)))
            }
        };
        if reason.is_err() && activity.awaits_head() {
            return reason;
        }
        // What is under way is finished, as long as it moves. A peer need not react to being told.
        connection.as_mut().graceful_shutdown();
        activity.moves();
        tokio::select! {
            ended = connection => reason.and(ended.map_err(ConnectionError::Http)),
            () = peer.cut.cancelled() => Err(ConnectionError::Stalled),
            () = activity.silence(timeouts) => Err(ConnectionError::Silent),
        }
    }

    /// One request. Its body and that of its answer tell the activity.
    fn call(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Result<Response<Watched<Body>>, Infallible>> + Send + 'static + use<> {
        let (version, announced) = (request.version(), self.ending.announced.clone());
        let (activity, handler) = (Arc::clone(&self.activity), self.activity.begin_request(version));
        let mut request = request.map(|body| Body::new(Watched::request(body, handler.another())));
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(handler.caller());
        // A router is always ready: its clone is cheap and holds no state of its own.
        let answering = self.router.clone().call(request);
        async move {
            let mut response = answering.await?;
            if version < Version::HTTP_2 && (activity.closes_after_response() || announced.is_cancelled()) {
                // To end after an answer is safe: a request may be on its way into a connection that ends while idle.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if response.body().is_end_stream() {
                return Ok(response.map(|body| Watched::response(body, handler, None)));
            }
            let Some(place) = handler.answer() else {
                // The status alone needs nothing of the peer.
                response.headers_mut().remove(header::CONTENT_LENGTH);
                return Ok(response.map(|_| Watched::response(Body::empty(), handler, None)));
            };
            Ok(response.map(|body| Watched::response(body, handler, place)))
        }
    }

    fn builder(&self) -> auto::Builder<Executor> {
        let executor = Executor { tasks: self.tasks.clone(), cut: self.ending.cut.clone() };
        let mut builder = auto::Builder::new(executor);
        builder
            .http1()
            .timer(TokioTimer::new())
            // It would run while the connection is idle, too; the activity watches over heads.
            .header_read_timeout(None)
            .max_buf_size(HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(self.max_streams)
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

/// Binds an address for a purpose, which errors name.
pub(crate) async fn bind(address: Address, purpose: &'static str) -> Result<TcpListener, BindError> {
    address.bind().await.map_err(|source| bind_error(address, purpose, source))
}

/// Where a listener is bound.
pub(crate) fn local_address(tcp: &TcpListener, address: Address) -> Result<SocketAddr, BindError> {
    tcp.local_addr().map_err(|source| bind_error(address, "its own address", source))
}

fn bind_error(address: Address, purpose: &'static str, source: io::Error) -> BindError {
    let ip = address.ip.map_or_else(|| "all addresses".to_owned(), |ip| ip.to_string());
    BindError::Listen { address: format!("{ip}, port {}", address.port), purpose, source }
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
