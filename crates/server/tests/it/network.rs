//! What networks do to a stream: delay, cut, swallow, close by half; a thousand times, and with a short stream window.
//! Whatever happens, everything arrives, once, in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gitstafette_client::ClientOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Sender, TestClient, TestServer, TestTarget, all_acknowledged, at_length, options};

/// What a line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Carries everything at once.
    Clear,
    /// Carries everything, each part after this time.
    Slow(Duration),
    /// Carries nothing, and says nothing: a firewall that forgot the connection.
    Swallowing,
}

/// A proxy between client and server whose line can be changed, cut and closed by half.
struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    /// Replaced after each cut.
    cut: watch::Sender<CancellationToken>,
    half_close: watch::Sender<CancellationToken>,
    connections: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let line = watch::Sender::new(Line::Clear);
        let (cut, half_close) =
            (watch::Sender::<CancellationToken>::default(), watch::Sender::<CancellationToken>::default());
        let connections = Arc::new(AtomicU64::new(0));
        let (lines, cuts, halves, count) =
            (line.subscribe(), cut.subscribe(), half_close.subscribe(), Arc::clone(&connections));
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                let cut = cuts.borrow().clone();
                let half = halves.borrow().clone();
                let up = carry(from_near, to_far, lines.clone(), half);
                let down = carry(from_far, to_near, lines.clone(), CancellationToken::new());
                // When it is cut, all four halves are dropped: both sides see the end.
                tokio::spawn(cut.run_until_cancelled_owned(async move { tokio::join!(up, down) }));
            }
        });
        Self { address, line, cut, half_close, connections, accepting }
    }

    fn becomes(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Cuts every connection.
    fn cut(&self) {
        self.cut.send_replace(CancellationToken::new()).cancel();
    }

    /// Closes the client's half of every connection towards the server.
    fn half_close(&self) {
        self.half_close.send_replace(CancellationToken::new()).cancel();
    }

    /// Waits until the client has come so many times.
    async fn connections(&self, count: u64) {
        while self.connections.load(Ordering::SeqCst) < count {
            tokio::time::sleep(Duration::from_millis(5)).await; // a proxy of a test's own has nothing to wait on
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
    half_close: CancellationToken,
) {
    let mut part = vec![0; 16 << 10];
    while let Some(Ok(read @ 1..)) = half_close.run_until_cancelled(from.read(&mut part)).await {
        let now = *line.borrow_and_update();
        match now {
            Line::Clear => {}
            Line::Slow(time) => tokio::time::sleep(time).await,
            // What was swallowed does not come later.
            Line::Swallowing => continue,
        }
        if to.write_all(&part[..read]).await.is_err() {
            return;
        }
    }
    drop(to.shutdown().await);
    // The other half stays open until its own end.
}

/// Sends pushes without a pause until it is told to stop; returns how many were accepted.
fn load(server: &TestServer, stop: CancellationToken) -> JoinHandle<u64> {
    let sender = Sender::new(server);
    tokio::spawn(async move {
        let mut sent = 0;
        while !stop.is_cancelled() {
            sent += 1;
            sender.push(&format!("delivery-{sent}")).await;
            // A homelab's day in a second; the point is what is on its way when the line breaks.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        sent
    })
}

/// Everything arrived once and in order.
async fn all_arrived(server: &TestServer, target: &mut TestTarget, sent: u64) {
    let mut seen = BTreeMap::new();
    for number in 1..=sent {
        let id = target.next().await.delivery_id().to_owned();
        assert_eq!(id, format!("delivery-{number}"), "in order, none lost, none twice");
        seen.insert(id, number);
    }
    all_acknowledged(&*server.store).await;
    assert!(target.is_quiet(), "nothing comes twice");
}

#[tokio::test]
async fn nothing_is_lost_whatever_the_line_does() {
    // A swallowing line is known by its silence: one and a half heartbeat intervals, and at least 350 ms here.
    let server = TestServer::start("heartbeat-interval = \"100ms\"").await;
    let proxy = Proxy::start(server.addresses.grpc).await;
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(options(proxy.address, target.target()));
    client.subscribed().await;
    let stop = CancellationToken::new();
    let sending = load(&server, stop.clone());
    for round in 0..at_length(2, 20) {
        proxy.becomes(Line::Slow(Duration::from_millis(20)));
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.becomes(Line::Clear);
        proxy.cut();
        proxy.connections(round * 3 + 2).await;
        proxy.half_close();
        proxy.connections(round * 3 + 3).await;
        proxy.becomes(Line::Swallowing);
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.becomes(Line::Clear);
        proxy.cut();
        proxy.connections(round * 3 + 4).await;
    }
    stop.cancel();
    let sent = sending.await.unwrap();
    all_arrived(&server, &mut target, sent).await;
    client.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_over_many_reconnects() {
    let server = TestServer::start("").await;
    let proxy = Proxy::start(server.addresses.grpc).await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(proxy.address, target.target()));
    let stop = CancellationToken::new();
    let sending = load(&server, stop.clone());
    for reconnect in 1..=at_length(10, 1000) {
        proxy.connections(reconnect).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..30))).await; // another moment each time
        proxy.cut();
    }
    stop.cancel();
    let sent = sending.await.unwrap();
    println!("{} connections, {sent} webhooks", proxy.connections.load(Ordering::SeqCst));
    all_arrived(&server, &mut target, sent).await;
    client.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_over_the_servers_short_stream_windows() {
    let window = at_length("100ms", "2s");
    over_short_windows(&format!("stream-window = \"{window}\""), None).await;
}

#[tokio::test]
async fn nothing_is_lost_over_the_clients_short_stream_windows() {
    over_short_windows("", Some(at_length(Duration::from_millis(100), Duration::from_secs(2)))).await;
}

async fn over_short_windows(settings: &str, stream_window: Option<Duration>) {
    let server = TestServer::start(settings).await;
    let proxy = Proxy::start(server.addresses.grpc).await;
    let mut target = TestTarget::start().await;
    let options = ClientOptions { stream_window, ..options(proxy.address, target.target()) };
    let client = TestClient::start(options);
    let stop = CancellationToken::new();
    let sending = load(&server, stop.clone());
    tokio::time::sleep(at_length(Duration::from_secs(1), Duration::from_secs(60))).await;
    stop.cancel();
    let sent = sending.await.unwrap();
    let connections = proxy.connections.load(Ordering::SeqCst);
    println!("{connections} streams, {sent} webhooks");
    assert!(connections > 3, "the window struck");
    all_arrived(&server, &mut target, sent).await;
    client.stop().await;
}
