//! The tolerant reader of payloads: any bytes at all, as a JSON body and as a form.
//!
//! An input is the payload alone.

use bytes::Bytes;
use gitstafette_core::classify::{self, ClassifyError, payload_steps};
use gitstafette_core::event::{Facts, Timestamp};
use gitstafette_core::headers::Headers;
use gitstafette_core::repository::{RepositoryId, RepositoryName};
use gitstafette_core::text::is_showable;
use gitstafette_core::verify::Unverified;
use serde_json::Value;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
/// Members that no JSON parser takes: a lone surrogate, a number out of range, a control character, bytes that are not
/// UTF-8, nesting of wrong brackets, a word. The payload around them must be read as if they were not there.
const ODD_MEMBERS: &[u8] =
    b"\"odd\":\"\\ud800\",\"odd\":1e999,\"odd\":\"\x01\xff\\x\",\"odd\":[{[\"]\"}]},\"odd\":NaN,";

/// Reads a payload in every way in which it can come.
pub fn run(payload: &[u8]) {
    let facts = read(JSON, payload.to_vec());
    assert_eq!(facts.is_ok(), is_object(payload), "an object is taken, and nothing else is: {facts:?}");
    assert_linear(payload);
    assert_linear(&payload[..payload.len() / 2]);

    let form = [b"a=1&payload=".as_slice(), percent_encoded(payload).as_bytes()].concat();
    assert_eq!(read(FORM, form), facts, "one payload, two formats");
    read_as_form(payload);

    if let Ok(json @ Value::Object(_)) = serde_json::from_slice(payload) {
        let facts = facts.expect("an object is taken");
        assert_same_as_generic_json(&facts, &json);
        let brace = payload.iter().position(|byte| *byte == b'{').expect("an object") + 1;
        let odd = [&payload[..brace], ODD_MEMBERS, &payload[brace..]].concat();
        assert_eq!(read(JSON, odd), Ok(facts), "a value that cannot be read disturbs no other");
    }
}

/// The facts are what any JSON parser finds at their places: a receiver must not see another repository than the
/// watchlist did.
pub fn assert_same_as_generic_json(facts: &Facts, json: &Value) {
    let text = |pointer: &str| json.pointer(pointer)?.as_str().filter(|text| is_showable(text));
    let number = |pointer| json.pointer(pointer).and_then(Value::as_u64);
    let name = json.pointer("/repository/full_name").and_then(Value::as_str);
    let name: Option<RepositoryName> = name.and_then(|name| name.parse().ok());
    assert_eq!(facts.repository_id, number("/repository/id").map(RepositoryId));
    assert_eq!(facts.repository_name, name);
    assert_eq!(facts.installation_id, number("/installation/id"));
    assert_eq!(facts.event_type.action.as_deref(), text("/action"));
    let accounts = [
        "/repository/owner",
        "/organization",
        "/installation/account",
        "/enterprise",
        "/sponsorship/sponsorable",
        "/marketplace_purchase/account",
        "/account",
    ];
    let account =
        |pointer: &&str| text(&format!("{pointer}/login")).or_else(|| text(&format!("{pointer}/slug")));
    let owner = name.as_ref().map(RepositoryName::owner).or_else(|| accounts.iter().find_map(account));
    assert_eq!(facts.owner.as_deref(), owner);
}

/// Whether these bytes start like an object, which is all that is asked of a payload.
pub fn is_object(payload: &[u8]) -> bool {
    let text = payload.strip_prefix(b"\xef\xbb\xbf").unwrap_or(payload);
    text.iter().find(|byte| !b" \t\r\n".contains(byte)) == Some(&b'{')
}

fn read(content_type: &str, body: Vec<u8>) -> Result<Facts, ClassifyError> {
    let mut headers = Headers::new();
    headers.append("content-type", content_type.as_bytes().to_vec());
    headers.append("x-github-event", "push");
    headers.append("x-github-delivery", "1");
    let request = Unverified { headers, body: Bytes::from(body) }.waive();
    classify::github(request, Timestamp::from_millis(1)).map(|webhook| webhook.facts)
}

/// The reader looks at each byte a bounded number of times.
fn assert_linear(payload: &[u8]) {
    let steps = payload_steps(payload);
    assert!(steps <= 8 * payload.len() + 64, "{steps} steps for {} bytes", payload.len());
}

/// A form of these bytes has the payload that any form parser finds in it.
fn read_as_form(form: &[u8]) {
    let facts = read(FORM, form.to_vec());
    let fields: Vec<_> = form_urlencoded::parse(form).collect();
    // The parser replaces what is not UTF-8, so it cannot tell what was there.
    if fields.iter().any(|(name, value)| name.contains('\u{fffd}') || value.contains('\u{fffd}')) {
        return;
    }
    let payloads: Vec<_> = fields.iter().filter(|(name, _)| name == "payload").collect();
    match payloads[..] {
        [(_, payload)] => assert_eq!(facts, read(JSON, payload.as_bytes().to_vec())),
        _ => assert_eq!(facts, Err(ClassifyError::Form)),
    }
}

fn percent_encoded(bytes: &[u8]) -> String {
    form_urlencoded::byte_serialize(bytes).collect()
}
