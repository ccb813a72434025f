//! A correctly signed webhook is never refused because of its content: GitHub does not send it again.

use std::sync::Arc;

use gitstafette_core::secret::Secret;
use gitstafette_core::testing::{Format, Request};
use gitstafette_core::verify::GitHubSignature;
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use crate::support::{
    SECRET, Sender, TOKEN, TestClient, TestServer, TestTarget, hook, http_client, options, soon,
};

const PUBLIC: &str = r#""repository":{"id":537845873,"full_name":"octo-harbor/lighthouse"}"#;

/// A signed webhook with this body.
fn signed(event: &str, delivery_id: &str, content_type: &str, body: &[u8]) -> Request {
    let mut request = hook(Format::Json).request(event, delivery_id, "");
    request.headers.retain(|(name, _)| !matches!(*name, "Content-Type" | "X-Hub-Signature-256"));
    request.headers.push(("Content-Type", content_type.to_owned()));
    request.headers.push(("X-Hub-Signature-256", GitHubSignature::sign(&Secret::new(SECRET), body)));
    request.body = body.to_vec().into();
    request
}

/// Payloads that a JSON parser refuses, or whose metadata has another type than GitHub's.
fn odd_payloads() -> Vec<Vec<u8>> {
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let odd_values: [&[u8]; 9] = [
        b"\"\\ud800\"",
        b"1e999",
        b"\"caf\xe9\"",
        b"\"\x01\n\"",
        b"\"\xed\xa0\x80\"",
        b"123456789012345678901234567890",
        b"{\"a\":1,\"a\":2}",
        b"nonsense",
        nested.as_bytes(),
    ];
    let members = odd_values.map(|value| [b"\"odd\":", value].concat());
    let odd_members = [
        "\"action\":7",
        "\"organization\":\"octo\"",
        "\"installation\":\"5\"",
        "\"installation\":{\"id\":-5}",
        "\"repository\":{\"id\":\"7\"}",
        "\"repository\":[1]",
        "\"action\":\"a\",\"action\":\"b\"",
    ];
    let members = members.into_iter().chain(odd_members.map(|member| member.as_bytes().to_vec()));
    let mut payloads: Vec<_> =
        members.map(|member| [b"{", &*member, b",", PUBLIC.as_bytes(), b"}"].concat()).collect();
    payloads.push(format!("\u{feff} {{{PUBLIC}}}").into());
    payloads.push(format!("{{{PUBLIC},\"cut\":\"of").into());
    payloads.push(format!("{{{PUBLIC}}} {{}}").into());
    payloads
}

#[tokio::test]
async fn odd_payloads_reach_the_target_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), "").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let sender = Sender::new(&server);
    for (number, payload) in odd_payloads().iter().enumerate() {
        let form =
            format!("payload={}", payload.iter().map(|byte| format!("%{byte:02x}")).collect::<String>());
        for (content_type, body) in
            [("application/json", &payload[..]), ("application/x-www-form-urlencoded", form.as_bytes())]
        {
            let request = signed("push", &format!("{number}-{content_type}"), content_type, body);
            let about = String::from_utf8_lossy(&body[..body.len().min(60)]);
            let answer = sender.request(&request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::CREATED, "{about}");
            assert!(target.next().await.body == body, "{about}");
        }
    }
    client.stop().await;
}

#[tokio::test]
async fn every_json_media_type_is_accepted() {
    let server = TestServer::start("").await;
    for content_type in [
        "application/vnd.github+json",
        "application/vnd.github.v3+json; charset=utf-8",
        "text/json",
        "APPLICATION/JSON;charset=utf-8",
        "application/cloudevents+json",
    ] {
        let request = signed("push", content_type, content_type, format!("{{{PUBLIC}}}").as_bytes());
        let answer = Sender::new(&server).request(&request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED, "{content_type}");
    }
}

#[tokio::test]
async fn an_encoded_body_is_refused_with_the_name_of_the_header() {
    let server = TestServer::start("").await;
    let mut request = signed("push", "1", "application/json", b"\x1f\x8b\x08\x00");
    request.headers.push(("Content-Encoding", "gzip".to_owned()));
    let answer = Sender::new(&server).request(&request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("Content-Encoding"), "{problem}");
    assert_eq!(server.events().await, 0);
}

/// The admin interface's JSON at this path.
async fn admin_json(server: &TestServer, path: &str) -> Value {
    let url = format!("http://{}{path}", server.addresses.admin.unwrap());
    let answer = http_client().get(url).bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn odd_headers_reach_the_target_byte_for_byte_and_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(folder.path(), "admin-port = 0\n").await;
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(server.addresses.grpc, target.target()));
    let odd_values = [b"caf\xe9".as_slice(), b"\xff\xfe", "ö \u{202e}".as_bytes(), b"a\tb"];
    let request =
        signed("odd event!", "delivery 1 é", "application/json", format!("{{{PUBLIC}}}").as_bytes());
    let mut builder = http_client().post(server.url("/v1/github/")).body(request.body.clone());
    for (name, value) in &request.headers {
        builder = builder.header(*name, value);
    }
    for value in odd_values {
        builder = builder.header("X-Odd", HeaderValue::from_bytes(value).unwrap());
    }
    let answer = builder.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.text().await.unwrap(), r#"{"sequence":1,"deliveryId":"delivery 1 é"}"#);

    let arrived = target.next().await;
    let values: Vec<_> = arrived.headers.get_all("x-odd").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(values, odd_values);
    assert_eq!(arrived.headers["x-github-event"], "odd event!");
    assert_eq!(arrived.headers["x-github-delivery"].as_bytes(), "delivery 1 é".as_bytes());

    let listed = admin_json(&server, "/v1/events/1").await;
    assert_eq!(listed["eventType"], "odd event!", "{listed}");
    assert_eq!(listed["deliveryId"], "delivery 1 é", "{listed}");
    let headers = listed["headers"].as_array().unwrap();
    let odd: Vec<_> = headers.iter().filter(|header| header[0] == "x-odd").map(|header| &header[1]).collect();
    assert_eq!(
        odd,
        ["caf\u{fffd}", "\u{fffd}\u{fffd}", "ö \u{202e}", "a\tb"],
        "bytes that are not UTF-8 are replaced"
    );
    client.stop().await;
}

#[tokio::test]
async fn a_repository_whose_name_cannot_be_read_is_known_by_id_and_owner() {
    let payload =
        br#"{"repository":{"id":7,"full_name":"octo-harbor/light house","owner":{"login":"octo-harbor"}}}"#;
    for (watchlist, status) in [
        ("octo-harbor/*", StatusCode::CREATED),
        ("7", StatusCode::CREATED),
        ("*", StatusCode::CREATED),
        ("8", StatusCode::NOT_ACCEPTABLE),
        ("octo-harbor/light", StatusCode::NOT_ACCEPTABLE),
    ] {
        let server = watching(watchlist).await;
        let request = signed("push", "1", "application/json", payload);
        let answer = Sender::new(&server).request(&request).await.unwrap();
        assert_eq!(answer.status(), status, "{watchlist}");
    }
}

/// A server with this watchlist.
async fn watching(watchlist: &str) -> TestServer {
    let settings = crate::support::settings("").replace("octo-harbor/*", watchlist);
    let config = gitstafette_server::config::Config::from_toml(&settings).unwrap();
    let store = Arc::new(gitstafette_core::store::MemoryStore::new(config.store_options));
    soon(TestServer::run(config, store)).await
}

#[tokio::test]
async fn events_without_a_repository_belong_to_the_account_that_they_name() {
    let server = TestServer::start("").await;
    let sender = Sender::new(&server);
    for (event, payload) in [
        ("organization", r#"{"organization":{"login":"octo-harbor"}}"#),
        ("installation", r#"{"installation":{"id":5,"account":{"login":"octo-harbor"}}}"#),
        ("custom_property", r#"{"enterprise":{"slug":"octo-harbor"}}"#),
        (
            "sponsorship",
            r#"{"sponsorship":{"sponsorable":{"login":"octo-harbor"},"sponsor":{"login":"cat"}}}"#,
        ),
        ("marketplace_purchase", r#"{"marketplace_purchase":{"account":{"login":"octo-harbor"}}}"#),
        ("installation_target", r#"{"account":{"login":"octo-harbor"},"installation":{"id":5}}"#),
        ("ping", r#"{"zen":"x","organization":{"login":"octo-harbor"}}"#),
    ] {
        let request = signed(event, event, "application/json", payload.as_bytes());
        assert_eq!(sender.request(&request).await.unwrap().status(), StatusCode::CREATED, "{event}");
    }
    let other =
        signed("sponsorship", "1", "application/json", br#"{"sponsorship":{"sponsorable":{"login":"cat"}}}"#);
    assert_eq!(sender.request(&other).await.unwrap().status(), StatusCode::NOT_ACCEPTABLE);
    let nobody = signed("security_advisory", "2", "application/json", br#"{"action":"published"}"#);
    assert_eq!(sender.request(&nobody).await.unwrap().status(), StatusCode::NOT_ACCEPTABLE);

    let everything = watching("*").await;
    assert_eq!(Sender::new(&everything).request(&nobody).await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_signed_ping_that_names_no_account_is_answered_and_not_stored() {
    for watchlist in ["octo-harbor/*", "*"] {
        let server = watching(watchlist).await;
        let sender = Sender::new(&server);
        let ping = signed("ping", "1", "application/json", br#"{"zen":"Design for failure.","hook_id":7}"#);
        let answer = sender.request(&ping).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{watchlist}");
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        assert!(answer.text().await.unwrap().starts_with("ping received"));
        let mut unsigned = ping.clone();
        unsigned.headers.retain(|(name, _)| *name != "X-Hub-Signature-256");
        assert_eq!(sender.request(&unsigned).await.unwrap().status(), StatusCode::UNAUTHORIZED);
        assert_eq!(server.events().await, 0, "{watchlist}");
    }
}
