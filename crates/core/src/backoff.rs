//! How long to wait before the next try. Pure: randomness comes in as an argument, waiting is the caller's.

use std::time::Duration;

/// Exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015): the wait
/// is uniform between half and the whole of `first × 2ⁿ`, and never beyond `most`.
///
/// The lower half is kept, unlike in the article's version: a single lane must not hammer its target by luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The upper bound of the first wait.
    pub first: Duration,
    /// The upper bound of every wait.
    pub most: Duration,
}

impl Backoff {
    /// The wait after the `failures`-th failure in a row (from 1). `random` is uniform in `0.0..1.0`.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(32);
        let bound = self.first.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.most);
        let part = 0.5 + 0.5 * random.clamp(0.0, 1.0);
        // Not `mul_f64`, which panics when the longest duration is rounded up.
        Duration::try_from_secs_f64(bound.as_secs_f64() * part).unwrap_or(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_bound() {
        let backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(30) };
        let longest: Vec<_> = (1..=8).map(|n| backoff.delay(n, 1.0).as_millis()).collect();
        assert_eq!(longest, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.delay(1, 0.0), Duration::from_millis(250));
        assert_eq!(backoff.delay(u32::MAX, 1.0), Duration::from_secs(30));
        let endless = Backoff { first: Duration::MAX, most: Duration::MAX };
        assert_eq!(endless.delay(u32::MAX, 1.0), Duration::MAX);
    }
}
