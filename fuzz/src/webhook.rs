//! The webhook parser: header fields and a body from anybody on the Internet.
//!
//! An input reads like a request: lines `name: value`, an empty line, the body.

use bytes::Bytes;
use gitstafette_core::classify::{self, ClassifyError, Envelope};
use gitstafette_core::event::{Address, Event, Facts, Sequence, Timestamp, Webhook};
use gitstafette_core::headers::Headers;
use gitstafette_core::secret::Secret;
use gitstafette_core::testing::{Format, Hook};
use gitstafette_core::text::is_showable;
use gitstafette_core::verify::{GitHubSignature, Unverified};
use gitstafette_proto::v1;

use crate::assert_one_line;
use crate::payload::assert_same_as_generic_json;

const RECEIVED_AT: Timestamp = Timestamp::from_millis(1_700_000_000_123);

/// Reads a request as it came, then its body once more in each format under the headers that GitHub sends: most bytes
/// make no usable headers, and the body's parser is to see all of them.
pub fn run(data: &[u8]) {
    let (headers, body) = split(data);
    as_sent(&headers, body);
    let from_json = signed(Format::Json, body);
    if let Ok(text) = std::str::from_utf8(body) {
        assert_eq!(signed(Format::Form, text.as_bytes()), from_json, "one payload, two formats");
    }
    if let (Ok(facts), Ok(json)) = (from_json, serde_json::from_slice(body)) {
        assert_same_as_generic_json(&facts, &json);
    }
}

/// The request of this input, and where its body starts. Lines that no HTTP library would let through are left out.
fn split(data: &[u8]) -> (Headers, &[u8]) {
    let mut headers = Headers::new();
    let mut rest = data;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if let Ok(name) = std::str::from_utf8(name)
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_graphic())
            && !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
        {
            headers.append(name, value.trim_ascii().to_vec());
        }
    }
    (headers, rest)
}

fn as_sent(headers: &Headers, body: &[u8]) {
    let signature = GitHubSignature::new(vec![Secret::new("fuzz")]);
    let request = Unverified { headers: headers.clone(), body: Bytes::copy_from_slice(body) };
    if let Err(error) = signature.precheck(headers) {
        assert_one_line(&error.to_string());
        assert!(request.clone().verify(&signature).is_err(), "refused before its body, taken with it");
    }
    let envelope = Envelope::read(headers);
    match classify::github(request.waive(), RECEIVED_AT) {
        Ok(webhook) => {
            let envelope = envelope.expect("a request whose body was read has an envelope");
            let facts = &webhook.facts;
            assert_eq!(
                (&facts.delivery_id, &facts.hook_id, &facts.event_type.name),
                (&envelope.delivery_id, &envelope.hook_id, &envelope.event)
            );
            assert_eq!((&webhook.headers, &*webhook.body), (headers, body), "bytes in, bytes out");
            assert_usable(webhook);
        }
        Err(error) => {
            if let Err(envelope) = envelope {
                assert_eq!(envelope, error, "the headers are refused before the body is looked at");
            }
            assert_one_line(&error.to_string());
        }
    }
}

/// The facts of a payload in a signed request as GitHub sends it.
fn signed(format: Format, payload: &[u8]) -> Result<Facts, ClassifyError> {
    let secret = Secret::new("fuzz");
    let hook = Hook { id: 292_430_182, format, secret: None };
    let request = hook.request(
        "push",
        "6f9619ff-8b86-11d0-b42d-00c04fc964ff",
        std::str::from_utf8(payload).unwrap_or_default(),
    );
    // A JSON body need not even be text.
    let body = if format == Format::Json { Bytes::copy_from_slice(payload) } else { request.body };
    let mut headers = Headers::from_iter(request.headers);
    headers.append("X-Hub-Signature-256", GitHubSignature::sign(&secret, &body));
    let verified = Unverified { headers, body }
        .verify(&GitHubSignature::new(vec![secret]))
        .expect("what was signed verifies");
    let webhook = classify::github(verified, RECEIVED_AT)?;
    let facts = webhook.facts.clone();
    assert_usable(webhook);
    Ok(facts)
}

/// Whatever is accepted can be shown, and reaches the client as it is: an event that the client refuses would stop its
/// stream for ever.
fn assert_usable(webhook: Webhook) {
    let facts = &webhook.facts;
    assert!(is_showable(&facts.event_type.name));
    assert!(facts.event_type.action.as_deref().is_none_or(is_showable));
    assert!(facts.owner.as_deref().is_none_or(is_showable), "{:?}", facts.owner);
    assert_one_line(&facts.repository_label());
    let event = Event { sequence: Sequence::new(1), redelivery: false, address: Address::default(), webhook };
    assert_eq!(Event::try_from(v1::Event::from(&event)).as_ref(), Ok(&event));
}
