//! The server as a whole: bind, report the addresses, run, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use gitstafette_core::repository::Watchlist;
use gitstafette_core::store::EventStore;
use gitstafette_core::verify::GitHubSignature;
use gitstafette_proto::info::ServerInfo;
use gitstafette_proto::info::info_server::InfoServer;
use gitstafette_proto::v1::gitstafette_server::GitstafetteServer;
use gitstafette_proto::{FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::answers::Answers;
use crate::auth::{CallLimits, ClientAuth, MethodGuard};
use crate::compat::{self, Compat};
use crate::info::InfoService;
use crate::ingest::{self, BodyReader, Ingest, IngestLimits};
use crate::listen::{
    Address, BindError, ConnectionLimit, Ending, Listener, MAX_CALLS, MAX_WEBHOOKS, Security, Timeouts, bind,
    local_address,
};
use crate::metrics::Metrics;
use crate::open_files::ConnectionLimits;
use crate::publish::{self, Publications};
use crate::relay::{Intake, RelayOptions, Relaying, Relays};
use crate::service::Service;
use crate::streaming;
use crate::subscribe::{Registry, StreamOptions, Subscriptions, Traffic};
use crate::tls::{PlainWebhooks, ServerTls};
use crate::watchlist::LiveWatchlist;

/// The services whose health is told, beside the empty name, which is the whole server.
const SERVICES: [&str; 3] = ["", "gitstafette.v1.Gitstafette", "info.Info"];

/// What the tasks that were cut at the end of the drain may take to notice: they hold the store.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the store may take to close: it finishes what it took, and empties its log into the database.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long relays may take to finish what they are handing on.
const RELAYS_TIMEOUT: Duration = Duration::from_secs(2);

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Its name, told to clients.
    pub name: String,
    /// Where it listens.
    pub listeners: Listeners,
    /// Where operators are served as JSON over HTTP, in plain text; `None`: only over gRPC. Beyond loopback it should
    /// not be without tokens.
    pub admin: Option<Address>,
    /// TLS; `None` leaves it to a proxy in front.
    pub tls: Option<ServerTls>,
    /// What is accepted.
    pub watchlist: Watchlist,
    /// How webhooks are verified; `None` takes unsigned ones.
    pub signature: Option<GitHubSignature>,
    /// What clients must show.
    pub clients: ClientAuth,
    /// Bounds of ingest.
    pub limits: IngestLimits,
    /// Connections that the listener for webhooks may have open at once, and the one for gRPC as many. Fewer if the process
    /// may not open as many files.
    pub max_connections: usize,
    /// How long a connection stays open between two requests.
    pub idle_timeout: Duration,
    /// How streams behave.
    pub streams: StreamOptions,
    /// The servers that events are handed on to, and drawn from.
    pub relays: Vec<RelayOptions>,
    /// How long the end may take.
    pub drain_timeout: Duration,
}

/// The listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// One port for webhooks, gRPC and health.
    Shared {
        /// Webhooks, gRPC, and health of both.
        address: Address,
        /// gRPC health alone, in plain text, if it is wanted apart.
        health: Option<Address>,
    },
    /// A port each.
    Separate {
        /// Webhooks and HTTP health.
        http: Address,
        /// gRPC: subscriptions, info, health, reflection.
        grpc: Address,
        /// gRPC health alone, always plain text, for probes that speak neither TLS nor tokens.
        health: Option<Address>,
    },
}

/// The addresses that a server is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Webhooks.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
    /// gRPC health alone, if it has a port of its own.
    pub health: Option<SocketAddr>,
    /// The admin interface, if it is served.
    pub admin: Option<SocketAddr>,
}

impl Addresses {
    fn new(http: SocketAddr, grpc: SocketAddr) -> Self {
        Self { http, grpc, health: None, admin: None }
    }
}

/// A bound server that does not serve yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    addresses: Addresses,
    store: Arc<dyn EventStore>,
    health: HealthReporter,
    relays: Arc<Relays>,
    relaying: Vec<Relaying>,
    subscriptions: Arc<Subscriptions>,
    tasks: TaskTracker,
    ending: Ending,
    drain_timeout: Duration,
}

/// Why a server ended in another way than it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener's task died.
    #[error("a listener died: {0}")]
    ListenerDied(#[source] JoinError),
    /// A relay's task died.
    #[error("a relay died: {0}")]
    RelayDied(#[source] JoinError),
    /// The store closed, or its writer died: no webhook could be taken any more.
    #[error("the store ended while the server ran; its log says why")]
    StoreEnded,
    /// The server was told to end, and cut requests or streams that took longer than the drain time-out.
    #[error("the shutdown is not complete: what took longer than --drain-timeout was cut")]
    NotDrained,
    /// The store did not close in time. What it acknowledged is on the disk.
    #[error("the store did not close within {} s; is the disk stuck?", STORE_TIMEOUT.as_secs())]
    StoreNotClosed,
}

impl Server {
    /// Binds the listeners. The store is closed when [`run`](Self::run) ends.
    ///
    /// # Errors
    /// [`BindError`] names the address, or says why the store cannot be read.
    pub async fn bind(options: ServerOptions, store: Arc<dyn EventStore>) -> Result<Self, BindError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let shared = Shared::new(&options, store).await?;
        let ingest = Arc::new(shared.ingest(&options));
        let http_router = ingest::router(Arc::clone(&ingest));
        let limits = ConnectionLimits::new(&options);
        let listener = |tcp, security, router: Router, most, max_streams| Listener {
            tcp,
            security,
            router,
            limit: Arc::new(ConnectionLimit::new(most)),
            max_streams,
            timeouts: Timeouts::new(options.idle_timeout),
        };
        let (mut listeners, mut addresses, apart) = match options.listeners {
            Listeners::Shared { address, health } => {
                let tcp = bind(address, "webhooks and gRPC").await?;
                let at = local_address(&tcp, address)?;
                let router = http_router.merge(shared.grpc(&options, at, &health_service, ingest));
                let router = router.fallback(ingest::not_found);
                (
                    vec![listener(tcp, grpc_security(&options), router, limits.public, MAX_CALLS)],
                    Addresses::new(at, at),
                    health,
                )
            }
            Listeners::Separate { http, grpc, health } => {
                let http_tcp = bind(http, "webhooks").await?;
                let grpc_tcp = bind(grpc, "gRPC").await?;
                let (http_at, grpc_at) = (local_address(&http_tcp, http)?, local_address(&grpc_tcp, grpc)?);
                let grpc_router = shared.grpc(&options, grpc_at, &health_service, ingest);
                let grpc_router = grpc_router.fallback(ingest::not_found);
                let http_router = http_router.fallback(ingest::not_found);
                let both = vec![
                    listener(http_tcp, http_security(&options), http_router, limits.public, MAX_WEBHOOKS),
                    listener(grpc_tcp, grpc_security(&options), grpc_router, limits.public, MAX_CALLS),
                ];
                (both, Addresses::new(http_at, grpc_at), health)
            }
        };
        if let Some(address) = apart {
            let tcp = bind(address, "gRPC health").await?;
            addresses.health = Some(local_address(&tcp, address)?);
            let router =
                method_guard(&options, &shared.calls).protect(Routes::new(health_service).into_axum_router());
            let router = router.fallback(ingest::not_found);
            listeners.push(listener(tcp, Security::Plain, router, limits.small, MAX_CALLS));
        }
        if let Some(address) = options.admin {
            let tcp = bind(address, "the admin interface").await?;
            addresses.admin = Some(local_address(&tcp, address)?);
            let router =
                admin::router(Arc::clone(&shared.admin), options.clients.clone(), shared.calls.clone());
            listeners.push(listener(tcp, Security::Plain, router, limits.small, MAX_CALLS));
        }
        let Shared { store, relays, relaying, subscriptions, tasks, ending, .. } = shared;
        let drain_timeout = options.drain_timeout;
        Ok(Self {
            listeners,
            addresses,
            store,
            health,
            relays,
            relaying,
            subscriptions,
            tasks,
            ending,
            drain_timeout,
        })
    }

    /// Where it is bound.
    pub fn local_addrs(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `stop` is cancelled, then shuts down step by step, each with a deadline: health tells it, relays finish,
    /// no new connection is accepted, requests under way are answered, streams get a GoAway. Connections that take longer than
    /// the drain timeout are cut. Last the store is closed. If this future is dropped, every connection is cut.
    ///
    /// # Errors
    /// [`RunError`] if it ended without being told to, after the same drain, or if the drain was cut short or the store did not
    /// close.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), RunError> {
        let _cut_at_the_end = self.ending.cut.clone().drop_guard();
        let mut accepting = JoinSet::new();
        for listener in self.listeners.drain(..) {
            accepting.spawn(listener.serve(self.tasks.clone(), self.ending.clone()));
        }
        set_health(&self.health, ServingStatus::Serving).await;
        let (mut relaying, relays_stop) = (JoinSet::new(), CancellationToken::new());
        for relay in self.relaying.drain(..) {
            relaying.spawn(relay.run(relays_stop.clone()));
        }
        let (subscriptions, own_ids) = (Arc::clone(&self.subscriptions), self.relays.own_client_ids());
        self.tasks.spawn(async move { subscriptions.forget_clients(own_ids).await });
        let mut reporting: JoinSet<()> = self.relays.report_health(&self.health).into_iter().collect();
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            // A listener never ends by itself.
            Some(Err(died)) = accepting.join_next() => Err(RunError::ListenerDied(died)),
            Some(Err(died)) = relaying.join_next() => Err(RunError::RelayDied(died)),
            () = ended(&*self.store) => Err(RunError::StoreEnded),
        };
        // First, so that nobody sends more.
        reporting.abort_all();
        set_health(&self.health, ServingStatus::NotServing).await;
        self.ending.announced.cancel();
        relays_stop.cancel();
        // What they do not finish in time comes again, and is known at the other end.
        drop(
            tokio::time::timeout(RELAYS_TIMEOUT, async { while relaying.join_next().await.is_some() {} })
                .await,
        );
        let drained = self.drain(accepting).await;
        let closed = close(self.store).await;
        ended.and(drained).and(closed)
    }

    async fn drain(&self, mut accepting: JoinSet<()>) -> Result<(), RunError> {
        self.ending.stop.cancel();
        self.tasks.close();
        let drained = tokio::time::timeout(self.drain_timeout, async {
            while accepting.join_next().await.is_some() {}
            self.tasks.wait().await;
        });
        if drained.await.is_ok() {
            info!("drained");
            return Ok(());
        }
        warn!(tasks = self.tasks.len(), "not drained in time; what is left is cut");
        self.ending.cut.cancel();
        if tokio::time::timeout(CUT_TIMEOUT, self.tasks.wait()).await.is_err() {
            warn!(tasks = self.tasks.len(), "some tasks still wait for the store");
        }
        Err(RunError::NotDrained)
    }
}

async fn close(store: Arc<dyn EventStore>) -> Result<(), RunError> {
    if tokio::time::timeout(STORE_TIMEOUT, store.close()).await.is_ok() {
        return Ok(());
    }
    // Its destructor would wait for the same disk.
    std::mem::forget(store);
    Err(RunError::StoreNotClosed)
}

/// Waits until a store closes or its writer dies.
async fn ended(store: &dyn EventStore) {
    // No head is waited for: only the end of the wait is of interest.
    drop(store.head().wait_for(|_| false).await);
}

fn method_guard(options: &ServerOptions, limits: &CallLimits) -> MethodGuard {
    MethodGuard {
        auth: options.clients.clone(),
        verifies_webhooks: options.signature.is_some(),
        limits: limits.clone(),
    }
}

fn grpc_security(options: &ServerOptions) -> Security {
    options.tls.as_ref().map_or(Security::Plain, |tls| Security::Tls(Arc::clone(&tls.config)))
}

fn http_security(options: &ServerOptions) -> Security {
    match &options.tls {
        Some(ServerTls { plain_webhooks: PlainWebhooks::Taken, config }) => {
            Security::Either(Arc::clone(config))
        }
        _ => grpc_security(options),
    }
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

/// What the listeners share.
struct Shared {
    store: Arc<dyn EventStore>,
    watchlist: Arc<LiveWatchlist>,
    metrics: Arc<Metrics>,
    subscriptions: Arc<Subscriptions>,
    intake: Arc<Intake>,
    relays: Arc<Relays>,
    relaying: Vec<Relaying>,
    admin: Arc<Admin>,
    calls: CallLimits,
    tasks: TaskTracker,
    ending: Ending,
}

impl Shared {
    async fn new(options: &ServerOptions, store: Arc<dyn EventStore>) -> Result<Self, BindError> {
        let (tasks, ending) = (TaskTracker::new(), Ending::default());
        let watchlist = LiveWatchlist::load(options.watchlist.clone(), Arc::clone(&store)).await?;
        let (watchlist, metrics, registry) =
            (Arc::new(watchlist), Metrics::new(), Arc::<Registry>::default());
        let subscriptions = Arc::new(Subscriptions {
            server_name: options.name.clone(),
            store: Arc::clone(&store),
            watchlist: Arc::clone(&watchlist),
            options: options.streams,
            registry: Arc::clone(&registry),
            traffic: Arc::new(Traffic::new(options.streams.outgoing_bytes)),
            metrics: Arc::clone(&metrics),
            tasks: tasks.clone(),
            draining: ending.stop.clone(),
        });
        let intake = Arc::new(Intake {
            store: Arc::clone(&store),
            watchlist: Arc::clone(&watchlist),
            metrics: Arc::clone(&metrics),
            body_limit: options.limits.body_bytes,
        });
        let (relays, relaying) = Relays::new(&options.relays, &subscriptions, &intake);
        let relays = Arc::new(relays);
        let admin = Arc::new(Admin {
            store: Arc::clone(&store),
            registry,
            watchlist: Arc::clone(&watchlist),
            relays: Arc::clone(&relays),
            metrics: Arc::clone(&metrics),
            draining: ending.stop.clone(),
            heartbeat: options.streams.heartbeat,
            shown: Arc::new(Semaphore::new(admin::SHOWN_BYTES as usize)),
            answers: Answers::new(admin::ANSWERS_BYTES, admin::RESERVED_BYTES),
        });
        let calls = CallLimits::new(options.streams.max_client_ids);
        Ok(Self {
            store,
            watchlist,
            metrics,
            subscriptions,
            intake,
            relays,
            relaying,
            admin,
            calls,
            tasks,
            ending,
        })
    }

    fn ingest(&self, options: &ServerOptions) -> Ingest {
        Ingest {
            store: Arc::clone(&self.store),
            watchlist: Arc::clone(&self.watchlist),
            signature: options.signature.clone(),
            auth: options.clients.clone(),
            metrics: Arc::clone(&self.metrics),
            relays: Arc::clone(&self.relays),
            bodies: BodyReader::new(options.limits, self.tasks.clone()),
            tasks: self.tasks.clone(),
            draining: self.ending.announced.clone(),
        }
    }

    /// All gRPC services.
    fn grpc<H>(&self, options: &ServerOptions, at: SocketAddr, health: &H, ingest: Arc<Ingest>) -> Router
    where
        H: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        H::Response: axum::response::IntoResponse,
        H::Future: Send + 'static,
    {
        let service = Arc::new(Service {
            subscriptions: Arc::clone(&self.subscriptions),
            compat: Compat {
                subscriptions: Arc::clone(&self.subscriptions),
                metrics: Arc::clone(&self.metrics),
            },
            admin: Arc::clone(&self.admin),
            auth: options.clients.clone(),
            owners: options.clients.owners_of_ids(self.store.id()),
        });
        let publications = Publications { intake: Arc::clone(&self.intake), ingest: Arc::clone(&ingest) };
        let streams = streaming::router(Arc::clone(&service));
        let service = GitstafetteServer::from_arc(service)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let info = InfoServer::new(self.info(options, at));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors were made by the build");
        let router = Routes::new(health.clone())
            .add_service(service)
            .add_service(info)
            .add_service(reflection)
            .into_axum_router();
        let router = self.admin.answers.clone().hold_methods(&admin::ANSWERED, router);
        let router =
            router.merge(publish::router(publications)).merge(streams).merge(compat::push_router(ingest));
        let guarded = method_guard(options, &self.calls).protect(router);
        guarded.layer(axum::middleware::from_fn(compat::answer_refusals))
    }

    fn info(&self, options: &ServerOptions, at: SocketAddr) -> InfoService {
        let protocol = if options.tls.is_some() { "grpcs" } else { "grpc" };
        InfoService {
            name: options.name.clone(),
            server: ServerInfo {
                hostname: gethostname::gethostname().to_string_lossy().into_owned(),
                ip: at.ip().to_string(),
                port: at.port().to_string(),
                protocol: protocol.to_owned(),
                repositories: None,
            },
            watchlist: Arc::clone(&self.watchlist),
            relays: Arc::clone(&self.relays),
            draining: self.ending.announced.clone(),
        }
    }
}
