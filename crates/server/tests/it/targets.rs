//! What targets do to a delivery: be away, be ill, answer late, break off, take their time. Nothing is lost, and the
//! order within a repository stays.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::response::IntoResponse;
use gitstafette_client::target::{HttpTarget, VerifiedTarget};
use gitstafette_core::secret::Secret;
use gitstafette_core::target::OutcomeResult;
use gitstafette_core::verify::GitHubSignature;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use crate::support::{
    SECRET, Sender, TestClient, TestServer, TestTarget, all_acknowledged, at_length, no_tls, options, soon,
};

/// The repositories of these tests.
const REPOSITORIES: u64 = 3;

/// Sends webhook `number` of a repository: its id tells both.
async fn send(sender: &Sender, repository: u64, number: u64) {
    let payload =
        format!(r#"{{"repository":{{"id":{repository},"full_name":"octo-harbor/r{repository}"}}}}"#);
    let answer = sender.send("push", &format!("{repository}-{number}"), &payload).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

async fn send_all(server: &TestServer, numbers: std::ops::RangeInclusive<u64>) {
    let sender = Sender::new(server);
    for number in numbers {
        for repository in 1..=REPOSITORIES {
            send(&sender, repository, number).await;
        }
    }
}

/// Follows what arrives until every repository has seen `last`. Numbers may repeat, as tries do, and never go back.
async fn in_order_up_to(mut next: impl AsyncFnMut() -> String, last: u64) -> u64 {
    let (mut seen, mut repeats) = (BTreeMap::<u64, u64>::new(), 0);
    while seen.len() < REPOSITORIES as usize || seen.values().any(|number| *number < last) {
        let id = next().await;
        let (repository, number) = id.split_once('-').unwrap();
        let (repository, number): (u64, u64) = (repository.parse().unwrap(), number.parse().unwrap());
        let before = seen.insert(repository, number).unwrap_or_default();
        assert!(number == before || number == before + 1, "{id} came after {repository}-{before}");
        repeats += u64::from(number == before);
    }
    repeats
}

async fn all_delivered(server: &TestServer) {
    all_acknowledged(&*server.store).await;
    let head = server.store.head().borrow().get();
    for sequence in 1..=head {
        let reports = server.store.reports(gitstafette_core::event::Sequence::new(sequence)).await.unwrap();
        assert_eq!(reports[0].outcome.result, OutcomeResult::Delivered, "{sequence}");
    }
}

#[tokio::test]
async fn a_target_that_was_away_gets_everything_in_order() {
    let server = TestServer::start("").await;
    // An address of its own: on the usual one another test may be given the port meanwhile.
    let own = if cfg!(target_os = "linux") { "127.6.0.1:0" } else { "127.0.0.1:0" };
    let placeholder = TcpListener::bind(own).await.unwrap();
    let address = placeholder.local_addr().unwrap();
    drop(placeholder);
    let target =
        HttpTarget::try_new(&format!("http://{address}/"), Duration::from_secs(30), no_tls()).unwrap();
    let client = TestClient::start(options(server.addresses.grpc, Arc::new(target)));
    send_all(&server, 1..=at_length(20, 400)).await;
    tokio::time::sleep(at_length(Duration::from_millis(500), Duration::from_secs(60))).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let router = axum::Router::new().fallback(move |request: Request| async move {
        drop(seen.send(request.headers()["x-github-delivery"].to_str().unwrap().to_owned()));
    });
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let repeats = in_order_up_to(async || soon(arrived.recv()).await.unwrap(), at_length(20, 400)).await;
    assert_eq!(repeats, 0, "nobody was there to see a try");
    all_delivered(&server).await;
    client.stop().await;
    serving.abort();
}

#[tokio::test]
async fn a_target_that_was_ill_gets_everything_in_order() {
    let server = TestServer::start("").await;
    let ill = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&ill);
    let mut target = TestTarget::answering(move |_| match state.load(Ordering::SeqCst) {
        true => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        false => StatusCode::OK.into_response(),
    })
    .await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let last = at_length(20, 400);
    send_all(&server, 1..=last).await;
    tokio::time::sleep(at_length(Duration::from_millis(300), Duration::from_secs(60))).await;
    ill.store(false, Ordering::SeqCst);
    let repeats = in_order_up_to(async || target.next().await.delivery_id().to_owned(), last).await;
    assert!(repeats > 0, "it was asked while it was ill");
    all_delivered(&server).await;
    client.stop().await;
}

#[tokio::test]
async fn a_target_that_answers_too_late_sees_a_repeat_and_nothing_is_lost() {
    let server = TestServer::start("").await;
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let count = Arc::new(AtomicU64::new(0));
    let address = serve(move |request: Request| {
        let (seen, number) = (seen.clone(), count.fetch_add(1, Ordering::SeqCst));
        async move {
            drop(seen.send(request.headers()["x-github-delivery"].to_str().unwrap().to_owned()));
            if number % 4 == 0 {
                // Longer than the client's patience: it has hung up by then.
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
        }
    })
    .await;
    let target =
        HttpTarget::try_new(&format!("http://{address}/"), Duration::from_millis(100), no_tls()).unwrap();
    let client = TestClient::start(options(server.addresses.grpc, Arc::new(target)));
    let last = at_length(5, 50);
    send_all(&server, 1..=last).await;
    let repeats = in_order_up_to(async || soon(arrived.recv()).await.unwrap(), last).await;
    assert!(repeats > 0, "some tries timed out");
    all_delivered(&server).await;
    client.stop().await;
}

#[tokio::test]
async fn a_target_that_answers_slowly_gets_repositories_side_by_side() {
    let server = TestServer::start("").await;
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let (now, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let side_by_side = Arc::clone(&most);
    let address = serve(move |request: Request| {
        let (seen, now, most) = (seen.clone(), Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            drop(seen.send(request.headers()["x-github-delivery"].to_str().unwrap().to_owned()));
        }
    })
    .await;
    let target =
        HttpTarget::try_new(&format!("http://{address}/"), Duration::from_secs(30), no_tls()).unwrap();
    let client = TestClient::start(options(server.addresses.grpc, Arc::new(target)));
    let last = at_length(8, 200);
    send_all(&server, 1..=last).await;
    let repeats = in_order_up_to(async || soon(arrived.recv()).await.unwrap(), last).await;
    assert_eq!(repeats, 0);
    assert_eq!(side_by_side.load(Ordering::SeqCst), REPOSITORIES, "a repository's events go one by one");
    all_delivered(&server).await;
    client.stop().await;
}

/// Breaks off at a place of its answer: first before its status, then after it.
#[tokio::test]
async fn a_target_that_breaks_off_before_its_status_is_asked_again() {
    let server = TestServer::start("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let answering = tokio::spawn(async move {
        let answers =
            ["", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it"].iter().cycle();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}}") {
                let mut part = [0; 4096];
                let read = stream.read(&mut part).await.unwrap();
                request.extend_from_slice(&part[..read]);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let text = String::from_utf8(request).unwrap();
            let id = text.lines().find_map(|line| line.strip_prefix("x-github-delivery: "));
            drop(seen.send(id.unwrap().to_owned()));
        }
    });
    let target =
        HttpTarget::try_new(&format!("http://{address}/"), Duration::from_secs(30), no_tls()).unwrap();
    let client = TestClient::start(options(server.addresses.grpc, Arc::new(target)));
    let last = at_length(3, 30);
    send_all(&server, 1..=last).await;
    let repeats = in_order_up_to(async || soon(arrived.recv()).await.unwrap(), last).await;
    assert!(repeats > 0, "what broke off before the status came was tried again");
    all_delivered(&server).await;
    client.stop().await;
    answering.abort();
}

/// Sends the head of each answer, and never its body.
#[tokio::test]
async fn a_target_that_stalls_its_bodies_gets_everything_in_order() {
    let server = TestServer::start("").await;
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let router = axum::Router::new().fallback(move |request: Request| {
        drop(seen.send(request.headers()["x-github-delivery"].to_str().unwrap().to_owned()));
        async { axum::body::Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>()) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    // Nothing would be delivered within the test's time if an attempt waited for the body.
    let target =
        HttpTarget::try_new(&format!("http://{address}/"), Duration::from_secs(3600), no_tls()).unwrap();
    let client = TestClient::start(options(server.addresses.grpc, Arc::new(target)));
    let last = at_length(5, 50);
    send_all(&server, 1..=last).await;
    let repeats = in_order_up_to(async || soon(arrived.recv()).await.unwrap(), last).await;
    assert_eq!(repeats, 0);
    all_delivered(&server).await;
    client.stop().await;
    serving.abort();
}

#[tokio::test]
async fn a_client_that_stops_acknowledges_while_another_target_still_works() {
    let server = TestServer::start("").await;
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let releases: Arc<[Notify; 2]> = Arc::default();
    let answering = Arc::clone(&releases);
    let address = serve(move |request: Request| {
        let (seen, releases) = (seen.clone(), Arc::clone(&answering));
        async move {
            let id = request.headers()["x-github-delivery"].to_str().unwrap().to_owned();
            let repository = usize::from(id.starts_with("2-"));
            drop(seen.send(id));
            releases[repository].notified().await;
        }
    })
    .await;
    let target =
        HttpTarget::try_new(&format!("http://{address}/"), Duration::from_secs(3600), no_tls()).unwrap();
    let client = TestClient::start(options(server.addresses.grpc, Arc::new(target)));
    let sender = Sender::new(&server);
    send(&sender, 1, 1).await;
    send(&sender, 2, 1).await;
    for _ in 0..2 {
        soon(arrived.recv()).await.unwrap();
    }
    let stopping = tokio::spawn(client.stop());
    for _ in 0..100 {
        tokio::task::yield_now().await; // the client begins to stop
    }
    releases[1].notify_one();
    reported(&server, 2).await;
    let slow = server.store.reports(gitstafette_core::event::Sequence::new(1)).await.unwrap();
    assert!(slow.is_empty(), "its target still works");
    releases[0].notify_one();
    soon(stopping).await.unwrap();
    reported(&server, 1).await;
}

/// Waits until the store has an outcome of this event.
async fn reported(server: &TestServer, sequence: u64) {
    let sequence = gitstafette_core::event::Sequence::new(sequence);
    let stored = async {
        while server.store.reports(sequence).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await; // an outcome has nothing to wait on
        }
    };
    soon(stored).await;
}

/// The client is restarted twice before its time to give up is over, and the server once.
#[tokio::test]
async fn the_time_to_give_up_goes_on_over_restarts() {
    const GIVE_UP_AFTER: Duration = Duration::from_secs(4);
    let folder = tempfile::tempdir().unwrap();
    let mut server = TestServer::start_in(folder.path(), "").await;
    let target = TestTarget::answering(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
    send(&Sender::new(&server), 1, 1).await;
    let first = gitstafette_core::event::Sequence::new(1);
    let id = "test".parse().unwrap();
    let impatient = |server: &TestServer| {
        let mut options = options(server.addresses.grpc, target.target());
        options.routes[0].policy.give_up_after = GIVE_UP_AFTER;
        options
    };
    for restarts_server in [true, false] {
        let client = TestClient::start(impatient(&server));
        let failed = async {
            while server.store.first_attempts(&id, first..=first).await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await; // a store says nothing of this
            }
        };
        soon(failed).await;
        tokio::time::sleep(GIVE_UP_AFTER / 4).await;
        client.kill();
        if restarts_server {
            server.stop().await;
            server = TestServer::start_in(folder.path(), "").await;
        }
    }
    let client = TestClient::start(impatient(&server));
    all_acknowledged(&*server.store).await;
    let outcome = server.store.reports(first).await.unwrap().remove(0).outcome;
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Failed, Some(503)));
    // At most half of the time was left to the last client.
    assert!(outcome.duration < GIVE_UP_AFTER * 3 / 4, "{:?}", outcome.duration);
    assert!(server.store.first_attempts(&id, first..=first).await.unwrap().is_empty());
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn what_the_clients_own_check_refuses_is_a_dead_letter_and_not_sent() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::start().await;
    let behind = |secret: &str| {
        let signature = GitHubSignature::new(vec![Secret::new(secret)]);
        Arc::new(VerifiedTarget::new(target.target(), signature))
    };
    let (other, same) = (behind("another secret"), behind(SECRET));
    let client = TestClient::start(options(server.addresses.grpc, other));
    send(&Sender::new(&server), 1, 1).await;
    all_acknowledged(&*server.store).await;
    let reports = server.store.reports(gitstafette_core::event::Sequence::new(1)).await.unwrap();
    let outcome = &reports[0].outcome;
    assert_eq!((outcome.result, outcome.attempts, outcome.code), (OutcomeResult::Failed, 1, None));
    assert!(outcome.detail.contains("nothing was sent"), "{}", outcome.detail);
    assert!(target.is_quiet());
    client.stop().await;

    let client = TestClient::start(options(server.addresses.grpc, same));
    send(&Sender::new(&server), 1, 2).await;
    assert_eq!(target.next_ids(1).await, ["1-2"]);
    client.stop().await;
}

async fn serve<F>(answer: impl Fn(Request) -> F + Clone + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}
