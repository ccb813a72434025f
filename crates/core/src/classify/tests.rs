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

fn read(headers: Headers, body: impl AsRef<[u8]>) -> Result<Webhook, ClassifyError> {
    let body = Bytes::copy_from_slice(body.as_ref());
    github(Unverified { headers, body }.waive(), Timestamp::from_millis(1))
}

fn json(body: &'static str) -> Facts {
    read(usual("application/json"), body).unwrap().facts
}

#[test]
fn a_push() {
    let facts = json(
        r#"{"ref":"refs/heads/main","repository":{"id":7,"full_name":"octo/hello","owner":{"login":"octo"}}}"#,
    );
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

    let unreadable =
        relayed(&whole, r#"{"repository":{"full_name":"octo/he llo"}}"#, &hearsay).unwrap().facts;
    assert_eq!((unreadable.repository_name, unreadable.repository_id), (None, None), "likewise");

    let missing = Err(ClassifyError::Header(HeaderError::Missing(DELIVERY)));
    assert_eq!(relayed(&bare, "{}", &Hearsay::default()).map(drop), missing);
    let empty = relayed(&headers(&[(DELIVERY, "")]), "{}", &hearsay).unwrap();
    assert_eq!(empty.facts.delivery_id.as_str(), "told", "an id that cannot be read counts as absent");
    let wrong = relayed(&headers(&[("content-type", "text/plain")]), "{}", &hearsay);
    assert_eq!(wrong.unwrap_err(), ClassifyError::ContentType);
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
fn events_without_a_repository_belong_to_the_account_that_they_name() {
    for payload in [
        r#"{"organization":{"login":"octo"}}"#,
        r#"{"installation":{"id":5,"account":{"login":"octo"}}}"#,
        r#"{"installation":{"id":5,"account":{"slug":"octo","name":"Octo Inc."}}}"#,
        r#"{"enterprise":{"slug":"octo","name":"Octo Inc."}}"#,
        r#"{"sponsorship":{"node_id":"x","sponsorable":{"login":"octo"},"sponsor":{"login":"cat"}}}"#,
        r#"{"marketplace_purchase":{"account":{"type":"User","login":"octo"}}}"#,
        r#"{"account":{"login":"octo"},"installation":{"id":5},"target_type":"User"}"#,
        r#"{"organization":{"login":"octo"},"enterprise":{"slug":"octo-enterprise"}}"#,
        r#"{"organization":"other","installation":{"account":{"login":"octo\n"}},"enterprise":{"slug":"octo"}}"#,
    ] {
        let facts = json(payload);
        assert_eq!((facts.owner.as_deref(), facts.repository_name), (Some("octo"), None), "{payload}");
    }
    assert_eq!(json(r#"{"installation":{"id":5,"account":{"login":"octo"}}}"#).installation_id, Some(5));
    for payload in [
        r#"{"action":"published","security_advisory":{},"sender":{"login":"octo"}}"#,
        r#"{"action":null,"repository":null,"organization":null,"installation":null,"enterprise":null}"#,
        r#"{"sponsorship":{"sponsor":{"login":"octo"}},"marketplace_purchase":{"login":"octo"}}"#,
    ] {
        let facts = json(payload);
        assert_eq!((facts.owner, facts.repository_name), (None, None), "{payload}");
    }
}

#[test]
fn control_characters_and_bidirectional_controls_do_not_reach_logs() {
    let facts = json(r#"{"action":"x\n2026 INFO forged","organization":{"login":"octo\u001b[31m"}}"#);
    assert_eq!((facts.event_type.action, facts.owner), (None, None));
    let dispatch = json(r#"{"action":"deploy to production"}"#);
    assert_eq!(dispatch.event_type.action.as_deref(), Some("deploy to production"));
    let facts = json(r#"{"repository":{"id":7,"full_name":"octo/he\u202ello"}}"#);
    assert_eq!((facts.repository_name, facts.repository_id), (None, Some(RepositoryId(7))));
}

#[test]
fn a_repository_name_that_cannot_be_read_leaves_its_id_and_its_owner() {
    let long = format!("octo/{}", "x".repeat(600));
    for name in ["hello", "octo/he llo", "octo/*", "octo/a,b", "/hello", "", &long] {
        let payload = format!(
            r#"{{"repository":{{"id":7,"full_name":"{name}","owner":{{"login":"octo"}}}},"organization":{{"login":"other"}}}}"#
        );
        let facts = read(usual("application/json"), payload).unwrap().facts;
        assert_eq!(
            (facts.repository_name, facts.repository_id, facts.owner.as_deref()),
            (None, Some(RepositoryId(7)), Some("octo")),
            "{name:?}"
        );
    }
    for (name, owner) in
        [("octo/he llo", Some("octo")), ("octo/*", Some("octo")), ("/hello", None), ("hello", None)]
    {
        let payload = format!(r#"{{"repository":{{"full_name":"{name}"}}}}"#);
        let facts = read(usual("application/json"), payload).unwrap().facts;
        assert_eq!((facts.repository_name, facts.owner.as_deref()), (None, owner), "{name:?}");
    }
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

fn replaced(name: &str, value: &[u8]) -> Headers {
    let keep = |old: &str| !old.eq_ignore_ascii_case(name);
    let others = usual("application/json");
    let others =
        others.iter().filter(|(old, _)| keep(old)).map(|(old, value)| (old.to_owned(), value.to_vec()));
    others.chain([(name.to_owned(), value.to_vec())]).collect()
}

#[test]
fn unusual_header_values() {
    let facts = |name: &str, value: &[u8]| read(replaced(name, value), "{}").unwrap().facts;
    let long = "x".repeat(256);
    for name in ["pu sh", "push!", "é", "a.b", &long] {
        assert_eq!(&*facts(EVENT, name.as_bytes()).event_type.name, name);
        assert_eq!(facts(DELIVERY, name.as_bytes()).delivery_id.as_str(), name);
    }
    for unreadable in [&b"pu\xffsh"[..], "a\u{202e}b".as_bytes(), "x".repeat(257).as_bytes()] {
        assert_eq!(&*facts(EVENT, unreadable).event_type.name, "unknown");
        assert!(matches!(
            read(replaced(DELIVERY, unreadable), "{}"),
            Err(ClassifyError::Identifier { .. } | ClassifyError::Header(HeaderError::NotText(_)))
        ));
    }
    for unreadable in ["ü", "1 2", "", &"1".repeat(129)] {
        assert_eq!(facts(HOOK_ID, unreadable.as_bytes()).hook_id, None, "{unreadable:?}");
    }
    let mut twice = usual("application/json");
    twice.append(HOOK_ID, "2");
    assert_eq!(read(twice, "{}").unwrap().facts.hook_id, None);

    let mut latin1 = usual("application/json");
    latin1.append("X-Anything", &b"caf\xe9"[..]);
    assert_eq!(read(latin1.clone(), "{}").unwrap().headers, latin1);
}

#[test]
fn content_types() {
    for wrong in
        ["text/plain", "application/jsonx", "", "multipart/form-data", "json", "+json", "application/json+x"]
    {
        assert_eq!(read(usual(wrong), "{}").unwrap_err(), ClassifyError::ContentType, "{wrong:?}");
    }
    for right in [
        "application/json; charset=utf-8",
        "Application/JSON ;charset=\"UTF-8\"",
        "text/json",
        "application/vnd.github+json",
        "application/vnd.github.v3+json; charset=utf-8",
        "application/cloudevents+JSON",
    ] {
        assert!(read(usual(right), "{}").is_ok(), "{right:?}");
    }
    let odd_parameter = replaced(CONTENT_TYPE, b"application/json; x=\xff");
    assert!(read(odd_parameter, "{}").is_ok());
    let mut twice = usual("application/json");
    twice.append(CONTENT_TYPE, "text/json");
    assert!(read(twice.clone(), "{}").is_ok(), "both are JSON");
    twice.append(CONTENT_TYPE, "application/x-www-form-urlencoded");
    assert_eq!(read(twice, "{}").unwrap_err(), ClassifyError::ContentType);
}

#[test]
fn content_encodings() {
    for wrong in ["gzip", "deflate, identity", "x"] {
        let mut headers = usual("application/json");
        headers.append("Content-Encoding", wrong);
        assert_eq!(read(headers, "{}").unwrap_err(), ClassifyError::ContentEncoding, "{wrong:?}");
    }
    for none in ["identity", "Identity", ""] {
        let mut headers = usual("application/json");
        headers.append("Content-Encoding", none);
        assert!(read(headers, "{}").is_ok(), "{none:?}");
    }
}

#[test]
fn bodies_that_are_no_objects() {
    for body in ["", "[]", "null", "\"text\"", "7", "x", " \n", "\u{feff}", "\u{feff}[{}]", "payload={}"] {
        let error = read(usual("application/json"), body).unwrap_err();
        assert_eq!(error, ClassifyError::NotAnObject, "{body:?}");
    }
    for form in ["", "x=1", "payload={}&payload={}"] {
        let error = read(usual("application/x-www-form-urlencoded"), form).unwrap_err();
        assert_eq!(error, ClassifyError::Form, "{form:?}");
    }
    let error = read(usual("application/x-www-form-urlencoded"), "payload=[]").unwrap_err();
    assert_eq!(error, ClassifyError::NotAnObject);
}

/// `{"before":…,"repository":{…}}` with a value that no JSON parser takes in the middle.
fn around(odd: &[u8]) -> Vec<u8> {
    [
        &br#"{"action":"opened","odd":"#[..],
        odd,
        br#","repository":{"odd":"#,
        odd,
        br#","id":7,"full_name":"octo/hello"},"installation":{"id":5}}"#,
    ]
    .concat()
}

#[test]
fn values_that_no_parser_takes_disturb_no_other_field() {
    let deep = format!("{}{}", "[{\"a\":".repeat(50_000), "}]".repeat(50_000));
    let odd: [&[u8]; 13] = [
        b"\"\\ud800\"",
        b"\"\\udc00\\ud800\"",
        b"\"\\x\\u00\"",
        b"\"\xff\xc0\x80\"",
        b"\"\x00\n\x1f\"",
        b"\"\\\"}]{[\\\\\"",
        b"1e999",
        b"-",
        b"NaN",
        b"",
        b"[1 2,{]}",
        b"\"a\"\"b\"",
        deep.as_bytes(),
    ];
    for odd in odd {
        for format in ["application/json", "application/x-www-form-urlencoded"] {
            let body = match format {
                "application/json" => around(odd),
                _ => format!("payload={}", form_urlencoded::byte_serialize(&around(odd)).collect::<String>())
                    .into(),
            };
            let facts = read(usual(format), body).unwrap().facts;
            let about = String::from_utf8_lossy(&odd[..odd.len().min(20)]);
            assert_eq!(facts.event_type.to_string(), "push.opened", "{about}");
            assert_eq!(facts.repository_id, Some(RepositoryId(7)), "{about}");
            assert_eq!(facts.repository_name.unwrap().as_str(), "octo/hello", "{about}");
            assert_eq!(facts.installation_id, Some(5), "{about}");
        }
    }
}

#[test]
fn metadata_of_another_type_counts_as_absent() {
    for odd in
        ["7", "-7", "7.0", "7e0", "\"octo\"", "[]", "[7,\"octo/hello\"]", "{}", "true", "\"\\ud800\"", "007"]
    {
        let facts = read(
            usual("application/json"),
            format!(
                r#"{{"organization":{odd},"installation":{{"id":[{odd}],"account":{odd}}},"repository":{odd},"enterprise":{odd}}}"#
            ),
        )
        .unwrap()
        .facts;
        assert_eq!((facts.owner, facts.installation_id, facts.repository_id), (None, None, None), "{odd}");
        let action = read(usual("application/json"), format!(r#"{{"action":[{odd}]}}"#)).unwrap().facts;
        assert_eq!(action.event_type.action, None, "{odd}");
    }
    for id in
        ["-7", "7.0", "7e0", "\"7\"", "18446744073709551616", "[7]", "{\"id\":7}", "null", "07", "+7", "-0"]
    {
        let facts =
            read(usual("application/json"), format!(r#"{{"repository":{{"id":{id}}}}}"#)).unwrap().facts;
        assert_eq!(facts.repository_id, None, "{id}");
    }
    assert_eq!(
        json(r#"{"repository":{"id":18446744073709551615}}"#).repository_id,
        Some(RepositoryId(u64::MAX))
    );
}

#[test]
fn the_last_of_equal_keys_counts() {
    let facts = json(
        r#"{"action":"a","action":"b","repository":{"id":6,"id":7,"full_name":"octo/x"},"repository":{"id":8}}"#,
    );
    assert_eq!(facts.event_type.to_string(), "push.b");
    assert_eq!((facts.repository_id, facts.repository_name), (Some(RepositoryId(8)), None), "with all in it");
    let facts = json(r#"{"action":"a","\u0061ction":5,"repository":{"id":6},"repository":null}"#);
    assert_eq!((facts.event_type.action, facts.repository_id), (None, None));
}

#[test]
fn a_cut_off_body_yields_what_was_read_before() {
    let whole =
        r#" {"action":"opened","repository":{"full_name":"octo/hello","id":7},"installation":{"id":5}}"#;
    for end in 2..whole.len() {
        let facts = read(usual("application/json"), &whole.as_bytes()[..end]).unwrap().facts;
        let is_read = |field: &str| end >= whole.find(field).unwrap() + field.len();
        let action = is_read("\"opened\"").then_some("opened");
        assert_eq!(facts.event_type.action.as_deref(), action, "{end}");
        let name = is_read("\"octo/hello\"").then_some("octo/hello");
        assert_eq!(facts.repository_name.as_ref().map(RepositoryName::as_str), name, "{end}");
        // More digits may have followed.
        assert_eq!(facts.repository_id, is_read("7}").then_some(RepositoryId(7)), "{end}");
        assert_eq!(facts.installation_id, is_read("5}").then_some(5), "{end}");
    }
}

#[test]
fn escapes_and_a_byte_order_mark() {
    let facts = json(
        "\u{feff}\r\n\t {\"\\u0061ction\":\"\\ud83d\\udea2 \\\"\\\\\\/\",\"\\u0072epository\":{\"full_name\":\"oct\\u006f/h\\u00e9\"}}",
    );
    assert_eq!(facts.event_type.action.as_deref(), Some("🚢 \"\\/"));
    assert_eq!(facts.repository_name.unwrap().as_str(), "octo/hé");
}

#[test]
fn time_is_linear() {
    let size = 100_000;
    let repeated = |part: &str| format!("{{\"a\":{}", part.repeat(size / part.len()));
    for part in
        ["[", "{\"a\":", "\\\"", "\"\\\\\"", "\"repository\":{", "{", ":", " ", "1", "\"", "\"\":\"\",", "}"]
    {
        let text = repeated(part);
        assert!(
            payload_steps(text.as_bytes()) <= 8 * text.len(),
            "{part:?}: {}",
            payload_steps(text.as_bytes())
        );
    }
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300), form in any::<bool>()) {
        let content_type = if form { "application/x-www-form-urlencoded" } else { "application/json" };
        drop(read(usual(content_type), &body));
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
