//! What the server is to be told, until the stream has room for it.

use std::collections::VecDeque;
use std::sync::Arc;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{Acknowledgement, FirstAttempt};
use gitstafette_proto::convert::{first_attempts, numbers};
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::{self, Acknowledgements, Deferral, FirstAttempts, Recall};
use tokio::time::Instant;

/// How many outcomes go in one message: with details of 2 KiB and names of 256 bytes it stays below the 4 MiB that a
/// server takes.
const BATCH: usize = 1024;

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

    /// Takes the next message out.
    pub(crate) fn next(&mut self) -> Option<Request> {
        if !self.acknowledgements.is_empty() {
            return Some(Request::Acknowledgements(self.acknowledgements()));
        }
        if !self.first_attempts.is_empty() {
            return Some(Request::FirstAttempts(self.first_attempts()));
        }
        match self.moves.front()? {
            Move::Defer(_) => {
                let deferred =
                    self.alike(|one| if let Move::Defer(sequence) = one { Some(sequence) } else { None });
                Some(Request::Deferral(Deferral { sequences: numbers(deferred) }))
            }
            Move::Recall(_) => {
                let recalled =
                    self.alike(|one| if let Move::Recall(sequence) = one { Some(sequence) } else { None });
                Some(Request::Recall(Recall { sequences: numbers(recalled) }))
            }
        }
    }

    fn acknowledgements(&mut self) -> Acknowledgements {
        let mut outcomes = 0;
        let fits = |one: &&Acknowledgement| {
            outcomes += one.outcomes.len();
            outcomes <= BATCH
        };
        let count = self.acknowledgements.iter().take_while(fits).count().max(1);
        let batch = self.acknowledgements.drain(..count);
        Acknowledgements { acknowledgements: batch.map(|one| v1::Acknowledgement::from(&one)).collect() }
    }

    fn first_attempts(&mut self) -> FirstAttempts {
        let count = self.first_attempts.len().min(BATCH);
        let batch = self.first_attempts.drain(..count).map(|(sequence, target, since)| FirstAttempt {
            sequence,
            target: target.to_string(),
            age: since.elapsed(),
        });
        first_attempts(&batch.collect::<Vec<_>>())
    }

    /// Takes the moves of one kind that stand in front.
    fn alike(&mut self, kind: impl Fn(Move) -> Option<Sequence>) -> Vec<Sequence> {
        let alike: Vec<_> = self.moves.iter().map_while(|one| kind(*one)).collect();
        self.moves.drain(..alike.len());
        alike
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_go_out_in_order_and_together() {
        let mut outbox = Outbox::default();
        let number = Sequence::new;
        outbox.defer(number(1));
        outbox.defer(number(2));
        outbox.recall(number(1));
        outbox.defer(number(3));
        outbox.acknowledge(Acknowledgement { sequence: number(9), outcomes: vec![] });
        assert!(matches!(outbox.next(), Some(Request::Acknowledgements(_))));
        assert_eq!(outbox.next(), Some(Request::Deferral(Deferral { sequences: vec![1, 2] })));
        assert_eq!(outbox.next(), Some(Request::Recall(Recall { sequences: vec![1] })));
        assert_eq!(outbox.next(), Some(Request::Deferral(Deferral { sequences: vec![3] })));
        assert!(outbox.is_empty() && outbox.next().is_none());
    }
}
