//! A server of a chain: its name, its ports and its store outlive its processes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use gitstafette_core::event::Sequence;
use gitstafette_core::filter::Filter;
use gitstafette_core::store::{EventStore, Options, ReadLimit, SqliteStore};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::programs::Program;
use crate::support::{SECRET, TOKEN, http_client, soon};

/// One server of a chain.
pub struct Station {
    name: &'static str,
    folder: tempfile::TempDir,
    address: IpAddr,
    ports: [u16; 3],
    running: Option<Program>,
}

/// Delivery ids by repository, in the order in which they were stored, or came.
pub type Order = BTreeMap<String, Vec<String>>;

/// A loopback address that no other server of any test has, so that nobody is given its ports while it is down.
fn own_address() -> Ipv4Addr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    if cfg!(not(target_os = "linux")) {
        return Ipv4Addr::LOCALHOST;
    }
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + high % 64, low, COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Station {
    /// One that does not run yet and has no settings beside the usual.
    pub async fn new(name: &'static str) -> Self {
        Self::at(name, own_address().into()).await
    }

    /// The same at an address, for which there may be a certificate.
    pub async fn at(name: &'static str, address: IpAddr) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind((address, 0)).await.unwrap());
        }
        let port = |at: usize| listeners[at].local_addr().unwrap().port();
        let ports = [port(0), port(1), port(2)];
        let station = Self { name, folder: tempfile::tempdir().unwrap(), address, ports, running: None };
        station.configure("");
        station
    }

    /// A running one, with these settings beside the usual.
    pub async fn running(name: &'static str, more: &str) -> Self {
        let mut station = Self::new(name).await;
        station.configure(more);
        station.start().await;
        station
    }

    /// Writes its settings: the usual and these. They count from its next start.
    pub fn configure(&self, more: &str) {
        let Self { name, address, ports: [http, grpc, admin], .. } = self;
        let usual = format!(
            "name = \"{name}\"\nrepositories = [\"octo-harbor/*\"]\nwebhook-hmac = \"{SECRET}\"\n\
             client-token = \"{TOKEN}\"\nbind = \"{address}\"\nport = {http}\ngrpc-port = {grpc}\n\
             grpc-health-port = 0\nadmin-port = {admin}\nadmin-bind = \"{address}\"\nlog-format = \"json\"\n\
             store = {:?}\n",
            self.path("store")
        );
        std::fs::write(self.path("server.toml"), format!("{usual}{more}")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn start(&mut self) {
        self.running = Some(Program::configured(&self.path("server.toml"), &self.path("log")).await);
    }

    /// Kills it as a power cut would.
    pub async fn kill_9(&mut self) {
        self.running.take().unwrap().kill_9().await;
    }

    pub async fn stop(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    /// Copies its store, as a backup does. It does not run.
    pub fn copy_store(&self) -> tempfile::TempDir {
        assert!(self.running.is_none(), "its store is in use");
        let copy = tempfile::tempdir().unwrap();
        copy_files(&self.path("store"), copy.path());
        copy
    }

    /// Puts a copy in the place of its store.
    pub fn restore_store(&self, copy: &tempfile::TempDir) {
        self.empty_store();
        std::fs::create_dir(self.path("store")).unwrap();
        copy_files(copy.path(), &self.path("store"));
    }

    /// Removes its store.
    pub fn empty_store(&self) {
        assert!(self.running.is_none(), "its store is in use");
        std::fs::remove_dir_all(self.path("store")).unwrap();
    }

    pub fn name(&self) -> &str {
        self.name
    }

    pub fn program(&self) -> &Program {
        self.running.as_ref().unwrap()
    }

    /// Where webhooks are taken.
    pub fn url(&self) -> String {
        format!("http://{}:{}/v1/github/", self.address, self.ports[0])
    }

    pub fn grpc(&self) -> SocketAddr {
        (self.address, self.ports[1]).into()
    }

    async fn ask(&self, path: &str) -> String {
        let url = format!("http://{}:{}{path}", self.address, self.ports[2]);
        let request = http_client().get(url).header("authorization", format!("Bearer {TOKEN}"));
        request.send().await.unwrap().text().await.unwrap()
    }

    /// What the admin interface says of its relays.
    pub async fn relays(&self) -> Vec<Value> {
        let answer: Value = serde_json::from_str(&self.ask("/v1/relays").await).unwrap();
        answer["relays"].as_array().unwrap().clone()
    }

    /// A metric by its name and labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.ask("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// How many events of other servers had this result since its start.
    pub async fn relayed(&self, result: &str) -> u64 {
        self.metric(&format!("gitstafette_relayed_events_total{{result=\"{result}\"}}")).await
    }

    /// Waits until it has so many events.
    pub async fn holds(&self, events: usize) {
        let mut standing = self.standing().await;
        while standing.0 < events as u64 {
            standing = soon(self.moved_on(standing)).await;
        }
    }

    /// Waits until it has so many events and its relays an outcome for each. It may take its time as long as it gets on.
    pub async fn settled(&self, events: usize) {
        let mut standing = self.standing().await;
        while standing.0 < events as u64 || standing.1 > 0 {
            standing = soon(self.moved_on(standing)).await;
        }
    }

    /// How many events it has, and how many of them its relays have not handed on.
    async fn standing(&self) -> (u64, u64) {
        let events = self.metric("gitstafette_store_events").await;
        let relays = self.relays().await;
        (events, relays.iter().map(|relay| relay["lag"].as_u64().unwrap()).sum())
    }

    async fn moved_on(&self, from: (u64, u64)) -> (u64, u64) {
        loop {
            let standing = self.standing().await;
            if standing != from {
                return standing;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await; // from outside there is nothing to wait on
        }
    }

    /// What it stored, when it no longer runs.
    pub async fn stored(&self) -> Order {
        assert!(self.running.is_none(), "its store is in use");
        let store = SqliteStore::open(&self.path("store"), Options::default()).unwrap();
        let limit = ReadLimit { events: 1000, bytes: 32 << 20 };
        let (mut stored, mut after) = (Order::new(), Sequence::ZERO);
        loop {
            let events = store.read(after, &Filter::default(), limit).await.unwrap().events;
            let Some(last) = events.last() else { break };
            after = last.sequence;
            for event in events {
                let facts = &event.webhook.facts;
                let repository = facts.repository_label().into_owned();
                stored.entry(repository).or_default().push(facts.delivery_id.to_string());
            }
        }
        store.close().await;
        stored
    }

    /// The lines that its processes logged.
    pub fn log(&self) -> Vec<Value> {
        log_lines(&self.path("log"))
    }

    /// How many lines have this message.
    pub fn logged(&self, message: &str) -> usize {
        self.log().iter().filter(|line| line["message"] == message).count()
    }
}

fn copy_files(from: &Path, to: &Path) {
    let mut copied = 0;
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        copied += 1;
    }
    assert!(copied > 0, "there is a store");
}

/// The lines of a log. The last of a process that was killed may be one in part.
pub fn log_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
