//! Which log a subscriber or a publisher knows, and how far.

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{History, MAX_RUNS, Run};

use crate::v1;

/// How far the log of a store is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The store's id; empty for none.
    pub store: String,
    /// Its runs.
    pub history: History,
    /// The last sequence that is known.
    pub sequence: Sequence,
}

impl Seen {
    /// The last sequence that means the same event in the log with this id and history; `None` if that is another store.
    /// Who has seen nothing has that in common with every store.
    pub fn last_common(&self, store: &str, history: &History) -> Option<Sequence> {
        if self.store.is_empty() {
            return Some(Sequence::ZERO);
        }
        (self.store == store).then(|| self.history.last_common(history, self.sequence))
    }
}

/// The runs of a history, as messages carry them.
pub fn runs(history: &History) -> Vec<v1::Run> {
    let wire = |run: &Run| v1::Run { run_id: run.id.to_string(), start_sequence: run.start.get() };
    history.runs().iter().map(wire).collect()
}

/// The history that these messages carry. A run whose id cannot be read is left out.
pub fn history(runs: &[v1::Run]) -> History {
    let newest = &runs[runs.len().saturating_sub(MAX_RUNS)..];
    let run = |wire: &v1::Run| {
        let id = wire.run_id.parse().ok()?;
        Some(Run { id, start: Sequence::new(wire.start_sequence) })
    };
    History::new(newest.iter().filter_map(run).collect())
}

/// The id of the current run; empty if there is none.
pub(super) fn run_id(history: &History) -> String {
    history.current().map(|run| run.id.to_string()).unwrap_or_default()
}

/// The history of a subscriber. One that names the current run alone knows nothing of others.
pub(super) fn history_with(runs: &[v1::Run], run_id: &str, sequence: u64) -> History {
    if runs.last().is_some_and(|run| run.run_id == run_id) {
        return history(runs);
    }
    history(&[v1::Run { run_id: run_id.to_owned(), start_sequence: sequence }])
}
