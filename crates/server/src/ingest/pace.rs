//! The rate at which a body must arrive while other webhooks wait for its memory.

use std::time::Duration;

use tokio::time::Instant;

/// The schedule of one body: after a grace period it must arrive at the rate that would complete it within the timeout.
/// A body behind this schedule would rarely complete in time anyway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    begun: Instant,
    bytes: u64,
    timeout: Duration,
}

impl Pace {
    /// The schedule of a body of so many bytes that begins to arrive now.
    pub(super) fn new(bytes: u64, timeout: Duration) -> Self {
        Self { begun: Instant::now(), bytes, timeout }
    }

    /// How often to look at a body that does not arrive.
    pub(super) fn interval(&self) -> Duration {
        self.timeout / 16
    }

    /// How long the body has been arriving.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether a body of which so many bytes have arrived is too slow.
    pub(super) fn is_behind(&self, received: u64) -> bool {
        let grace = self.timeout / 8;
        let elapsed = self.begun.elapsed().saturating_sub(grace).as_millis();
        // The greatest body and timeout have no more than 64 bits each.
        u128::from(received) * self.timeout.as_millis() < u128::from(self.bytes) * elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_must_keep_up_with_its_schedule_after_a_grace_period() {
        let pace = Pace::new(8000, Duration::from_secs(8));
        assert!(!pace.is_behind(0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!pace.is_behind(0), "within the grace period");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(pace.is_behind(1999));
        assert!(!pace.is_behind(2000));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(pace.is_behind(5999) && !pace.is_behind(6000));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!pace.is_behind(8000));
    }

    #[tokio::test(start_paused = true)]
    async fn extreme_values_do_not_overflow() {
        let pace = Pace::new(u64::MAX, Duration::from_millis(u64::MAX));
        tokio::time::advance(Duration::from_secs(1 << 30)).await;
        assert!(!pace.is_behind(u64::MAX));
    }
}
