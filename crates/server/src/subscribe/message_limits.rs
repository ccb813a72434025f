//! Decodes what a subscriber sends, after its repeated fields were counted.
//!
//! On the wire an empty entry takes two bytes and a number one, in memory a hundred and eight.

use bytes::Buf;
use gitstafette_core::store::MAX_RUNS;
use gitstafette_proto::convert::{MAX_DEFERRED, MAX_ENTRIES, MAX_PATTERNS};
use gitstafette_proto::v1::SubscribeRequest;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};

/// The buffer of a stream begins with so many bytes and grows with its messages: most streams never receive a large one.
const BUFFER_BYTES: usize = 512;
/// After how many bytes a decoder would yield; it decodes one message at a time.
const YIELD_BYTES: usize = 32 << 10;

/// What the entries of a repeated field are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entries {
    /// Messages or texts, each with its length.
    Lengths,
    /// Numbers, one by one or packed: then each ends with a byte whose first bit is not set (Protocol Buffers' documentation,
    /// "Encoding").
    Numbers,
}
use Entries::{Lengths, Numbers};

/// A repeated field: the numbers of the fields on the way to it, its entries, how many it may have, and what they are.
type Limit = (&'static [u32], Entries, usize, &'static str);

/// The repeated fields of a [`SubscribeRequest`].
const LIMITS: &[Limit] = &[
    (&[1, 2], Lengths, MAX_PATTERNS, "repositories"),
    (&[1, 3], Lengths, MAX_PATTERNS, "events"),
    (&[1, 10], Numbers, MAX_DEFERRED, "deferred events"),
    (&[1, 14], Lengths, MAX_RUNS, "runs"),
    (&[2, 1], Lengths, MAX_ENTRIES, "acknowledgements"),
    (&[2, 1, 2], Lengths, MAX_ENTRIES, "outcomes"),
    (&[3, 1], Numbers, MAX_ENTRIES, "deferred events"),
    (&[4, 1], Numbers, MAX_ENTRIES, "recalled events"),
    (&[5, 1], Lengths, MAX_ENTRIES, "first attempts"),
];

/// Decodes the messages of `Subscribe`.
#[derive(Debug, Default)]
pub(crate) struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = SubscribeRequest;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<SubscribeRequest>, Status> {
        let malformed = || Status::invalid_argument("the message is not a SubscribeRequest");
        check(message.chunk()).ok_or_else(malformed)??;
        SubscribeRequest::decode(message).map(Some).map_err(|_| malformed())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

/// Whether no repeated field has too many entries; `None` if the message cannot be read.
fn check(message: &[u8]) -> Option<Result<(), Status>> {
    for (path, entries, most, what) in LIMITS {
        let found = count(message, path, *entries)?;
        if found > *most {
            return Some(Err(Status::invalid_argument(format!(
                "{found} {what} in one message; a message may have {most}, send them in several messages"
            ))));
        }
    }
    Some(Ok(()))
}

/// How many entries there are at the end of a path; `None` if the message cannot be read.
fn count(mut message: &[u8], path: &[u32], entries: Entries) -> Option<usize> {
    let (number, rest) = path.split_first()?;
    let mut found = 0;
    while message.has_remaining() {
        let (field, wire_type) = decode_key(&mut message).ok()?;
        if field != *number || wire_type != WireType::LengthDelimited {
            found += usize::from(field == *number && rest.is_empty());
            skip_field(wire_type, field, &mut message, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
        let (content, after) = message.split_at_checked(length)?;
        found += match (rest, entries) {
            ([], Lengths) => 1,
            ([], Numbers) => content.iter().filter(|byte| **byte < 0x80).count(),
            _ => count(content, rest, entries)?,
        };
        message = after;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_proto::v1;
    use gitstafette_proto::v1::subscribe_request::Request;

    fn encoded(request: Request) -> Vec<u8> {
        SubscribeRequest { request: Some(request) }.encode_to_vec()
    }

    fn numbers(count: usize) -> Vec<u64> {
        (0..count as u64).map(|number| number << (number % 60)).collect()
    }

    fn acknowledgements(count: usize, outcomes: usize) -> Request {
        let one = v1::Acknowledgement { sequence: 7, outcomes: vec![v1::Outcome::default(); outcomes] };
        Request::Acknowledgements(v1::Acknowledgements { acknowledgements: vec![one; count] })
    }

    fn subscription(patterns: usize, deferred: usize, runs: usize) -> Request {
        Request::Subscription(v1::Subscription {
            client_id: "a".to_owned(),
            repositories: vec!["octo/*".to_owned(); patterns],
            events: vec!["push".to_owned(); patterns],
            deferred: numbers(deferred),
            runs: vec![v1::Run::default(); runs],
            ..v1::Subscription::default()
        })
    }

    fn first_attempts(count: usize) -> Request {
        let first_attempts = vec![v1::FirstAttempt::default(); count];
        Request::FirstAttempts(v1::FirstAttempts { first_attempts })
    }

    #[test]
    fn entries_are_counted_before_they_are_decoded() {
        let deferral = |count| Request::Deferral(v1::Deferral { sequences: numbers(count) });
        let recall = |count| Request::Recall(v1::Recall { sequences: numbers(count) });
        for (fits, too_many) in [
            (subscription(MAX_PATTERNS, MAX_DEFERRED, MAX_RUNS), subscription(MAX_PATTERNS + 1, 0, 0)),
            (subscription(0, 0, 0), subscription(0, MAX_DEFERRED + 1, 0)),
            (subscription(1, 1, 1), subscription(0, 0, MAX_RUNS + 1)),
            (acknowledgements(MAX_ENTRIES, 1), acknowledgements(MAX_ENTRIES + 1, 0)),
            (acknowledgements(1, MAX_ENTRIES), acknowledgements(MAX_ENTRIES / 2, 3)),
            (deferral(MAX_ENTRIES), deferral(MAX_ENTRIES + 1)),
            (recall(MAX_ENTRIES), recall(MAX_ENTRIES + 1)),
            (first_attempts(MAX_ENTRIES), first_attempts(MAX_ENTRIES + 1)),
        ] {
            let fits = encoded(fits);
            check(&fits).unwrap().unwrap();
            for cut in 1..fits.len().min(2000) {
                let is_readable = SubscribeRequest::decode(&fits[..cut]).is_ok();
                assert!(!is_readable || check(&fits[..cut]).is_some(), "{cut}");
            }
            let refused = check(&encoded(too_many)).unwrap().unwrap_err();
            assert!(refused.message().contains("in several messages"), "{refused}");
        }
        // A message that comes twice is merged.
        let half = encoded(acknowledgements(MAX_ENTRIES / 2 + 1, 0));
        check(&half).unwrap().unwrap();
        check(&half.repeat(2)).unwrap().unwrap_err();
        // Numbers need not be packed.
        let one_by_one = [[0x08, 0x07]; MAX_ENTRIES + 1].concat();
        let mut message = vec![0x1a];
        prost::encoding::encode_varint(one_by_one.len() as u64, &mut message);
        message.extend(one_by_one);
        check(&message).unwrap().unwrap_err();
    }

    #[test]
    fn no_bytes_become_more_entries_than_were_counted() {
        let mut random = fastrand::Rng::with_seed(7);
        let whole = [acknowledgements(3, 2), subscription(2, 5, 1), first_attempts(3)].map(encoded);
        let deferral = encoded(Request::Deferral(v1::Deferral { sequences: numbers(9) }));
        let mut readable = 0;
        for _ in 0..50_000 {
            let kind = random.usize(..4);
            let mut message = whole.get(kind).unwrap_or(&deferral).repeat(random.usize(1..3));
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..message.len());
                message[at] = random.u8(..);
            }
            let Ok(SubscribeRequest { request: Some(request) }) = SubscribeRequest::decode(&*message) else {
                continue;
            };
            readable += 1;
            let found = |path: &[u32], entries| count(&message, path, entries).unwrap();
            match request {
                Request::Subscription(message) => {
                    assert!(found(&[1, 2], Lengths) >= message.repositories.len());
                    assert!(found(&[1, 10], Numbers) >= message.deferred.len());
                    assert!(found(&[1, 14], Lengths) >= message.runs.len());
                }
                Request::Acknowledgements(message) => {
                    let outcomes: usize = message.acknowledgements.iter().map(|one| one.outcomes.len()).sum();
                    assert!(found(&[2, 1], Lengths) >= message.acknowledgements.len());
                    assert!(found(&[2, 1, 2], Lengths) >= outcomes);
                }
                Request::Deferral(message) => assert!(found(&[3, 1], Numbers) >= message.sequences.len()),
                Request::Recall(message) => assert!(found(&[4, 1], Numbers) >= message.sequences.len()),
                Request::FirstAttempts(message) => {
                    assert!(found(&[5, 1], Lengths) >= message.first_attempts.len());
                }
            }
        }
        assert!(readable > 1000, "{readable}");
    }
}
