//! An event as the Go implementation (joostvdg/gitstafette 0.3) has it on the wire.

use gitstafette_core::event::Event;
use gitstafette_core::headers::{is_hop_by_hop, is_unsafe_to_forward};

use crate::v1;

/// The largest message that a program of the Go implementation receives, in bytes: grpc-go's default
/// (`defaultServerMaxReceiveMessageSize` and its client's counterpart), which it does not change.
pub const MAX_GO_MESSAGE_BYTES: usize = 4 << 20;

impl From<&Event> for v1::WebhookEvent {
    /// Without the fields that are not to be forwarded: what receives this forwards all it gets.
    fn from(event: &Event) -> Self {
        let fields = event.webhook.headers.iter();
        let forwarded = fields.filter(|(name, _)| !is_hop_by_hop(name) && !is_unsafe_to_forward(name));
        Self {
            event_id: event.webhook.facts.delivery_id.to_string(),
            body: event.webhook.body.clone(),
            headers: forwarded
                .map(|(name, value)| v1::Header {
                    name: canonical(name),
                    values: String::from_utf8_lossy(value).into_owned(),
                })
                .collect(),
            sequence: event.sequence.get(),
        }
    }
}

/// A field's name as Go writes it (`textproto.CanonicalMIMEHeaderKey`): the first letter and those after a hyphen in upper
/// case. The Go implementation finds the delivery id and the signature by these very spellings.
fn canonical(name: &str) -> String {
    let mut is_first = true;
    let mut letter = |char: char| {
        let is_upper = std::mem::replace(&mut is_first, char == '-');
        if is_upper { char.to_ascii_uppercase() } else { char.to_ascii_lowercase() }
    };
    name.chars().map(&mut letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::event::{Address, Sequence};
    use gitstafette_core::testing;

    #[test]
    fn names_are_spelled_as_go_spells_them() {
        for (name, expected) in [
            ("x-github-delivery", "X-Github-Delivery"),
            ("x-hub-signature-256", "X-Hub-Signature-256"),
            ("content-type", "Content-Type"),
            ("dnt", "Dnt"),
            ("-a", "-A"),
        ] {
            assert_eq!(canonical(name), expected);
        }
    }

    #[test]
    fn fields_are_repeated_and_dangerous_ones_stay() {
        let mut webhook = testing::webhook(1, "octo/hello", 3);
        webhook.headers = [("a", "1"), ("authorization", "Bearer x"), ("a", "2")].into_iter().collect();
        let event =
            Event { sequence: Sequence::new(7), redelivery: false, address: Address::default(), webhook };
        let wire = v1::WebhookEvent::from(&event);
        let headers: Vec<_> = wire.headers.iter().map(|field| (&*field.name, &*field.values)).collect();
        assert_eq!(headers, [("A", "1"), ("A", "2")]);
        assert_eq!((wire.event_id.as_str(), wire.sequence), ("delivery-1", 7));
        assert_eq!(wire.body, event.webhook.body);
    }
}
