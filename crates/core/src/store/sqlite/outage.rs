//! When the disk does not take what it is given: full, or broken.
//!
//! Whatever is asked for meanwhile is tried all the same, and tells when it goes on. While nothing is asked for, the
//! writer tries by itself, so that nobody needs to send a webhook to a server that says it is not ready. What it tries
//! is about as large as what failed: SQLite's log nearly always has room for one more page.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::codec;
use super::writer::Writer;
use crate::store::StoreError;

/// How long after a failure the writer tries by itself.
const AGAIN: Duration = Duration::from_secs(3);
/// How many bytes it tries to write at least: more than what SQLite may find in files that it has.
const LEAST: u64 = 64 << 10;
/// And at most, as that many are written every few seconds.
const MOST: u64 = 1 << 20;

/// What is known of an outage, if there is one.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// How much the last group wrote that failed.
    bytes: u64,
    /// When to try again.
    next: Option<Instant>,
}

impl Writer {
    /// Notes that a group of so many bytes failed.
    pub(super) fn failed(&mut self, error: &StoreError, bytes: u64) {
        self.outage = Outage { bytes, next: Some(Instant::now() + AGAIN) };
        if self.position.writable {
            tracing::error!(%error, "the store cannot write");
            self.set_writable(false);
        }
    }

    /// Notes that something was written.
    pub(super) fn succeeded(&mut self) {
        if !self.position.writable {
            self.outage = Outage::default();
            self.upkeep.resume();
            tracing::info!("the store can write again");
            self.set_writable(true);
        }
    }

    /// Tries to write, if it is time to.
    pub(super) fn probe(&mut self) {
        if self.try_again_in().is_none_or(|wait| !wait.is_zero()) {
            return;
        }
        match self.write_and_remove() {
            Ok(()) => self.succeeded(),
            Err(error) => {
                tracing::debug!(%error, "the store still cannot write");
                self.outage.next = Some(Instant::now() + AGAIN);
            }
        }
    }

    /// How long until the next try, if there is to be one.
    pub(super) fn try_again_in(&self) -> Option<Duration> {
        Some(self.outage.next?.saturating_duration_since(Instant::now()))
    }

    /// Zero is no event's sequence. If the row stays, for a crash comes in between, retention removes it.
    fn write_and_remove(&mut self) -> rusqlite::Result<()> {
        self.upkeep.ensure_synced(&self.connection)?;
        self.connection.execute(
            "INSERT OR REPLACE INTO payloads (sequence, headers, body) VALUES (0, x'', zeroblob(?1))",
            [codec::signed(self.outage.bytes.clamp(LEAST, MOST))],
        )?;
        self.connection.execute("DELETE FROM payloads WHERE sequence = 0", ())?;
        Ok(())
    }

    fn set_writable(&mut self, writable: bool) {
        self.position.writable = writable;
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = self.position;
    }
}
