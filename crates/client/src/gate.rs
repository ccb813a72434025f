//! The way to one target, shared by all lanes of a route: how many try at once, and the news that the target is back.
//!
//! A lane that waits for its next try need not wait to the end. If its target could not be reached, one of the waiting
//! lanes looks every second whether it can be; the first time it can, after it could not, all lanes try at once. If the
//! target answered but was overloaded, or did not answer in time, another lane's success is the sign, and then a lane still
//! waits as long as its first backoff: the failure may be its own event's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gitstafette_core::target::{Attempt, Target, Verdict};
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex, Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, sleep_until};

use crate::connect::PROBE_INTERVAL;

/// The lanes' common way to their target.
#[derive(Debug)]
pub(crate) struct Gate {
    permits: Semaphore,
    /// Whether a try failed since the last success.
    failing: AtomicBool,
    /// Rung at the first success after failures.
    answered: Notify,
    /// Whether the last probe failed. Only then does one that succeeds mean that the target came back: if the very first
    /// succeeds, the failure was something else (TLS, say), and the backoff counts.
    away: AtomicBool,
    /// Rung when the target can be reached again.
    returned: Notify,
    /// When to look next. Whoever holds it is the one that looks.
    next_probe: Mutex<Instant>,
}

/// How long a lane waits before its next try, and what may end the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    /// The whole wait.
    pub(crate) longest: Duration,
    /// Another lane's success may end it, but not before this.
    pub(crate) shortest: Duration,
    /// What the try before it says of the target.
    pub(crate) trouble: Trouble,
}

/// What a lane has heard of its target since it began to listen. Nothing is lost between an attempt and the wait after it.
#[derive(Debug)]
pub(crate) struct News<'a> {
    answered: Notified<'a>,
    returned: Notified<'a>,
}

/// Whose trouble a failed try was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The target cannot be reached.
    Away,
    /// The target, or what stands before it, cannot answer just now.
    Overload,
    /// The target does not want this event now: that others succeed means nothing.
    Event,
}

impl Trouble {
    /// Reads it from a try that is to be repeated.
    pub(crate) fn of(attempt: &Attempt) -> Self {
        match (attempt.verdict, attempt.code) {
            (Verdict::Unreachable, _) => Self::Away,
            // A target that says when to come again is not asked before.
            (Verdict::Retry(Some(_)), _) => Self::Event,
            // No answer, or a proxy's answer for a target that is not up: bad gateway, unavailable, gateway time-out.
            (_, None | Some(502..=504)) => Self::Overload,
            _ => Self::Event,
        }
    }
}

impl Gate {
    /// A gate through which `parallel` lanes may pass at once; at least one.
    pub(crate) fn new(parallel: usize) -> Self {
        Self {
            permits: Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS)),
            failing: AtomicBool::new(false),
            answered: Notify::new(),
            away: AtomicBool::new(false),
            returned: Notify::new(),
            next_probe: Mutex::new(Instant::now()),
        }
    }

    /// Waits for the turn to try, first come first served. The permit is for one try.
    pub(crate) async fn admit(&self) -> SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the semaphore is never closed")
    }

    /// Hears how a try went.
    pub(crate) fn tried(&self, verdict: Verdict) {
        match verdict {
            Verdict::Delivered | Verdict::Unwanted => {
                self.away.store(false, Ordering::Relaxed);
                if self.failing.swap(false, Ordering::Relaxed) {
                    self.answered.notify_waiters();
                }
            }
            Verdict::Retry(_) | Verdict::Unreachable => self.failing.store(true, Ordering::Relaxed),
            Verdict::Final => {}
        }
    }

    /// Listens for news of the target from now on.
    pub(crate) fn listen(&self) -> News<'_> {
        News { answered: self.answered.notified(), returned: self.returned.notified() }
    }

    /// Waits out a pause. `true` if it ended early, because the target is back. The news are those since the failed attempt
    /// began: it may have succeeded for another lane meanwhile.
    pub(crate) async fn wait(&self, target: &dyn Target, pause: Pause, news: News<'_>) -> bool {
        let begin = Instant::now();
        let News { answered, returned } = news;
        let answered = async {
            answered.await;
            sleep(pause.shortest.saturating_sub(begin.elapsed())).await;
        };
        let early = async {
            match pause.trouble {
                Trouble::Event => std::future::pending().await,
                Trouble::Overload => answered.await,
                Trouble::Away => tokio::select! {
                    () = answered => {}
                    () = self.returned(target, returned) => {}
                },
            }
        };
        tokio::select! {
            biased;
            () = early => true,
            () = sleep(pause.longest) => false,
        }
    }

    /// Waits until the target can be reached again, and looks for that itself if no other lane does.
    async fn returned(&self, target: &dyn Target, returned: Notified<'_>) {
        tokio::select! {
            () = returned => {}
            () = self.probe(target) => {}
        }
    }

    async fn probe(&self, target: &dyn Target) {
        let mut next = self.next_probe.lock().await;
        loop {
            sleep_until(*next).await;
            *next = Instant::now() + PROBE_INTERVAL;
            let is_away = !target.is_reachable().await;
            let was_away = self.away.swap(is_away, Ordering::Relaxed);
            if was_away && !is_away {
                self.returned.notify_waiters();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
