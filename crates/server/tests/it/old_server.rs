//! The client against a server of the Go implementation: one that knows `FetchWebhookEvents` only, sends lists by the clock,
//! and each webhook once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::response::IntoResponse;
use gitstafette_client::ClientOptions;
use gitstafette_core::event::Sequence;
use gitstafette_core::filter::Filter;
use gitstafette_core::store::ReadLimit;
use gitstafette_core::target::Target;
use gitstafette_core::testing::Format;
use gitstafette_proto::v1;
use gitstafette_proto::v1::gitstafette_server::{Gitstafette, GitstafetteServer};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::relay::relay;
use crate::support::{
    PATIENCE, Sender, TOKEN, TestClient, TestServer, TestTarget, all_acknowledged, hook, options, payload,
    soon,
};

const REPOSITORY: &str = "537845873";
/// How often the server sends a list; the real one does every five seconds.
const TICK: Duration = Duration::from_millis(20);

/// What the server holds, and what it was asked.
#[derive(Default)]
struct Held {
    /// Its watchlist: what waits for each repository.
    waiting: HashMap<String, Vec<v1::WebhookEvent>>,
    /// How many were sent.
    sent: usize,
    asked: Vec<v1::WebhookEventsRequest>,
}

/// A server as those of the Go implementation are.
#[derive(Clone)]
struct OldServer {
    held: Arc<Mutex<Held>>,
    /// Counts how often all streams were cut.
    cuts: watch::Sender<u32>,
}

#[tonic::async_trait]
impl Gitstafette for OldServer {
    async fn fetch_webhook_events(
        &self,
        request: Request<v1::WebhookEventsRequest>,
    ) -> Result<Response<BoxStream<v1::WebhookEventsResponse>>, Status> {
        let token = request.metadata().get("authorization").map(|value| value.as_bytes().to_vec());
        if token != Some(format!("Bearer {TOKEN}").into_bytes()) {
            return Err(Status::unauthenticated("invalid token"));
        }
        let request = request.into_inner();
        self.held.lock().unwrap().asked.push(request.clone());
        // As there, the answer's head comes with the first list.
        tokio::time::sleep(TICK).await;
        if !self.held.lock().unwrap().waiting.contains_key(&request.repository_id) {
            return Err(Status::unknown("cannot fetch events for empty repository id"));
        }
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().serve(request, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl OldServer {
    async fn serve(
        self,
        request: v1::WebhookEventsRequest,
        sender: mpsc::Sender<Result<v1::WebhookEventsResponse, Status>>,
    ) {
        let finish = Instant::now() + Duration::from_secs(request.duration_secs.into());
        let mut cuts = self.cuts.subscribe();
        while Instant::now() < finish {
            // What is taken out counts as sent, whoever gets it.
            let Ok(permit) = sender.reserve().await else { return };
            let webhook_events = {
                let mut held = self.held.lock().unwrap();
                let events = std::mem::take(held.waiting.get_mut(&request.repository_id).unwrap());
                held.sent += events.len();
                events
            };
            permit.send(Ok(v1::WebhookEventsResponse { webhook_events }));
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                _ = cuts.changed() => {
                    drop(sender.send(Err(Status::unavailable("cut"))).await);
                    return;
                }
            }
        }
    }

    /// Starts one that watches these repositories.
    async fn start(repositories: &[&str]) -> (Self, SocketAddr, JoinHandle<()>) {
        let waiting = repositories.iter().map(|id| ((*id).to_owned(), vec![])).collect();
        let held = Arc::new(Mutex::new(Held { waiting, ..Held::default() }));
        let server = Self { held, cuts: watch::Sender::new(0) };
        let router = Routes::new(GitstafetteServer::new(server.clone())).into_axum_router();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (server, address, serving)
    }

    fn put(&self, repository: &str, event: v1::WebhookEvent) {
        self.held.lock().unwrap().waiting.get_mut(repository).unwrap().push(event);
    }

    fn push(&self, delivery_id: &str) {
        self.put(REPOSITORY, event(delivery_id, &payload(delivery_id)));
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn asked(&self) -> Vec<v1::WebhookEventsRequest> {
        self.held.lock().unwrap().asked.clone()
    }

    fn sent(&self) -> usize {
        self.held.lock().unwrap().sent
    }
}

/// A push as the server has it: with empty fields before the real ones, and of each of these the first value only.
fn event(delivery_id: &str, payload: &str) -> v1::WebhookEvent {
    let request = hook(Format::Json).request("push", delivery_id, payload);
    let mut headers = vec![v1::Header::default(); 3];
    let fields = request.headers.iter();
    headers
        .extend(fields.map(|(name, value)| v1::Header { name: (*name).to_owned(), values: value.clone() }));
    v1::WebhookEvent { event_id: delivery_id.to_owned(), body: request.body, headers, sequence: 0 }
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Options of a client that asks for these repositories.
fn asking(address: SocketAddr, target: Arc<dyn Target>, repositories: &[&str]) -> ClientOptions {
    let mut options = options(address, target);
    options.subscription.filter.repositories = repositories.iter().map(|id| id.parse().unwrap()).collect();
    options
}

/// Waits on something that tells nobody.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it did not come about");
}

/// A target that refuses everything until it is let.
async fn away() -> (TestTarget, Arc<AtomicBool>) {
    let is_back = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_back);
    let target = TestTarget::answering(move |_| match told.load(Ordering::SeqCst) {
        true => StatusCode::OK.into_response(),
        false => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    });
    (target.await, is_back)
}

/// What the target got, each once however often it was tried in a row.
async fn tried(target: &mut TestTarget, last: &str) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.last().is_none_or(|id| id != last) {
        ids.push(target.next().await.delivery_id().to_owned());
        ids.dedup();
    }
    ids
}

#[tokio::test]
async fn events_come_byte_for_byte_and_in_order() {
    let (server, address, _serving) = OldServer::start(&[REPOSITORY, "7"]).await;
    let body = "{\"text\": \"ünïcode \\u0000 &\",\n \"repository\":{\"id\":537845873,\"full_name\":\"octo-harbor/lighthouse\"}}";
    let mut first = event("first", body);
    first.headers.push(v1::Header { name: "X-Odd".into(), values: "ö, ö".into() });
    server.put(REPOSITORY, first.clone());
    ids("d", 20).iter().for_each(|id| server.push(id));
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(asking(address, target.target(), &[REPOSITORY, "7"]));
    let arrived = target.next().await;
    assert_eq!(arrived.body, body);
    for header in first.headers.iter().filter(|header| !header.name.is_empty()) {
        assert_eq!(arrived.headers[&header.name].as_bytes(), header.values.as_bytes(), "{}", header.name);
    }
    assert_eq!(target.next_ids(20).await, ids("d", 20));
    server.put("7", event("of-another", r#"{"repository":{"id":7}}"#));
    assert_eq!(target.next_ids(1).await, ["of-another"]);
    let mut asked = server.asked();
    asked.sort_by_key(|request| request.repository_id.len());
    let expected = |repository: &str| v1::WebhookEventsRequest {
        client_id: "test".to_owned(),
        repository_id: repository.to_owned(),
        last_received_event_id: 0,
        duration_secs: 180,
    };
    assert_eq!(asked, [expected("7"), expected(REPOSITORY)]);
    let state = soon(client.state.wait_for(|state| state.cursor.get() == 22)).await.unwrap().clone();
    assert_eq!((state.delivered, state.head.get(), state.waiting, state.missed), (22, 22, 0, 0));
    client.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_over_the_ends_of_streams() {
    let (server, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    let mut target = TestTarget::start().await;
    let asking = asking(address, target.target(), &[REPOSITORY]);
    let client = TestClient::start(ClientOptions { stream_window: Some(Duration::from_secs(1)), ..asking });
    let mut sent = 0;
    while server.asked().len() < 4 {
        server.push(&format!("d-{sent}"));
        sent += 1;
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    assert_eq!(target.next_ids(sent).await, ids("d", sent));
    assert!(target.is_quiet());
    client.kill();
}

#[tokio::test]
async fn what_came_on_a_stream_that_broke_is_delivered_once_the_target_is_back() {
    let (server, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    let (mut target, is_back) = away().await;
    let mut client = TestClient::start(asking(address, target.target(), &[REPOSITORY]));
    ids("d", 40).iter().for_each(|id| server.push(id));
    soon(client.state.wait_for(|state| state.waiting == 40 && state.deferred > 20)).await.unwrap();
    server.cut();
    until(|| server.asked().len() == 2).await;
    server.push("last"); // and a repeat of one that waits
    server.push("d-39");
    soon(client.state.wait_for(|state| state.waiting == 41)).await.unwrap();
    is_back.store(true, Ordering::SeqCst);
    let mut expected = ids("d", 40);
    expected.push("last".to_owned());
    assert_eq!(tried(&mut target, "last").await, expected);
    soon(client.state.wait_for(|state| state.cursor.get() == 41)).await.unwrap();
    server.push("d-39");
    assert_eq!(target.next_ids(1).await, ["d-39"], "done, it is another delivery");
    client.kill();
}

#[tokio::test]
async fn the_window_bounds_what_is_read() {
    const MIB: usize = 1 << 20;
    let (server, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    let (mut target, is_back) = away().await;
    let mut asking = asking(address, target.target(), &[REPOSITORY]);
    asking.subscription.max_bytes = Some(4 * MIB as u64);
    let client = TestClient::start(asking);
    let filling = "x".repeat(MIB);
    for number in 0..20 {
        let payload = payload(&filling);
        server.put(REPOSITORY, event(&format!("d-{number}"), &payload));
        // Each in a message of its own, as long as they are taken.
        let deadline = Instant::now() + Duration::from_millis(500);
        while server.sent() <= number && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // Four here, and what HTTP/2 and the server's queue hold. The others came into the server's list, and wait there.
    assert!((4..=8).contains(&server.sent()), "{}", server.sent());
    is_back.store(true, Ordering::SeqCst);
    assert_eq!(tried(&mut target, "d-19").await, ids("d", 20));
    client.kill();
}

#[tokio::test]
async fn repositories_by_name_are_refused_with_what_to_do() {
    let (server, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    let target = TestTarget::start().await;
    for repositories in [vec![], vec!["octo-harbor/*"], vec![REPOSITORY, "octo-harbor/lighthouse"]] {
        let mut client = TestClient::start(asking(address, target.target(), &repositories));
        let state = soon(client.state.wait_for(|state| state.last_error.is_some())).await.unwrap().clone();
        let error = state.last_error.unwrap();
        assert!(error.contains("Go implementation") && error.contains("--repo 537845873"), "{error}");
        client.kill();
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_an_unwatched_repository_alone_is_missing() {
    let (server, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    let mut target = TestTarget::start().await;
    let mut wrong = asking(address, target.target(), &[REPOSITORY]);
    wrong.server.token = None;
    let mut client = TestClient::start(wrong);
    let state = soon(client.state.wait_for(|state| state.last_error.is_some())).await.unwrap().clone();
    assert!(state.last_error.unwrap().contains("invalid token"));
    client.kill();
    let mut client = TestClient::start(asking(address, target.target(), &["999"]));
    let state = soon(client.state.wait_for(|state| state.last_error.is_some())).await.unwrap().clone();
    assert!(state.last_error.unwrap().contains("repository 999"));
    client.kill();
    let client = TestClient::start(asking(address, target.target(), &[REPOSITORY, "999"]));
    server.push("d-0");
    assert_eq!(target.next_ids(1).await, ["d-0"]);
    client.kill();
}

#[tokio::test]
async fn what_cannot_be_read_is_missed_and_what_is_not_wanted_is_passed_over() {
    let (server, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    server.put(REPOSITORY, event("no-json", "no JSON"));
    let mut of_other_kind = event("other-kind", &payload("x"));
    of_other_kind.headers.retain(|header| !header.name.eq_ignore_ascii_case("x-github-event"));
    server.put(REPOSITORY, of_other_kind);
    server.push("d-0");
    let mut target = TestTarget::start().await;
    let mut asking = asking(address, target.target(), &[REPOSITORY]);
    asking.subscription.filter.events = vec!["push".parse().unwrap()];
    let mut client = TestClient::start(asking);
    assert_eq!(target.next_ids(1).await, ["d-0"]);
    let state = soon(client.state.wait_for(|state| state.cursor.get() == 2)).await.unwrap().clone();
    assert_eq!((state.missed, state.delivered), (1, 1));
    client.kill();
}

#[tokio::test]
async fn when_the_server_is_replaced_by_ours_what_it_sent_is_delivered_first() {
    let (old, address, serving) = OldServer::start(&[REPOSITORY]).await;
    let (mut target, is_back) = away().await;
    let mut client = TestClient::start(asking(address, target.target(), &[REPOSITORY]));
    ids("old", 40).iter().for_each(|id| old.push(id));
    soon(client.state.wait_for(|state| state.waiting == 40 && state.deferred > 0)).await.unwrap();
    serving.abort();
    assert!(serving.await.is_err(), "its port is free");
    old.cut();
    let ports = format!("port = 0\ngrpc-port = {}\ngrpc-health-port = 0\n", address.port());
    let new = TestServer::start(&ports).await;
    let sender = Sender::new(&new);
    for id in ids("new", 3) {
        sender.push(&id).await;
    }
    client.subscribed().await;
    is_back.store(true, Ordering::SeqCst);
    let mut expected = ids("old", 40);
    expected.extend(ids("new", 3));
    assert_eq!(tried(&mut target, "new-2").await, expected);
    all_acknowledged(&*new.store).await;
    let state = client.state.borrow().clone();
    assert_eq!((state.delivered, state.missed), (43, 0));
    client.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn a_server_of_ours_draws_from_an_old_one() {
    let (old, address, _serving) = OldServer::start(&[REPOSITORY]).await;
    ids("d", 5).iter().for_each(|id| old.push(id));
    let new = TestServer::start(&relay("pull", "go", address, "repo = [\"537845873\"]")).await;
    soon(new.store.head().wait_for(|head| head.get() == 5)).await.unwrap();
    let limit = ReadLimit { events: 10, bytes: u64::MAX };
    let events = new.store.read(Sequence::ZERO, &Filter::default(), limit).await.unwrap().events;
    let stored: Vec<_> = events.iter().map(|event| event.webhook.facts.delivery_id.to_string()).collect();
    assert_eq!(stored, ids("d", 5));
    assert_eq!(events[0].webhook.body, payload("d-0"));
    assert_eq!(events[0].webhook.facts.repository_label(), "octo-harbor/lighthouse");
    new.stop().await;
}
