//! `events show`.

use super::*;

#[tokio::test]
async fn shows_one_and_writes_its_body_as_it_was_sent() {
    let server = TestServer::start("").await;
    let body = payload("\u{202e}\u{9b}2J ü");
    let answer = Sender::new(&server).send("push", "delivery-1", &body).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let operator = Operator::of(&server);
    assert_eq!(operator.prints("events show 1 --body").await.bytes(), body.as_bytes());

    let text = operator.prints("events show 1").await.text();
    assert!(text.contains("\nx-github-delivery: delivery-1\n"), "{text}");
    assert!(text.contains("\\u{202e}\\u{9b}2J ü") && !text.contains('\u{9b}'), "{text}");
    assert!(
        text.contains("── from github, hook 4711 · received 2") && text.contains("\npending: "),
        "{text}"
    );

    let json = operator.prints("events show 1 --json").await;
    assert!(!json.text().contains(['\u{9b}', '\u{202e}']));
    assert_eq!(json.json()[0]["body"], body);
    assert_eq!(json.json()[0]["deliveryId"], "delivery-1");

    let missing = operator.run("events show 2").await.result.unwrap_err();
    assert!(missing.to_string().starts_with("there is no event 2 in the store"), "{missing}");
    assert_eq!(missing.exit_code(), 1);
}

#[tokio::test]
async fn a_large_body_is_shown_alone() {
    let server = TestServer::start("").await;
    let body = payload(&"x".repeat(3 << 20));
    let answer = Sender::new(&server).send("push", "delivery-1", &body).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let operator = Operator::of(&server);
    let text = operator.prints("events show 1").await.text();
    assert!(text.contains(&format!("it has {} bytes", body.len())), "{text}");
    assert!(text.contains("events show 1 --body > event-1"), "{text}");
    let json = &operator.prints("events show 1 --json").await.json()[0];
    assert_eq!((&json["body"], &json["bodyBytes"]), (&Value::Null, &body.len().into()));
    assert!(json["size"].as_u64().unwrap() > body.len() as u64, "{}", json["size"]);
    assert_eq!(operator.prints("events show 1 --body").await.bytes(), body.as_bytes());
}
