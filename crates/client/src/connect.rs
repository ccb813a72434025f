//! The channel to the server: address, TLS, token.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use gitstafette_core::secret::Secret;
use gitstafette_proto::MAX_MESSAGE_BYTES;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use http::header::CONTENT_TYPE;
use http::{StatusCode, Uri};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower::Service;

use crate::explain::{self, Fault};
use crate::feed::Received;

/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a failure the port is looked at first, and how often then.
const FIRST_PROBE: Duration = Duration::from_millis(250);
/// See [`FIRST_PROBE`].
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a look at a target may take. Shorter: it is repeated.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 flow control windows: room for a stream of small events without waiting, and small enough for a Raspberry Pi.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;

/// Where a server is and how to talk to it.
#[derive(Clone, Debug)]
pub struct ServerAddress {
    /// Host name or IP address.
    pub host: String,
    /// The port of its gRPC listener.
    pub port: u16,
    /// TLS; `None` talks plain text.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The bearer token.
    pub token: Option<Secret>,
}

/// A server's methods.
pub(crate) type Calls = GitstafetteClient<InterceptedService<PlainChannel, Bearer>>;

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The calls.
    pub(crate) calls: Calls,
    /// How many bytes have come in.
    pub(crate) received: Received,
    /// How often it was dialled: the channel does so by itself when the server has left.
    pub(crate) dialled: Arc<AtomicU64>,
    /// Counts the connections that ended.
    pub(crate) ended: watch::Receiver<u64>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct Unconnected {
    /// What went wrong.
    pub(crate) status: Status,
    /// Whether the port could not be reached.
    pub(crate) is_away: bool,
}

impl ServerAddress {
    /// The address as a URL, for logs.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", authority(&self.host, self.port))
    }

    /// Connects.
    ///
    /// # Errors
    /// UNAVAILABLE if that fails, INVALID_ARGUMENT if the address or the token cannot be used at all.
    pub(crate) async fn connect(&self) -> Result<Connection, Status> {
        self.try_connect().await.map_err(|unconnected| unconnected.status)
    }

    /// Connects, or says whether the port could be reached at all.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn try_connect(&self) -> Result<Connection, Unconnected> {
        let invalid = |error: &dyn Error| Unconnected {
            status: Status::invalid_argument(format!("{}: {error}", self.url())),
            is_away: false,
        };
        let bearer =
            Bearer::try_new(self.token.as_ref()).map_err(|status| Unconnected { status, is_away: false })?;
        let endpoint = Endpoint::from_shared(self.url())
            .map_err(|error| invalid(&error))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (this, received) = (self.clone(), Received::default());
        let far_end =
            FarEnd { url: self.url().into(), is_tls: self.tls.is_some(), received: received.clone() };
        let counter = Arc::clone(&received.0);
        let dialled = Arc::new(AtomicU64::new(0));
        let dials = Arc::clone(&dialled);
        let is_reached = Arc::new(AtomicBool::new(false));
        let reached = Arc::clone(&is_reached);
        let (ends, ended) = watch::channel(0);
        let ends = Arc::new(ends);
        let connector = tower::service_fn(move |_: Uri| {
            dials.fetch_add(1, Ordering::Relaxed);
            let (this, counter) = (this.clone(), Arc::clone(&counter));
            let (reached, end) = (Arc::clone(&reached), End(Arc::clone(&ends)));
            async move {
                let stream = this.dial(&reached).await?;
                Ok::<_, io::Error>(TokioIo::new(Counted { stream, counter, _end: end }))
            }
        });
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| Unconnected {
            status: Status::unavailable(format!(
                "cannot connect to {}: {}",
                far_end.url,
                far_end.reason(&error)
            )),
            is_away: !is_reached.load(Ordering::Relaxed),
        })?;
        let calls = GitstafetteClient::with_interceptor(PlainChannel { channel, far_end }, bearer)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Connection { calls, received, dialled, ended })
    }

    async fn dial(
        self,
        is_reached: &AtomicBool,
    ) -> io::Result<Either<TcpStream, tokio_rustls::client::TlsStream<TcpStream>>> {
        let dial = async {
            let addresses: Vec<_> = explain::resolve(&self.host, self.port).await?.collect();
            let stream = TcpStream::connect(&*addresses).await?;
            is_reached.store(true, Ordering::Relaxed);
            stream.set_nodelay(true)?;
            let Some(tls) = self.tls else { return Ok(Either::Left(stream)) };
            let name = ServerName::try_from(self.host)
                .map_err(|_| io::Error::other("the host is not a name that a certificate can have"))?;
            let mut tls = rustls::ClientConfig::clone(&tls);
            tls.alpn_protocols = vec![b"h2".to_vec()];
            TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map(Either::Right)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, dial)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// The far end of a connection, as errors name it.
#[derive(Clone, Debug)]
struct FarEnd {
    url: Arc<str>,
    is_tls: bool,
    received: Received,
}

impl FarEnd {
    /// Why a connection failed, and what to change.
    fn reason(&self, error: &(dyn Error + 'static)) -> String {
        let fault = Fault::of(error);
        // A port that closes the connection without a byte speaks another protocol.
        let is_mute = fault == Fault::Closed && self.received.bytes() == 0;
        match fault {
            Fault::NotTls => {
                "the port does not speak TLS; if the server speaks plain text there, use --insecure or http://".to_owned()
            }
            Fault::NotHttp if self.is_tls => {
                "the port does not speak HTTP/2, which gRPC needs; is it the server's gRPC port?".to_owned()
            }
            Fault::NotHttp => {
                "the port does not speak HTTP/2 in plain text; if the server expects TLS there, use --secure or https://, else check --port".to_owned()
            }
            Fault::Closed if is_mute => {
                "the port closed the connection without an answer; is it the server's gRPC port, and does it expect TLS (--secure or https://)?".to_owned()
            }
            Fault::Other(reason) if self.received.bytes() == 0 => {
                format!("{reason}; is the server up, and are --server and --port right?")
            }
            fault => fault.to_string(),
        }
    }

    /// A call's error in plain words. What the server itself answered stays as it is.
    fn explain(&self, status: Status) -> Status {
        let Some(error) = status.source() else { return status };
        Status::unavailable(format!("the connection to {} failed: {}", self.url, self.reason(error)))
    }

    /// Refuses an answer that is not of gRPC, with the code that the gRPC documentation gives for its HTTP status ("HTTP to
    /// gRPC Status Code Mapping").
    fn check(&self, response: http::Response<Body>) -> Result<http::Response<Body>, Status> {
        let headers = response.headers();
        let is_grpc = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        if headers.contains_key("grpc-status") || headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
            return Ok(response);
        }
        let code = match response.status() {
            StatusCode::BAD_REQUEST => Code::Internal,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::NOT_FOUND => Code::Unimplemented,
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
            _ => Code::Unknown,
        };
        let status = response.status();
        let message = format!(
            "{} answered with the HTTP status {status} and not with gRPC; is it the server's gRPC port, and does a proxy before it pass gRPC on?",
            self.url
        );
        Err(Status::new(code, message))
    }
}

/// A channel whose errors are in plain words.
#[derive(Clone, Debug)]
pub(crate) struct PlainChannel {
    channel: Channel,
    far_end: FarEnd,
}

impl Service<http::Request<Body>> for PlainChannel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let far_end = &self.far_end;
        self.channel.poll_ready(context).map_err(|error| far_end.explain(Status::from_error(error.into())))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let far_end = self.far_end.clone();
        let answer = self.channel.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => {
                    let response = far_end.check(response)?;
                    Ok(response.map(|body| Body::new(body.map_err(move |error| far_end.explain(error)))))
                }
                Err(error) => Err(far_end.explain(Status::from_error(error.into()))),
            }
        })
    }
}

/// A stream that counts what it receives.
#[derive(Debug)]
struct Counted<S> {
    stream: S,
    counter: Arc<AtomicU64>,
    _end: End,
}

/// Counts a connection as ended when it is dropped.
#[derive(Debug)]
struct End(Arc<watch::Sender<u64>>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.send_modify(|ends| *ends += 1);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.counter.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Adds the token to every call.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn try_new(token: Option<&Secret>) -> Result<Self, Status> {
        let Some(token) = token else { return Ok(Self(None)) };
        let value = MetadataValue::try_from([b"Bearer ", token.expose()].concat())
            .map_err(|_| Status::invalid_argument("the token has characters that no header can carry"))?;
        Ok(Self(Some(sensitive(value))))
    }
}

/// Marks a value so that debug output hides it and HTTP/2 does not index it.
fn sensitive(mut value: MetadataValue<Ascii>) -> MetadataValue<Ascii> {
    value.set_sensitive(true);
    value
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Host and port as they stand in a URL: an IPv6 address in brackets (RFC 3986 §3.2.2).
pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Waits this long before the next try to connect. If the port cannot be reached, it looks every second whether it can be
/// again, and then the wait ends. `is_away`: it could not be reached just now.
pub(crate) async fn wait_for_return(host: &str, port: u16, wait: Duration, is_away: bool) {
    wait_while_away(|| is_reachable(host, port), wait, is_away).await;
}

/// The same for anything that can be looked at.
async fn wait_while_away<F: Future<Output = bool>>(
    is_reachable: impl Fn() -> F,
    wait: Duration,
    mut is_away: bool,
) {
    let returned = async {
        let mut pause = FIRST_PROBE;
        loop {
            sleep(pause).await;
            let was_away = is_away;
            is_away = !is_reachable().await;
            if was_away && !is_away {
                return;
            }
            pause = PROBE_INTERVAL;
        }
    };
    tokio::select! {
        () = returned => {}
        () = sleep(wait) => {}
    }
}

/// Whether a connection to this address comes about. It is closed at once.
pub(crate) async fn is_reachable(host: &str, port: u16) -> bool {
    let connecting = TcpStream::connect((host, port));
    matches!(tokio::time::timeout(PROBE_TIMEOUT, connecting).await, Ok(Ok(_)))
}

/// Whether a request can carry this token.
pub(crate) fn is_sendable(token: &Secret) -> bool {
    Bearer::try_new(Some(token)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn urls_for_names_and_addresses() {
        let url = |host: &str| ServerAddress { host: host.into(), port: 1, tls: None, token: None }.url();
        assert_eq!(url("relay.example"), "http://relay.example:1");
        assert_eq!(url("::1"), "http://[::1]:1");
    }

    #[tokio::test]
    async fn a_closed_port_is_away() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_reachable("127.0.0.1", port).await);
        drop(listener);
        let server = ServerAddress { host: "127.0.0.1".into(), port, tls: None, token: None };
        assert!(server.try_connect().await.unwrap_err().is_away);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_back_ends_the_wait() {
        let week = Duration::from_secs(7 * 24 * 3600);
        let (begin, away_for) = (Instant::now(), Duration::from_secs(20));
        wait_while_away(|| ready(begin.elapsed() >= away_for), week, false).await;
        assert!(begin.elapsed() < away_for + 2 * PROBE_INTERVAL, "{:?}", begin.elapsed());
        // A port that answers is not away: what failed is something else, and the whole wait counts.
        let begin = Instant::now();
        wait_while_away(|| ready(true), week, false).await;
        assert_eq!(begin.elapsed(), week);
    }

    #[test]
    fn tokens_never_show() {
        let bearer = Bearer::try_new(Some(&Secret::new("hunter2"))).unwrap();
        assert!(!format!("{bearer:?}").contains("hunter2"));
        assert!(Bearer::try_new(Some(&Secret::new("a\nb"))).is_err());
    }
}
