//! Events between the wire of the Go implementation and ours.

use gitstafette_core::headers::{Headers, is_hop_by_hop, is_unsafe_to_forward};
use gitstafette_proto::v1;
use http::{HeaderName, HeaderValue};

use crate::ingest::Refusal;

/// The event as an old client takes it. It hands all header fields on to its target, so those that are not for targets
/// stay here.
pub(super) fn to_old(event: v1::Event) -> v1::WebhookEvent {
    let headers = event
        .headers
        .into_iter()
        .filter(|field| !is_hop_by_hop(&field.name) && !is_unsafe_to_forward(&field.name))
        .map(|field| v1::Header {
            name: canonical(&field.name),
            // What is stored is text: ingest takes no other.
            values: String::from_utf8_lossy(&field.value).into_owned(),
        })
        .collect();
    v1::WebhookEvent { event_id: event.delivery_id, body: event.body, headers, sequence: event.sequence }
}

/// A name as Go's net/http has it (`textproto.CanonicalMIMEHeaderKey`): the first letter and those after a hyphen in upper
/// case, the others in lower case. The Go implementation compares exactly: `X-Github-Delivery`.
fn canonical(name: &str) -> String {
    let mut after_hyphen = true;
    name.chars()
        .map(|letter| {
            let upper = std::mem::replace(&mut after_hyphen, letter == '-');
            if upper { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }
        })
        .collect()
}

/// The end-to-end header fields that an old server pushes. It also sends empty ones, which mean nothing: it makes lists of
/// a length and then appends to them.
pub(super) fn from_old(fields: Vec<v1::Header>) -> Result<Headers, Refusal> {
    let mut headers = Headers::new();
    for v1::Header { name, values } in fields {
        if name.is_empty() {
            continue;
        }
        // What HTTP would not have carried here could not be carried on to a target either.
        let is_name = HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !is_name || HeaderValue::from_bytes(values.as_bytes()).is_err() {
            return Err(Refusal::NoHeader(name.chars().take(80).collect()));
        }
        if !is_hop_by_hop(&name.to_ascii_lowercase()) {
            headers.append(&name, values);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, values: &str) -> v1::Header {
        v1::Header { name: name.to_owned(), values: values.to_owned() }
    }

    #[test]
    fn names_are_spelled_as_go_does() {
        for (name, go) in [
            ("x-github-delivery", "X-Github-Delivery"),
            ("x-hub-signature-256", "X-Hub-Signature-256"),
            ("content-type", "Content-Type"),
            ("etag", "Etag"),
            ("x--a_b", "X--A_b"),
        ] {
            assert_eq!(canonical(name), go);
        }
    }

    #[test]
    fn what_is_not_for_targets_stays_here() {
        let field =
            |name: &str, value: &'static str| v1::HeaderField { name: name.to_owned(), value: value.into() };
        let event = v1::Event {
            delivery_id: "delivery-1".to_owned(),
            sequence: 7,
            headers: vec![
                field("x-a", "1"),
                field("cookie", "secret"),
                field("host", "here"),
                field("x-a", "2"),
                field("x-forwarded-for", "10.0.0.1"),
            ],
            ..v1::Event::default()
        };
        let old = to_old(event);
        assert_eq!((old.event_id.as_str(), old.sequence), ("delivery-1", 7));
        assert_eq!(old.headers, [header("X-A", "1"), header("X-A", "2")]);
    }

    #[test]
    fn what_an_old_server_sends() {
        let fields = vec![
            header("", ""),
            header("X-Github-Event", "push"),
            header("Content-Length", "2"),
            header("X-A", "1"),
            header("X-A", ""),
        ];
        let expected: Headers = [("x-github-event", "push"), ("x-a", "1"), ("x-a", "")].into_iter().collect();
        assert_eq!(from_old(fields).unwrap(), expected);
        for unusable in [header("a b", "1"), header("a", "1\r\nb: 2"), header("ä", "1")] {
            assert!(from_old(vec![unusable]).is_err());
        }
        assert!(from_old(vec![header("a", "ö")]).is_ok(), "text beyond ASCII is no control character");
    }
}
