use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn headers(fields: &[(&str, &str)]) -> Headers {
    fields.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect()
}

fn usual(content_type: &str) -> Headers {
    headers(&[
        ("Content-Type", content_type),
        ("X-GitHub-Event", "push"),
        ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("X-GitHub-Hook-ID", "292430182"),
    ])
}

fn read(headers: Headers, body: impl Into<Bytes>) -> Result<Webhook, ClassifyError> {
    github(Unverified { headers, body: body.into() }.waive(), Timestamp::from_millis(1))
}

fn json(body: &'static str) -> Result<Facts, ClassifyError> {
    read(usual("application/json"), body).map(|webhook| webhook.facts)
}

#[test]
fn a_push() {
    let facts =
        json(r#"{"ref":"refs/heads/main","repository":{"id":7,"full_name":"octo/hello","owner":{"login":"octo"}}}"#)
            .unwrap();
    assert_eq!(facts.event_type.to_string(), "push");
    assert_eq!(facts.delivery_id.as_str(), "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    assert_eq!(facts.hook_id.unwrap().as_str(), "292430182");
    assert_eq!(facts.repository_id, Some(RepositoryId(7)));
    assert_eq!(facts.repository_name.unwrap().as_str(), "octo/hello");
    assert_eq!(facts.owner.as_deref(), Some("octo"));
}

#[test]
fn what_a_relayed_webhook_lacks_is_taken_from_hearsay() {
    let hearsay =
        Hearsay { delivery_id: Some("told".parse().unwrap()), repository_id: Some(RepositoryId(8)) };
    let relayed = |headers: &Headers, body: &'static str, hearsay: &Hearsay| {
        let request = Unverified { headers: headers.clone(), body: body.into() }.waive();
        relayed(request, hearsay, Timestamp::from_millis(1))
    };
    let bare = Headers::new();
    let webhook = relayed(&bare, r#"{"action":"opened"}"#, &hearsay).unwrap();
    assert_eq!(webhook.facts.delivery_id.as_str(), "told");
    assert_eq!(webhook.facts.event_type.to_string(), "unknown.opened");
    assert_eq!(webhook.facts.repository_id, Some(RepositoryId(8)));
    assert_eq!(webhook.headers, bare, "they stay as sent");

    let whole = usual("application/json");
    let facts = relayed(&whole, r#"{"repository":{"id":7}}"#, &hearsay).unwrap().facts;
    assert_eq!(facts.delivery_id.as_str(), "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    assert_eq!((&*facts.event_type.name, facts.repository_id), ("push", Some(RepositoryId(7))));
    let named = relayed(&whole, r#"{"repository":{"full_name":"octo/hello"}}"#, &hearsay).unwrap().facts;
    assert_eq!(named.repository_id, None, "the payload names another repository, for all we know");

    let missing = Err(ClassifyError::Header(HeaderError::Missing(DELIVERY)));
    assert_eq!(relayed(&bare, "{}", &Hearsay::default()).map(drop), missing);
    for (name, value) in [("content-type", "text/plain"), (EVENT, "a b"), (DELIVERY, "")] {
        let wrong = relayed(&headers(&[(name, value)]), "{}", &hearsay);
        assert!(wrong.is_err(), "{name}: what is there must be right");
    }
}

#[test]
fn a_form_is_its_payload_and_keeps_its_bytes() {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", r#"{"action":"opened","repository":{"id":7,"full_name":"octo/ö"}}"#)
        .finish();
    let webhook = read(usual("Application/X-WWW-Form-Urlencoded; charset=utf-8"), body.clone()).unwrap();
    assert_eq!(webhook.facts.event_type.to_string(), "push.opened");
    assert_eq!(webhook.facts.repository_name.unwrap().as_str(), "octo/ö");
    assert_eq!(webhook.body, body);
}

#[test]
fn events_without_a_repository_belong_to_their_owner() {
    let organisation = json(r#"{"action":"member_added","organization":{"login":"octo"}}"#).unwrap();
    assert_eq!((organisation.repository_id, organisation.owner.as_deref()), (None, Some("octo")));
    let installation =
        json(r#"{"action":"created","installation":{"id":5,"account":{"login":"octo"}}}"#).unwrap();
    assert_eq!((installation.installation_id, installation.owner.as_deref()), (Some(5), Some("octo")));
    let nobody = json(r#"{"action":"published","security_advisory":{}}"#).unwrap();
    assert_eq!((nobody.owner, nobody.repository_name), (None, None));
    let nulls = json(r#"{"action":null,"repository":null,"organization":null,"installation":null}"#).unwrap();
    assert_eq!((nulls.event_type.action, nulls.owner), (None, None));
}

#[test]
fn what_could_steer_a_terminal_is_not_taken_over() {
    let facts =
        json(r#"{"action":"x\n2026 INFO forged","organization":{"login":"octo\u001b[31m"}}"#).unwrap();
    assert_eq!((facts.event_type.action, facts.owner), (None, None));
    let dispatch = json(r#"{"action":"deploy to production"}"#).unwrap();
    assert_eq!(dispatch.event_type.action.as_deref(), Some("deploy to production"));
    let name = json(r#"{"repository":{"full_name":"octo/he\u202ello"}}"#);
    assert_eq!(name.unwrap_err(), ClassifyError::RepositoryName);
}

#[test]
fn headers_that_must_be_there() {
    for missing in ["X-GitHub-Event", "X-GitHub-Delivery"] {
        let without = usual("application/json")
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case(missing))
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect();
        let error = read(without, "{}").unwrap_err();
        assert!(matches!(error, ClassifyError::Header(HeaderError::Missing(_))), "{error}");
    }
    let mut without_hook = headers(&[("content-type", "application/json"), ("x-github-event", "ping")]);
    without_hook.append("x-github-delivery", "1");
    assert_eq!(read(without_hook, "{}").unwrap().facts.hook_id, None);
}

#[test]
fn headers_that_are_no_identifiers() {
    for (name, value) in
        [("X-GitHub-Event", "pu sh"), ("X-GitHub-Delivery", "a b"), ("X-GitHub-Hook-ID", "ü")]
    {
        let replaced = usual("application/json")
            .iter()
            .map(|(old, bytes)| {
                let bytes = if old.eq_ignore_ascii_case(name) { value.as_bytes() } else { bytes };
                (old.to_owned(), bytes.to_vec())
            })
            .collect();
        assert!(read(replaced, "{}").is_err(), "{name}");
    }
    let mut latin1 = usual("application/json");
    latin1.append("X-Anything", &b"caf\xe9"[..]);
    assert_eq!(read(latin1, "{}").unwrap_err(), ClassifyError::HeaderNotText("x-anything".into()));
}

#[test]
fn content_types() {
    for wrong in ["text/plain", "application/jsonx", "", "multipart/form-data"] {
        assert_eq!(read(usual(wrong), "{}").unwrap_err(), ClassifyError::ContentType, "{wrong:?}");
    }
    assert!(read(usual("application/json; charset=utf-8"), "{}").is_ok());
}

#[test]
fn bodies_that_are_not_what_they_say() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let bodies: [&[u8]; 12] = [
        b"",
        b"[]",
        b"null",
        b"\"text\"",
        b"{",
        b"{}x",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\\ud800\"}",
        b"{\"repository\":{\"id\":\"7\"}}",
        b"{\"repository\":{},\"repository\":{}}",
        b"{\"repository\":[1]}",
        deep.as_bytes(),
    ];
    for body in bodies {
        let error = read(usual("application/json"), body.to_vec()).unwrap_err();
        assert!(matches!(error, ClassifyError::Json(_)), "{}: {error}", String::from_utf8_lossy(body));
    }
    for list in [
        r#"{"repository":[7,"octo/hello"]}"#,
        r#"{"organization":["octo"]}"#,
        r#"{"installation":[5,{"login":"octo"}]}"#,
        r#"{"installation":{"account":["octo"]}}"#,
    ] {
        assert!(matches!(json(list).unwrap_err(), ClassifyError::Json(_)), "an array for an object: {list}");
    }
    assert_eq!(json(r#"{"repository":{"full_name":"hello"}}"#).unwrap_err(), ClassifyError::RepositoryName);
    for form in ["", "x=1", "payload={}&payload={}"] {
        let error = read(usual("application/x-www-form-urlencoded"), form).unwrap_err();
        assert_eq!(error, ClassifyError::Form, "{form:?}");
    }
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300), form in any::<bool>()) {
        let content_type = if form { "application/x-www-form-urlencoded" } else { "application/json" };
        drop(read(usual(content_type), body));
    }

    #[test]
    fn what_is_read_keeps_every_byte(name in "[a-z]{1,9}/[a-z]{1,9}", extra in "\\PC{0,40}") {
        let payload = serde_json::json!({"repository": {"id": 1, "full_name": name}, "extra": extra}).to_string();
        let webhook = read(usual("application/json"), payload.clone()).unwrap();
        prop_assert_eq!(webhook.body, payload);
        let read_name = webhook.facts.repository_name.unwrap();
        prop_assert_eq!(read_name.as_str(), name);
    }
}
