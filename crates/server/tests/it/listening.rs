//! Connections from their first byte to the server's end: what the sockets see, whatever is asked.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gitstafette_core::event::{self, ClientId, Sequence, Timestamp, Webhook};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::{RepositoryId, RepositoryPattern};
use gitstafette_core::store::{
    Acknowledgement, Appended, EventStore, FirstAttempt, History, Listed, Listing, MemoryStore, Options,
    Owner, Page, ReadLimit, Registration, Report, Statistics, StoreError, StoreId, WatchlistChange,
};
use gitstafette_core::subscription::Progress;
use gitstafette_core::testing::Format;
use gitstafette_server::app::RunError;
use gitstafette_server::config::Config;
use gitstafette_server::{Address, Listeners, Server};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Sender, TOKEN, TestServer, hook, http_client, payload, settings, soon};

/// A store whose appends wait at a gate.
#[derive(Debug)]
pub struct Gated {
    inner: MemoryStore,
    /// Rung when an append waits.
    pub arrived: Notify,
    /// One permit lets one append pass.
    pub gate: Semaphore,
    /// The smallest body that waits, in bytes.
    from: usize,
    is_broken: bool,
    /// Whether closing it never ends.
    is_stuck: bool,
    /// Whether redeliveries wait at the gate, too.
    gates_redeliveries: bool,
}

impl Gated {
    pub fn new() -> Self {
        let inner = MemoryStore::new(Options::default());
        let (arrived, gate) = (Notify::new(), Semaphore::new(0));
        Self { inner, arrived, gate, from: 0, is_broken: false, is_stuck: false, gates_redeliveries: false }
    }

    /// Only bodies of at least so many bytes wait.
    pub fn from(self, bytes: usize) -> Self {
        Self { from: bytes, ..self }
    }

    /// A store that cannot store.
    pub fn broken(self) -> Self {
        Self { is_broken: true, ..self }
    }

    pub fn with_gated_redeliveries(self) -> Self {
        Self { gates_redeliveries: true, ..self }
    }

    /// Appends without the gate.
    pub async fn fill(&self, webhook: Webhook) {
        self.inner.append(webhook).await.unwrap();
    }

    /// A store whose disk does not answer.
    fn stuck(self) -> Self {
        Self { is_stuck: true, ..self }
    }

    pub async fn serve(self, more: &str) -> TestServer {
        TestServer::run(Config::from_toml(&settings(more)).unwrap(), Arc::new(self)).await
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.is_broken { Err(StoreError::Full { path: "of tests".to_owned() }) } else { Ok(()) }
    }
}

#[async_trait]
impl EventStore for Gated {
    async fn append(&self, webhook: Webhook) -> Result<Appended, StoreError> {
        self.check()?;
        if webhook.body.len() >= self.from {
            self.arrived.notify_one();
            self.gate.acquire().await.unwrap().forget();
        }
        self.inner.append(webhook).await
    }

    fn history(&self) -> &History {
        self.inner.history()
    }

    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }

    async fn relay_state(&self, relay: &str) -> Result<Option<String>, StoreError> {
        self.inner.relay_state(relay).await
    }

    async fn store_relay_state(&self, relay: &str, state: String) -> Result<(), StoreError> {
        self.inner.store_relay_state(relay, state).await
    }

    async fn statistics(&self) -> Result<Statistics, StoreError> {
        self.check()?;
        self.inner.statistics().await
    }

    async fn read(&self, after: Sequence, filter: &Filter, limit: ReadLimit) -> Result<Page, StoreError> {
        self.inner.read(after, filter, limit).await
    }

    fn head(&self) -> watch::Receiver<Sequence> {
        self.inner.head()
    }

    async fn before(&self, time: Timestamp) -> Result<Sequence, StoreError> {
        self.inner.before(time).await
    }

    async fn progress(&self, client: &ClientId) -> Result<Option<Progress>, StoreError> {
        self.inner.progress(client).await
    }

    async fn seek(&self, client: &ClientId, cursor: Sequence) -> Result<(), StoreError> {
        self.inner.seek(client, cursor).await
    }

    async fn acknowledge(
        &self,
        client: &ClientId,
        acknowledgements: Vec<Acknowledgement>,
        cursor: Sequence,
    ) -> Result<(), StoreError> {
        self.inner.acknowledge(client, acknowledgements, cursor).await
    }

    async fn record_first_attempts(
        &self,
        client: &ClientId,
        first_attempts: Vec<FirstAttempt>,
    ) -> Result<(), StoreError> {
        self.inner.record_first_attempts(client, first_attempts).await
    }

    async fn first_attempts(
        &self,
        client: &ClientId,
        sequences: std::ops::RangeInclusive<Sequence>,
    ) -> Result<Vec<FirstAttempt>, StoreError> {
        self.inner.first_attempts(client, sequences).await
    }

    async fn reports(&self, sequence: Sequence) -> Result<Vec<Report>, StoreError> {
        self.inner.reports(sequence).await
    }

    async fn list(&self, listing: &Listing) -> Result<Listed, StoreError> {
        self.inner.list(listing).await
    }

    async fn redeliver(
        &self,
        sequence: Sequence,
        address: event::Address,
    ) -> Result<Option<Sequence>, StoreError> {
        if self.gates_redeliveries {
            self.gate.acquire().await.unwrap().forget();
        }
        self.inner.redeliver(sequence, address).await
    }

    async fn counts(&self, from: RepositoryId, limit: usize) -> Result<Vec<(RepositoryId, u64)>, StoreError> {
        self.inner.counts(from, limit).await
    }

    async fn cursors(&self) -> Result<Vec<(ClientId, Sequence)>, StoreError> {
        self.inner.cursors().await
    }

    async fn register_client(&self, client: &ClientId, owner: &Owner) -> Result<Registration, StoreError> {
        self.inner.register_client(client, owner).await
    }

    async fn release_client(&self, client: &ClientId) -> Result<bool, StoreError> {
        self.inner.release_client(client).await
    }

    async fn last_first_attempt(&self, client: &ClientId) -> Result<Sequence, StoreError> {
        self.inner.last_first_attempt(client).await
    }

    async fn remove_client(&self, client: &ClientId) -> Result<bool, StoreError> {
        self.inner.remove_client(client).await
    }

    async fn forget_clients(
        &self,
        age: Duration,
        connected: Vec<ClientId>,
    ) -> Result<Vec<ClientId>, StoreError> {
        self.inner.forget_clients(age, connected).await
    }

    async fn watchlist_changes(&self) -> Result<Vec<(RepositoryPattern, WatchlistChange)>, StoreError> {
        self.inner.watchlist_changes().await
    }

    async fn change_watchlist(
        &self,
        pattern: &RepositoryPattern,
        change: Option<WatchlistChange>,
    ) -> Result<(), StoreError> {
        self.inner.change_watchlist(pattern, change).await
    }

    fn id(&self) -> StoreId {
        self.inner.id()
    }

    async fn close(&self) {
        if self.is_stuck {
            std::future::pending::<()>().await;
        }
        self.inner.close().await;
    }
}

/// A whole webhook as it goes over the socket; `length` is what it says of its body.
fn webhook(delivery_id: &str, length: impl FnOnce(usize) -> usize) -> Vec<u8> {
    let request = hook(Format::Json).request("push", delivery_id, &payload("x"));
    let fields: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = length(request.body.len());
    let head = format!("POST /v1/github/ HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), &request.body].concat()
}

async fn connect(server: &TestServer, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn a_sender_that_hangs_up_while_its_webhook_is_stored() {
    let store = Arc::new(Gated::new());
    let config = Config::from_toml(&settings("max-connections = 1")).unwrap();
    let server = TestServer::run(config, store.clone()).await;
    let sender = connect(&server, &webhook("delivery-1", |length| length)).await;
    soon(store.arrived.notified()).await;
    drop(sender);
    // There is room for one connection: an answer to another shows that the first is gone, and its handler with it.
    let healthy = soon(http_client().get(server.url("/healthz")).send()).await.unwrap();
    assert_eq!(healthy.status(), StatusCode::OK);
    drop(healthy);

    store.gate.add_permits(2);
    soon(store.head().wait_for(|head| *head == Sequence::new(1))).await.unwrap();
    let again = Sender::new(&server).send("push", "delivery-1", &payload("x")).await;
    assert_eq!(again.status(), StatusCode::NO_CONTENT, "it is stored already");
    assert_eq!(server.events().await, 1);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_drained_in_time_is_cut() {
    let store = Arc::new(Gated::new());
    let config = Config::from_toml(&settings("drain-timeout = \"50ms\"\nrequest-timeout = \"1h\"")).unwrap();
    let server = TestServer::run(config, store.clone()).await;
    let mut storing = connect(&server, &webhook("delivery-1", |length| length)).await;
    soon(store.arrived.notified()).await;
    let mut sending = connect(&server, &webhook("delivery-2", |length| length + 1)).await;
    let events = store.inner.statistics().await.unwrap().events;
    assert!(matches!(server.end().await, Err(RunError::NotDrained)));
    for stream in [&mut storing, &mut sending] {
        let mut answer = Vec::new();
        drop(soon(stream.read_to_end(&mut answer)).await);
        assert_eq!(String::from_utf8_lossy(&answer), "");
    }
    assert_eq!(events, 0);
    assert!(matches!(store.inner.statistics().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_server_whose_store_ends_ends_with_an_error() {
    let config = Config::from_toml(&settings("")).unwrap();
    let store = Arc::new(MemoryStore::new(config.store_options));
    let server = Server::bind(config.server, store.clone()).await.unwrap();
    let address = server.local_addrs().http;
    let running = tokio::spawn(server.run(CancellationToken::new()));
    let url = format!("http://{address}/healthz");
    assert_eq!(soon(http_client().get(&url).send()).await.unwrap().status(), StatusCode::OK);
    store.close().await;
    assert!(matches!(soon(running).await.unwrap(), Err(RunError::StoreEnded)));
    assert!(http_client().get(&url).send().await.is_err(), "it listens no more");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_close_does_not_hold_up_the_end() {
    let config = Config::from_toml(&settings("")).unwrap();
    let server = Server::bind(config.server, Arc::new(Gated::new().stuck())).await.unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(matches!(soon(server.run(stop)).await, Err(RunError::StoreNotClosed)));
}

#[tokio::test]
async fn health_tells_that_the_server_goes_down_before_anything_ends() {
    let folder = tempfile::tempdir().unwrap();
    // A target that never answers keeps its relay busy for as long as that may take.
    let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = format!("[relay.push.slow]\ntarget = \"http://{}\"", target.local_addr().unwrap());
    let server = TestServer::start_in(folder.path(), &relay).await;
    let endpoint = Channel::from_shared(format!("http://{}", server.addresses.grpc)).unwrap();
    let mut health = HealthClient::new(soon(endpoint.connect()).await.unwrap());
    let mut watched = soon(health.watch(HealthCheckRequest::default())).await.unwrap().into_inner();
    assert_eq!(soon(watched.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    Sender::new(&server).push("delivery-1").await;
    let (mut attempt, _) = soon(target.accept()).await.unwrap();
    assert_ne!(soon(attempt.read(&mut [0; 4096])).await.unwrap(), 0);
    server.drain();
    let relay_ends = async { while attempt.read(&mut [0; 4096]).await.is_ok_and(|length| length > 0) {} };
    tokio::select! {
        biased;
        told = soon(watched.message()) => {
            assert_eq!(told.unwrap().unwrap().status(), ServingStatus::NotServing);
        }
        () = relay_ends => panic!("the relay ended first"),
    }
    drop((watched, health));
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_dropped_cuts_its_connections() {
    let config = Config::from_toml(&settings("")).unwrap();
    let server = Server::bind(config.server, Arc::new(Gated::new())).await.unwrap();
    let address = server.local_addrs().http;
    let running = tokio::spawn(server.run(CancellationToken::new()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_ne!(soon(stream.read(&mut [0; 4096])).await.unwrap(), 0);
    running.abort();
    drop(soon(stream.read_to_end(&mut Vec::new())).await);
}

#[tokio::test]
async fn a_full_webhook_port_blocks_no_other() {
    let store = Arc::new(Gated::new());
    let mut config = Config::from_toml(&settings("max-connections = 1\nadmin-port = 0")).unwrap();
    let loopback = Address { ip: Some([127, 0, 0, 1].into()), port: 0 };
    config.server.listeners = Listeners::Separate { http: loopback, grpc: loopback, health: Some(loopback) };
    let server = TestServer::run(config, store.clone()).await;
    let mut storing = connect(&server, &webhook("delivery-1", |length| length)).await;
    soon(store.arrived.notified()).await;
    let _waiting = connect(&server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    for address in [server.addresses.grpc, server.addresses.health.unwrap()] {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let mut health = HealthClient::new(soon(endpoint.connect()).await.unwrap());
        let answer = soon(health.check(HealthCheckRequest::default())).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{address}");
    }
    let metrics = format!("http://{}/metrics", server.addresses.admin.unwrap());
    assert_eq!(
        soon(http_client().get(metrics).bearer_auth(TOKEN).send()).await.unwrap().status(),
        StatusCode::OK
    );
    store.gate.add_permits(1);
    let mut answer = [0; 12];
    soon(storing.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    server.stop().await;
}

#[tokio::test]
async fn one_port_for_all_may_have_one_for_health_beside_it() {
    let mut config = Config::from_toml(&settings("")).unwrap();
    let address = Address { ip: Some([127, 0, 0, 1].into()), port: 0 };
    config.server.listeners = Listeners::Shared { address, health: Some(address) };
    let server = TestServer::run(config, Arc::new(Gated::new())).await;
    assert_eq!(server.addresses.http, server.addresses.grpc);
    let apart = server.addresses.health.unwrap();
    assert_ne!(apart, server.addresses.grpc);
    for address in [apart, server.addresses.grpc] {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let mut health = HealthClient::new(soon(endpoint.connect()).await.unwrap());
        let request = HealthCheckRequest { service: "gitstafette.v1.Gitstafette".to_owned() };
        let answer = soon(health.check(request)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{address}");
    }
    let lost = http_client().get(format!("http://{apart}/healthz")).send().await.unwrap();
    assert_eq!(lost.status(), StatusCode::NOT_FOUND, "health alone");
    server.stop().await;
}
