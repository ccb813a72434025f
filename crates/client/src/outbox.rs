//! What the server is to be told, until the stream has room for it.

use std::collections::VecDeque;
use std::sync::Arc;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{Acknowledgement, FirstAttempt};
use gitstafette_core::target::Outcome;
use gitstafette_proto::MAX_REQUEST_BYTES;
use gitstafette_proto::convert::{MAX_DETAIL_BYTES, MAX_ENTRIES, first_attempts, numbers};
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::{self, Acknowledgements, Deferral, FirstAttempts, Recall};
use tokio::time::Instant;

/// How many bytes of acknowledgements go in one message, at least one acknowledgement. A server takes twice as much.
const BATCH_BYTES: usize = MAX_REQUEST_BYTES / 2;
/// At most how many bytes an outcome takes on the wire beside its texts.
const OUTCOME_BYTES: usize = 96;

/// Acknowledgements, first attempts, and events put down and wanted again.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    acknowledgements: VecDeque<Acknowledgement>,
    /// The events that are tried in vain, the targets, and since when.
    first_attempts: VecDeque<(Sequence, Arc<str>, Instant)>,
    /// In the order they were decided: an event that is put down and wanted again must not come out the other way round.
    moves: VecDeque<Move>,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Defer(Sequence),
    Recall(Sequence),
}

impl Outbox {
    pub(crate) fn acknowledge(&mut self, acknowledgement: Acknowledgement) {
        self.acknowledgements.push_back(acknowledgement);
    }

    /// The first attempt of an event at this target failed. It is tried since `since`.
    pub(crate) fn first_attempt(&mut self, sequence: Sequence, target: Arc<str>, since: Instant) {
        self.first_attempts.push_back((sequence, target, since));
    }

    pub(crate) fn defer(&mut self, sequence: Sequence) {
        self.moves.push_back(Move::Defer(sequence));
    }

    pub(crate) fn recall(&mut self, sequence: Sequence) {
        self.moves.push_back(Move::Recall(sequence));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.acknowledgements.is_empty() && self.first_attempts.is_empty() && self.moves.is_empty()
    }

    /// Takes the next message out, for a stream whose window has so many events: a message has no more entries.
    pub(crate) fn next(&mut self, window: usize) -> Option<Request> {
        let most = window.clamp(1, MAX_ENTRIES);
        if !self.acknowledgements.is_empty() {
            return Some(Request::Acknowledgements(self.acknowledgements(most)));
        }
        if !self.first_attempts.is_empty() {
            return Some(Request::FirstAttempts(self.first_attempts(most)));
        }
        match self.moves.front()? {
            Move::Defer(_) => {
                let deferred = self
                    .alike(most, |one| if let Move::Defer(sequence) = one { Some(sequence) } else { None });
                Some(Request::Deferral(Deferral { sequences: numbers(deferred) }))
            }
            Move::Recall(_) => {
                let recalled = self
                    .alike(most, |one| if let Move::Recall(sequence) = one { Some(sequence) } else { None });
                Some(Request::Recall(Recall { sequences: numbers(recalled) }))
            }
        }
    }

    fn acknowledgements(&mut self, most: usize) -> Acknowledgements {
        let (mut outcomes, mut bytes) = (0, 0);
        let fits = |one: &&Acknowledgement| {
            outcomes += one.outcomes.len();
            bytes += one.outcomes.iter().map(encoded_bytes).sum::<usize>();
            outcomes <= MAX_ENTRIES && bytes <= BATCH_BYTES
        };
        let count = self.acknowledgements.iter().take(most).take_while(fits).count().max(1);
        let batch = self.acknowledgements.drain(..count);
        Acknowledgements { acknowledgements: batch.map(|one| v1::Acknowledgement::from(&one)).collect() }
    }

    fn first_attempts(&mut self, most: usize) -> FirstAttempts {
        let count = self.first_attempts.len().min(most);
        let batch = self.first_attempts.drain(..count).map(|(sequence, target, since)| FirstAttempt {
            sequence,
            target: target.to_string(),
            age: since.elapsed(),
        });
        first_attempts(&batch.collect::<Vec<_>>())
    }

    /// Takes the moves of one kind that stand in front.
    fn alike(&mut self, most: usize, kind: impl Fn(Move) -> Option<Sequence>) -> Vec<Sequence> {
        let alike: Vec<_> = self.moves.iter().take(most).map_while(|one| kind(*one)).collect();
        self.moves.drain(..alike.len());
        alike
    }
}

/// At most how many bytes an outcome takes on the wire. Its detail is cut.
fn encoded_bytes(outcome: &Outcome) -> usize {
    OUTCOME_BYTES + outcome.target.len() + outcome.detail.len().min(MAX_DETAIL_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    use gitstafette_core::target::OutcomeResult;
    use gitstafette_proto::v1::SubscribeRequest;
    use prost::Message;

    fn acknowledgement(sequence: u64, outcomes: usize, detail: usize) -> Acknowledgement {
        let outcome = Outcome {
            target: "x".repeat(256),
            result: OutcomeResult::Delivered,
            code: Some(u32::MAX),
            attempts: u32::MAX,
            duration: Duration::from_secs(1 << 30),
            at: SystemTime::now().into(),
            detail: "x".repeat(detail),
        };
        Acknowledgement { sequence: Sequence::new(sequence), outcomes: vec![outcome; outcomes] }
    }

    #[test]
    fn messages_stay_within_what_a_server_takes() {
        for (window, outcomes, detail) in [(1, 1, 0), (256, 1, 3000), (5000, 1, 0), (5000, 30, 2048)] {
            let mut outbox = Outbox::default();
            for sequence in 1..=3000 {
                outbox.acknowledge(acknowledgement(u64::MAX - sequence, outcomes, detail));
                outbox.defer(Sequence::new(u64::MAX - sequence));
                outbox.first_attempt(
                    Sequence::new(u64::MAX - sequence),
                    "x".repeat(256).into(),
                    Instant::now(),
                );
            }
            let mut left = 9000;
            while let Some(request) = outbox.next(window) {
                let entries = match &request {
                    Request::Acknowledgements(message) => message.acknowledgements.len(),
                    Request::FirstAttempts(message) => message.first_attempts.len(),
                    Request::Deferral(message) => message.sequences.len(),
                    other => panic!("{other:?}"),
                };
                assert!(entries > 0 && entries <= window.min(MAX_ENTRIES), "{entries} of {window}");
                assert!(SubscribeRequest { request: Some(request) }.encoded_len() <= MAX_REQUEST_BYTES);
                left -= entries;
            }
            assert_eq!(left, 0);
        }
    }

    #[test]
    fn moves_go_out_in_order_and_together() {
        let mut outbox = Outbox::default();
        let number = Sequence::new;
        outbox.defer(number(1));
        outbox.defer(number(2));
        outbox.recall(number(1));
        outbox.defer(number(3));
        outbox.acknowledge(Acknowledgement { sequence: number(9), outcomes: vec![] });
        assert!(matches!(outbox.next(256), Some(Request::Acknowledgements(_))));
        assert_eq!(outbox.next(256), Some(Request::Deferral(Deferral { sequences: vec![1, 2] })));
        assert_eq!(outbox.next(256), Some(Request::Recall(Recall { sequences: vec![1] })));
        assert_eq!(outbox.next(256), Some(Request::Deferral(Deferral { sequences: vec![3] })));
        assert!(outbox.is_empty() && outbox.next(256).is_none());
    }
}
