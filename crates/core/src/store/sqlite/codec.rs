//! Rows to events and back.
//!
//! A row is read with tolerance: an older version, a newer one or a failing disk may have written it. Of an event only the
//! sequence, the delivery id, the headers and the body are required. Any other field that does not parse counts as absent.
//!
//! Headers are one blob: for each field the length of its name, the name, the length of its value, the value. A
//! length is a LEB128 number: seven bits a byte, lowest first, the high bit set on all but the last. That keeps order,
//! repeats and values that are no text, at two bytes a field.
//!
//! The servers that an event came through are one blob likewise, at some twenty bytes and a name each: for each the
//! numbers of its store, of the event there, of the time, and 1 for a redelivery; the length of its name, the name.

use std::str::FromStr;

use bytes::Bytes;
use rusqlite::Row;

use crate::event::{Address, EventType, Facts, Sequence, Source, Timestamp};
use crate::headers::Headers;
use crate::hop::{Hop, Hops};
use crate::repository::RepositoryId;
use crate::store::{Report, StoreId};
use crate::target::Outcome;

/// The columns of `events` from which an [`Event`](crate::event::Event) is made, in the order that [`facts`] expects.
pub(super) const FACTS: &str = "events.sequence, size, redelivery, source, hook_id, delivery_id, event, action, \
     repository_id, repository_name, owner, installation_id, \
     CASE WHEN received_at < 0 THEN accepted_at ELSE received_at END, for_client, for_target, hops";

/// The columns of `outcomes` that [`report`] reads, in their order.
pub(super) const OUTCOME: &str =
    "client, target, result, code, attempts, duration_ns, at, detail, redelivered_as";

/// Why one event cannot be read from its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    /// Without it the event has no identity.
    #[error("its delivery id cannot be read")]
    DeliveryId,
    /// The stored bytes are not those that were stored.
    #[error("its payload has changed on the disk: its checksum is another")]
    Checksum,
    /// The blob is not one that [`encode_headers`] makes.
    #[error("its headers cannot be read")]
    Headers,
    /// The row of the headers and the body is missing.
    #[error("its payload is missing")]
    NoPayload,
}

/// The facts of a row with the columns [`FACTS`].
pub(super) fn facts(row: &Row<'_>) -> Result<Facts, Damage> {
    let delivery_id = optional(row, 5).ok_or(Damage::DeliveryId)?;
    Ok(Facts {
        source: optional(row, 3).unwrap_or(Source::UNKNOWN),
        hook_id: optional(row, 4),
        delivery_id,
        event_type: EventType {
            name: optional_text(row, 6).unwrap_or(EventType::UNKNOWN).into(),
            action: optional_text(row, 7).map(Into::into),
        },
        repository_id: optional_id(row, 8).map(RepositoryId),
        repository_name: optional(row, 9),
        owner: optional_text(row, 10).map(Into::into),
        installation_id: optional_id(row, 11),
        received_at: Timestamp::from_millis(number(row, 12).unwrap_or_default()),
        hops: optional_hops(row, 15).unwrap_or_default(),
    })
}

/// Bytes of the event's headers and body, of a row with the columns [`FACTS`].
pub(super) fn size(row: &Row<'_>) -> u64 {
    number(row, 1).unwrap_or_default()
}

/// Whether the event of a row with the columns [`FACTS`] is a redelivery.
pub(super) fn redelivery(row: &Row<'_>) -> bool {
    row.get(2).unwrap_or_default()
}

/// For whom the event of a row with the columns [`FACTS`] is.
pub(super) fn address(row: &Row<'_>) -> Address {
    let targets = optional_text(row, 14).map(|names| names.lines().map(Into::into).collect());
    Address { client: optional(row, 13), targets: targets.unwrap_or_default() }
}

/// The targets of an address as one text, a line for each; nothing for all targets.
pub(super) fn encode_targets(address: &Address) -> Option<String> {
    (!address.targets.is_empty()).then(|| address.targets.join("\n"))
}

/// What was reported in a row with the columns [`OUTCOME`]. `None` if it does not say who reported what.
pub(super) fn report(row: &Row<'_>) -> Option<Report> {
    let outcome = Outcome {
        target: optional_text(row, 1)?.to_owned(),
        result: optional(row, 2)?,
        code: row.get(3).unwrap_or_default(),
        attempts: row.get(4).unwrap_or_default(),
        duration: std::time::Duration::from_nanos(number(row, 5).unwrap_or_default()),
        at: Timestamp::from_millis(number(row, 6).unwrap_or_default()),
        detail: optional_text(row, 7).unwrap_or_default().to_owned(),
    };
    let redelivered_as: Option<i64> = row.get(8).unwrap_or_default();
    let redelivered_as = redelivered_as.map(|sequence| Sequence::new(sequence.unsigned_abs()));
    Some(Report { client: optional(row, 0)?, outcome, redelivered_as })
}

/// The sequence in a column.
pub(super) fn sequence(row: &Row<'_>, at: usize) -> rusqlite::Result<Sequence> {
    number(row, at).map(Sequence::new)
}

/// The number in a column that is never negative.
pub(super) fn number(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(at)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, number))
}

/// A number as SQLite keeps it; what is out of its range is cut off.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Headers as one blob.
pub(super) fn encode_headers(headers: &Headers) -> Vec<u8> {
    let mut blob = Vec::with_capacity(headers.size() + 4 * headers.len());
    for (name, value) in headers.iter() {
        for part in [name.as_bytes(), value] {
            encode_part(&mut blob, part);
        }
    }
    blob
}

/// The checksum of a payload (CRC-32, as in zlib). SQLite has none over its pages: bytes that a disk changed would reach the
/// target as if they had been sent.
pub(super) fn checksum(headers: &[u8], body: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(headers);
    checksum.update(body);
    checksum.finalize()
}

/// Headers from their blob; an error if it is not one.
pub(super) fn decode_headers(blob: &[u8]) -> Result<Headers, Damage> {
    let mut rest = blob;
    let mut headers = Headers::new();
    while !rest.is_empty() {
        let (name, value) = decode_field(&mut rest).ok_or(Damage::Headers)?;
        headers.append(name, Bytes::copy_from_slice(value));
    }
    Ok(headers)
}

/// The servers that an event came through as one blob; nothing if there are none.
pub(super) fn encode_hops(hops: &Hops) -> Option<Vec<u8>> {
    let mut blob = Vec::new();
    for hop in hops.iter() {
        encode_number(&mut blob, hop.store.get());
        encode_number(&mut blob, hop.sequence.get());
        encode_number(&mut blob, hop.received_at.as_millis());
        encode_number(&mut blob, hop.redelivery.into());
        encode_part(&mut blob, hop.server.as_bytes());
    }
    (!blob.is_empty()).then_some(blob)
}

/// The servers from their blob; `None` if it is not one.
pub(super) fn decode_hops(blob: &[u8]) -> Option<Hops> {
    let mut rest = blob;
    let mut hops = Vec::new();
    while !rest.is_empty() {
        hops.push(decode_hop(&mut rest)?);
    }
    Some(Hops::new(hops))
}

fn encode_part(blob: &mut Vec<u8>, part: &[u8]) {
    encode_number(blob, part.len() as u64);
    blob.extend_from_slice(part);
}

fn encode_number(blob: &mut Vec<u8>, number: u64) {
    let mut rest = number;
    while rest >= 0x80 {
        blob.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    blob.push(rest as u8);
}

fn decode_field<'a>(rest: &mut &'a [u8]) -> Option<(&'a str, &'a [u8])> {
    Some((decode_text(rest)?, decode_part(rest)?))
}

fn decode_hop(rest: &mut &[u8]) -> Option<Hop> {
    Some(Hop {
        store: StoreId::new(decode_number(rest)?),
        sequence: Sequence::new(decode_number(rest)?),
        received_at: Timestamp::from_millis(decode_number(rest)?),
        redelivery: match decode_number(rest)? {
            0 => false,
            1 => true,
            _ => return None,
        },
        server: decode_text(rest)?.into(),
    })
}

fn decode_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(decode_part(rest)?).ok()
}

fn decode_part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_number(rest)?).ok()?;
    let (part, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(part)
}

fn decode_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if bits > u64::MAX >> shift {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn optional_hops(row: &Row<'_>, at: usize) -> Option<Hops> {
    decode_hops(row.get_ref(at).ok()?.as_blob().ok()?)
}

fn optional_text<'a>(row: &'a Row<'_>, at: usize) -> Option<&'a str> {
    row.get_ref(at).ok()?.as_str().ok()
}

/// The text in a column, as what it stands for; `None` if it cannot be read.
pub(super) fn optional<T: FromStr>(row: &Row<'_>, at: usize) -> Option<T> {
    optional_text(row, at)?.parse().ok()
}

/// An id that is unsigned in the model.
fn optional_id(row: &Row<'_>, at: usize) -> Option<u64> {
    row.get::<_, i64>(at).ok().map(i64::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_header_blob() {
        for blob in [&b"\x01"[..], b"\x01a", b"\x01a\x02b", b"\xff\xff\xff\xff\xff", b"\x01\xff\x00", b"\x80"]
        {
            assert_eq!(decode_headers(blob), Err(Damage::Headers), "{blob:?}");
        }
    }

    #[test]
    fn what_is_no_hop_blob() {
        assert_eq!(decode_hops(b"\x01\x02\x03\x01\x01a").map(|hops| hops.iter().len()), Some(1));
        assert!(decode_hops(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x00\x00").is_some());
        for blob in [
            &b"\x01"[..],
            b"\x01\x02\x03\x01",
            b"\x01\x02\x03\x01\x02a",
            b"\x01\x02\x03\x02\x01a",
            b"\x01\x02\x03\x01\x01\xff",
            b"\x01\x02\x03\x01\x01ab",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02\x02\x03\x00\x00",
            b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00\x02\x03\x00\x00",
        ] {
            assert_eq!(decode_hops(blob), None, "{blob:?}");
        }
    }

    fn hop() -> impl Strategy<Value = Hop> {
        let number = || prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), 0..300u64];
        (number(), ".{0,80}", number(), number(), any::<bool>()).prop_map(
            |(store, server, sequence, received_at, redelivery)| Hop {
                store: StoreId::new(store),
                server: server.into(),
                sequence: Sequence::new(sequence),
                received_at: Timestamp::from_millis(received_at),
                redelivery,
            },
        )
    }

    proptest! {
        #[test]
        fn headers_round_trip(
            fields in proptest::collection::vec(("[a-z-]{0,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..20)
        ) {
            let headers: Headers = fields.into_iter().collect();
            prop_assert_eq!(decode_headers(&encode_headers(&headers)), Ok(headers));
        }

        #[test]
        fn hops_round_trip(hops in proptest::collection::vec(hop(), 0..40)) {
            let hops = Hops::new(hops);
            let blob = encode_hops(&hops);
            prop_assert_eq!(blob.is_none(), hops == Hops::default());
            prop_assert_eq!(decode_hops(&blob.unwrap_or_default()), Some(hops));
        }

        #[test]
        fn decoding_never_panics(blob in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode_headers(&blob));
            drop(decode_hops(&blob));
        }
    }
}
