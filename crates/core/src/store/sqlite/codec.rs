//! Rows to events and back.
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
use rusqlite::types::{FromSqlError, Type};

use crate::event::{Address, EventType, Facts, Sequence, Timestamp};
use crate::headers::Headers;
use crate::hop::{Hop, Hops};
use crate::repository::RepositoryId;
use crate::store::{Report, StoreId};
use crate::target::Outcome;

/// The columns of `events` from which an [`Event`](crate::event::Event) is made, in the order that [`facts`] expects.
pub(super) const FACTS: &str = "events.sequence, size, redelivery, source, hook_id, delivery_id, event, action, \
     repository_id, repository_name, owner, installation_id, received_at, for_client, for_target, hops";

/// The columns of `outcomes` that [`report`] reads, in their order.
pub(super) const OUTCOME: &str =
    "client, target, result, code, attempts, duration_ns, at, detail, redelivered_as";

/// The facts of a row with the columns [`FACTS`].
pub(super) fn facts(row: &Row<'_>) -> rusqlite::Result<Facts> {
    let boxed = |at| row.get::<_, Option<Box<str>>>(at);
    let id = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.map(i64::cast_unsigned));
    Ok(Facts {
        source: text(row, 3)?,
        hook_id: optional(row, 4)?,
        delivery_id: text(row, 5)?,
        event_type: EventType { name: row.get(6)?, action: boxed(7)? },
        repository_id: id(8)?.map(RepositoryId),
        repository_name: optional(row, 9)?,
        owner: boxed(10)?,
        installation_id: id(11)?,
        received_at: Timestamp::from_millis(number(row, 12)?),
        hops: hops(row, 15)?,
    })
}

/// For whom the event of a row with the columns [`FACTS`] is.
pub(super) fn address(row: &Row<'_>) -> rusqlite::Result<Address> {
    Ok(Address { client: optional(row, 13)?, target: row.get(14)? })
}

/// What was reported in a row with the columns [`OUTCOME`].
pub(super) fn report(row: &Row<'_>) -> rusqlite::Result<Report> {
    let outcome = Outcome {
        target: row.get(1)?,
        result: text(row, 2)?,
        code: row.get(3)?,
        attempts: row.get(4)?,
        duration: std::time::Duration::from_nanos(number(row, 5)?),
        at: Timestamp::from_millis(number(row, 6)?),
        detail: row.get(7)?,
    };
    let redelivered_as: Option<i64> = row.get(8)?;
    let redelivered_as = redelivered_as.map(|sequence| Sequence::new(sequence.unsigned_abs()));
    Ok(Report { client: text(row, 0)?, outcome, redelivered_as })
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

/// The stored bytes are not those that were stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the payload of event {0} has changed on the disk: its checksum is another")]
pub(super) struct ChecksumError(pub(super) Sequence);

/// Headers from their blob; an error if it is not one.
pub(super) fn decode_headers(blob: &[u8]) -> Result<Headers, BlobError> {
    let mut rest = blob;
    let mut headers = Headers::new();
    while !rest.is_empty() {
        let (name, value) = decode_field(&mut rest).ok_or(BlobError("headers"))?;
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

/// The servers from their blob; an error if it is not one.
pub(super) fn decode_hops(blob: &[u8]) -> Result<Hops, BlobError> {
    let mut rest = blob;
    let mut hops = Vec::new();
    while !rest.is_empty() {
        hops.push(decode_hop(&mut rest).ok_or(BlobError("hops"))?);
    }
    Ok(Hops::new(hops))
}

/// A stored blob cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored {0} are damaged")]
pub(super) struct BlobError(&'static str);

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

fn hops(row: &Row<'_>, at: usize) -> rusqlite::Result<Hops> {
    let damaged = |error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(at, Type::Blob, error)
    };
    match row.get_ref(at)?.as_blob_or_null().map_err(|error| damaged(error.into()))? {
        Some(blob) => decode_hops(blob).map_err(|error| damaged(error.into())),
        None => Ok(Hops::default()),
    }
}

fn optional<T: FromStr>(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(at)?.as_str_or_null().map_err(|error| invalid(at, error))?;
    text.map(|text| parsed(at, text)).transpose()
}

/// The text in a column, as what it stands for.
pub(super) fn text<T: FromStr>(row: &Row<'_>, at: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    parsed(at, row.get_ref(at)?.as_str().map_err(|error| invalid(at, error))?)
}

fn parsed<T: FromStr>(at: usize, text: &str) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error)))
}

fn invalid(at: usize, error: FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, Type::Text, Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_header_blob() {
        for blob in [&b"\x01"[..], b"\x01a", b"\x01a\x02b", b"\xff\xff\xff\xff\xff", b"\x01\xff\x00", b"\x80"]
        {
            assert_eq!(decode_headers(blob), Err(BlobError("headers")), "{blob:?}");
        }
    }

    #[test]
    fn what_is_no_hop_blob() {
        assert_eq!(decode_hops(b"\x01\x02\x03\x01\x01a").map(|hops| hops.iter().len()), Ok(1));
        assert_eq!(
            decode_hops(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x00\x00").map(|_| ()),
            Ok(())
        );
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
            assert_eq!(decode_hops(blob), Err(BlobError("hops")), "{blob:?}");
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
            prop_assert_eq!(decode_hops(&blob.unwrap_or_default()), Ok(hops));
        }

        #[test]
        fn decoding_never_panics(blob in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode_headers(&blob));
            drop(decode_hops(&blob));
        }
    }
}
