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
        let done = self.ahead.remove(&sequence);
        if done {
            // What is forgotten here must not count as ahead when it is acknowledged once more.
            self.read_to(sequence);
        }
        done
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
mod tests;
