//! What is measured time and again, and whether it stays the same.

use std::time::Duration;

use crate::figures::mebibytes;
use crate::text;

/// How many samples make up one value that is compared: a minute's.
const WINDOW: usize = 6;
/// A value is flat if it is below so many times the earlier one …
const GROWTH: f64 = 1.25;
/// … and so many bytes: small values vary by more than their quarter.
const ALLOWANCE: u64 = 4 << 20;

/// One look at everything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Resident memory, in bytes.
    pub(crate) server: u64,
    pub(crate) client: u64,
    /// The store's folder, in bytes.
    pub(crate) store: u64,
    /// From when a webhook was due to its arrival, of those that arrived since the last sample.
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

impl Sample {
    /// The last minute of these samples in one: the median of each value. `None` without samples.
    pub(crate) fn typical(samples: &[Self]) -> Option<Self> {
        let last = &samples[samples.len().saturating_sub(WINDOW)..];
        let bytes = |of: fn(&Self) -> u64| middle(last.iter().map(of).collect());
        let duration = |of: fn(&Self) -> Duration| middle(last.iter().map(of).collect());
        Some(Self {
            server: bytes(|sample| sample.server)?,
            client: bytes(|sample| sample.client)?,
            store: bytes(|sample| sample.store)?,
            median: duration(|sample| sample.median)?,
            p99: duration(|sample| sample.p99)?,
        })
    }

    /// The values for a line.
    pub(crate) fn line(&self) -> String {
        format!(
            "server {} MiB, client {} MiB, store {} MiB, median {} ms, 99th percentile {} ms",
            mebibytes(self.server),
            mebibytes(self.client),
            mebibytes(self.store),
            text::millis(self.median),
            text::millis(self.p99)
        )
    }

    /// What grew beyond the earlier sample, by name.
    pub(crate) fn grown_since(&self, earlier: &Self) -> Vec<&'static str> {
        let values = [
            ("the server's memory", self.server, earlier.server),
            ("the client's memory", self.client, earlier.client),
            ("the store", self.store, earlier.store),
        ];
        values.into_iter().filter(|(_, now, before)| !is_flat(*before, *now)).map(|(name, ..)| name).collect()
    }
}

fn middle<T: Ord + Copy>(mut values: Vec<T>) -> Option<T> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn is_flat(before: u64, now: u64) -> bool {
    now as f64 <= before as f64 * GROWTH + ALLOWANCE as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_minutes_middle_is_compared() {
        let samples: Vec<_> =
            [90, 1, 2, 3, 4, 5, 60].map(|server| Sample { server, ..Sample::default() }).into();
        assert_eq!(Sample::typical(&samples).unwrap().server, 4);
        assert_eq!(Sample::typical(&samples[..1]).unwrap().server, 90);
        assert_eq!(Sample::typical(&[]), None);
    }

    #[test]
    fn a_quarter_and_some_more_is_flat() {
        assert!(is_flat(100 * MIB, 129 * MIB));
        assert!(!is_flat(100 * MIB, 130 * MIB));
        assert!(is_flat(0, 4 * MIB) && is_flat(100 * MIB, 10 * MIB));
    }

    #[test]
    fn what_grew_is_named() {
        let earlier = Sample { server: 20 * MIB, client: 10 * MIB, store: 100 * MIB, ..Sample::default() };
        assert!(earlier.grown_since(&earlier).is_empty());
        let later = Sample { server: 40 * MIB, store: 200 * MIB, ..earlier };
        assert_eq!(later.grown_since(&earlier), ["the server's memory", "the store"]);
    }
}
