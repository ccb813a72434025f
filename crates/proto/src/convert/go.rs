//! An event as the Go implementation (joostvdg/gitstafette 0.3) has it on the wire: to its programs, and from them.

use bytes::Bytes;
use gitstafette_core::classify::{self, ClassifyError, Hearsay};
use gitstafette_core::event::{Event, Timestamp, Webhook};
use gitstafette_core::headers::{Headers, is_hop_by_hop, is_unsafe_to_forward};
use gitstafette_core::repository::RepositoryId;
use gitstafette_core::verify::Unverified;
use tonic::codegen::http::{HeaderName, HeaderValue};

use crate::v1;

/// The largest message that a program of the Go implementation receives, in bytes: grpc-go's default
/// (`defaultServerMaxReceiveMessageSize` and its client's counterpart), which it does not change.
pub const MAX_GO_MESSAGE_BYTES: usize = 4 << 20;

/// A header field that HTTP could not have carried, by its name. It could not be carried on to a target either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header {0:?} has a name or a value that HTTP cannot carry")]
pub struct GoHeaderError(pub String);

/// A webhook of a server of the Go implementation that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GoEventError {
    /// A header field is none.
    #[error(transparent)]
    Header(#[from] GoHeaderError),
    /// It is no webhook.
    #[error(transparent)]
    Classify(#[from] ClassifyError),
}

impl From<&Event> for v1::WebhookEvent {
    /// Without the fields that are not to be forwarded: what receives this forwards all it gets.
    fn from(event: &Event) -> Self {
        Self {
            event_id: event.webhook.facts.delivery_id.to_string(),
            body: event.webhook.body.clone(),
            headers: forwarded(event.webhook.headers.iter()),
            sequence: event.sequence.get(),
        }
    }
}

impl From<v1::Event> for v1::WebhookEvent {
    /// Likewise.
    fn from(event: v1::Event) -> Self {
        let headers = forwarded(event.headers.iter().map(|field| (&*field.name, &*field.value)));
        Self { event_id: event.delivery_id, body: event.body, headers, sequence: event.sequence }
    }
}

fn forwarded<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<v1::Header> {
    fields
        .filter(|(name, _)| !is_hop_by_hop(name) && !is_unsafe_to_forward(name))
        .map(|(name, value)| v1::Header {
            name: canonical(name),
            // This wire has text only: bytes that are not UTF-8 are replaced by U+FFFD. Our own wire carries bytes.
            values: String::from_utf8_lossy(value).into_owned(),
        })
        .collect()
}

/// A field's name as Go writes it (`textproto.CanonicalMIMEHeaderKey`): the first letter and those after a hyphen in upper
/// case, the others in lower case. The Go implementation finds the delivery id and the signature by these very spellings.
fn canonical(name: &str) -> String {
    let mut is_first = true;
    let mut letter = |char: char| {
        let is_upper = std::mem::replace(&mut is_first, char == '-');
        if is_upper { char.to_ascii_uppercase() } else { char.to_ascii_lowercase() }
    };
    name.chars().map(&mut letter).collect()
}

/// The end-to-end header fields that a server of the Go implementation sends. It also sends empty ones, which mean nothing:
/// it makes lists of a length and then appends to them.
///
/// # Errors
/// One is no header field.
pub fn from_go_headers(fields: Vec<v1::Header>) -> Result<Headers, GoHeaderError> {
    let mut headers = Headers::new();
    for v1::Header { name, values } in fields {
        if name.is_empty() {
            continue;
        }
        let is_name = HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !is_name || HeaderValue::from_bytes(values.as_bytes()).is_err() {
            return Err(GoHeaderError(name.chars().take(80).collect()));
        }
        if !is_hop_by_hop(&name.to_ascii_lowercase()) {
            headers.append(&name, values);
        }
    }
    Ok(headers)
}

/// A webhook that was fetched from a server of the Go implementation, as one of this repository. That server may have lost
/// headers, and what it says beside the webhook stands in for them. Nobody has looked at the signature here.
///
/// # Errors
/// [`GoEventError`]: what is wrong with it.
pub fn from_go_event(
    event: v1::WebhookEvent,
    repository: RepositoryId,
    received_at: Timestamp,
) -> Result<Webhook, GoEventError> {
    let headers = from_go_headers(event.headers)?;
    let hearsay = Hearsay { delivery_id: event.event_id.parse().ok(), repository_id: Some(repository) };
    // Copied: a slice of the message would keep all of that alive.
    let body = Bytes::copy_from_slice(&event.body);
    Ok(classify::relayed(Unverified { headers, body }.waive(), &hearsay, received_at)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::event::{Address, Sequence};
    use gitstafette_core::testing;

    fn header(name: &str, values: &str) -> v1::Header {
        v1::Header { name: name.to_owned(), values: values.to_owned() }
    }

    #[test]
    fn names_are_spelled_as_go_spells_them() {
        for (name, expected) in [
            ("x-github-delivery", "X-Github-Delivery"),
            ("x-hub-signature-256", "X-Hub-Signature-256"),
            ("content-type", "Content-Type"),
            ("etag", "Etag"),
            ("-a", "-A"),
            ("x--a_b", "X--A_b"),
        ] {
            assert_eq!(canonical(name), expected);
        }
    }

    #[test]
    fn fields_are_repeated_and_dangerous_ones_stay() {
        let mut webhook = testing::webhook(1, "octo/hello", 3);
        webhook.headers = [
            ("x-a", "1"),
            ("authorization", "Bearer x"),
            ("cookie", "secret"),
            ("host", "here"),
            ("x-a", "2"),
            ("x-forwarded-for", "10.0.0.1"),
        ]
        .into_iter()
        .collect();
        webhook.headers.append("x-odd", &b"caf\xe9"[..]);
        let event =
            Event { sequence: Sequence::new(7), redelivery: false, address: Address::default(), webhook };
        let wire = v1::WebhookEvent::from(&event);
        assert_eq!(wire.headers, [header("X-A", "1"), header("X-A", "2"), header("X-Odd", "caf\u{fffd}")]);
        assert_eq!((wire.event_id.as_str(), wire.sequence), ("delivery-1", 7));
        assert_eq!(wire.body, event.webhook.body);
        assert_eq!(v1::WebhookEvent::from(v1::Event::from(&event)), wire, "the same from our wire");
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
        assert_eq!(from_go_headers(fields).unwrap(), expected);
        for unusable in [header("a b", "1"), header("a", "1\r\nb: 2"), header("ä", "1")] {
            assert!(from_go_headers(vec![unusable]).is_err());
        }
        assert!(from_go_headers(vec![header("a", "ö")]).is_ok(), "text beyond ASCII is no control character");
    }

    #[test]
    fn what_is_fetched_is_read_from_the_webhook_first() {
        let fetched = |headers: Vec<v1::Header>, body: &'static str| {
            let event = v1::WebhookEvent {
                event_id: "beside".to_owned(),
                body: Bytes::from_static(body.as_bytes()),
                headers,
                sequence: 0,
            };
            from_go_event(event, RepositoryId(7), Timestamp::from_millis(5))
        };
        let body = r#"{"action":"opened","repository":{"id":8,"full_name":"octo/hello"}}"#;
        let headers = vec![header("X-Github-Event", "issues"), header("X-Github-Delivery", "within")];
        let webhook = fetched(headers, body).unwrap();
        let facts = &webhook.facts;
        assert_eq!((facts.delivery_id.as_str(), facts.repository_id), ("within", Some(RepositoryId(8))));
        assert_eq!(
            (facts.event_type.to_string(), &*webhook.body),
            ("issues.opened".to_owned(), body.as_bytes())
        );
        let facts = fetched(vec![], "{}").unwrap().facts;
        assert_eq!((facts.delivery_id.as_str(), facts.repository_id), ("beside", Some(RepositoryId(7))));
        assert!(fetched(vec![], "no JSON").is_err());
    }
}
