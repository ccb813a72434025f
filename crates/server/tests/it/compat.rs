//! The wire of the Go implementation as its clients and servers use it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::secret::Secret;
use gitstafette_core::store::{MemoryStore, Report};
use gitstafette_core::target::OutcomeResult;
use gitstafette_core::testing::{self, Format, Hook};
use gitstafette_proto::v1;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_server::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::listening::Gated;
use crate::streams::{self, with_token};
use crate::support::{PATIENCE, Sender, TOKEN, TestServer, hook, http_client, payload, soon};

const REPOSITORY: &str = "537845873";
const OURS: &str = "[\"octo-harbor/*\"]";
/// The secret and the token of the usual test server.
const USUAL: &str = "webhook-hmac = \"a secret for tests\"\nclient-token = \"a token for tests\"\n";
/// 26 MiB: what a push may take under the usual body limit.
const PUSH_BYTES: usize = 26 << 20;

async fn channel_as(server: &TestServer, user_agent: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addresses.grpc)).unwrap();
    endpoint.user_agent(user_agent.to_owned()).unwrap().connect().await.unwrap()
}

async fn client(server: &TestServer) -> GitstafetteClient<Channel> {
    GitstafetteClient::new(channel_as(server, "old").await).max_encoding_message_size(usize::MAX)
}

fn wanted(client_id: &str, repository_id: &str) -> v1::WebhookEventsRequest {
    v1::WebhookEventsRequest {
        client_id: client_id.to_owned(),
        repository_id: repository_id.to_owned(),
        ..v1::WebhookEventsRequest::default()
    }
}

/// A server on loopback with this watchlist and nothing else but these settings.
async fn watching(repositories: &str, settings: &str) -> TestServer {
    let base = "bind = \"127.0.0.1\"\nport = 0\ngrpc-port = 0\ngrpc-health-port = 0";
    let config = Config::from_toml(&format!("repositories = {repositories}\n{base}\n{settings}")).unwrap();
    let store = Arc::new(MemoryStore::new(config.store_options));
    TestServer::run(config, store).await
}

/// A stream of an old client.
struct Fetch(Streaming<v1::WebhookEventsResponse>);

impl Fetch {
    async fn open(server: &TestServer, request: v1::WebhookEventsRequest) -> Result<Self, Status> {
        Self::open_on(client(server).await, request).await
    }

    async fn open_on(
        mut client: GitstafetteClient<Channel>,
        request: v1::WebhookEventsRequest,
    ) -> Result<Self, Status> {
        let answer = client.fetch_webhook_events(with_token(request, Some(TOKEN)));
        Ok(Self(soon(answer).await?.into_inner()))
    }

    async fn usual(server: &TestServer) -> Self {
        Self::open(server, wanted("old", REPOSITORY)).await.unwrap()
    }

    /// The next message, or the end.
    async fn message(&mut self) -> Result<Option<Vec<v1::WebhookEvent>>, Status> {
        Ok(soon(self.0.message()).await?.map(|message| message.webhook_events))
    }

    /// The next message with events.
    async fn events(&mut self) -> Vec<v1::WebhookEvent> {
        loop {
            match self.message().await.unwrap().expect("it ended") {
                events if events.is_empty() => {}
                events => return events,
            }
        }
    }

    async fn ids(&mut self) -> Vec<String> {
        self.events().await.into_iter().map(|event| event.event_id).collect()
    }
}

async fn reports(server: &TestServer, sequence: u64) -> Vec<Report> {
    server.store.reports(Sequence::new(sequence)).await.unwrap()
}

/// Waits until this client's cursor stands there.
async fn cursor_at(server: &TestServer, client: &str, sequence: u64) {
    let client: ClientId = client.parse().unwrap();
    let there = async {
        loop {
            let progress = server.store.progress(&client).await.unwrap();
            if progress.is_some_and(|progress| progress.cursor.get() == sequence) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await; // a cursor has nothing to wait on
        }
    };
    soon(there).await;
}

#[tokio::test]
async fn events_come_as_they_are_stored_in_gos_spelling() {
    let server = TestServer::start("").await;
    let mut fetch = Fetch::usual(&server).await;
    let sender = Sender::new(&server);
    let mut request = hook(Format::Json).request("push", "delivery-1", &payload("x"));
    for (name, value) in [("X-A", "1"), ("X-A", "2"), ("Cookie", "c"), ("X-Forwarded-For", "10.0.0.1")] {
        request.headers.push((name, value.to_owned()));
    }
    sender.request(&request).await.unwrap();
    let events = fetch.events().await;
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.event_id.as_str(), event.sequence), ("delivery-1", 1));
    assert_eq!(event.body, request.body);
    let all = |name: &str| {
        let values = event.headers.iter().filter(|header| header.name == name);
        values.map(|header| header.values.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(all("X-Github-Delivery"), ["delivery-1"]);
    assert_eq!(all("X-A"), ["1", "2"]);
    assert!(all("X-Hub-Signature-256")[0].starts_with("sha256="));
    for name in ["Host", "Content-Length", "Cookie", "X-Forwarded-For"] {
        assert!(all(name).is_empty(), "{name}");
    }
    cursor_at(&server, "old/537845873", 1).await;
    let report = reports(&server, 1).await.remove(0);
    assert_eq!(report.client.as_str(), "old/537845873");
    assert_eq!((report.outcome.target.as_str(), report.outcome.result), ("fetch", OutcomeResult::Delivered));
    assert!(report.outcome.detail.contains("does not report"), "{}", report.outcome.detail);
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused() {
    let server = TestServer::start("").await;
    let long = "x".repeat(120);
    for (client_id, repository_id, code, part) in [
        ("old", "", Code::InvalidArgument, "repository_id"),
        ("old", "octo-harbor/*", Code::InvalidArgument, "one repository's number"),
        ("", REPOSITORY, Code::InvalidArgument, "client_id"),
        ("a b", REPOSITORY, Code::InvalidArgument, "-clientId"),
        (&long, REPOSITORY, Code::InvalidArgument, "shorter"),
        ("old", "other/name", Code::NotFound, "watchlist"),
    ] {
        let status = Fetch::open(&server, wanted(client_id, repository_id)).await.err().unwrap();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
    let request = Request::new(wanted("old", REPOSITORY));
    let status = client(&server).await.fetch_webhook_events(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_stream_goes_on_after_a_restart_and_starts_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), "").await;
    let sender = Sender::new(&server);
    for id in ["delivery-1", "delivery-2"] {
        sender.push(id).await;
    }
    let mut by_name = Fetch::open(&server, wanted("old", "Octo-Harbor/Lighthouse")).await.unwrap();
    assert_eq!(by_name.ids().await, ["delivery-1"], "without a cursor, the oldest first");
    assert_eq!(by_name.ids().await, ["delivery-2"]);
    cursor_at(&server, "old/octo-harbor/lighthouse", 2).await;
    server.stop().await;
    assert_eq!(by_name.message().await.unwrap(), None, "it ends in order");

    let server = TestServer::start_in(folder.path(), "").await;
    let sender = Sender::new(&server);
    sender.push("delivery-3").await;
    let mut again = Fetch::open(&server, wanted("old", "octo-harbor/lighthouse")).await.unwrap();
    assert_eq!(again.ids().await, ["delivery-3"]);
    let mut other = Fetch::usual(&server).await;
    assert_eq!(other.ids().await, ["delivery-1"], "the cursor is the client's for this repository");
    let after = v1::WebhookEventsRequest { last_received_event_id: 1, ..wanted("older", REPOSITORY) };
    let mut after = Fetch::open(&server, after).await.unwrap();
    assert_eq!(after.ids().await, ["delivery-2"]);
}

#[tokio::test]
async fn a_newer_stream_takes_over_and_others_go_on() {
    let server = watching("[\"7\", \"octo-harbor/*\"]", USUAL).await;
    let mut first = Fetch::usual(&server).await;
    let mut other = Fetch::open(&server, wanted("old", "7")).await.unwrap();
    let mut second = Fetch::usual(&server).await;
    let status = first.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("-clientId"), "{status}");
    let sender = Sender::new(&server);
    sender.push("delivery-1").await;
    assert_eq!(second.ids().await, ["delivery-1"]);
    let payload = r#"{"repository":{"id":7,"full_name":"octo-harbor/other"}}"#;
    sender.send("push", "delivery-2", payload).await;
    assert_eq!(other.ids().await, ["delivery-2"], "another repository of the same client id");
}

#[tokio::test]
async fn a_stream_shows_that_it_lives_and_ends_in_time() {
    let server = TestServer::start("heartbeat-interval = \"50ms\"").await;
    let short = v1::WebhookEventsRequest { duration_secs: 1, ..wanted("old", REPOSITORY) };
    let started = Instant::now();
    let mut fetch = Fetch::open(&server, short).await.unwrap();
    assert_eq!(fetch.message().await.unwrap(), Some(vec![]));
    while fetch.message().await.unwrap().is_some() {}
    assert!(started.elapsed() >= Duration::from_secs(1));

    let bounded = TestServer::start("stream-window = \"100ms\"").await;
    assert_eq!(Fetch::usual(&bounded).await.message().await.unwrap(), None, "the server's own window");
}

#[tokio::test]
async fn the_go_client_gets_again_what_it_had_no_time_to_read() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for id in ["delivery-1", "delivery-2"] {
        sender.push(id).await;
    }
    let open = async || {
        let go = GitstafetteClient::new(channel_as(&server, "grpc-go/1.68.0").await);
        Fetch::open_on(go, wanted("gitstafette-client", REPOSITORY)).await.unwrap()
    };
    let mut fetch = open().await;
    assert_eq!(fetch.ids().await, ["delivery-1"]);
    drop(fetch); // as at the end of its window
    let mut fetch = open().await;
    assert_eq!(fetch.ids().await, ["delivery-1"]);
    sender.push("delivery-3").await;
    assert_eq!(fetch.ids().await, ["delivery-2", "delivery-3"], "in one message, when the first is read");
    cursor_at(&server, "gitstafette-client/537845873", 1).await;
}

#[tokio::test]
async fn an_event_that_old_clients_cannot_take_is_held_back() {
    let server = TestServer::start("").await;
    let mut fetch = Fetch::usual(&server).await;
    let sender = Sender::new(&server);
    sender.send("push", "large", &testing::large_push(5 << 20)).await;
    sender.push("small").await;
    assert_eq!(fetch.ids().await, ["small"]);
    cursor_at(&server, "old/537845873", 2).await;
    let report = reports(&server, 1).await.remove(0);
    assert_eq!(report.outcome.result, OutcomeResult::Failed);
    assert!(report.outcome.detail.contains("4194304"), "{}", report.outcome.detail);
    let mut just_within = Fetch::usual(&server).await;
    sender.send("push", "just-within", &testing::large_push((4 << 20) - 2000)).await;
    assert_eq!(just_within.events().await[0].body.len(), (4 << 20) - 2000);
}

/// What an old server pushes of this request: with as many empty header fields as it really sends.
fn pushed(request: &testing::Request) -> v1::WebhookEventPushRequest {
    let header = |name: &str, values: &str| v1::Header { name: name.to_owned(), values: values.to_owned() };
    let mut headers = vec![v1::Header::default(); 3 * request.headers.len()];
    headers.push(header("Content-Length", &request.body.len().to_string()));
    headers.extend(request.headers.iter().map(|(name, value)| header(name, value)));
    v1::WebhookEventPushRequest {
        cliend_id: "myself".to_owned(),
        repository_id: REPOSITORY.to_owned(),
        webhook_event: Some(v1::WebhookEvent {
            event_id: "delivery-1".to_owned(),
            body: request.body.clone(),
            headers,
            sequence: 0,
        }),
    }
}

fn signed(payload: &str) -> v1::WebhookEventPushRequest {
    pushed(&hook(Format::Json).request("push", "delivery-1", payload))
}

fn signed_with(secret: Option<&str>) -> v1::WebhookEventPushRequest {
    let hook = Hook { secret: secret.map(Secret::new), ..hook(Format::Json) };
    pushed(&hook.request("push", "delivery-1", &payload("x")))
}

async fn push(
    server: &TestServer,
    request: v1::WebhookEventPushRequest,
    token: Option<&str>,
) -> Result<v1::WebhookEventPushResponse, Status> {
    let mut client = client(server).await;
    let answer = soon(client.webhook_event_push(with_token(request, token))).await?.into_inner();
    assert_eq!(answer.accepted, answer.response_code.starts_with('2'), "{answer:?}");
    assert!(!answer.response_description.is_empty());
    Ok(answer)
}

async fn code(server: &TestServer, request: v1::WebhookEventPushRequest, token: Option<&str>) -> String {
    push(server, request, token).await.unwrap().response_code
}

#[tokio::test]
async fn a_pushed_webhook_is_stored_as_one_that_came_by_http() {
    let server = TestServer::start("publisher-token = \"a publisher's\"").await;
    assert_eq!(code(&server, signed(&payload("x")), None).await, "201");
    assert_eq!(code(&server, signed(&payload("x")), None).await, "204");
    let by_http = Sender::new(&server).send("push", "delivery-1", &payload("x")).await;
    assert_eq!(by_http.status(), 204, "it is the same event");
    let mut fetch = Fetch::usual(&server).await;
    let event = fetch.events().await.remove(0);
    assert_eq!(event.body, payload("x"));
    assert!(event.headers.iter().all(|header| !header.name.is_empty() && header.name != "Content-Length"));

    let bare = v1::WebhookEventPushRequest {
        webhook_event: Some(v1::WebhookEvent {
            event_id: "bare".to_owned(),
            body: r#"{"organization":{"login":"octo-harbor"}}"#.into(),
            ..v1::WebhookEvent::default()
        }),
        ..signed("{}")
    };
    assert_eq!(code(&server, bare, Some("a publisher's")).await, "201");
    let event = fetch.events().await.remove(0);
    assert_eq!(event.event_id, "bare", "it belongs to the repository that the server named");
    assert_eq!(event.headers, [], "they stay as sent");
}

#[tokio::test]
async fn a_refused_push_is_answered_as_http_would() {
    let server = TestServer::start("body-limit = \"1KiB\"").await;
    let other = signed(r#"{"repository":{"id":7,"full_name":"other/name"}}"#);
    let unwatched = v1::WebhookEventPushRequest { repository_id: "8".to_owned(), ..other };
    for (request, code, part) in [
        (signed("no JSON"), "400", "JSON"),
        (unwatched, "406", "watchlist"),
        (signed(&payload(&"x".repeat(1024))), "413", "--body-limit"),
        (v1::WebhookEventPushRequest::default(), "400", "x-github-delivery"),
    ] {
        let answer = push(&server, request, Some(TOKEN)).await.unwrap();
        assert_eq!(answer.response_code, code, "{answer:?}");
        assert!(answer.response_description.contains(part), "{answer:?}");
    }
    assert_eq!(server.events().await, 0);
    let full = Gated::new().broken().serve("").await;
    let answer = push(&full, signed(&payload("x")), None).await.unwrap();
    assert_eq!((answer.accepted, &*answer.response_code), (false, "503"), "an old server exits on an error");
}

#[tokio::test]
async fn who_may_push() {
    let verifying = TestServer::start("").await;
    assert_eq!(code(&verifying, signed_with(None), Some(TOKEN)).await, "401", "a client may read, not forge");
    assert_eq!(code(&verifying, signed(&payload("x")), Some(TOKEN)).await, "201");
    assert_eq!(code(&verifying, signed(&payload("x")), None).await, "204", "a signature is enough");
    let publishers = TestServer::start("publisher-token = \"a publisher's\"").await;
    assert_eq!(code(&publishers, signed_with(None), Some("a publisher's")).await, "201", "so is its token");
    let status = push(&verifying, signed_with(None), None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert_eq!(
        code(&verifying, signed_with(Some("wrong")), None).await,
        "401",
        "an old server exits on an error"
    );
    let status = push(&verifying, signed(&payload("x")), Some("wrong")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "who shows a token shows the right one");

    let anonymous = watching(OURS, "webhook-hmac = \"a secret for tests\"").await;
    assert_eq!(code(&anonymous, signed(&payload("x")), None).await, "201");
    assert_eq!(code(&anonymous, signed_with(None), None).await, "401");

    let unsigned = watching(OURS, "client-token = \"a token for tests\"").await;
    assert_eq!(code(&unsigned, signed_with(None), Some(TOKEN)).await, "201");
    assert_eq!(code(&unsigned, signed(&payload("x")), None).await, "401", "the token is the only secret");

    let open = watching(OURS, "").await;
    assert_eq!(code(&open, signed_with(None), None).await, "201");
}

#[tokio::test]
async fn pushes_count_as_bytes_in_flight() {
    let server =
        TestServer::start("inflight-limit = \"1MiB\"\nbody-limit = \"1MiB\"\nrequest-timeout = \"1m\"").await;
    let large = || signed(&testing::large_push((1 << 20) - 4000));
    let status = push(&server, signed(&testing::large_push(PUSH_BYTES)), None).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::OutOfRange | Code::Unavailable | Code::ResourceExhausted),
        "{status}"
    );
    // A body by HTTP takes the memory of all, so a push waits.
    let mut standing = TcpStream::connect(server.addresses.http).await.unwrap();
    let head = format!(
        "POST /v1/github/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
         X-GitHub-Delivery: x\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: 1000000\r\n\
         Expect: 100-continue\r\n\r\n",
        "0".repeat(64)
    );
    standing.write_all(head.as_bytes()).await.unwrap();
    soon(standing.read_exact(&mut [0; 12])).await.unwrap();
    standing.write_all(&[b' '; 999_999]).await.unwrap();
    let mut waiting = Box::pin(push(&server, large(), None));
    let waits = tokio::time::timeout(Duration::from_millis(200), waiting.as_mut()); // nothing tells that it waits
    assert!(waits.await.is_err());
    drop(standing);
    assert!(waiting.await.unwrap().accepted);
    for _ in 0..3 {
        let answer = push(&server, large(), None).await.unwrap();
        assert!(answer.accepted, "what is dealt with is given back: {answer:?}");
    }
    let many = v1::WebhookEventPushRequest {
        webhook_event: Some(v1::WebhookEvent {
            headers: vec![v1::Header::default(); 100_000],
            ..v1::WebhookEvent::default()
        }),
        ..v1::WebhookEventPushRequest::default()
    };
    let status = push(&server, many, None).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("header fields"), "{status}");
}

#[tokio::test]
async fn statuses_say_where_a_client_stands() {
    let server = watching("[\"7\", \"537845873\"]", &format!("{USUAL}name = \"harbour\"")).await;
    Sender::new(&server).push("delivery-1").await;
    let mut client = client(&server).await;
    let mut status = async |client_id: &str, repository_id: &str| {
        let request = v1::WebhookEventStatusRequest {
            client_id: client_id.to_owned(),
            repository_id: repository_id.to_owned(),
        };
        let answer = client.webhook_event_status(with_token(request, Some(TOKEN))).await?.into_inner();
        Ok::<_, Status>((answer.server_id, answer.count, answer.repository_id, answer.status))
    };
    let stands = |count: u32, repository: &str, status: &str| {
        ("harbour".to_owned(), count, repository.to_owned(), status.to_owned())
    };
    assert_eq!(status("old", REPOSITORY).await.unwrap(), stands(1, REPOSITORY, "unknown"));
    let mut fetch = Fetch::usual(&server).await;
    assert_eq!(fetch.ids().await, ["delivery-1"]);
    assert_eq!(status("old", REPOSITORY).await.unwrap(), stands(1, REPOSITORY, "attached"));
    assert_eq!(status("old", "7").await.unwrap(), stands(0, "7", "unknown"));
    assert_eq!(status("old", "8").await.unwrap(), stands(0, "8", "not watched"));
    let raw = streams::subscribe(&server, "new").await;
    assert_eq!(status("new", "7").await.unwrap(), stands(0, "7", "attached"), "a new client's one id");
    drop((fetch, raw));
    let away = async { while status("old", REPOSITORY).await.unwrap().3 != "away" {} };
    tokio::time::timeout(PATIENCE, away).await.unwrap();
    assert_eq!(status("old", "octo/hello").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(status("", "7").await.unwrap_err().code(), Code::InvalidArgument);

    let request = v1::WebhookEventStatusesRequest { client_id: "old".to_owned() };
    let mut statuses =
        client.webhook_event_statuses(with_token(request, Some(TOKEN))).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(status) = soon(statuses.message()).await.unwrap() {
        all.push((status.repository_id, status.count, status.status));
    }
    let expected = [("7", 0, "unknown"), (REPOSITORY, 1, "away")];
    assert_eq!(
        all,
        expected.map(|(repository, count, status)| (repository.to_owned(), count, status.to_owned()))
    );
}

#[tokio::test]
async fn what_is_held_back_is_counted() {
    let server = TestServer::start("admin-port = 0").await;
    let mut fetch = Fetch::usual(&server).await;
    let sender = Sender::new(&server);
    sender.send("push", "large", &testing::large_push(5 << 20)).await;
    sender.push("small").await;
    assert_eq!(fetch.ids().await, ["small"]);
    let url = format!("http://{}/metrics", server.addresses.admin.unwrap());
    let text = http_client().get(url).bearer_auth(TOKEN).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("gitstafette_events_held_back_total 1"), "{text}");
}
