//! The rate at which a body must arrive while other webhooks wait for its memory.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time without progress that is too long.
const SHORTEST_STALL: Duration = Duration::from_millis(250);

/// The schedule of one body. After a grace period the body must arrive at the rate that would complete it within the
/// timeout, and it must never stop for long. A body behind this schedule would rarely complete in time anyway.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    bytes: u64,
    timeout: Duration,
    begun: Instant,
    received: u64,
    /// The last progress: when, and how many bytes had arrived then.
    progress: (Instant, u64),
}

impl Pace {
    /// The schedule of a body of so many bytes that begins to arrive now.
    pub(super) fn new(bytes: u64, timeout: Duration) -> Self {
        let now = Instant::now();
        Self { bytes, timeout, begun: now, received: 0, progress: (now, 0) }
    }

    /// The body begins to arrive now, and not earlier.
    pub(super) fn begin(&mut self) {
        *self = Self::new(self.bytes, self.timeout);
    }

    /// So many bytes have arrived in all.
    pub(super) fn arrive(&mut self, received: u64) {
        self.received = received;
        if received >= self.progress.1 + self.least_progress() {
            self.progress = (Instant::now(), received);
        }
    }

    /// The body waited for this server since then: that time does not count.
    pub(super) fn resume(&mut self, since: Instant) {
        self.begun += since.elapsed();
        self.progress.0 = Instant::now();
    }

    /// When the body made progress last.
    pub(super) fn last_progress(&self) -> Instant {
        self.progress.0
    }

    /// Whether the body is too slow.
    pub(super) fn is_late(&self) -> bool {
        let grace = (self.timeout / 8).max(self.stall());
        let elapsed = self.begun.elapsed().saturating_sub(grace).as_millis();
        // The greatest body and timeout have no more than 64 bits each.
        let is_behind =
            u128::from(self.received) * self.timeout.as_millis() < u128::from(self.bytes) * elapsed;
        is_behind || self.progress.0.elapsed() >= self.stall()
    }

    /// How long the body may make no progress.
    fn stall(&self) -> Duration {
        (self.timeout / 16).max(SHORTEST_STALL)
    }

    /// The bytes that count as progress: half of what the schedule asks for in that time, so that a few bytes now and then
    /// do not.
    fn least_progress(&self) -> u64 {
        let share = u128::from(self.bytes) * self.stall().as_millis() / self.timeout.as_millis().max(1) / 2;
        u64::try_from(share).unwrap_or(u64::MAX).clamp(1, self.bytes.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(milliseconds: u64) {
        tokio::time::advance(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_must_keep_up_with_its_schedule_after_a_grace_period() {
        let mut pace = Pace::new(8000, Duration::from_secs(8));
        assert!(!pace.is_late());
        for second in 0..8 {
            for part in 1..=5 {
                assert!(!pace.is_late(), "{second}.{part}");
                pass(200).await;
                pace.arrive(second * 1000 + part * 200);
            }
        }
        let mut slow = Pace::new(8000, Duration::from_secs(8));
        for part in 1..=12 {
            slow.arrive(part * 150);
            assert!(!slow.is_late(), "{part}");
            pass(200).await;
        }
        for part in 13..=30 {
            slow.arrive(part * 130);
            pass(200).await;
        }
        assert!(slow.is_late(), "it is steady, and behind its schedule");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_must_not_stop_and_a_few_bytes_are_no_progress() {
        let mut pace = Pace::new(64_000, Duration::from_secs(1));
        pace.arrive(63_000);
        pass(249).await;
        assert!(!pace.is_late());
        pace.arrive(63_010);
        pass(1).await;
        assert!(pace.is_late());
        pace.resume(Instant::now());
        assert!(!pace.is_late(), "it waited for this server");
        let mut large = Pace::new(16 << 20, Duration::from_secs(8));
        large.arrive(8 << 20);
        pass(499).await;
        assert!(!large.is_late());
        pass(1).await;
        assert!(large.is_late());
    }

    #[tokio::test(start_paused = true)]
    async fn extreme_values_do_not_overflow() {
        let mut pace = Pace::new(u64::MAX, Duration::from_millis(u64::MAX));
        pass(1 << 40).await;
        pace.arrive(1);
        assert!(!pace.is_late());
        let mut pace = Pace::new(u64::MAX, Duration::from_secs(1));
        pace.arrive(u64::MAX / 2);
        pass(1 << 40).await;
        assert!(pace.is_late());
        assert!(!Pace::new(0, Duration::ZERO).is_late());
    }
}
