//! Whether an event can be sent on: a message that is too large for its receivers would be sent to them for ever.

use gitstafette_core::event::{Address, Sequence, Webhook};
use prost::Message;

use super::event_without_payload;
use crate::{MAX_BODY_BYTES, MAX_MESSAGE_BYTES};

/// Room for what servers add to an event on its way: a hop for each server, the address of a redelivery, and since when a client
/// has tried it at its targets.
const ADDED_BYTES: usize = 64 << 10;
/// What each part of a message takes beside its bytes, at most: tags and lengths.
const FRAMING_BYTES: usize = 24;

/// An event that cannot be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "headers, body and metadata have {bytes} bytes together, but a message to clients and other servers has room for {most}; a \
     body of {MAX_BODY_BYTES} bytes leaves room for the usual headers"
)]
pub struct EventSizeError {
    bytes: usize,
    most: usize,
}

/// Whether a webhook fits the messages in which it is sent on, with all that servers add to it.
///
/// # Errors
/// It does not.
pub fn check_size(webhook: &Webhook) -> Result<(), EventSizeError> {
    let Webhook { facts, headers, body } = webhook;
    let metadata = event_without_payload(Sequence::MAX, true, &Address::default(), facts).encoded_len();
    let fields = headers.iter().map(|(name, value)| name.len() + value.len() + FRAMING_BYTES);
    let bytes = metadata + fields.sum::<usize>() + body.len() + FRAMING_BYTES;
    let most = MAX_MESSAGE_BYTES - ADDED_BYTES;
    if bytes <= most { Ok(()) } else { Err(EventSizeError { bytes, most }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;
    use gitstafette_core::event::Event;
    use gitstafette_core::headers::Headers;
    use gitstafette_core::hop::{Hop, Hops, MAX_HOPS};
    use gitstafette_core::outcomes::MAX_TARGETS;
    use gitstafette_core::testing;

    /// The largest webhook that is accepted fits its message when it has come through all servers and is redelivered.
    #[test]
    fn what_is_accepted_can_be_sent_on() {
        let mut webhook = testing::webhook(1, "octo/hello", 0);
        webhook.body = vec![b'x'; MAX_BODY_BYTES as usize].into();
        assert_eq!(check_size(&webhook), Ok(()), "the usual headers have room");
        let room = MAX_MESSAGE_BYTES - ADDED_BYTES - webhook.body.len();
        let mut fits = 0;
        for bytes in (room - 2000)..room {
            let mut headers: Headers =
                webhook.headers.iter().map(|(name, value)| (name, value.to_vec())).collect();
            headers.append("x-large", vec![b'x'; bytes]);
            let large = Webhook { headers, ..webhook.clone() };
            if check_size(&large).is_ok() {
                fits = bytes;
            } else {
                break;
            }
        }
        assert!(fits > 0 && fits < room - 1, "{fits} of {room}");
        webhook.headers.append("x-large", vec![b'x'; fits]);
        let received_at = webhook.facts.received_at;
        let hop = Hop {
            store: gitstafette_core::store::StoreId::new(u64::MAX),
            server: "x".repeat(256).into(),
            sequence: Sequence::MAX,
            received_at,
            redelivery: true,
        };
        webhook.facts.hops = Hops::new(vec![hop; MAX_HOPS + 1]);
        let name = "x".repeat(256);
        let address = Address {
            client: Some("x".repeat(128).parse().unwrap()),
            targets: vec![name.clone().into(); MAX_TARGETS],
        };
        let event = Event { sequence: Sequence::MAX, redelivery: true, address, webhook };
        let first_attempt = v1::FirstAttempt { sequence: u64::MAX, target: name, age: None };
        let on_wire =
            v1::Event { first_attempts: vec![first_attempt; 2 * MAX_TARGETS], ..v1::Event::from(&event) };
        let response = v1::subscribe_response::Response::Event(on_wire);
        let message = v1::SubscribeResponse { response: Some(response) };
        assert!(message.encoded_len() <= MAX_MESSAGE_BYTES, "{}", message.encoded_len());
    }
}
