//! The HTTP contract: what each request is answered, and that bad input leaves no trace.

use axum::response::IntoResponse;
use gitstafette_core::testing::{Format, Request, SAMPLES};
use http::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::listening::Gated;
use crate::support::{
    Sender, TOKEN, TestClient, TestServer, TestTarget, all_acknowledged, hook, http_client, options, payload,
    soon,
};

/// A request like GitHub's with one thing changed.
fn changed(change: impl FnOnce(&mut Request)) -> Request {
    let mut request = hook(Format::Json).request("push", "delivery-1", &payload("x"));
    change(&mut request);
    request
}

fn set(request: &mut Request, name: &'static str, value: &str) {
    remove(request, name);
    request.headers.push((name, value.to_owned()));
}

fn remove(request: &mut Request, name: &'static str) {
    request.headers.retain(|(other, _)| *other != name);
}

/// A signed request with this body.
fn body(event: &str, text: &str) -> Request {
    hook(Format::Json).request(event, "delivery-1", text)
}

async fn refused(server: &TestServer, request: &Request, status: StatusCode, part: &str) {
    let answer = Sender::new(server).request(request).await.unwrap();
    is_problem(answer, status, part).await;
    assert_eq!(server.events().await, 0, "{part}: {request:?}");
}

async fn is_problem(answer: reqwest::Response, status: StatusCode, part: &str) {
    let about = format!("{part}: {answer:?}");
    assert_eq!(answer.status(), status, "{about}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{about}");
    let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(problem["status"], status.as_u16(), "{about}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(part), "{part:?} is not in {detail:?}");
}

#[tokio::test]
async fn a_webhook_is_stored_and_a_repeat_is_not() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    let answer = sender.send("push", "delivery-1", &payload("x")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.text().await.unwrap(), r#"{"sequence":1,"deliveryId":"delivery-1"}"#);
    let repeat = sender.send("push", "delivery-1", &payload("x")).await;
    assert_eq!(repeat.status(), StatusCode::NO_CONTENT);
    let without_slash = Sender::to(server.url("/v1/github")).send("push", "delivery-2", &payload("x")).await;
    assert_eq!(without_slash.status(), StatusCode::CREATED);
    assert_eq!(server.events().await, 2);
}

#[tokio::test]
async fn every_sample_is_stored_in_both_formats() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    assert!(SAMPLES.len() > 10);
    for (number, sample) in SAMPLES.iter().enumerate() {
        for format in [Format::Json, Format::Form] {
            let request = hook(format).deliver(sample, &format!("{format:?}-{number}"));
            let answer = sender.request(&request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::CREATED, "{} as {format:?}", sample.event);
        }
    }
    assert_eq!(server.events().await, 2 * SAMPLES.len() as u64);
}

#[tokio::test]
async fn after_an_outcome_the_same_identity_is_a_redelivery() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    target.next().await;
    all_acknowledged(&*server.store).await;
    sender.push("delivery-1").await;
    assert_eq!(target.next().await.delivery_id(), "delivery-1");
    client.stop().await;

    let dropping = TestServer::start("redelivery = \"drop\"").await;
    let client = TestClient::start(options(dropping.addresses.grpc, target.target()));
    let sender = Sender::new(&dropping);
    sender.push("delivery-1").await;
    all_acknowledged(&*dropping.store).await;
    assert_eq!(sender.send("push", "delivery-1", &payload("x")).await.status(), StatusCode::NO_CONTENT);
    client.stop().await;
}

#[tokio::test]
async fn bad_signatures() {
    let server = TestServer::start("").await;
    const HEADER: &str = "X-Hub-Signature-256";
    let unauthorized = StatusCode::UNAUTHORIZED;
    refused(&server, &changed(|request| remove(request, HEADER)), unauthorized, "is missing").await;
    refused(&server, &changed(|request| set(request, HEADER, "")), unauthorized, "is empty").await;
    for malformed in ["sha256=", "sha256=zz", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59", "757107ea"] {
        let request = changed(|request| set(request, HEADER, malformed));
        refused(&server, &request, unauthorized, "64 lower-case hexadecimal digits").await;
    }
    let wrong = format!("sha256={}", "0".repeat(64));
    refused(&server, &changed(|request| set(request, HEADER, &wrong)), unauthorized, "does not match").await;
    let request = changed(|request| request.body = payload("y").into());
    refused(&server, &request, unauthorized, "does not match").await;
}

#[tokio::test]
async fn bad_headers() {
    let server = TestServer::start("").await;
    for header in ["X-GitHub-Event", "X-GitHub-Delivery"] {
        let part = header.to_lowercase();
        refused(&server, &changed(|request| remove(request, header)), StatusCode::BAD_REQUEST, &part).await;
        refused(&server, &changed(|request| set(request, header, "")), StatusCode::BAD_REQUEST, &part).await;
    }
    let repeated = changed(|request| request.headers.push(("X-GitHub-Event", "ping".into())));
    refused(&server, &repeated, StatusCode::BAD_REQUEST, "more than once").await;
    for content_type in ["text/plain", "multipart/form-data"] {
        let request = changed(|request| set(request, "Content-Type", content_type));
        refused(&server, &request, StatusCode::UNSUPPORTED_MEDIA_TYPE, "neither").await;
    }
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let server = TestServer::start("").await;
    let secret = "hunter2";
    for text in ["", "x", "[]", "\"text\"", "null", "7", &format!("[\"{secret}\"]")] {
        refused(&server, &body("push", text), StatusCode::BAD_REQUEST, "not a JSON object").await;
        let answer = Sender::new(&server).request(&body("push", text)).await.unwrap();
        assert!(!answer.text().await.unwrap().contains(secret), "the payload is not quoted");
    }
    let form = changed(|request| {
        *request = hook(Format::Form).request("push", "delivery-1", &payload("x"));
        set(request, "Content-Type", "application/json");
    });
    refused(&server, &form, StatusCode::BAD_REQUEST, "not a JSON object").await;
}

#[tokio::test]
async fn unlisted_repositories() {
    let server = TestServer::start("").await;
    let unlisted = body("push", r#"{"repository":{"id":1,"full_name":"octo/hello"}}"#);
    refused(&server, &unlisted, StatusCode::NOT_ACCEPTABLE, "octo/hello is not on the watchlist").await;
    let nobody = body("security_advisory", "{}");
    refused(
        &server,
        &nobody,
        StatusCode::NOT_ACCEPTABLE,
        "names no repository and no account that can be read",
    )
    .await;
    let listed = body("organization", r#"{"organization":{"login":"octo-harbor"}}"#);
    assert_eq!(Sender::new(&server).request(&listed).await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn large_bodies_are_refused_and_the_sender_hears_why() {
    let server = TestServer::start("body-limit = \"64KiB\"").await;
    let fits = format!("{}{}", payload("x"), " ".repeat((64 << 10) - payload("x").len()));
    let answer = Sender::new(&server).request(&body("push", &fits)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);

    let announced = hook(Format::Json).request("push", "delivery-2", &" ".repeat(200 << 10));
    let answer = Sender::new(&server).request(&announced).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.text().await.unwrap().contains("65536 bytes"));

    // Chunked: the size shows only while it comes. The whole of it would not fit into the test.
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    let head = head(&announced, "Transfer-Encoding: chunked\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    for _ in 0..3 {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    assert!(answer_of(&mut stream).await.starts_with("HTTP/1.1 413 "));
    assert_eq!(server.events().await, 1);
}

/// The head of a request by hand, without a content length.
pub fn head(request: &Request, more: &str) -> String {
    let fields: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("POST /v1/github/ HTTP/1.1\r\nHost: x\r\n{fields}{more}\r\n")
}

/// The start of what comes back; empty if the server closed without a word.
pub async fn answer_of(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let read = soon(stream.read(&mut answer)).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_lying_content_length_stores_nothing() {
    let server = TestServer::start("request-timeout = \"300ms\"").await;
    let request = changed(|_| ());
    let text = std::str::from_utf8(&request.body).unwrap();

    // More announced than sent, then silence: the time runs out.
    let mut waiting = TcpStream::connect(server.addresses.http).await.unwrap();
    let head_long = head(&request, &format!("Content-Length: {}\r\n", text.len() + 10));
    waiting.write_all(format!("{head_long}{text}").as_bytes()).await.unwrap();
    assert!(answer_of(&mut waiting).await.starts_with("HTTP/1.1 408 "));

    // More announced than sent, then the end.
    let mut ended = TcpStream::connect(server.addresses.http).await.unwrap();
    ended.write_all(format!("{head_long}{text}").as_bytes()).await.unwrap();
    ended.shutdown().await.unwrap();
    let answer = answer_of(&mut ended).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");

    // Less announced than sent: the signature is that of the whole.
    let mut short = TcpStream::connect(server.addresses.http).await.unwrap();
    let head_short = head(&request, &format!("Content-Length: {}\r\n", text.len() - 10));
    short.write_all(format!("{head_short}{text}").as_bytes()).await.unwrap();
    assert!(answer_of(&mut short).await.starts_with("HTTP/1.1 401 "));

    let mut nonsense = TcpStream::connect(server.addresses.http).await.unwrap();
    nonsense.write_all(head(&request, "Content-Length: many\r\n").as_bytes()).await.unwrap();
    assert!(answer_of(&mut nonsense).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(server.events().await, 0);
}

#[tokio::test]
async fn a_drop_at_a_time_runs_out_of_time() {
    let server = TestServer::start("request-timeout = \"500ms\"").await;
    let request = changed(|_| ());
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    let head = head(&request, &format!("Content-Length: {}\r\n", request.body.len()));
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let dripping = tokio::spawn(async move {
        for byte in request.body.iter().cycle() {
            if writing.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await; // the drip is what is tested
        }
    });
    let mut answer = [0; 12];
    soon(reading.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    dripping.abort();
    assert_eq!(server.events().await, 0);
}

#[tokio::test]
async fn what_is_not_there() {
    let server = TestServer::start("").await;
    let http = http_client();
    let lost = http.get(server.url("/somewhere")).send().await.unwrap();
    assert_eq!(lost.status(), StatusCode::NOT_FOUND);
    assert!(lost.text().await.unwrap().contains("POST /v1/github/"));
}

#[tokio::test]
async fn other_methods_are_refused_with_those_that_are_taken() {
    let server = TestServer::start("").await;
    let taken = [
        ("GET", "/v1/github", "POST"),
        ("PUT", "/v1/github/", "POST"),
        ("POST", "/", "GET,HEAD"),
        ("POST", "/healthz", "GET,HEAD"),
        ("DELETE", "/readyz", "GET,HEAD"),
        ("POST", "/v1/watchlist", "GET,HEAD"),
        ("PATCH", "/v1/events/1", "GET,HEAD"),
        ("POST", "/v1/events/octo-harbor/lighthouse", "GET,HEAD"),
    ];
    for (method, path, allowed) in taken {
        let method = method.parse().unwrap();
        let answer = http_client().request(method, server.url(path)).send().await.unwrap();
        assert_eq!(answer.headers()["allow"], allowed, "{path}");
        is_problem(answer, StatusCode::METHOD_NOT_ALLOWED, "POST").await;
    }
}

#[tokio::test]
async fn health() {
    let server = TestServer::start("").await;
    let http = http_client();
    // The Go implementation answers at the root, and load balancers ask there.
    for path in ["/", "/healthz", "/readyz"] {
        let answer = http.get(server.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.text().await.unwrap(), r#"{"status":"ok"}"#);
    }
}

#[tokio::test]
async fn a_store_that_fails_is_told_with_a_time_to_come_again() {
    let server = Gated::new().broken().serve("").await;
    for answer in [
        http_client().get(server.url("/readyz")).send().await.unwrap(),
        Sender::new(&server).send("push", "delivery-1", &payload("x")).await,
    ] {
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert!(answer.headers().contains_key("retry-after"));
    }
}

#[tokio::test]
async fn listings_need_the_token() {
    let server = TestServer::start("").await;
    Sender::new(&server).push("delivery-1").await;
    let http = http_client();
    for path in ["/v1/watchlist", "/v1/events/537845873"] {
        let without = http.get(server.url(path)).send().await.unwrap();
        assert_eq!(without.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(without.headers()["www-authenticate"], "Bearer");
        let wrong = http.get(server.url(path)).header("authorization", "Bearer wrong").send().await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    }
    let read = async |path: &str| -> Value {
        let answer =
            http.get(server.url(path)).header("authorization", format!("Bearer {TOKEN}")).send().await;
        serde_json::from_str(&answer.unwrap().text().await.unwrap()).unwrap()
    };
    assert_eq!(read("/v1/watchlist").await["GitHubRepositoryIDs"][0], "octo-harbor/*");
    for path in ["/v1/events/537845873", "/v1/events/octo-harbor/lighthouse"] {
        let listing = read(path).await;
        assert_eq!(listing["Events"][0]["id"], "delivery-1", "{path}");
        assert_eq!(listing["Events"][0]["isRelayed"], false);
        assert_eq!(listing["Events"][0]["eventBody"], payload("delivery-1"));
    }
    assert_eq!(read("/v1/events/1").await["Events"].as_array().unwrap().len(), 0);
    assert_eq!(read("/v1/events/nonsense").await["status"], 400);
    assert_eq!(read("/v1/events/537845873?after=1").await["Events"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn malformed_questions_for_listings() {
    let server = TestServer::start("").await;
    let wrong = [
        ("/v1/events/1?after=abc", "after"),
        ("/v1/events/1?after=-1", "after"),
        ("/v1/events/octo-harbor/lighthouse?after=", "after"),
        ("/v1/events/%ff", "UTF-8"),
        ("/v1/events/octo-harbor/%ff", "UTF-8"),
        ("/v1/events/nonsense", "nonsense"),
    ];
    for (path, part) in wrong {
        let request = http_client().get(server.url(path)).header("authorization", format!("Bearer {TOKEN}"));
        is_problem(request.send().await.unwrap(), StatusCode::BAD_REQUEST, part).await;
    }
}

#[tokio::test]
async fn a_targets_answer_does_not_come_back_to_the_sender() {
    let server = TestServer::start("").await;
    let mut target = TestTarget::answering(|_| StatusCode::IM_A_TEAPOT.into_response()).await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    Sender::new(&server).push("delivery-1").await;
    target.next().await;
    all_acknowledged(&*server.store).await;
    let outcomes = server.store.reports(*server.store.head().borrow()).await.unwrap();
    assert_eq!(
        (outcomes[0].outcome.code, outcomes[0].outcome.attempts),
        (Some(418), 1),
        "final, so not repeated"
    );
    client.stop().await;
}

/// Jenkins' look at a hook's URL, with what follows its header.
async fn looked(server: &TestServer, path: &str, more: &str) -> String {
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nX-Jenkins-Validation: true\r\n{more}");
    stream.write_all(head.as_bytes()).await.unwrap();
    answer_of(&mut stream).await
}

#[tokio::test]
async fn jenkins_may_look_and_leaves_no_trace() {
    let server = TestServer::start("admin-port = 0\n").await;
    for path in ["/v1/github", "/v1/github/"] {
        for more in ["\r\n", "Content-Length: 0\r\n\r\n"] {
            let answer = looked(&server, path, more).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.contains("Gitstafette, a webhook relay"), "{answer}");
            assert!(answer.contains("X-Instance-Identity"), "{answer}");
        }
    }
    let elsewhere = looked(&server, "/v1/watchlist", "\r\n").await;
    assert!(elsewhere.starts_with("HTTP/1.1 405 "), "{elsewhere}");
    assert_eq!(server.events().await, 0);
    assert!(!webhook_counts(&server).await.contains("gitstafette_webhooks_total{"), "it is no webhook");
}

#[tokio::test]
async fn with_a_body_jenkins_header_means_nothing() {
    let server = TestServer::start("admin-port = 0\n").await;
    for more in [
        "Content-Length: 2\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = looked(&server, "/v1/github/", more).await;
        assert!(answer.starts_with("HTTP/1.1 415 "), "judged as a webhook: {more:?}: {answer}");
    }
    assert_eq!(server.events().await, 0);
    let counts = webhook_counts(&server).await;
    assert!(counts.contains("gitstafette_webhooks_total{status=\"415\"} 3"), "{counts}");

    let signed = changed(|request| set(request, "x-jenkins-validation", "true"));
    assert_eq!(Sender::new(&server).request(&signed).await.unwrap().status(), StatusCode::CREATED);
    let unsigned = changed(|request| {
        set(request, "x-jenkins-validation", "true");
        remove(request, "X-Hub-Signature-256");
    });
    let answer = Sender::new(&server).request(&unsigned).await.unwrap();
    is_problem(answer, StatusCode::UNAUTHORIZED, "x-hub-signature-256").await;
    assert_eq!(server.events().await, 1);
}

async fn webhook_counts(server: &TestServer) -> String {
    let url = format!("http://{}/metrics", server.addresses.admin.unwrap());
    http_client().get(url).send().await.unwrap().text().await.unwrap()
}
