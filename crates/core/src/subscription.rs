//! What one attached subscription has been sent and has acknowledged: pure bookkeeping, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::Sequence;
use crate::ranges::Ranges;

/// How much may be sent and not yet acknowledged. One event always may, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Events, at least 1.
    pub events: usize,
    /// Bytes of headers and bodies.
    pub bytes: u64,
}

/// How many events one stream may acknowledge that it was not sent itself, at least. They were sent on an earlier stream, so
/// they fitted into a window; the window of that stream may have been larger than the window of this one.
const MIN_EARLY: usize = 1024;
/// How many gaps such acknowledgements may leave between what is done. Each gap takes memory, and a row in the store.
const MAX_GAPS: usize = 1 << 15;

/// How far a client id has acknowledged, as the store keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Everything up to here is done.
    pub cursor: Sequence,
    /// Done as well, out of order; all beyond the cursor. While one event is stuck, this is everything after it.
    pub ahead: Ranges,
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
    ahead: Ranges,
    /// How many more events may be acknowledged before they are sent on this stream.
    early: usize,
}

impl Flow {
    /// A flow that starts where `progress` ends. The client has put down `deferred` on an earlier stream.
    pub fn new(progress: Progress, window: Window, deferred: impl IntoIterator<Item = Sequence>) -> Self {
        let Progress { cursor, ahead } = progress;
        let undone = |sequence: &Sequence| *sequence > cursor && !ahead.contains(*sequence);
        Self {
            window,
            position: cursor,
            outstanding: BTreeMap::new(),
            outstanding_bytes: 0,
            deferred: deferred.into_iter().filter(undone).collect(),
            recalled: BTreeSet::new(),
            ahead,
            early: window.events.max(MIN_EARLY),
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
        let known = self.ahead.contains(sequence)
            || self.deferred.contains(&sequence)
            || self.recalled.contains(&sequence);
        if known {
            // Before the rest of the page was read: meanwhile the cursor may be asked for, and a recall must find that this
            // one was passed.
            self.read_to(sequence);
        }
        !known
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
        self.ahead.remove_through(self.position);
    }

    /// Moves the position over what need not be read, up to `head`: events that were acknowledged, or deferred on an
    /// earlier stream, one after the other. Such a deferred event is then one that this stream has come to: when it
    /// is [recalled](Self::recall) it is sent, and when retention removes it that is noticed then.
    pub fn skip_known(&mut self, head: Sequence) {
        while self.position < head {
            let next = self.position.next();
            let deferred = || self.deferred.contains(&next).then_some(next);
            let Some(end) = self.ahead.end_of(next).or_else(deferred) else { return };
            // A client may name events that are not there yet. To read on beyond the head would pass over them.
            self.read_to(end.min(head));
        }
    }

    /// Whether this stream was sent the event, and it is not acknowledged.
    pub fn is_outstanding(&self, sequence: Sequence) -> bool {
        self.outstanding.contains_key(&sequence)
    }

    /// Whether an acknowledgement of this event would change something, see [`acknowledged`](Self::acknowledged).
    pub fn is_awaited(&self, sequence: Sequence, head: Sequence) -> bool {
        self.is_outstanding(sequence)
            || self.deferred.contains(&sequence)
            || self.recalled.contains(&sequence)
            || self.is_early(sequence, head)
    }

    /// Whether the event comes later on this stream, and may be acknowledged all the same: an earlier stream was sent it.
    fn is_early(&self, sequence: Sequence, head: Sequence) -> bool {
        sequence > self.position
            && sequence <= head
            && self.early > 0
            && self.ahead.ranges() < MAX_GAPS
            && !self.ahead.contains(sequence)
    }

    /// Whether the stream may still come to this event, which nobody has acknowledged.
    pub fn is_to_come(&self, sequence: Sequence, head: Sequence) -> bool {
        sequence > self.position && sequence <= head && !self.ahead.contains(sequence)
    }

    /// Notes that so many acknowledgements of events that were not sent cannot count. They use up the same bound as those that
    /// count: each of them was looked up.
    pub fn refused_early(&mut self, events: usize) {
        self.early = self.early.saturating_sub(events);
    }

    /// Notes an acknowledgement of an event up to `head`; `false` if it changes nothing: it came before, or there is no
    /// such event. An event may be acknowledged that this stream has not sent yet: it was sent on an earlier one, and
    /// its target answered meanwhile. There are no more of those than a window has.
    pub fn acknowledged(&mut self, sequence: Sequence, head: Sequence) -> bool {
        if self.take_outstanding(sequence) {
            return true;
        }
        // The client may be through with an event that it put down for another of its targets.
        let put_down = self.deferred.remove(&sequence) || self.recalled.remove(&sequence);
        if sequence <= self.position {
            return put_down;
        }
        let is_new = if put_down { sequence <= head } else { self.is_early(sequence, head) };
        if is_new && self.ahead.insert(sequence) {
            self.early -= usize::from(!put_down);
            return true;
        }
        false
    }

    /// Notes that the client has put an event down. One that was not sent, or is done, is passed over.
    pub fn defer(&mut self, sequence: Sequence) {
        if self.take_outstanding(sequence) || self.recalled.remove(&sequence) {
            self.deferred.insert(sequence);
        }
    }

    /// Notes that the client wants a deferred event again. One that this stream has not come to yet, because it was
    /// deferred on an earlier one, comes in its turn: sent now, it would take the position past all before it.
    pub fn recall(&mut self, sequence: Sequence) {
        if self.deferred.remove(&sequence) && sequence <= self.position {
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
        self.ahead.remove_through(removed_to);
        for set in [&mut self.deferred, &mut self.recalled] {
            // What this stream has come to lies before the position, and is looked for when it is recalled.
            set.retain(|sequence| *sequence < missed.0 || *sequence > missed.1);
        }
        Some(missed)
    }

    /// Notes that the events from `first` through `last`, the next of the log, cannot be read. `false` if the client has
    /// done them all: it misses nothing by that.
    pub fn damaged(&mut self, first: Sequence, last: Sequence) -> bool {
        let are_done = self.ahead.end_of(first).is_some_and(|end| end >= last);
        self.read_to(last);
        for set in [&mut self.deferred, &mut self.recalled] {
            set.retain(|sequence| *sequence < first || *sequence > last);
        }
        !are_done
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
mod tests;
