//! Decoding messages that carry webhooks: what a message would become is counted before it is decoded.
//!
//! On the wire an empty field takes 2 bytes, in memory 50 and more: a message of 26 MiB could become one of a gigabyte.

use std::marker::PhantomData;

use bytes::Buf;
use gitstafette_core::hop::MAX_HOPS;
use gitstafette_proto::convert::MAX_HEADERS;
use gitstafette_proto::v1;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

/// What stands before a message in its stream: a flag and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(super) const PREFIX_BYTES: usize = 5;

/// A repeated field, by the numbers of the fields on the way to it.
pub(crate) struct Repeated {
    path: &'static [u32],
    most: usize,
    what: &'static str,
}

/// A message that carries a webhook.
pub(crate) trait Carrier: Message + Default + 'static {
    /// The repeated fields in it, and how often each may be there.
    const REPEATED: &'static [Repeated];
}

impl Carrier for v1::WebhookEventPushRequest {
    const REPEATED: &'static [Repeated] =
        &[Repeated { path: &[3, 3], most: MAX_HEADERS, what: "header fields" }];
}

impl Carrier for v1::PublishRequest {
    const REPEATED: &'static [Repeated] = &[
        Repeated { path: &[1, 13], most: MAX_HEADERS, what: "header fields" },
        // One too many is carried, to be refused with a reason.
        Repeated { path: &[1, 16], most: MAX_HOPS + 1, what: "hops" },
    ];
}

/// Prost's codec for a carrier `T`, with the count before it.
pub(crate) struct CarrierCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> CarrierCodec<T, U> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

/// The half of a [`CarrierCodec`] that decodes.
pub(crate) struct CarrierDecoder<T>(PhantomData<T>);

impl<T: Carrier, U: Message + Send + 'static> Codec for CarrierCodec<T, U> {
    type Encode = U;
    type Decode = T;
    type Encoder = ProstEncoder<U>;
    type Decoder = CarrierDecoder<T>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CarrierDecoder(PhantomData)
    }
}

impl<T: Carrier> Decoder for CarrierDecoder<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        let malformed = || Status::invalid_argument("the message is not what its method takes");
        for Repeated { path, most, what } in T::REPEATED {
            if count(message.chunk(), path).ok_or_else(malformed)? > *most {
                return Err(Status::invalid_argument(format!("more than {most} {what}")));
            }
        }
        T::decode(message).map(Some).map_err(|_| malformed())
    }
}

/// How many fields there are at the end of a path in an encoded message; `None` if it cannot be read.
fn count(message: &[u8], path: &[u32]) -> Option<usize> {
    let (number, rest) = path.split_first()?;
    let mut fields = 0;
    each_field(message, *number, |field| {
        fields += if rest.is_empty() { 1 } else { count(field, rest)? };
        Some(())
    })?;
    Some(fields)
}

/// Visits every field of this number that has a length (Protocol Buffers' documentation, "Encoding").
fn each_field(mut message: &[u8], number: u32, mut visit: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
    while message.has_remaining() {
        let (found, wire_type) = decode_key(&mut message).ok()?;
        if found != number || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, found, &mut message, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
        let (field, rest) = message.split_at_checked(length)?;
        visit(field)?;
        message = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn fields_are_counted_before_they_are_decoded() {
        let event = v1::WebhookEvent {
            event_id: "delivery-1".to_owned(),
            body: Bytes::from_static(b"{}"),
            headers: vec![v1::Header::default(); 3],
            sequence: 7,
        };
        let push = v1::WebhookEventPushRequest {
            cliend_id: "myself".to_owned(),
            repository_id: "537845873".to_owned(),
            webhook_event: Some(event),
        };
        let once = push.encode_to_vec();
        assert_eq!(count(&once, &[3, 3]), Some(3));
        assert_eq!(count(&once.repeat(2), &[3, 3]), Some(6), "a message that comes twice is merged");
        assert_eq!(count(&[], &[3, 3]), Some(0));
        for cut in 1..once.len() {
            let readable = v1::WebhookEventPushRequest::decode(&once[..cut]).is_ok();
            assert_eq!(count(&once[..cut], &[3, 3]).is_some(), readable, "{cut}");
        }
        let event = v1::Event {
            headers: vec![v1::HeaderField::default(); 5],
            hops: vec![v1::Hop::default(); 2],
            ..v1::Event::default()
        };
        let publish =
            v1::PublishRequest { event: Some(event), ..v1::PublishRequest::default() }.encode_to_vec();
        assert_eq!((count(&publish, &[1, 13]), count(&publish, &[1, 16])), (Some(5), Some(2)));
    }

    #[test]
    fn no_bytes_become_more_fields_than_were_counted() {
        let mut random = fastrand::Rng::with_seed(7);
        let event = v1::Event {
            headers: vec![v1::HeaderField::default(); 3],
            hops: vec![v1::Hop::default(); 2],
            body: Bytes::from_static(b"{}"),
            ..v1::Event::default()
        };
        let whole =
            v1::PublishRequest { event: Some(event), ..v1::PublishRequest::default() }.encode_to_vec();
        let mut readable = 0;
        for _ in 0..50_000 {
            let mut message = whole.repeat(random.usize(1..3));
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..message.len());
                message[at] = random.u8(..);
            }
            if let Ok(publish) = v1::PublishRequest::decode(&*message) {
                let event = publish.event.unwrap_or_default();
                assert_eq!(count(&message, &[1, 13]), Some(event.headers.len()), "{message:?}");
                assert_eq!(count(&message, &[1, 16]), Some(event.hops.len()), "{message:?}");
                readable += 1;
            }
        }
        assert!(readable > 1000, "{readable}");
    }
}
