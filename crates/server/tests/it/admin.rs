//! The operators' interface over real HTTP: listings, redelivery, subscriptions, the watchlist, metrics, and who may.

use gitstafette_core::event::Sequence;
use gitstafette_core::secret::Secret;
use http::StatusCode;
use serde_json::{Value, json};

use crate::streams::subscribe;
use crate::support::{
    PATIENCE, Sender, TOKEN, TestClient, TestServer, TestTarget, all_acknowledged, http_client, options,
    payload, soon,
};

const OPERATOR: &str = "a token for operators";
pub const ADMIN: &str = "admin-port = 0\n";

/// Calls the admin interface as an operator.
pub struct Operator {
    http: reqwest::Client,
    url: String,
    token: Option<&'static str>,
}

impl Operator {
    pub fn of(server: &TestServer) -> Self {
        let address = server.addresses.admin.expect("the admin interface is served");
        Self { http: http_client(), url: format!("http://{address}"), token: Some(TOKEN) }
    }

    pub async fn call(&self, method: http::Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = soon(request.send()).await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(http::Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.call(http::Method::POST, path, Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn refused(&self, path: &str) -> StatusCode {
        self.call(http::Method::GET, path, None).await.0
    }

    async fn sequences(&self, path: &str) -> Vec<u64> {
        sequences(&self.get(path).await)
    }
}

fn sequences(listed: &Value) -> Vec<u64> {
    let events = listed["events"].as_array().expect("a list of events");
    events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn lists_by_page_and_filter_and_shows_one() {
    let server = TestServer::start(ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    for number in 1..=4 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let other = r#"{"action":"opened","repository":{"id":478599060,"full_name":"octo-harbor/anchor"}}"#;
    assert_eq!(sender.send("issues", "delivery-5", other).await.status(), StatusCode::CREATED);

    assert_eq!(operator.sequences("/v1/events").await, [5, 4, 3, 2, 1]);
    let first = operator.get("/v1/events?limit=2").await;
    assert_eq!((sequences(&first), first["next"].as_u64()), (vec![5, 4], Some(3)));
    assert_eq!(operator.sequences("/v1/events?limit=2&last=3").await, [3, 2]);
    assert_eq!(operator.sequences("/v1/events?order=oldest&limit=2&first=2").await, [2, 3]);
    assert_eq!(operator.sequences("/v1/events?repository=octo-harbor/anchor").await, [5]);
    assert_eq!(operator.sequences("/v1/events?event=push,issues.closed").await, [4, 3, 2, 1]);
    assert_eq!(operator.sequences("/v1/events?delivery=delivery-2").await, [2]);
    assert_eq!(operator.sequences("/v1/events?since=2020-01-01T00:00:00Z&fate=pending&limit=1").await, [5]);
    assert!(operator.sequences("/v1/events?fate=delivered").await.is_empty());
    for wrong in ["fate=lost", "limit=0", "limit=1001", "order=up", "client=a", "since=noon", "colour=red"] {
        assert_eq!(
            operator.refused(&format!("/v1/events?{wrong}")).await,
            StatusCode::BAD_REQUEST,
            "{wrong}"
        );
    }

    let shown = operator.get("/v1/events/5").await;
    assert_eq!(shown["body"], other);
    assert_eq!(shown["eventType"], "issues.opened");
    assert_eq!(shown["repositoryName"], "octo-harbor/anchor");
    let headers = shown["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-github-delivery", "delivery-5"])), "{headers:?}");
    assert_eq!(operator.refused("/v1/events/6").await, StatusCode::NOT_FOUND);
    for (path, expected) in [
        ("/v1/events/six", "sequence: \"six\" is not a whole number, or is too large"),
        ("/v1/events/six/body", "sequence: \"six\" is not a whole number, or is too large"),
        ("/v1/events?limit=99999999999", "\"99999999999\" is not a whole number, or is too large"),
        ("/v1/events?first=x", "\"x\" is not a whole number, or is too large"),
        ("/v1/events?since=noon", "since: \"noon\" is not a time such as 2026-01-31T12:00:00Z"),
    ] {
        let (status, problem) = operator.call(http::Method::GET, path, None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(problem["detail"].as_str().unwrap().ends_with(expected), "{path}: {problem}");
    }
}

#[tokio::test]
async fn a_large_body_is_not_embedded() {
    let server = TestServer::start(ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    let (limit, rest) = (1 << 20, payload("").len());
    for (sequence, bytes) in [(1, limit), (2, limit + 1)] {
        let body = payload(&"x".repeat(bytes - rest));
        let answer = sender.send("push", &format!("delivery-{sequence}"), &body).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let shown = operator.get(&format!("/v1/events/{sequence}")).await;
        assert_eq!(shown["bodyBytes"], bytes);
        let embedded = if bytes > limit { Value::Null } else { Value::String(body.clone()) };
        assert_eq!((&shown["body"], &shown["bodyBase64"]), (&embedded, &Value::Null), "{sequence}");
        let request = operator.http.get(format!("{}/v1/events/{sequence}/body", operator.url));
        let answer = soon(request.header("authorization", format!("Bearer {TOKEN}")).send()).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        assert_eq!(answer.bytes().await.unwrap(), body.as_bytes());
    }
    assert_eq!(operator.refused("/v1/events/3/body").await, StatusCode::NOT_FOUND);
    // What was shown has given its share back: as much as there is can be shown again.
    for _ in 0..4 {
        operator.get("/v1/events/1").await;
    }
}

#[tokio::test]
async fn follows_what_is_accepted_from_now_on() {
    let server = TestServer::start(ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    sender.push("delivery-1").await;
    let request = operator.http.get(format!("{}/v1/events/follow?event=push", operator.url));
    let mut following = request.header("authorization", format!("Bearer {TOKEN}")).send().await.unwrap();
    assert_eq!(following.headers()["content-type"], "text/event-stream");
    assert_eq!(sender.send("ping", "delivery-2", &payload("x")).await.status(), StatusCode::CREATED);
    sender.push("delivery-3").await;
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(&String::from_utf8_lossy(&soon(following.chunk()).await.unwrap().expect("a message")));
    }
    assert!(text.contains("id: 3\n") && text.contains(r#""deliveryId":"delivery-3""#), "{text}");
    assert!(!text.contains("delivery-1") && !text.contains("delivery-2"), "{text}");
    // It does not hold up the end.
    server.stop().await;
}

#[tokio::test]
async fn dead_letters_are_listed_and_redelivered_where_they_are_dead() {
    let server = TestServer::start(ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    let mut refusing = TestTarget::answering(|number| match number {
        1..=3 => axum::response::IntoResponse::into_response((StatusCode::NOT_FOUND, "no such job")),
        _ => axum::response::IntoResponse::into_response(StatusCode::OK),
    })
    .await;
    let mut other = TestTarget::start().await;
    let refused = TestClient::start(options(server.addresses.grpc, refusing.target()));
    let mut options = options(server.addresses.grpc, other.target());
    options.subscription.client_id = "other".parse().unwrap();
    let delivered = TestClient::start(options);
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let ids = ["delivery-1", "delivery-2", "delivery-3"];
    assert_eq!(refusing.next_ids(3).await, ids);
    assert_eq!(other.next_ids(3).await, ids);
    all_acknowledged(&*server.store).await;

    let dead = operator.get("/v1/dead-letters?order=oldest").await;
    assert_eq!(sequences(&dead), [1, 2, 3]);
    let reports = dead["events"][0]["reports"].as_array().unwrap();
    let report = reports.iter().find(|report| report["client"] == "test").unwrap();
    let target = refusing.address.to_string();
    assert_eq!(
        (&report["result"], &report["code"], &report["detail"]),
        (&json!("failed"), &json!(404), &json!("no such job"))
    );
    assert_eq!(report["target"], target);
    assert!(operator.sequences("/v1/dead-letters?target=elsewhere").await.is_empty());

    let ask = json!({"events": {"fate": "dead-letter", "target": target, "last": 2}});
    let redelivered = operator.post("/v1/events/redeliver", ask).await;
    assert_eq!(
        redelivered["redelivered"],
        json!([{"sequence": 1, "redeliveredAs": 4}, {"sequence": 2, "redeliveredAs": 5}])
    );
    assert_eq!(refusing.next_ids(2).await, ["delivery-1", "delivery-2"]);
    assert_eq!(operator.sequences("/v1/dead-letters").await, [3], "those two have their second try");
    let (_, again) = operator.call(http::Method::GET, "/v1/events/4", None).await;
    assert_eq!((&again["redelivery"], &again["address"]["client"]), (&json!(true), &json!("test")));

    sender.push("delivery-6").await;
    assert_eq!(other.next_ids(1).await, ["delivery-6"], "the other client has them already");
    assert_eq!(refusing.next_ids(1).await, ["delivery-6"]);
    refused.stop().await;
    delivered.stop().await;
}

#[tokio::test]
async fn one_event_or_a_range_is_delivered_again_to_all_or_to_one() {
    let server = TestServer::start(ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    for number in 1..=3 {
        sender.push(&format!("delivery-{number}")).await;
    }
    target.next_ids(3).await;
    operator.post("/v1/events/redeliver", json!({"sequence": 2})).await;
    let again = target.next().await;
    assert_eq!((again.delivery_id(), &*again.body), ("delivery-2", payload("delivery-2").as_bytes()));
    operator.post("/v1/events/redeliver", json!({"events": {"first": 1, "last": 3, "limit": 2}})).await;
    assert_eq!(target.next_ids(2).await, ["delivery-1", "delivery-2"]);
    operator.post("/v1/events/redeliver", json!({"sequence": 1, "toClient": "somebody-else"})).await;
    operator.post("/v1/events/redeliver", json!({"sequence": 3, "toClient": "test"})).await;
    assert_eq!(target.next_ids(1).await, ["delivery-3"]);

    let all = operator.call(http::Method::POST, "/v1/events/redeliver", Some(json!({}))).await;
    assert_eq!(all.0, StatusCode::BAD_REQUEST, "{}", all.1);
    for wrong in [json!({"sequence": 1, "toTarget": ""}), json!({"sequence": 1, "toTarget": "a\nb"})] {
        let refused = operator.call(http::Method::POST, "/v1/events/redeliver", Some(wrong)).await;
        assert_eq!(refused.0, StatusCode::BAD_REQUEST, "{}", refused.1);
    }
    let missing =
        operator.call(http::Method::POST, "/v1/events/redeliver", Some(json!({"sequence": 99}))).await;
    assert_eq!(missing.0, StatusCode::NOT_FOUND, "{}", missing.1);
    client.stop().await;
}

#[tokio::test]
async fn subscriptions_have_a_cursor_a_lag_and_a_stream() {
    let server = TestServer::start(ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(options(server.addresses.grpc, target.target()));
    client.subscribed().await;
    sender.push("delivery-1").await;
    target.next().await;
    all_acknowledged(&*server.store).await;
    let listed = operator.get("/v1/subscriptions").await;
    let subscription = &listed["subscriptions"][0];
    assert_eq!(
        (&subscription["clientId"], &subscription["cursor"], &subscription["lag"]),
        (&json!("test"), &json!(1), &json!(0))
    );
    let attached = &subscription["attached"];
    assert_eq!((&attached["sent"], &attached["unacknowledged"]), (&json!(1), &json!(0)));
    assert!(attached["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{attached}");

    client.stop().await;
    sender.push("delivery-2").await;
    sender.push("delivery-3").await;
    let detached = async {
        loop {
            let listed = operator.get("/v1/subscriptions").await;
            if listed["subscriptions"][0]["attached"].is_null() {
                return listed["subscriptions"][0]["lag"].clone();
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, detached).await.unwrap(), 2);
    let statistics = operator.get("/v1/statistics").await;
    assert_eq!((&statistics["events"], &statistics["writable"]), (&json!(3), &json!(true)));

    // The id of a client of the Go implementation has a slash.
    server.store.seek(&"old/octo-harbor/x".parse().unwrap(), Sequence::ZERO).await.unwrap();
    for client in ["test", "old/octo-harbor/x"] {
        let path = format!("/v1/subscriptions/{client}");
        let (status, answer) = operator.call(http::Method::DELETE, &path, None).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
        let (status, answer) = operator.call(http::Method::DELETE, &path, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
    }
    assert_eq!(operator.get("/v1/subscriptions").await, json!({"subscriptions": []}));
    let _stream = subscribe(&server, "test").await;
    let (status, answer) = operator.call(http::Method::DELETE, "/v1/subscriptions/test", None).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
}

#[tokio::test]
async fn the_watchlist_changes_at_run_time_and_stays_changed() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), ADMIN).await;
    let (operator, sender) = (Operator::of(&server), Sender::new(&server));
    let other = r#"{"repository":{"id":1,"full_name":"cat/hub"}}"#;
    assert_eq!(sender.send("push", "delivery-1", other).await.status(), StatusCode::NOT_ACCEPTABLE);
    operator.post("/v1/watchlist", json!({"pattern": "cat/hub"})).await;
    assert_eq!(sender.send("push", "delivery-1", other).await.status(), StatusCode::CREATED);
    let (status, changed) =
        operator.call(http::Method::DELETE, "/v1/watchlist", Some(json!({"pattern": "octo-harbor/*"}))).await;
    assert_eq!(status, StatusCode::OK);
    let expected = json!([
        {"pattern": "octo-harbor/*", "origin": "removed"},
        {"pattern": "cat/hub", "origin": "added"}
    ]);
    assert_eq!(changed["entries"], expected);
    assert_eq!(sender.send("push", "delivery-2", &payload("x")).await.status(), StatusCode::NOT_ACCEPTABLE);
    let wrong =
        operator.call(http::Method::POST, "/v1/watchlist", Some(json!({"pattern": "no slash"}))).await;
    assert_eq!(wrong.0, StatusCode::BAD_REQUEST);
    server.stop().await;

    let server = TestServer::start_in(folder.path(), ADMIN).await;
    assert_eq!(Operator::of(&server).get("/v1/watchlist").await["entries"], expected);
    let sender = Sender::new(&server);
    assert_eq!(sender.send("push", "delivery-2", &payload("x")).await.status(), StatusCode::NOT_ACCEPTABLE);
    assert_eq!(sender.send("push", "delivery-3", other).await.status(), StatusCode::CREATED);
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let server = TestServer::start(ADMIN).await;
    let mut operator = Operator::of(&server);
    let sender = Sender::new(&server);
    let mut target = TestTarget::start().await;
    let mut client = TestClient::start(options(server.addresses.grpc, target.target()));
    client.subscribed().await;
    sender.push("delivery-1").await;
    assert_eq!(sender.send("push", "delivery-2", "no JSON").await.status(), StatusCode::BAD_REQUEST);
    target.next().await;
    all_acknowledged(&*server.store).await;
    operator.token = None; // a scraper has none
    let Value::String(text) = operator.get("/metrics").await else { panic!("no text") };
    for line in [
        "gitstafette_webhooks_total{status=\"201\"} 1",
        "gitstafette_webhooks_total{status=\"400\"} 1",
        "gitstafette_webhook_duration_seconds_count 2",
        "gitstafette_events_sent_total 1",
        "gitstafette_outcomes_total{result=\"delivered\"} 1",
        "gitstafette_subscriptions_attached 1",
        "gitstafette_subscription_lag_events{client_id=\"test\"} 0",
        "gitstafette_store_events 1",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
    client.stop().await;
}

#[tokio::test]
async fn only_operators_are_served() {
    let with_operators = format!("{ADMIN}admin-token = \"{OPERATOR}\"\n");
    let server = TestServer::start(&with_operators).await;
    let mut operator = Operator::of(&server);
    for (token, expected) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("wrong"), StatusCode::UNAUTHORIZED),
        (Some(TOKEN), StatusCode::FORBIDDEN),
        (Some(OPERATOR), StatusCode::OK),
    ] {
        operator.token = token;
        assert_eq!(operator.refused("/v1/events").await, expected, "{token:?}");
    }
    // An operator may do what clients may.
    let mut target = TestTarget::start().await;
    let mut as_operator = options(server.addresses.grpc, target.target());
    as_operator.server.token = Some(Secret::new(OPERATOR));
    let client = TestClient::start(as_operator);
    Sender::new(&server).push("delivery-1").await;
    target.next().await;
    client.stop().await;
}

#[tokio::test]
async fn without_tokens_no_web_page_gets_through() {
    let config = "repositories = [\"*\"]\nport = 0\ngrpc-port = 0\ngrpc-health-port = 0\nadmin-port = 0\n";
    let config = gitstafette_server::config::Config::from_toml(config).unwrap();
    let store = std::sync::Arc::new(gitstafette_core::store::MemoryStore::new(config.store_options));
    let server = TestServer::run(config, store).await;
    let operator = Operator { token: None, ..Operator::of(&server) };
    assert_eq!(operator.refused("/v1/events").await, StatusCode::OK);
    for (name, value) in [("host", "rebound.example"), ("origin", "https://rebound.example")] {
        let request = operator.http.get(format!("{}/v1/events", operator.url)).header(name, value);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN, "{name}");
    }
}

#[tokio::test]
async fn a_client_is_told_what_retention_took_from_it() {
    let server = TestServer::start(&format!("{ADMIN}retention-count = 3\n")).await;
    let sender = Sender::new(&server);
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    sender.push("delivery-1").await;
    target.next().await;
    all_acknowledged(&*server.store).await;
    client.stop().await;
    for number in 2..=10 {
        sender.push(&format!("delivery-{number}")).await;
    }
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    assert_eq!(target.next_ids(3).await, ["delivery-8", "delivery-9", "delivery-10"]);
    all_acknowledged(&*server.store).await;
    assert_eq!(server.store.statistics().await.unwrap().first, Sequence::new(8));
    let mut operator = Operator::of(&server);
    let listed = operator.get("/v1/subscriptions").await;
    assert_eq!(listed["subscriptions"][0]["attached"]["missed"], 6, "2 to 7");
    operator.token = None;
    let Value::String(text) = operator.get("/metrics").await else { panic!("no text") };
    assert!(text.contains("gitstafette_events_missed_total 6\n"), "{text}");
    client.stop().await;
}
