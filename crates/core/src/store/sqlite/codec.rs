//! Rows to events and back.
//!
//! Headers are one blob: for each field the length of its name, the name, the length of its value, the value. A
//! length is a LEB128 number: seven bits a byte, lowest first, the high bit set on all but the last. That keeps order,
//! repeats and values that are no text, at two bytes a field.

use std::str::FromStr;

use bytes::Bytes;
use rusqlite::Row;
use rusqlite::types::{FromSqlError, Type};

use crate::event::{Address, EventType, Facts, Sequence, Timestamp};
use crate::headers::Headers;
use crate::hop::Hops;
use crate::repository::RepositoryId;
use crate::store::Report;
use crate::target::Outcome;

/// The columns of `events` from which an [`Event`](crate::event::Event) is made, in the order that [`facts`] expects.
pub(super) const FACTS: &str = "events.sequence, size, redelivery, source, hook_id, delivery_id, event, action, \
     repository_id, repository_name, owner, installation_id, received_at, for_client, for_target";

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
        hops: Hops::default(),
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
            encode_length(&mut blob, part.len());
            blob.extend_from_slice(part);
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
pub(super) fn decode_headers(blob: &[u8]) -> Result<Headers, HeaderBlobError> {
    let mut rest = blob;
    let mut headers = Headers::new();
    while !rest.is_empty() {
        let name = decode_part(&mut rest)?;
        let value = decode_part(&mut rest)?;
        headers
            .append(std::str::from_utf8(name).map_err(|_| HeaderBlobError)?, Bytes::copy_from_slice(value));
    }
    Ok(headers)
}

/// The stored headers cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored headers are damaged")]
pub(super) struct HeaderBlobError;

fn encode_length(blob: &mut Vec<u8>, length: usize) {
    let mut rest = length;
    while rest >= 0x80 {
        blob.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    blob.push(rest as u8);
}

fn decode_part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], HeaderBlobError> {
    let mut length = 0usize;
    // Four groups of seven bits: no field is longer than 256 MiB, and nothing overflows.
    for shift in [0, 7, 14, 21] {
        let (byte, behind) = rest.split_first().ok_or(HeaderBlobError)?;
        *rest = behind;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let (part, behind) = rest.split_at_checked(length).ok_or(HeaderBlobError)?;
            *rest = behind;
            return Ok(part);
        }
    }
    Err(HeaderBlobError)
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
            assert_eq!(decode_headers(blob), Err(HeaderBlobError), "{blob:?}");
        }
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
        fn decoding_never_panics(blob in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode_headers(&blob));
        }
    }
}
