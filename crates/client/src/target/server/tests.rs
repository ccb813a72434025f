//! One try after the other against servers that answer by a script, over real sockets.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use futures_util::future::join_all;
use gitstafette_core::event::{Address, Sequence, Timestamp};
use gitstafette_core::hop::{Hop, Hops};
use gitstafette_core::store::StoreId;
use gitstafette_core::testing;
use gitstafette_proto::v1::gitstafette_server::{Gitstafette, GitstafetteServer};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Streaming};
use tower::Service;

use super::*;

/// What a server says.
#[derive(Clone)]
enum Script {
    /// To `Publish`.
    Ours(Result<PublishResponse, Status>),
    /// Nothing, ever.
    Silent,
    /// To `WebhookEventPush`; it does not know `Publish`.
    Old(WebhookEventPushResponse),
}

struct Fake {
    script: Mutex<Script>,
    published: AtomicUsize,
    pushed: AtomicUsize,
}

impl Fake {
    fn script(&self) -> Script {
        self.script.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl Gitstafette for Fake {
    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<BoxStream<PublishResponse>>, Status> {
        match self.script() {
            Script::Old(_) => return Err(Status::unimplemented("unknown method Publish")),
            Script::Silent => std::future::pending().await,
            Script::Ours(Err(status)) => Err(status),
            Script::Ours(Ok(answer)) => {
                let is_asked = request.into_inner().message().await?.is_some();
                self.published.fetch_add(usize::from(is_asked), Ordering::SeqCst);
                Ok(Response::new(Box::pin(iter(is_asked.then_some(Ok(answer))))))
            }
        }
    }

    async fn webhook_event_push(
        &self,
        _: Request<WebhookEventPushRequest>,
    ) -> Result<Response<WebhookEventPushResponse>, Status> {
        self.pushed.fetch_add(1, Ordering::SeqCst);
        match self.script() {
            Script::Old(answer) => Ok(Response::new(answer)),
            _ => Err(Status::unimplemented("not scripted")),
        }
    }
}

/// A server; its connections end with it.
struct Server {
    fake: Arc<Fake>,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(script: Script) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), script).await
    }

    async fn at(address: SocketAddr, script: Script) -> Self {
        let fake =
            Fake { script: Mutex::new(script), published: AtomicUsize::new(0), pushed: AtomicUsize::new(0) };
        let fake = Arc::new(fake);
        let server = GitstafetteServer::from_arc(Arc::clone(&fake)).max_decoding_message_size(64 << 20);
        let routes = Routes::new(server);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let routes = routes.clone();
                let service = service_fn(move |request| routes.clone().call(request));
                let connection = http2::Builder::new(TokioExecutor::new());
                open.spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { fake, address, connections, task }
    }

    fn says(&self, script: Script) {
        *self.fake.script.lock().unwrap() = script;
    }

    /// How many events came by `Publish`, and how many by `WebhookEventPush`.
    fn calls(&self) -> (usize, usize) {
        (self.fake.published.load(Ordering::SeqCst), self.fake.pushed.load(Ordering::SeqCst))
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn target(&self) -> ServerTarget {
        target(self.address, Duration::from_secs(60))
    }

    async fn end(self) -> SocketAddr {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.address
    }
}

fn target(address: SocketAddr, timeout: Duration) -> ServerTarget {
    let address =
        ServerAddress { host: address.ip().to_string(), port: address.port(), tls: None, token: None };
    ServerTarget::new(address, "edge".into(), timeout)
}

fn event(size: usize) -> Event {
    let hop = Hop {
        store: StoreId::new(7),
        server: "edge".into(),
        sequence: Sequence::new(1),
        received_at: Timestamp::default(),
        redelivery: false,
    };
    let mut webhook = testing::webhook(1, "octo/hello", size);
    webhook.facts.hops = Hops::new(vec![hop]);
    Event { sequence: Sequence::new(1), redelivery: false, address: Address::default(), webhook }
}

fn ours(result: PublishResult) -> Script {
    let detail = "why".to_owned();
    Script::Ours(Ok(PublishResponse {
        result: result.into(),
        sequence: 5,
        detail,
        ..PublishResponse::default()
    }))
}

fn old(code: &str, accepted: bool) -> Script {
    let response_description = "why".to_owned();
    Script::Old(WebhookEventPushResponse { response_code: code.into(), response_description, accepted })
}

#[tokio::test]
async fn answers_are_verdicts() {
    let server = Server::start(ours(PublishResult::Stored)).await;
    let target = server.target();
    for (result, verdict, detail) in [
        (PublishResult::Stored, Verdict::Delivered, "stored there as 5"),
        (PublishResult::Repeat, Verdict::Delivered, "was there as 5"),
        (PublishResult::Unwanted, Verdict::Unwanted, "why"),
        (PublishResult::Refused, Verdict::Final, "why"),
        (PublishResult::Unspecified, Verdict::Retry(None), "why"),
    ] {
        server.says(ours(result));
        let attempt = target.attempt(&event(10)).await;
        assert_eq!((attempt.verdict, attempt.detail.as_str()), (verdict, detail), "{result:?}");
    }
    assert_eq!((server.calls(), server.connections()), ((5, 0), 1));
}

#[tokio::test]
async fn only_what_the_event_would_always_get_is_final() {
    let server = Server::start(Script::Silent).await;
    let target = server.target();
    for code in (1..=16).map(Code::from_i32).filter(|code| *code != Code::Unimplemented) {
        server.says(Script::Ours(Err(Status::new(code, "why"))));
        let attempt = target.attempt(&event(10)).await;
        let is_final = matches!(code, Code::OutOfRange | Code::InvalidArgument);
        let verdict = if is_final { Verdict::Final } else { Verdict::Retry(None) };
        assert_eq!(attempt.verdict, verdict, "{attempt:?}");
        assert!(attempt.detail.ends_with("why"), "{attempt:?}");
    }
}

#[tokio::test]
async fn an_old_server_gets_what_it_knows() {
    let server = Server::start(old("201", true)).await;
    let target = server.target();
    for (code, accepted, verdict) in [
        ("201", true, Verdict::Delivered),
        ("406", false, Verdict::Unwanted),
        ("400", false, Verdict::Final),
        ("500", false, Verdict::Retry(None)),
        ("", false, Verdict::Retry(None)),
    ] {
        server.says(old(code, accepted));
        assert_eq!(target.attempt(&event(10)).await.verdict, verdict, "{code}");
    }
    assert_eq!(server.calls(), (0, 5));

    let large = target.attempt(&event(MAX_GO_MESSAGE_BYTES)).await;
    assert!(large.verdict == Verdict::Final && large.detail.contains("4 MiB"), "{large:?}");
    let mut of_organisation = event(10);
    of_organisation.webhook.facts.repository_id = None;
    let refused = target.attempt(&of_organisation).await;
    assert!(refused.verdict == Verdict::Final && refused.detail.contains("repositories"), "{refused:?}");
    assert_eq!((server.calls(), server.connections()), ((0, 5), 1));
}

#[tokio::test]
async fn a_server_that_replaces_an_old_one_is_published_to() {
    let before = Server::start(old("201", true)).await;
    let target = before.target();
    for _ in 0..2 {
        assert_eq!(target.attempt(&event(10)).await.verdict, Verdict::Delivered);
    }
    assert_eq!(before.calls(), (0, 2));
    let address = before.end().await;
    let server = Server::at(address, ours(PublishResult::Stored)).await;
    // One try may break with the old connection, and one go out as the old server wanted it.
    let mut tries = 0;
    while target.attempt(&event(10)).await.verdict != Verdict::Delivered {
        tries += 1;
        assert!(tries < 3, "{:?}", server.calls());
    }
    assert_eq!(server.calls().0, 1);
}

#[tokio::test]
async fn an_event_without_hops_is_a_dead_letter_at_once() {
    let mut event = event(10);
    event.webhook.facts.hops = Hops::default();
    let server = Server::start(ours(PublishResult::Stored)).await;
    let attempt = server.target().attempt(&event).await;
    assert_eq!(attempt.verdict, Verdict::Final);
    assert!(attempt.detail.contains("carries no hops: upgrade"), "{attempt:?}");
    assert_eq!(server.calls(), (0, 0));
    // The old wire has no place for them anyway.
    server.says(old("201", true));
    assert_eq!(server.target().attempt(&event).await.verdict, Verdict::Delivered);
}

#[tokio::test]
async fn tries_at_once_share_one_connection() {
    let server = Server::start(ours(PublishResult::Stored)).await;
    let (target, event) = (server.target(), event(10));
    let attempts = join_all((0..32).map(|_| target.attempt(&event))).await;
    assert!(attempts.iter().all(|attempt| attempt.verdict == Verdict::Delivered), "{attempts:?}");
    assert_eq!((server.calls(), server.connections()), ((32, 0), 1));
}

#[tokio::test]
async fn a_server_that_is_away_is_unreachable_until_it_is_back() {
    let server = Server::start(ours(PublishResult::Stored)).await;
    let target = server.target();
    assert!(target.is_reachable().await);
    let address = server.end().await;
    assert!(!target.is_reachable().await);
    let attempt = target.attempt(&event(10)).await;
    assert_eq!(attempt.verdict, Verdict::Unreachable, "{attempt:?}");
    let server = Server::at(address, ours(PublishResult::Stored)).await;
    assert!(target.is_reachable().await);
    assert_eq!(target.attempt(&event(10)).await.verdict, Verdict::Delivered);
    assert_eq!(server.calls(), (1, 0));
}

#[tokio::test]
async fn a_call_that_hangs_is_given_up_with_its_connection() {
    let server = Server::start(Script::Silent).await;
    let target = target(server.address, Duration::from_secs(1));
    let attempt = target.attempt(&event(10)).await;
    assert_eq!(attempt.verdict, Verdict::Retry(None));
    assert!(attempt.detail.contains("no answer in 1 s"), "{attempt:?}");
    server.says(ours(PublishResult::Stored));
    assert_eq!(target.attempt(&event(10)).await.verdict, Verdict::Delivered);
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_large_event_may_take_longer() {
    let timeout = Duration::from_secs(30);
    assert_eq!(patience(timeout, 1000), timeout);
    assert_eq!(patience(timeout, 25 << 20), timeout + Duration::from_secs(400));
    assert_eq!(patience(Duration::MAX, u64::MAX), Duration::MAX);
}
