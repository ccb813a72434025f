//! How patient a route is: when a delivery is tried again, and when it is given up. Pure: the lane does the waiting.

use std::time::Duration;

use gitstafette_core::backoff::Backoff;
use gitstafette_core::target::Verdict;

/// The longest wait that a target may ask for (`Retry-After`): a wrong date must not silence a lane for a day.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How a route tries, and when it gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryPolicy {
    /// How long to wait between tries.
    pub backoff: Backoff,
    /// An event that has been tried for so long becomes a dead letter. The time counts from the event's arrival at the
    /// client that made the first attempt. The server keeps it, so a restart of the client does not begin anew. It counts
    /// from the arrival, so that behind a dead target a whole queue expires together, and not from acceptance, so that an
    /// event has its whole time after a client was away. Each event is tried at least once.
    pub give_up_after: Duration,
    /// An event that was tried so often in vain becomes a dead letter; `None` sets no limit.
    pub give_up_attempts: Option<u32>,
    /// How many repositories are delivered at once. Only tries count, not the waits between them.
    pub parallel: usize,
}

impl Default for DeliveryPolicy {
    /// Waits of 500 ms to a minute, for a day, 8 repositories at once.
    fn default() -> Self {
        Self {
            backoff: Backoff { first: Duration::from_millis(500), most: Duration::from_secs(60) },
            give_up_after: Duration::from_secs(24 * 3600),
            give_up_attempts: None,
            parallel: 8,
        }
    }
}

/// What follows a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The target has it.
    Delivered,
    /// It would get the same answer again.
    Refused,
    /// It is not wanted there.
    Unwanted,
    /// It was tried long or often enough.
    GivenUp,
    /// It is tried again after so long.
    Again(Duration),
}

impl DeliveryPolicy {
    /// What follows the `attempts`-th try of an event of this age. `random` is uniform in `0.0..1.0`.
    pub(crate) fn after(&self, verdict: Verdict, attempts: u32, age: Duration, random: f64) -> Next {
        let backoff = self.backoff.delay(attempts, random);
        let wait = match verdict {
            Verdict::Delivered => return Next::Delivered,
            Verdict::Final => return Next::Refused,
            Verdict::Unwanted => return Next::Unwanted,
            Verdict::Unreachable => backoff,
            Verdict::Retry(wish) => {
                // A target may ask for more patience than the backoff has, up to the last try.
                let left = self.give_up_after.saturating_sub(age);
                backoff.max(wish.unwrap_or_default().min(MAX_RETRY_AFTER).min(left))
            }
        };
        let tired = self.give_up_attempts.is_some_and(|most| attempts >= most);
        if tired || age.saturating_add(wait) > self.give_up_after { Next::GivenUp } else { Next::Again(wait) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> DeliveryPolicy {
        DeliveryPolicy {
            backoff: Backoff { first: SECOND, most: 60 * SECOND },
            give_up_after: 2 * MAX_RETRY_AFTER,
            ..DeliveryPolicy::default()
        }
    }

    #[test]
    fn waits_double_and_answers_end() {
        let after = |verdict, attempts| policy().after(verdict, attempts, Duration::ZERO, 1.0);
        assert_eq!(after(Verdict::Delivered, 1), Next::Delivered);
        assert_eq!(after(Verdict::Final, 1), Next::Refused);
        assert_eq!(after(Verdict::Unwanted, 1), Next::Unwanted);
        assert_eq!(after(Verdict::Unreachable, 1), Next::Again(SECOND));
        assert_eq!(after(Verdict::Retry(None), 3), Next::Again(4 * SECOND));
        assert_eq!(after(Verdict::Retry(None), 100), Next::Again(60 * SECOND));
    }

    #[test]
    fn a_targets_wish_counts_within_bounds() {
        let after = |wish, age| policy().after(Verdict::Retry(Some(wish)), 1, age, 1.0);
        assert_eq!(after(20 * SECOND, Duration::ZERO), Next::Again(20 * SECOND));
        assert_eq!(after(Duration::ZERO, Duration::ZERO), Next::Again(SECOND), "not sooner than the backoff");
        assert_eq!(after(Duration::MAX, Duration::ZERO), Next::Again(MAX_RETRY_AFTER));
        let old = 2 * MAX_RETRY_AFTER - 10 * SECOND;
        assert_eq!(after(MAX_RETRY_AFTER, old), Next::Again(10 * SECOND), "one more try when the time is up");
    }

    #[test]
    fn gives_up_by_age_and_by_attempts() {
        let after =
            |policy: DeliveryPolicy, attempts, age| policy.after(Verdict::Unreachable, attempts, age, 1.0);
        assert_eq!(after(policy(), 1, policy().give_up_after), Next::GivenUp);
        let short = DeliveryPolicy { give_up_attempts: Some(3), ..policy() };
        assert_eq!(after(short, 2, Duration::ZERO), Next::Again(2 * SECOND));
        assert_eq!(after(short, 3, Duration::ZERO), Next::GivenUp);
        let endless = Backoff { first: Duration::MAX, most: Duration::MAX };
        let endless = DeliveryPolicy { backoff: endless, give_up_after: Duration::MAX, ..policy() };
        assert_eq!(after(endless, 1, SECOND), Next::Again(Duration::MAX));
    }
}
