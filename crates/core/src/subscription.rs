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
/// always the greatest sequence up to which nothing is outstanding.
#[derive(Debug)]
pub struct Flow {
    window: Window,
    /// The log has been read up to here; what the filter dropped on the way needs no acknowledgement.
    position: Sequence,
    /// Sent, not acknowledged, with sizes.
    outstanding: BTreeMap<Sequence, u64>,
    outstanding_bytes: u64,
    /// Acknowledged before it was sent on this stream: not sent again.
    ahead: BTreeSet<Sequence>,
}

impl Flow {
    /// A flow that starts where `progress` ends.
    pub fn new(progress: Progress, window: Window) -> Self {
        Self {
            window,
            position: progress.cursor,
            outstanding: BTreeMap::new(),
            outstanding_bytes: 0,
            ahead: progress.ahead,
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

    /// Whether the event was acknowledged before it was sent on this stream and is to be passed over. Asked once per
    /// event, in order.
    pub fn already_done(&mut self, sequence: Sequence) -> bool {
        self.ahead.remove(&sequence)
    }

    /// Notes an event as sent.
    pub fn sent(&mut self, sequence: Sequence, size: u64) {
        self.position = self.position.max(sequence);
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
        match self.outstanding.remove(&sequence) {
            Some(size) => {
                self.outstanding_bytes -= size;
                true
            }
            None => sequence > self.position && sequence <= head && self.ahead.insert(sequence),
        }
    }

    /// The cursor as it now stands.
    pub fn cursor(&self) -> Sequence {
        self.outstanding.first_key_value().map_or(self.position, |(oldest, _)| oldest.previous())
    }

    /// How many events are sent and not acknowledged.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
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
        Flow::new(Progress::default(), Window { events, bytes })
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
        let mut flow = Flow::new(progress, Window { events: 10, bytes: 100 });
        assert_eq!(flow.position(), Sequence::new(4));
        assert!(!flow.already_done(Sequence::new(5)));
        flow.sent(Sequence::new(5), 1);
        assert!(flow.already_done(Sequence::new(6)));
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
        assert!(!flow.already_done(Sequence::new(2)));
        flow.sent(Sequence::new(2), 1);
        assert!(flow.already_done(Sequence::new(3)));
        flow.read_to(Sequence::new(3));
        assert!(flow.acknowledged(Sequence::new(2), HEAD));
        assert_eq!(flow.cursor(), Sequence::new(3));
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
