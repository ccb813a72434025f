//! Which log the sequences are of: what becomes of deliveries when the server has another store, or an older copy of its own.

use std::sync::Arc;

use gitstafette_core::event::Sequence;
use gitstafette_proto::convert::Seen;
use tokio::sync::mpsc;

use super::Deliveries;
use crate::route::LaneKey;
use crate::window::Load;

impl Deliveries {
    /// How far the log is known, for the next subscription.
    pub(crate) fn seen(&self) -> Option<Seen> {
        self.seen.clone()
    }

    /// A stream began. Its sequences are of the log `log`, and the server's cursor is `cursor`. `common` is the last sequence
    /// that means the same event as before, if the server's store was set back to an older copy. `false` if the server has
    /// another store than before: then no sequence does.
    pub(crate) fn belong_to(&mut self, log: &Seen, cursor: Sequence, common: Option<Sequence>) -> bool {
        let before = self.seen.replace(log.clone());
        self.publish(|state| (state.log, state.cursor) = (Some(Arc::new(log.clone())), cursor));
        let is_same = before.is_none_or(|before| before.store == log.store);
        match (is_same, common) {
            (true, None) => {}
            (true, Some(common)) => self.forget_beyond(common),
            (false, _) => self.forget_beyond(Sequence::ZERO),
        }
        is_same
    }

    /// Beyond this sequence, the sequences now mean other events. What is here is delivered without an acknowledgement, before
    /// others go the same way. What was deferred comes again as far as the server has it; the rest of it is counted as missed.
    fn forget_beyond(&mut self, common: Sequence) {
        let missed = self.absent.range(common.next()..).count();
        if !self.pending.is_empty() {
            tracing::warn!(
                common.sequence = common.get(),
                events = self.pending.len() - self.absent.len(),
                missed,
                "the server has another store, or an older copy of its store: events that are here are delivered without an \
                 acknowledgement, deferred ones may be lost"
            );
        }
        let (sender, reports) = mpsc::unbounded_channel();
        let here = |key: &LaneKey, sequence| self.pending.get(&sequence)?.parcel(key.route);
        self.lanes.replace(sender, here);
        self.reports = reports;
        self.window.taken = Load::default();
        self.pending.clear();
        self.absent.clear();
        self.deferred = 0;
        self.parked.clear();
        drop(self.unconfirmed.split_off(&common.next()));
        drop(self.resume());
        self.publish(|state| {
            state.received = state.received.min(common);
            state.missed += missed as u64;
            state.targets.iter_mut().for_each(|target| target.shows(false));
        });
    }

    /// The server's log goes at least as far as here.
    pub(super) fn saw(&mut self, sequence: Sequence) {
        if let Some(seen) = &mut self.seen {
            seen.sequence = seen.sequence.max(sequence);
        }
    }
}
