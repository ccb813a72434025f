//! What one client reports of one event: at most [`MAX_TARGETS`] targets, and a bounded amount of text.
//!
//! A client may have any number of targets, and what it reports is never refused: its cursor would stay where it is. So
//! the outcomes beyond the bound become one, at [`OTHER_TARGETS`], and text that is too long is cut.

use std::collections::BTreeMap;

use crate::event::Sequence;
use crate::target::{Outcome, OutcomeResult};
use crate::text::{CUT_MARK, shorten};

/// The most targets of one client whose outcomes are stored for an event, each for itself. All further targets have one
/// outcome together.
pub const MAX_TARGETS: usize = 32;
/// The target's name in the outcome that stands for all targets beyond [`MAX_TARGETS`]: the worst of theirs.
pub const OTHER_TARGETS: &str = "other-targets";
/// The longest detail of one outcome, in bytes.
pub const MAX_DETAIL_BYTES: usize = 2048;
/// The most bytes of all details that one client reports of an event. Beyond that a detail is cut down to its mark.
pub const MAX_DETAILS_BYTES: usize = 8 << 10;
/// What an outcome takes in a store beside its texts, about.
pub(crate) const ROW_BYTES: u64 = 100;

/// The outcomes of one event that one client reported, by target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes(BTreeMap<String, Reported>);

/// One outcome, and what became of it since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// As it was reported.
    pub outcome: Outcome,
    /// As which event an operator had it delivered again.
    pub redelivered_as: Option<Sequence>,
}

impl Outcomes {
    /// Adds an outcome in place of an earlier one of the same target. Of those beyond the bound, the worst stays.
    pub fn add(&mut self, mut outcome: Outcome) {
        let named = self.0.len() - usize::from(self.0.contains_key(OTHER_TARGETS));
        let is_named = outcome.target != OTHER_TARGETS;
        if is_named && named >= MAX_TARGETS && !self.0.contains_key(&outcome.target) {
            outcome.detail = format!("{}: {}", outcome.target, outcome.detail);
            outcome.target = OTHER_TARGETS.to_owned();
            let kept = self.0.get(OTHER_TARGETS).map(|kept| severity(kept.outcome.result));
            if kept > Some(severity(outcome.result)) {
                return;
            }
        }
        let others =
            self.0.values().map(|other| &other.outcome).filter(|other| other.target != outcome.target);
        // What is only a mark takes nothing, so that all that was taken in once stays as it is.
        let details = others.map(|other| other.detail.len()).filter(|bytes| *bytes > CUT_MARK.len());
        let taken: usize = details.sum();
        shorten(&mut outcome.detail, MAX_DETAIL_BYTES.min(MAX_DETAILS_BYTES.saturating_sub(taken)));
        self.insert(Reported { outcome, redelivered_as: None });
    }

    /// Adds an outcome as it is stored.
    pub(crate) fn insert(&mut self, reported: Reported) {
        self.0.insert(reported.outcome.target.clone(), reported);
    }

    /// The outcomes, by target.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Reported> {
        self.0.values()
    }

    /// The outcomes to be changed, by target.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Reported> {
        self.0.values_mut()
    }

    /// The outcome at a target.
    pub fn get(&self, target: &str) -> Option<&Reported> {
        self.0.get(target)
    }

    /// About how many bytes they take in a store, for a client whose id has this length.
    pub(crate) fn stored_bytes(&self, client: usize) -> u64 {
        let bytes =
            |outcome: &Outcome| ROW_BYTES + (client + outcome.target.len() + outcome.detail.len()) as u64;
        self.iter().map(|reported| bytes(&reported.outcome)).sum()
    }
}

impl FromIterator<Outcome> for Outcomes {
    fn from_iter<I: IntoIterator<Item = Outcome>>(outcomes: I) -> Self {
        let mut all = Self::default();
        outcomes.into_iter().for_each(|outcome| all.add(outcome));
        all
    }
}

impl From<Outcomes> for Vec<Outcome> {
    fn from(outcomes: Outcomes) -> Self {
        outcomes.0.into_values().map(|reported| reported.outcome).collect()
    }
}

fn severity(result: OutcomeResult) -> u8 {
    match result {
        OutcomeResult::Filtered => 0,
        OutcomeResult::Delivered => 1,
        OutcomeResult::Failed => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::Timestamp;

    fn outcome(target: &str, result: OutcomeResult, detail: &str) -> Outcome {
        Outcome {
            target: target.into(),
            result,
            code: None,
            attempts: 1,
            duration: Duration::ZERO,
            at: Timestamp::default(),
            detail: detail.into(),
        }
    }

    #[test]
    fn the_targets_beyond_the_bound_have_one_outcome() {
        use OutcomeResult::{Delivered, Failed, Filtered};
        let mut outcomes: Outcomes =
            (10..42).map(|number| outcome(&format!("t{number}"), Delivered, "")).collect();
        assert_eq!((outcomes.iter().len(), outcomes.get(OTHER_TARGETS)), (MAX_TARGETS, None));
        for (target, result, detail, shown) in [
            ("x1", Filtered, "not wanted", "x1: not wanted"),
            ("x2", Failed, "gone", "x2: gone"),
            ("x3", Delivered, "ok", "x2: gone"),
            ("x4", Failed, "gone, too", "x4: gone, too"),
        ] {
            outcomes.add(outcome(target, result, detail));
            assert_eq!(outcomes.get(OTHER_TARGETS).unwrap().outcome.detail, shown, "{target}");
        }
        outcomes.add(outcome("t10", Failed, "refused"));
        assert_eq!(outcomes.get("t10").unwrap().outcome.detail, "refused", "a known target is replaced");
        assert_eq!(outcomes.iter().len(), MAX_TARGETS + 1);
    }

    #[test]
    fn text_is_cut_with_a_mark() {
        let long = "ö".repeat(5000);
        let outcomes: Outcomes =
            (0..300).map(|number| outcome(&format!("t{number}"), OutcomeResult::Failed, &long)).collect();
        let details: Vec<_> = outcomes.iter().map(|reported| &reported.outcome.detail).collect();
        assert!(details.iter().all(|detail| detail.ends_with('…') && detail.len() <= MAX_DETAIL_BYTES));
        let bytes: usize = details.iter().map(|detail| detail.len()).sum();
        assert!(bytes <= MAX_DETAILS_BYTES + (MAX_TARGETS + 1) * "…".len(), "{bytes}");
        assert!(outcomes.stored_bytes(128) < 16 << 10);
        let again: Outcomes = Vec::from(outcomes.clone()).into_iter().rev().collect();
        assert!(again == outcomes, "what was cut is not cut again");
    }
}
