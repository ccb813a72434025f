//! Sets of sequences that lie close together.

use std::collections::BTreeMap;

use crate::event::Sequence;

/// A set of sequences, kept as ranges: a million that follow each other take the room of one.
///
/// The ranges are closed and disjoint, and no two are adjacent, so that equal sets are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The last sequence of each range, by its first.
    by_first: BTreeMap<Sequence, Sequence>,
}

impl Ranges {
    /// Adds a sequence; `false` if it is there.
    pub fn insert(&mut self, sequence: Sequence) -> bool {
        let new = !self.contains(sequence);
        if new {
            self.insert_range(sequence, sequence);
        }
        new
    }

    /// Adds all sequences from `first` through `last`; none if `last` is before `first`.
    pub fn insert_range(&mut self, mut first: Sequence, mut last: Sequence) {
        if last < first {
            return;
        }
        // From the last to the first: each one that touches the range becomes part of it.
        while let Some((&near, &end)) = self.by_first.range(..=last.next()).next_back()
            && end.next() >= first
        {
            self.by_first.remove(&near);
            (first, last) = (first.min(near), last.max(end));
        }
        self.by_first.insert(first, last);
    }

    /// Whether a sequence is in the set.
    pub fn contains(&self, sequence: Sequence) -> bool {
        self.end_of(sequence).is_some()
    }

    /// The last sequence of the range that a sequence is in: all from the one through the other are in the set.
    pub fn end_of(&self, sequence: Sequence) -> Option<Sequence> {
        let (_, last) = self.by_first.range(..=sequence).next_back()?;
        (*last >= sequence).then_some(*last)
    }

    /// Removes all sequences up to and including `sequence`.
    pub fn remove_through(&mut self, sequence: Sequence) {
        while let Some(range) = self.by_first.first_entry()
            && *range.key() <= sequence
        {
            let last = range.remove();
            if last > sequence {
                self.by_first.insert(sequence.next(), last);
            }
        }
    }

    /// Whether the set has no sequence.
    pub fn is_empty(&self) -> bool {
        self.by_first.is_empty()
    }

    /// How many ranges the set is made of.
    pub fn ranges(&self) -> usize {
        self.by_first.len()
    }

    /// The first and the last sequence of each range, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Sequence, Sequence)> {
        self.by_first.iter().map(|(first, last)| (*first, *last))
    }
}

impl Extend<Sequence> for Ranges {
    fn extend<I: IntoIterator<Item = Sequence>>(&mut self, sequences: I) {
        for sequence in sequences {
            self.insert(sequence);
        }
    }
}

impl FromIterator<Sequence> for Ranges {
    fn from_iter<I: IntoIterator<Item = Sequence>>(sequences: I) -> Self {
        let mut ranges = Self::default();
        ranges.extend(sequences);
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Sequence),
        InsertRange(Sequence, Sequence),
        RemoveThrough(Sequence),
    }

    /// Both ends of what a sequence can be: there, the number before and the number that follows are the same.
    fn sequence() -> impl Strategy<Value = Sequence> {
        prop_oneof![
            6 => (0..40u64).prop_map(Sequence::new),
            1 => (0..4u64).prop_map(|below| Sequence::new(Sequence::MAX.get() - below)),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (sequence(), 0..8u64);
        prop_oneof![
            6 => sequence().prop_map(Step::Insert),
            3 => range.prop_map(|(first, more)| Step::InsertRange(first, Sequence::new(first.get() + more))),
            1 => Just(Step::InsertRange(Sequence::new(9), Sequence::new(3))),
            1 => sequence().prop_map(Step::RemoveThrough),
        ]
    }

    fn numbers(first: Sequence, last: Sequence) -> impl Iterator<Item = Sequence> {
        (first.get()..=last.get()).map(Sequence::new)
    }

    proptest! {
        #[test]
        fn is_a_set(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(sequence) => prop_assert_eq!(ranges.insert(sequence), set.insert(sequence)),
                    Step::InsertRange(first, last) => {
                        ranges.insert_range(first, last);
                        set.extend(numbers(first, last));
                    }
                    Step::RemoveThrough(sequence) => {
                        ranges.remove_through(sequence);
                        set.retain(|one| *one > sequence);
                    }
                }
                let all: Vec<_> = ranges.iter().flat_map(|(first, last)| numbers(first, last)).collect();
                prop_assert_eq!(all, set.iter().copied().collect::<Vec<_>>());
                let bounds: Vec<_> = ranges.iter().collect();
                prop_assert!(bounds.windows(2).all(|pair| pair[0].1.next() < pair[1].0), "{:?}", bounds);
                prop_assert_eq!((ranges.ranges(), ranges.is_empty()), (bounds.len(), set.is_empty()));
            }
            let again: Ranges = set.iter().rev().copied().collect();
            prop_assert_eq!(&again, &ranges, "equal whatever the order");
            for number in (0..50).chain(Sequence::MAX.get() - 5..=Sequence::MAX.get()) {
                let sequence = Sequence::new(number);
                let end = set.contains(&sequence).then(|| {
                    numbers(sequence, Sequence::MAX).take_while(|one| set.contains(one)).last()
                });
                prop_assert_eq!(ranges.end_of(sequence), end.flatten());
                prop_assert_eq!(ranges.contains(sequence), set.contains(&sequence));
            }
        }
    }
}
