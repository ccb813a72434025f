//! Where events come from and acknowledgements go: a server over the network, or a log of this very program.
//!
//! What passes are the messages of `Subscribe` either way, so order, window, deferral and receipts are the same code. A
//! server that relays is a client of its own log.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use gitstafette_proto::v1::{SubscribeRequest, SubscribeResponse};
use tonic::Status;

pub(crate) use self::keep::Keep;
use self::old::EitherServer;
use crate::connect::{Connection, ServerAddress, Unconnected, wait_for_return};

mod fetch;
mod keep;
mod old;

/// The client's half of a stream, as a server sees it.
pub type Requests = BoxStream<'static, Result<SubscribeRequest, Status>>;
/// The server's half of a stream.
pub type Responses = BoxStream<'static, Result<SubscribeResponse, Status>>;

/// Opens a stream of the program's own log.
type Open = dyn Fn(Requests) -> BoxFuture<'static, Result<Responses, Status>> + Send + Sync;

/// Where events come from.
#[derive(Clone, Debug)]
pub enum Feed {
    /// A server.
    Server(ServerAddress),
    /// A log of this program.
    Local(LocalFeed),
}

/// A log of this program.
#[derive(Clone)]
pub struct LocalFeed {
    open: Arc<Open>,
}

impl LocalFeed {
    /// A log that `open` opens streams of, as the method `Subscribe` does.
    pub fn new(
        open: impl Fn(Requests) -> BoxFuture<'static, Result<Responses, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self { open: Arc::new(open) }
    }
}

impl fmt::Debug for LocalFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalFeed").finish_non_exhaustive()
    }
}

/// A feed that is connected.
#[derive(Debug)]
pub(crate) enum Line {
    Server {
        connection: Box<Connection>,
        /// Its name in logs.
        name: String,
        /// What came from this server's predecessor or from itself, if that does not keep it.
        keep: Keep,
    },
    Local(LocalFeed),
}

/// A stream that is open.
pub(crate) struct Opened {
    pub(crate) responses: Responses,
    /// How long the client is to let it live; `None` if it is not to end it.
    pub(crate) window: Option<Duration>,
}

/// How many bytes have come in on a line. A large event is on its way for a while before it is a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received(pub(crate) Arc<AtomicU64>);

impl Received {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Feed {
    /// The feed's name in logs: a server's address.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Server(address) => address.url(),
            Self::Local(_) => "this server".to_owned(),
        }
    }

    /// Waits before the next try to connect, or until the server can be reached again.
    pub(crate) async fn wait(&self, wait: Duration, is_away: bool) {
        match self {
            Self::Server(address) => wait_for_return(&address.host, address.port, wait, is_away).await,
            Self::Local(_) => tokio::time::sleep(wait).await,
        }
    }

    /// Connects. The keep is the client's, the same for all its lines.
    ///
    /// # Errors
    /// As [`ServerAddress::connect`].
    pub(crate) async fn connect(&self, keep: &Keep) -> Result<Line, Unconnected> {
        match self {
            Self::Server(address) => {
                let connection = Box::new(address.try_connect().await?);
                Ok(Line::Server { connection, name: address.url(), keep: keep.clone() })
            }
            Self::Local(local) => Ok(Line::Local(local.clone())),
        }
    }
}

impl Line {
    /// Counts what comes in; nothing does within the program.
    pub(crate) fn received(&self) -> Received {
        match self {
            Self::Server { connection, .. } => connection.received.clone(),
            Self::Local(_) => Received::default(),
        }
    }

    /// Opens a stream, which is to live so long, or for ever.
    pub(crate) async fn subscribe(
        &mut self,
        requests: impl Stream<Item = SubscribeRequest> + Send + 'static,
        window: Option<Duration>,
    ) -> Result<Opened, Status> {
        match self {
            Self::Server { connection, name, keep } => {
                let server = EitherServer { calls: connection.calls.clone(), name, keep };
                server.subscribe(requests.boxed(), window).await
            }
            Self::Local(local) => {
                let responses = (local.open)(requests.map(Ok).boxed()).await?;
                Ok(Opened { responses, window })
            }
        }
    }
}
