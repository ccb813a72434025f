//! What the tests share: a running server, a target that records, senders and clients.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use gitstafette_client::target::HttpTarget;
use gitstafette_client::{
    Client, ClientOptions, ClientState, DeliveryPolicy, ExistingCursor, Route, ServerAddress, Subscription,
};
use gitstafette_core::backoff::Backoff;
use gitstafette_core::secret::Secret;
use gitstafette_core::store::{EventStore, MemoryStore, SqliteStore};
use gitstafette_core::target::Target;
use gitstafette_core::testing::{self, Format, Hook};
use gitstafette_server::config::Config;
use gitstafette_server::{Addresses, RunError, Server};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const SECRET: &str = "a secret for tests";
pub const TOKEN: &str = "a token for tests";

/// How long a test waits for what must come. Nothing is measured with it: it ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often or how long a fault is made. `cargo xtask faults` sets the variable and makes them as long as they are in
/// life; else they are as short as shows the same.
pub fn at_length<T>(short: T, long: T) -> T {
    if std::env::var_os("GITSTAFETTE_FAULTS_AT_LENGTH").is_some() { long } else { short }
}

/// Waits for what must come.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not come")
}

/// A server in this process.
pub struct TestServer {
    pub addresses: Addresses,
    pub store: Arc<dyn EventStore>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

/// The settings that tests start from; later lines of the same key are not allowed in TOML, so tests add others.
pub fn settings(more: &str) -> String {
    let base = format!(
        "repositories = [\"octo-harbor/*\"]\nwebhook-hmac = \"{SECRET}\"\nclient-token = \"{TOKEN}\"\nbind = \"127.0.0.1\"\n"
    );
    let ports = if more.lines().any(|line| line.starts_with("port =")) {
        ""
    } else {
        "port = 0\ngrpc-port = 0\ngrpc-health-port = 0\n"
    };
    format!("{base}{ports}{more}")
}

impl TestServer {
    /// A server with a store in memory and these settings on top of the usual.
    pub async fn start(more: &str) -> Self {
        let config = Config::from_toml(&settings(more)).unwrap();
        let store = Arc::new(MemoryStore::new(config.store_options));
        Self::run(config, store).await
    }

    /// A server with a SQLite store in a folder.
    pub async fn start_in(folder: &Path, more: &str) -> Self {
        let config = Config::from_toml(&settings(more)).unwrap();
        let store = Arc::new(SqliteStore::open(folder, config.store_options).unwrap());
        Self::run(config, store).await
    }

    pub async fn run(config: Config, store: Arc<dyn EventStore>) -> Self {
        let server = Server::bind(config.server, Arc::clone(&store)).await.unwrap();
        let (addresses, stop) = (server.local_addrs(), CancellationToken::new());
        let token = stop.clone();
        let running = tokio::spawn(server.run(token));
        Self { addresses, store, stop, running }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.http)
    }

    /// Drains the server and waits for its end, which must be complete.
    pub async fn stop(self) {
        self.end().await.unwrap();
    }

    /// Drains the server and waits for its end.
    pub async fn end(self) -> Result<(), RunError> {
        self.stop.cancel();
        soon(self.running).await.unwrap()
    }

    pub fn drain(&self) {
        self.stop.cancel();
    }

    pub async fn events(&self) -> u64 {
        self.store.statistics().await.unwrap().events
    }
}

/// An HTTP client without TLS, proxies and redirects.
pub fn http_client() -> reqwest::Client {
    reqwest::Client::builder().tls_backend_preconfigured(no_tls()).no_proxy().build().unwrap()
}

pub fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(gitstafette_client::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

/// Sends webhooks as GitHub would.
pub struct Sender {
    http: reqwest::Client,
    url: String,
    hook: Hook,
}

impl Sender {
    pub fn new(server: &TestServer) -> Self {
        Self::to(server.url("/v1/github/"))
    }

    pub fn to(url: String) -> Self {
        Self { http: http_client(), url, hook: hook(Format::Json) }
    }

    /// Signs with another secret than the usual.
    pub fn signing_with(self, secret: &str) -> Self {
        Self { hook: Hook { secret: Some(Secret::new(secret)), ..self.hook }, ..self }
    }

    /// Sends a payload, signed.
    pub async fn send(&self, event: &str, delivery_id: &str, payload: &str) -> reqwest::Response {
        self.request(&self.hook.request(event, delivery_id, payload)).await.unwrap()
    }

    /// Sends a small push with this delivery id, which must be stored.
    pub async fn push(&self, delivery_id: &str) {
        let answer = self.send("push", delivery_id, &payload(delivery_id)).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }

    pub async fn request(&self, request: &testing::Request) -> reqwest::Result<reqwest::Response> {
        let mut builder = self.http.post(&self.url).body(request.body.clone());
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        builder.send().await
    }
}

pub fn hook(format: Format) -> Hook {
    Hook { id: 4711, format, secret: Some(Secret::new(SECRET)) }
}

/// A payload of the first repository of the samples.
pub fn payload(text: &str) -> String {
    format!(r#"{{"text":"{text}","repository":{{"id":537845873,"full_name":"octo-harbor/lighthouse"}}}}"#)
}

/// What a target got.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Arrived {
    pub fn delivery_id(&self) -> &str {
        self.headers["x-github-delivery"].to_str().unwrap()
    }
}

type Answer = dyn Fn(u64) -> Response + Send + Sync;

/// A target that records what arrives and answers as told.
pub struct TestTarget {
    pub address: SocketAddr,
    arrived: mpsc::UnboundedReceiver<Arrived>,
    _serving: JoinHandle<()>,
}

#[derive(Clone)]
struct TargetState {
    arrived: mpsc::UnboundedSender<Arrived>,
    count: Arc<AtomicU64>,
    answer: Arc<Answer>,
}

impl TestTarget {
    pub async fn start() -> Self {
        Self::answering(|_| StatusCode::OK.into_response()).await
    }

    /// `answer` gets the number of the request, from 1.
    pub async fn answering(answer: impl Fn(u64) -> Response + Send + Sync + 'static) -> Self {
        let (sender, arrived) = mpsc::unbounded_channel();
        let state = TargetState { arrived: sender, count: Arc::default(), answer: Arc::new(answer) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(record).with_state(state);
        let _serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, arrived, _serving }
    }

    pub async fn next(&mut self) -> Arrived {
        soon(self.arrived.recv()).await.unwrap()
    }

    /// The next `count` delivery ids.
    pub async fn next_ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.next().await.delivery_id().to_owned());
        }
        ids
    }

    /// Whether nothing more has arrived so far.
    pub fn is_quiet(&mut self) -> bool {
        self.arrived.try_recv().is_err()
    }

    pub fn target(&self) -> Arc<dyn Target> {
        let url = format!("http://{}/github-webhook/", self.address);
        Arc::new(HttpTarget::try_new(&url, Duration::from_secs(30), no_tls()).unwrap())
    }
}

async fn record(State(state): State<TargetState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let number = state.count.fetch_add(1, Ordering::SeqCst) + 1;
    drop(state.arrived.send(Arrived { headers: parts.headers, body }));
    (state.answer)(number)
}

/// A client in this process.
pub struct TestClient {
    pub state: watch::Receiver<ClientState>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl TestClient {
    pub fn start(options: ClientOptions) -> Self {
        let client = Client::new(options);
        let (state, stop) = (client.state(), CancellationToken::new());
        let running = tokio::spawn(client.run(stop.clone()));
        Self { state, stop, running }
    }

    pub async fn subscribed(&mut self) {
        soon(self.state.wait_for(|state| state.subscribed)).await.unwrap();
    }

    /// Stops it in order: what was delivered is acknowledged.
    pub async fn stop(self) {
        self.stop.cancel();
        soon(self.running).await.unwrap();
    }

    /// Ends it at once, as a crash would.
    pub fn kill(self) {
        self.running.abort();
    }
}

/// Options of a client of this server, delivering to this target.
pub fn options(grpc: SocketAddr, target: Arc<dyn Target>) -> ClientOptions {
    let token = Some(Secret::new(TOKEN));
    ClientOptions {
        server: ServerAddress { host: grpc.ip().to_string(), port: grpc.port(), tls: None, token },
        subscription: Subscription {
            existing_cursor: ExistingCursor::Keep,
            max_events: Some(64),
            max_bytes: Some(32 << 20),
            ..Subscription::new("test".parse().unwrap())
        },
        routes: vec![Route { policy: impatient(), ..Route::new(target) }],
        stream_window: None,
    }
}

/// Short waits between tries.
pub fn impatient() -> DeliveryPolicy {
    let backoff = Backoff { first: Duration::from_millis(10), most: Duration::from_millis(100) };
    DeliveryPolicy { backoff, give_up_after: Duration::from_secs(3600), ..DeliveryPolicy::default() }
}

/// Waits until every stored event has an outcome of the client, and so its cursor stands at the head.
pub async fn all_acknowledged(store: &dyn EventStore) {
    let client = "test".parse().unwrap();
    let done = async {
        loop {
            let head = *store.head().borrow();
            if store.progress(&client).await.unwrap().is_some_and(|progress| progress.cursor == head) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await; // a cursor has nothing to wait on
        }
    };
    soon(done).await;
}
