//! The runs of a store: they tell it apart from an older copy of itself.
//!
//! Each start of a store begins a run with a random id. An event belongs to the newest run that began before it. When a
//! store is set back to an older copy, it lacks the runs after the copy, and its next start begins another run. Two
//! histories of one store agree up to the sequence at which a run begins that only one of them has.

use super::RunId;
use crate::event::Sequence;

/// How many runs a history has at most. A run counts once it has an event.
pub const MAX_RUNS: usize = 128;

/// One run of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The head when it began. Its events come after this sequence.
    pub start: Sequence,
}

/// The newest runs of a store, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(Vec<Run>);

impl History {
    /// These runs, oldest first. The newest [`MAX_RUNS`] of them count.
    pub fn new(mut runs: Vec<Run>) -> Self {
        runs.drain(..runs.len().saturating_sub(MAX_RUNS));
        Self(runs)
    }

    /// The runs, oldest first.
    pub fn runs(&self) -> &[Run] {
        &self.0
    }

    /// The newest run.
    pub fn current(&self) -> Option<Run> {
        self.0.last().copied()
    }

    /// The last sequence, up to `seen`, that means the same event in both histories of one store. `seen` is a sequence of
    /// this history. Without a common run that is zero.
    pub fn last_common(&self, other: &Self, seen: Sequence) -> Sequence {
        let in_both = |(here, run): (usize, &Run)| {
            other.0.iter().position(|there| there.id == run.id).map(|there| (here, there))
        };
        let Some((here, there)) = self.0.iter().enumerate().rev().find_map(in_both) else {
            return Sequence::ZERO;
        };
        let next_runs = [self.0.get(here + 1), other.0.get(there + 1)];
        next_runs.into_iter().flatten().map(|run| run.start).fold(seen, Sequence::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(runs: &[(u64, u64)]) -> History {
        History::new(
            runs.iter()
                .map(|(id, start)| Run { id: RunId::new(*id), start: Sequence::new(*start) })
                .collect(),
        )
    }

    #[test]
    fn histories_agree_up_to_the_first_run_that_only_one_has() {
        let common = |one: &[(u64, u64)], other: &[(u64, u64)], seen: u64| {
            let (one, other, seen) = (history(one), history(other), Sequence::new(seen));
            assert_eq!(one.last_common(&other, seen), other.last_common(&one, seen));
            one.last_common(&other, seen).get()
        };
        let seen = [(1, 0), (2, 100)];
        assert_eq!(common(&seen, &seen, 150), 150, "the same run");
        assert_eq!(common(&seen, &[(1, 0), (2, 100), (3, 200)], 150), 150, "started since");
        assert_eq!(common(&seen, &[(1, 0), (2, 100), (3, 120)], 150), 120, "set back within the run");
        assert_eq!(common(&seen, &[(1, 0), (4, 80)], 150), 80, "set back to the run before");
        assert_eq!(common(&seen, &[(1, 0), (4, 80), (5, 900)], 150), 80, "and started again");
        assert_eq!(
            common(&[(1, 0), (2, 100), (3, 120)], &[(1, 0), (4, 110)], 150),
            100,
            "the copy was of run 1"
        );
        assert_eq!(common(&[(2, 100)], &[(1, 0), (4, 80)], 150), 0, "nothing in common");
        assert_eq!(common(&[], &seen, 150), 0);
    }

    #[test]
    fn a_history_is_bounded() {
        let runs: Vec<_> = (0..1000).map(|number| (number, number)).collect();
        let history = history(&runs);
        assert_eq!(history.runs().len(), MAX_RUNS);
        assert_eq!(history.current().map(|run| run.id), Some(RunId::new(999)));
        assert_eq!(RunId::new(7).to_string().parse(), Ok(RunId::new(7)));
    }
}
