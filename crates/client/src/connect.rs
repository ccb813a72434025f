//! The channel to the server: address, TLS, token.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use gitstafette_core::secret::Secret;
use gitstafette_proto::MAX_MESSAGE_BYTES;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::feed::Received;

/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
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
pub(crate) type Calls = GitstafetteClient<InterceptedService<Channel, Bearer>>;

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The calls.
    pub(crate) calls: Calls,
    /// How many bytes have come in.
    pub(crate) received: Received,
    /// How often it was dialled: the channel does so by itself when the server has left.
    pub(crate) dialled: Arc<AtomicU64>,
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
        let invalid = |error: &dyn Error| Status::invalid_argument(format!("{}: {error}", self.url()));
        let bearer = Bearer::try_new(self.token.as_ref())?;
        let endpoint = Endpoint::from_shared(self.url())
            .map_err(|error| invalid(&error))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (this, received) = (self.clone(), Received::default());
        let counter = Arc::clone(&received.0);
        let dialled = Arc::new(AtomicU64::new(0));
        let dials = Arc::clone(&dialled);
        let connector = tower::service_fn(move |_: Uri| {
            dials.fetch_add(1, Ordering::Relaxed);
            let (this, counter) = (this.clone(), Arc::clone(&counter));
            async move { this.dial().await.map(|stream| TokioIo::new(Counted { stream, counter })) }
        });
        let channel =
            endpoint.connect_with_connector(connector).await.map_err(|error| self.unreachable(&error))?;
        let calls = GitstafetteClient::with_interceptor(channel, bearer)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Connection { calls, received, dialled })
    }

    /// The server cannot be reached: why, and what to change where that shows.
    fn unreachable(&self, error: &(dyn Error + 'static)) -> Status {
        let hint = match tls_cause(error) {
            Some(rustls::Error::InvalidMessage(_)) => {
                "; the server speaks plain text there: --insecure or http://"
            }
            Some(rustls::Error::InvalidCertificate(_)) => "; name the CA with --ca-file-location",
            Some(_) => "",
            None => "; is the server up, and are --server and --port right?",
        };
        Status::unavailable(format!("cannot connect to {}: {}{hint}", self.url(), root_cause(error)))
    }

    async fn dial(self) -> io::Result<Either<TcpStream, tokio_rustls::client::TlsStream<TcpStream>>> {
        let dial = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            let Some(tls) = self.tls else { return Ok(Either::Left(stream)) };
            let name = ServerName::try_from(self.host).map_err(io::Error::other)?;
            let mut tls = rustls::ClientConfig::clone(&tls);
            tls.alpn_protocols = vec![b"h2".to_vec()];
            TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map(Either::Right)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, dial)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// A stream that counts what it receives.
#[derive(Debug)]
struct Counted<S> {
    stream: S,
    counter: Arc<AtomicU64>,
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

/// Whether a connection to this address comes about. It is closed at once.
pub(crate) async fn is_reachable(host: &str, port: u16) -> bool {
    let connecting = TcpStream::connect((host, port));
    matches!(tokio::time::timeout(PROBE_TIMEOUT, connecting).await, Ok(Ok(_)))
}

/// What TLS has against it, if it is that. `io::Error` hides what it wraps from the chain of sources.
fn tls_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref());
        if let Some(error) = inner.or_else(|| error.downcast_ref()) {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// The innermost cause: the outer ones only say "transport error".
pub(crate) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_for_names_and_addresses() {
        let url = |host: &str| ServerAddress { host: host.into(), port: 1, tls: None, token: None }.url();
        assert_eq!(url("relay.example"), "http://relay.example:1");
        assert_eq!(url("::1"), "http://[::1]:1");
    }

    #[test]
    fn tokens_never_show() {
        let bearer = Bearer::try_new(Some(&Secret::new("hunter2"))).unwrap();
        assert!(!format!("{bearer:?}").contains("hunter2"));
        assert!(Bearer::try_new(Some(&Secret::new("a\nb"))).is_err());
    }
}
