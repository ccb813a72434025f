//! What one attached subscription has been sent and has acknowledged: pure bookkeeping, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Sequence;

/// How much may be sent and not yet acknowledged. One event always may, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Events, at least 1.
    pub events: usize,
    /// Bytes of headers and bodies.
    pub bytes: u64,
}

/// How far a client id has acknowledged, as the store keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything up to here is done.
    pub cursor: Sequence,
    /// Done as well, out of order; all beyond the cursor.
    pub ahead: BTreeSet<Sequence>,
}

/// The flow of one subscription: what was sent, what came back, where the cursor may move.
///
/// Acknowledgements come in any order, because targets and repositories go at their own pace; the cursor is
/// always the greatest sequence up to which everything is done.
#[derive(Debug)]
pub struct Flow {
    window: Window,
    /// The log has been read up to here; what the filter dropped on the way needs no acknowledgement.
    position: Sequence,
    /// Sent, not acknowledged, with sizes.
    outstanding: BTreeMap<Sequence, u64>,
    outstanding_bytes: u64,
    /// Put down by the client for now: undone, and outside the window.
    deferred: BTreeSet<Sequence>,
    /// Deferred and wanted again.
    recalled: BTreeSet<Sequence>,
    /// Acknowledged before it was sent on this stream: not sent again.
    ahead: BTreeSet<Sequence>,
}

impl Flow {
    /// A flow that starts where `progress` ends. The client has put down `deferred` on an earlier stream.
    pub fn new(progress: Progress, window: Window, deferred: impl IntoIterator<Item = Sequence>) -> Self {
        let Progress { cursor, ahead } = progress;
        let undone = |sequence: &Sequence| *sequence > cursor && !ahead.contains(sequence);
        Self {
            window,
            position: cursor,
            outstanding: BTreeMap::new(),
            outstanding_bytes: 0,
            deferred: deferred.into_iter().filter(undone).collect(),
            recalled: BTreeSet::new(),
            ahead,
        }
    }

    /// Where to read on: after this sequence.
    pub fn position(&self) -> Sequence {
        self.position
    }

    /// What may be sent now, or nothing while the window is full.
    pub fn room(&self) -> Option<Window> {
        let events =
            self.window.events.max(1).checked_sub(self.outstanding.len()).filter(|left| *left > 0)?;
        let bytes = self.window.bytes.saturating_sub(self.outstanding_bytes);
        if bytes == 0 && !self.outstanding.is_empty() {
            return None;
        }
        Some(Window { events, bytes })
    }

    /// Whether an event that was read is to be sent: not if it was acknowledged before it was sent on this stream, or
    /// if the client deferred it. Asked once per event, in order.
    pub fn wants(&mut self, sequence: Sequence) -> bool {
        !self.ahead.remove(&sequence)
            && !self.deferred.contains(&sequence)
            && !self.recalled.contains(&sequence)
    }

    /// Notes an event as sent, the next one of the log or a recalled one.
    pub fn sent(&mut self, sequence: Sequence, size: u64) {
        self.position = self.position.max(sequence);
        self.recalled.remove(&sequence);
        self.outstanding.insert(sequence, size);
        self.outstanding_bytes += size;
    }

    /// Notes that the log has been read up to `sequence`.
    pub fn read_to(&mut self, sequence: Sequence) {
        self.position = self.position.max(sequence);
    }

    /// Notes an acknowledgement of an event up to `head`; `false` if it changes nothing: it came before, or there is no
    /// such event. An event may be acknowledged that this stream has not sent yet: it was sent on an earlier one, and
    /// its target answered meanwhile.
    pub fn acknowledged(&mut self, sequence: Sequence, head: Sequence) -> bool {
        if self.take_outstanding(sequence) {
            return true;
        }
        // The client may be through with an event that it put down for another of its targets.
        let put_down = self.deferred.remove(&sequence) || self.recalled.remove(&sequence);
        if sequence <= self.position {
            return put_down;
        }
        sequence <= head && self.ahead.insert(sequence)
    }

    /// Notes that the client has put an event down. One that was not sent, or is done, is passed over.
    pub fn defer(&mut self, sequence: Sequence) {
        if self.take_outstanding(sequence) || self.recalled.remove(&sequence) {
            self.deferred.insert(sequence);
        }
    }

    /// Notes that the client wants a deferred event again.
    pub fn recall(&mut self, sequence: Sequence) {
        if self.deferred.remove(&sequence) {
            self.recalled.insert(sequence);
        }
    }

    /// The next recalled event to send, the oldest first. It stays the next until it is [sent](Self::sent) or
    /// [lost](Self::lost).
    pub fn next_recalled(&self) -> Option<Sequence> {
        self.recalled.first().copied()
    }

    /// Notes that a recalled event is not in the store any more.
    pub fn lost(&mut self, sequence: Sequence) {
        self.recalled.remove(&sequence);
    }

    /// Notes that retention has removed everything up to `removed_to`. Returns the first and the last sequence of what
    /// this subscription has missed by that, if anything.
    pub fn removed(&mut self, removed_to: Sequence) -> Option<(Sequence, Sequence)> {
        if removed_to <= self.position {
            return None;
        }
        let missed = (self.position.next(), removed_to);
        self.position = removed_to;
        for set in [&mut self.ahead, &mut self.deferred, &mut self.recalled] {
            // What was put down on this stream lies before the position, and is looked for when it is recalled.
            set.retain(|sequence| *sequence < missed.0 || *sequence > missed.1);
        }
        Some(missed)
    }

    /// The cursor as it now stands.
    pub fn cursor(&self) -> Sequence {
        let undone = [
            self.outstanding.first_key_value().map(|(oldest, _)| oldest),
            self.deferred.first(),
            self.recalled.first(),
        ];
        let oldest = undone.into_iter().flatten().min();
        oldest.map_or(self.position, |oldest| oldest.previous().min(self.position))
    }

    /// How many events are sent and not acknowledged.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// How many events the client has put down, and not got back.
    pub fn deferred(&self) -> usize {
        self.deferred.len() + self.recalled.len()
    }

    fn take_outstanding(&mut self, sequence: Sequence) -> bool {
        let Some(size) = self.outstanding.remove(&sequence) else { return false };
        self.outstanding_bytes -= size;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequences(numbers: impl IntoIterator<Item = u64>) -> Vec<Sequence> {
        numbers.into_iter().map(Sequence::new).collect()
    }

    const HEAD: Sequence = Sequence::new(1000);

    fn flow(events: usize, bytes: u64) -> Flow {
        Flow::new(Progress::default(), Window { events, bytes }, [])
    }

    #[test]
    fn the_window_closes_by_count_and_by_bytes() {
        let mut by_count = flow(2, 1000);
        by_count.sent(Sequence::new(1), 10);
        assert_eq!(by_count.room(), Some(Window { events: 1, bytes: 990 }));
        by_count.sent(Sequence::new(2), 10);
        assert_eq!(by_count.room(), None);
        assert!(by_count.acknowledged(Sequence::new(2), HEAD));
        assert_eq!(by_count.room(), Some(Window { events: 1, bytes: 990 }));

        let mut by_bytes = flow(10, 100);
        assert!(by_bytes.room().is_some(), "a first event always fits");
        by_bytes.sent(Sequence::new(1), 500);
        assert_eq!(by_bytes.room(), None);
        assert!(by_bytes.acknowledged(Sequence::new(1), HEAD));
        assert!(by_bytes.room().is_some());
    }

    #[test]
    fn only_what_was_sent_can_be_acknowledged_and_once() {
        let mut flow = flow(10, 100);
        flow.sent(Sequence::new(3), 1);
        assert!(!flow.acknowledged(Sequence::new(2), HEAD));
        assert!(flow.acknowledged(Sequence::new(3), HEAD));
        assert!(!flow.acknowledged(Sequence::new(3), HEAD));
    }

    #[test]
    fn what_was_acknowledged_ahead_is_passed_over() {
        let progress = Progress { cursor: Sequence::new(4), ahead: [Sequence::new(6)].into() };
        let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, []);
        assert_eq!(flow.position(), Sequence::new(4));
        assert!(flow.wants(Sequence::new(5)));
        flow.sent(Sequence::new(5), 1);
        assert!(!flow.wants(Sequence::new(6)));
        flow.read_to(Sequence::new(6));
        assert_eq!(flow.cursor(), Sequence::new(4));
        assert!(flow.acknowledged(Sequence::new(5), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(6));
    }

    #[test]
    fn what_is_acknowledged_before_it_is_sent_again_is_passed_over() {
        let mut flow = flow(10, 100);
        flow.sent(Sequence::new(1), 1);
        assert!(flow.acknowledged(Sequence::new(3), HEAD), "sent on an earlier stream");
        assert!(!flow.acknowledged(Sequence::new(3), HEAD));
        assert!(!flow.acknowledged(HEAD.next(), HEAD), "there is no such event");
        assert!(flow.acknowledged(Sequence::new(1), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(1), "2 was not sent yet");
        assert!(flow.wants(Sequence::new(2)));
        flow.sent(Sequence::new(2), 1);
        assert!(!flow.wants(Sequence::new(3)));
        flow.read_to(Sequence::new(3));
        assert!(flow.acknowledged(Sequence::new(2), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(3));
    }

    #[test]
    fn what_is_deferred_makes_room_and_holds_the_cursor() {
        let mut flow = flow(2, 100);
        flow.sent(Sequence::new(1), 50);
        flow.sent(Sequence::new(2), 50);
        assert_eq!(flow.room(), None);
        flow.defer(Sequence::new(1));
        flow.defer(Sequence::new(7)); // was never sent
        assert_eq!((flow.room(), flow.deferred()), (Some(Window { events: 1, bytes: 50 }), 1));
        assert!(flow.acknowledged(Sequence::new(2), HEAD));
        assert_eq!(flow.cursor(), Sequence::ZERO, "1 is undone");

        assert_eq!(flow.next_recalled(), None);
        flow.recall(Sequence::new(1));
        assert_eq!(flow.next_recalled(), Some(Sequence::new(1)));
        flow.sent(Sequence::new(1), 50);
        assert_eq!((flow.next_recalled(), flow.deferred(), flow.outstanding()), (None, 0, 1));
        assert!(flow.acknowledged(Sequence::new(1), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(2));
    }

    #[test]
    fn what_was_deferred_on_an_earlier_stream_is_passed_over() {
        let progress = Progress { cursor: Sequence::new(4), ahead: [Sequence::new(8)].into() };
        let deferred = sequences([3, 6, 8]);
        let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 }, deferred);
        assert_eq!((flow.deferred(), flow.cursor()), (1, Sequence::new(4)), "the others are done");
        assert!(flow.wants(Sequence::new(5)));
        flow.sent(Sequence::new(5), 1);
        assert!(!flow.wants(Sequence::new(6)));
        flow.read_to(Sequence::new(9));
        assert!(flow.acknowledged(Sequence::new(5), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(5));
        assert!(flow.acknowledged(Sequence::new(6), HEAD), "given up without being recalled");
        assert_eq!(flow.cursor(), Sequence::new(9));
    }

    #[test]
    fn what_retention_removed_is_missed_once() {
        let mut flow = flow(10, 100);
        flow.sent(Sequence::new(1), 1);
        assert_eq!(flow.removed(Sequence::new(1)), None, "it was sent");
        let missed = (Sequence::new(2), Sequence::new(5));
        assert_eq!(flow.removed(Sequence::new(5)), Some(missed));
        assert_eq!(flow.removed(Sequence::new(5)), None);
        assert_eq!((flow.position(), flow.cursor()), (Sequence::new(5), Sequence::ZERO));
        assert!(flow.acknowledged(Sequence::new(1), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(5));
    }

    proptest! {
        /// In whatever order acknowledgements come, the cursor is the greatest sequence with nothing outstanding
        /// at or before it, and it never moves back.
        #[test]
        fn any_order_gives_the_right_cursor(
            mut numbers in proptest::collection::btree_set(1u64..200, 1..60),
            shuffle in proptest::collection::vec(any::<u16>(), 60),
            read_to in 200u64..250,
        ) {
            let sent = sequences(std::mem::take(&mut numbers));
            let mut flow = flow(1000, 1_000_000);
            for sequence in &sent {
                flow.sent(*sequence, 7);
            }
            flow.read_to(Sequence::new(read_to));
            let mut order: Vec<_> = sent.iter().copied().zip(shuffle).collect();
            order.sort_by_key(|(_, key)| *key);
            let mut left: BTreeSet<_> = sent.iter().copied().collect();
            let mut last = flow.cursor();
            for (sequence, _) in order {
                prop_assert!(flow.acknowledged(sequence, HEAD));
                left.remove(&sequence);
                let expected = left.first().map_or(Sequence::new(read_to), |oldest| oldest.previous());
                prop_assert_eq!(flow.cursor(), expected);
                prop_assert!(flow.cursor() >= last);
                last = flow.cursor();
            }
            prop_assert_eq!(flow.outstanding(), 0);
            prop_assert_eq!(flow.room(), Some(Window { events: 1000, bytes: 1_000_000 }));
        }
    }
}
