//! Webhooks that wait for memory: which are served, in which order, for how long, and what others notice of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, stream};
use gitstafette_core::event::Sequence;
use gitstafette_core::filter::Filter;
use gitstafette_core::store::ReadLimit;
use gitstafette_core::testing::{Format, Request};
use gitstafette_server::config::Config;
use http::StatusCode;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::ingest::{answer_of, head};
use crate::listening::Gated;
use crate::support::{Sender, TestServer, hook, payload, settings, soon};

/// Memory for one body of 1 MiB, and for small webhooks beside it. Nothing runs out of time.
const ONE: &str = "body-limit = \"1MiB\"\ninflight-limit = \"2MiB\"\nrequest-timeout = \"10m\"";
const MIB: usize = 1 << 20;

/// A signed webhook of this size.
fn webhook(delivery_id: &str, bytes: usize) -> Request {
    let text = payload(delivery_id);
    let padding = " ".repeat(bytes.saturating_sub(text.len()));
    hook(Format::Json).request("push", delivery_id, &format!("{text}{padding}"))
}

/// The delivery ids of all that is stored, in order.
async fn delivery_ids(server: &TestServer) -> Vec<String> {
    let limit = ReadLimit { events: 1000, bytes: u64::MAX };
    let page = server.store.read(Sequence::ZERO, &Filter::default(), limit).await.unwrap();
    page.events.iter().map(|event| event.webhook.facts.delivery_id.to_string()).collect()
}

/// A connection on which a webhook is announced with its length, and these bytes of its body sent.
async fn announce(server: &TestServer, webhook: &Request, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    let length = format!("Content-Length: {}\r\n", webhook.body.len());
    let message = [head(webhook, &length).as_bytes(), &webhook.body[..bytes]].concat();
    stream.write_all(&message).await.unwrap();
    stream
}

/// A server whose memory for large webhooks is held by one that waits for the disk. Each permit of the store's gate lets one
/// large webhook pass.
async fn hold() -> (TestServer, Arc<Gated>, JoinHandle<StatusCode>) {
    let store = Arc::new(Gated::new().from(MIB));
    let server = TestServer::run(Config::from_toml(&settings(ONE)).unwrap(), store.clone()).await;
    let sender = Sender::new(&server);
    let held = tokio::spawn(async move { sender.request(&webhook("held", MIB)).await.unwrap().status() });
    soon(store.arrived.notified()).await;
    (server, store, held)
}

#[tokio::test]
async fn twenty_large_webhooks_at_the_same_time_are_all_stored() {
    // The proportions of 20 MiB, 25 MiB and 64 MiB.
    let limits = "body-limit = \"1280KiB\"\ninflight-limit = \"3300KiB\"\nrequest-timeout = \"10m\"";
    let server = TestServer::start(limits).await;
    let mut senders = JoinSet::new();
    for number in 0..20 {
        let sender = Sender::new(&server);
        senders.spawn(async move { sender.request(&webhook(&format!("delivery-{number}"), MIB)).await });
    }
    while let Some(answer) = soon(senders.join_next()).await {
        assert_eq!(answer.unwrap().unwrap().status(), StatusCode::CREATED);
    }
    assert_eq!(server.events().await, 20);
}

#[tokio::test]
async fn small_webhooks_do_not_wait_behind_large_ones_and_those_keep_their_order() {
    let (server, store, _held) = hold().await;
    let mut waiting = JoinSet::new();
    for number in 0..3 {
        let webhook = webhook(&format!("large-{number}"), MIB);
        let mut stream = announce(&server, &webhook, 1).await;
        waiting.spawn(async move {
            stream.write_all(&webhook.body[1..]).await.unwrap();
            answer_of(&mut stream).await
        });
        // It overtakes the large ones, which have come before.
        Sender::new(&server).push(&format!("small-{number}")).await;
    }
    assert_eq!(server.events().await, 3);
    assert!(waiting.try_join_next().is_none());
    store.gate.add_permits(4);
    while let Some(answer) = soon(waiting.join_next()).await {
        assert!(answer.unwrap().starts_with("HTTP/1.1 201 "));
    }
    assert_eq!(delivery_ids(&server).await[3..], ["held", "large-0", "large-1", "large-2"]);
}

/// Sends a webhook without announcing its length, and returns the answer.
async fn send_chunked(address: SocketAddr, webhook: Request) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (first, second) = (&webhook.body[..3], &webhook.body[3..]);
    let head = head(&webhook, "Transfer-Encoding: chunked\r\n");
    let begin = format!("{head}3\r\n{}\r\n{:x}\r\n", String::from_utf8_lossy(first), second.len());
    let message = [begin.as_bytes(), second, b"\r\n0\r\n\r\n"].concat();
    stream.write_all(&message).await.unwrap();
    answer_of(&mut stream).await
}

#[tokio::test]
async fn without_a_length_a_webhook_counts_as_small_until_it_is_larger() {
    let (server, store, _held) = hold().await;
    let mut large = tokio::spawn(send_chunked(server.addresses.http, webhook("large", MIB)));
    let answer = send_chunked(server.addresses.http, webhook("small", 10_000)).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    Sender::new(&server).push("other").await;
    assert!((&mut large).now_or_never().is_none(), "it waits");
    store.gate.add_permits(2);
    assert!(soon(large).await.unwrap().starts_with("HTTP/1.1 201 "));
    assert_eq!(delivery_ids(&server).await, ["small", "other", "held", "large"]);
}

#[tokio::test]
async fn after_its_deadline_a_webhook_gets_503_and_its_memory_is_held_until_it_is_stored() {
    let store = Arc::new(Gated::new());
    let limits = "body-limit = \"64KiB\"\ninflight-limit = \"64KiB\"\nrequest-timeout = \"2s\"";
    let server = TestServer::run(Config::from_toml(&settings(limits)).unwrap(), store.clone()).await;
    let sender = Sender::new(&server);
    for (delivery_id, reason) in [("stuck", "did not commit"), ("waiting", "too many bytes")] {
        let answer = sender.request(&webhook(delivery_id, 60 << 10)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["retry-after"], "2");
        let detail = answer.text().await.unwrap();
        assert!(detail.contains(reason), "{detail}");
    }
    store.gate.add_permits(2);
    let mut head = server.store.head();
    soon(head.wait_for(|head| head.get() == 1)).await.unwrap();
    let answer = sender.request(&webhook("next", 60 << 10)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(delivery_ids(&server).await, ["stuck", "next"]);
}

#[tokio::test]
async fn a_body_that_is_too_slow_makes_room_for_those_that_wait() {
    let server = TestServer::start("body-limit = \"1MiB\"\ninflight-limit = \"2MiB\"").await;
    // A body that stops.
    let mut forged = announce(&server, &webhook("forged", MIB), MIB - 1).await;
    let answer = Sender::new(&server).request(&webhook("delivery-1", MIB)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(answer_of(&mut forged).await.starts_with("HTTP/1.1 408 "));
}

#[tokio::test]
async fn a_large_body_without_a_plausible_signature_is_refused_unread() {
    let server = TestServer::start("").await;
    let signatures = ["", "X-Hub-Signature-256: sha256=abc\r\n", "X-Hub-Signature-256: nonsense\r\n"];
    for signature in signatures {
        let mut request = webhook("unsigned", 100);
        request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("x-hub-signature-256"));
        let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
        let fields = format!("{signature}Content-Length: 20000000\r\nExpect: 100-continue\r\n");
        stream.write_all(head(&request, &fields).as_bytes()).await.unwrap();
        let answer = answer_of(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
}

#[tokio::test]
async fn the_number_of_webhooks_that_wait_is_bounded() {
    let (server, _store, _held) = hold().await;
    let mut waiting = Vec::new();
    for number in 0..130 {
        waiting.push(announce(&server, &webhook(&format!("delivery-{number}"), MIB), 1).await);
    }
    let mut answers: FuturesUnordered<_> = waiting.iter_mut().map(answer_of).collect();
    for _ in 0..2 {
        let answer = soon(answers.next()).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after"), "{answer}");
    }
    Sender::new(&server).push("small").await;
    assert!(answers.next().now_or_never().is_none(), "all others wait");
}

/// Sends a webhook on a stream of a connection, in parts of 64 KiB, and tells when HTTP/2 takes a part.
async fn send(
    mut connection: SendRequest<http_body_util::combinators::BoxBody<Bytes, std::io::Error>>,
    url: String,
    webhook: Request,
    taken: mpsc::UnboundedSender<()>,
) -> StatusCode {
    let body = webhook.body;
    let length = body.len();
    let parts: Vec<Bytes> =
        (0..length).step_by(64 << 10).map(|at| body.slice(at..length.min(at + (64 << 10)))).collect();
    let frames = stream::iter(parts).map(move |part| {
        taken.send(()).unwrap();
        Ok(Frame::data(part))
    });
    let mut request = http::Request::post(url).header("content-length", length);
    for (name, value) in &webhook.headers {
        request = request.header(*name, value);
    }
    let request = request.body(BodyExt::boxed(StreamBody::new(frames))).unwrap();
    connection.ready().await.unwrap();
    connection.send_request(request).await.unwrap().status()
}

#[tokio::test]
async fn streams_that_wait_for_memory_do_not_hold_up_others_of_their_connection() {
    let (server, store, _held) = hold().await;
    let tcp = TcpStream::connect(server.addresses.http).await.unwrap();
    let (connection, running) = handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    let running = tokio::spawn(running);
    let (taken, mut all_taken) = mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    for number in 0..20 {
        let webhook = webhook(&format!("large-{number}"), MIB);
        waiting.spawn(send(connection.clone(), server.url("/v1/github/"), webhook, taken.clone()));
    }
    // Each has sent as much as HTTP/2 lets it: its window of 128 KiB.
    for _ in 0..20 * 2 {
        soon(all_taken.recv()).await.unwrap();
    }
    let small = webhook("small", 20_000);
    let status = soon(send(connection.clone(), server.url("/v1/github/"), small, taken.clone())).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(delivery_ids(&server).await, ["small"]);
    assert!(waiting.try_join_next().is_none(), "the large ones still wait");
    store.gate.add_permits(21);
    while let Some(status) = soon(waiting.join_next()).await {
        assert_eq!(status.unwrap(), StatusCode::CREATED);
    }
    assert_eq!(server.events().await, 22);
    drop(connection);
    soon(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn senders_that_have_gone_do_not_hold_up_those_behind_them() {
    let (server, store, _held) = hold().await;
    for number in 0..20 {
        drop(announce(&server, &webhook(&format!("gone-{number}"), MIB), 1).await);
    }
    store.gate.add_permits(2);
    let answer = Sender::new(&server).request(&webhook("stays", MIB)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn stalled_uploads_hold_up_no_small_webhook_of_the_same_address() {
    let server = TestServer::start("").await;
    let (large, small) = (webhook("large", 16 * MIB), webhook("small", 256 << 10));
    let mut stalled = Vec::new();
    for _ in 0..4 {
        // More than the system's buffers take is sent only as far as the server reads.
        stalled.push(announce(&server, &large, 1 << 20).await);
    }
    for _ in 0..60 {
        stalled.push(announce(&server, &small, small.body.len() - 1).await);
    }
    let sender = Sender::new(&server);
    for number in 0..10 {
        let webhook = webhook(&format!("delivery-{number}"), if number % 2 == 0 { 10_000 } else { 200_000 });
        let answer = tokio::time::timeout(Duration::from_secs(4), sender.request(&webhook)).await;
        assert_eq!(answer.expect("it waited for the stalled uploads").unwrap().status(), StatusCode::CREATED);
    }
    assert_eq!(server.events().await, 10);
}
