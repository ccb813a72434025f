//! What the writer does between groups: remove what is too old or too much, give the room back to the disk, and
//! keep SQLite's log short.
//!
//! Everything goes in small steps, so that an append never waits long. After each group one step follows at once:
//! it removes at least as much as the group added, so that a store that is full stays at its bound under any load.
//! All else waits until no request does.
//!
//! These steps need not be durable one by one. What a power failure undoes is done again, so their transactions do
//! not sync the disk; the next group's does, and everything before it in the log is then durable too.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::writer::{self, Writer};
use super::{acknowledging, ahead, attempts, codec, counts, schema, statements, times};
use crate::event::{Sequence, Timestamp};
use crate::repository::RepositoryId;

/// How many events one step removes: not fewer than a group appends.
const STEP_EVENTS: usize = writer::GROUP_REQUESTS;
/// How many bytes one step removes, at least one event: more than a group appends.
const STEP_BYTES: u64 = 16 << 20;
/// How many pages one step gives back to the disk.
const STEP_PAGES: u32 = 64;
/// Free pages that are kept in any case: a store in use takes them again soon.
const SPARE_PAGES: u64 = 256;
/// How long to leave it after a step failed: the disk needs an operator, not another try.
const PAUSE: Duration = Duration::from_secs(60);
/// How far beyond its size the log may grow before the writer waits for readers, so that it can start anew.
const LOG_STRETCH: u64 = 4 * schema::LOG_BYTES as u64;
/// How long it waits for them.
pub(super) const LOG_WAIT: Duration = Duration::from_millis(200);

/// What the writer knows about its upkeep.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// When the oldest event was accepted, if there is one.
    oldest: Option<Timestamp>,
    /// Whether pages may have come free since the last look.
    freed: bool,
    /// Whether pages were given back that the file still has, until the log is carried over.
    shrunk: bool,
    /// Whether commits do not sync at the moment.
    relaxed: bool,
    /// After a failure: not before this.
    not_before: Option<Instant>,
    /// The length of SQLite's log at which the writer waits for readers.
    log_limit: u64,
}

impl Upkeep {
    /// The state of a store just opened.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let oldest = oldest(connection)?.map(|(_, accepted)| accepted);
        Ok(Self {
            oldest,
            freed: true,
            shrunk: false,
            relaxed: false,
            not_before: None,
            log_limit: LOG_STRETCH,
        })
    }

    /// Notes that the store was empty and is not any more.
    pub(super) fn begins_with(&mut self, accepted: Timestamp) {
        self.oldest = Some(accepted);
    }

    /// Makes commits durable again. Called before every group: if a step could not do it, no group is written.
    pub(super) fn ensure_synced(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.relaxed {
            connection.execute_batch("PRAGMA synchronous = FULL;")?;
            self.relaxed = false;
        }
        Ok(())
    }

    fn relax(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if !self.relaxed {
            self.relaxed = true;
            connection.execute_batch("PRAGMA synchronous = NORMAL;")?;
        }
        Ok(())
    }

    /// Ends the pause after a failure: there is room again.
    pub(super) fn resume(&mut self) {
        self.not_before = None;
    }

    fn paused(&self) -> Option<Duration> {
        let left = self.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

impl Writer {
    /// The step that follows each group.
    pub(super) fn after_group(&mut self) {
        if self.upkeep.paused().is_none() {
            let step = self.retain().and_then(|_| self.shorten_log());
            self.attempted(step);
        }
    }

    /// One step while nothing waits; `false` if there is nothing to do.
    pub(super) fn idle_step(&mut self) -> bool {
        if self.upkeep.paused().is_some() {
            return false;
        }
        let step =
            self.clock.record_jump(&self.connection).and_then(|()| Ok(self.retain()? || self.give_back()?));
        self.attempted(step).unwrap_or(false)
    }

    /// How long nothing will be to do, if no request comes; `None` for ever.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let now = self.clock.now();
        let expires = self.upkeep.oldest.map(|oldest| {
            let age = Duration::from_millis(now.as_millis().saturating_sub(oldest.as_millis()));
            // An event is too old when it is older than the age, hence the one more.
            self.options.retention.age.saturating_sub(age).saturating_add(Duration::from_millis(1))
        });
        match (expires, self.upkeep.paused()) {
            (Some(expires), Some(pause)) => Some(expires.max(pause)),
            (expires, pause) => expires.or(pause),
        }
    }

    fn attempted<T>(&mut self, step: rusqlite::Result<T>) -> Option<T> {
        match step {
            Ok(done) => {
                self.upkeep.not_before = None;
                Some(done)
            }
            Err(error) => {
                self.upkeep.not_before = Some(Instant::now() + PAUSE);
                let error = self.shared.failure(error);
                tracing::warn!(%error, "the store cannot remove old events; it tries again");
                None
            }
        }
    }

    /// Removes the oldest events, one step of them, if a bound is exceeded; `false` if none is.
    fn retain(&mut self) -> rusqlite::Result<bool> {
        let (retention, held) = (self.options.retention, self.position);
        let too_many = held.events > 1 && (held.events > retention.count || held.bytes > retention.bytes);
        let limit = self.clock.now().minus(retention.age);
        if !too_many && self.upkeep.oldest.is_none_or(|oldest| oldest >= limit) {
            return Ok(false);
        }
        self.upkeep.relax(&self.connection)?;
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut position = held;
        let mut last = Sequence::ZERO;
        let mut repositories = BTreeMap::new();
        {
            let mut scan = transaction.prepare_cached(&format!(
                "SELECT sequence, size + {}, accepted_at, repository_id FROM events ORDER BY sequence LIMIT ?1",
                acknowledging::stored_bytes()
            ))?;
            let mut rows = scan.query([codec::signed(STEP_EVENTS as u64)])?;
            while let Some(row) = rows.next()? {
                let too_many = position.events > 1
                    && (position.events > retention.count || position.bytes > retention.bytes);
                let too_old = codec::number(row, 2).unwrap_or_default() < limit.as_millis();
                let step_full = held.bytes.saturating_sub(position.bytes) >= STEP_BYTES;
                if step_full || !(too_many || too_old) {
                    break;
                }
                last = codec::sequence(row, 0)?;
                position.events = position.events.saturating_sub(1);
                position.bytes = position.bytes.saturating_sub(codec::number(row, 1).unwrap_or_default());
                if let Some(id) = row.get::<_, Option<i64>>(3)? {
                    *repositories.entry(RepositoryId(id.cast_unsigned())).or_default() += 1;
                }
            }
        }
        counts::remove(&transaction, &repositories)?;
        for statement in [
            "DELETE FROM events WHERE sequence <= ?1",
            "DELETE FROM payloads WHERE sequence <= ?1",
            "DELETE FROM outcomes WHERE sequence <= ?1",
        ] {
            transaction.prepare_cached(statement)?.execute([codec::signed(last.get())])?;
        }
        ahead::remove_through_for_all(&transaction, last)?;
        times::remove_through(&transaction, last)?;
        attempts::remove_through_for_all(&transaction, last)?;
        let oldest = oldest(&transaction)?;
        position.first = oldest.map_or(Sequence::ZERO, |(sequence, _)| sequence);
        position.removed += held.events.saturating_sub(position.events);
        statements::store_position(&transaction, &position)?;
        transaction.commit()?;

        self.position = position;
        self.upkeep.oldest = oldest.map(|(_, accepted)| accepted);
        self.upkeep.freed = true;
        self.shared.tail.write().unwrap_or_else(PoisonError::into_inner).remove_through(last);
        self.shared.damage().remove_through(last);
        *self.shared.statistics.lock().unwrap_or_else(PoisonError::into_inner) = position;
        Ok(last > Sequence::ZERO)
    }

    /// Gives free pages back to the disk, one step of them; `false` if there are few.
    fn give_back(&mut self) -> rusqlite::Result<bool> {
        if !self.upkeep.freed {
            return Ok(false);
        }
        let number = |pragma| self.connection.query_row(pragma, (), |row| codec::number(row, 0));
        let (free, pages) = (number("PRAGMA freelist_count")?, number("PRAGMA page_count")?);
        if free <= SPARE_PAGES.max(pages / 8) {
            self.upkeep.freed = false;
            if self.upkeep.shrunk {
                self.upkeep.shrunk = false;
                // The file itself only gets shorter now.
                self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?;
            }
            return Ok(false);
        }
        self.upkeep.relax(&self.connection)?;
        self.upkeep.shrunk = true;
        let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({STEP_PAGES})"))?;
        let mut rows = statement.query(())?;
        // Each row is a page: the statement must be followed to its end.
        while rows.next()?.is_some() {}
        Ok(true)
    }

    /// Readers that take turns can keep SQLite from ever starting its log anew. When it has grown far, wait for them
    /// a moment: they then find everything in the database and are not in the way.
    fn shorten_log(&mut self) -> rusqlite::Result<()> {
        let length =
            std::fs::metadata(schema::sibling(&self.shared.database, "-wal")).map_or(0, |file| file.len());
        if length <= self.upkeep.log_limit {
            if length < LOG_STRETCH {
                self.upkeep.log_limit = LOG_STRETCH;
            }
            return Ok(());
        }
        self.connection.busy_timeout(LOG_WAIT)?;
        let busy =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get::<_, bool>(0));
        self.connection.busy_timeout(schema::BUSY_TIMEOUT)?;
        // Somebody reads for longer than that; not to wait for them at every group.
        self.upkeep.log_limit = if busy? { length.saturating_add(LOG_STRETCH) } else { LOG_STRETCH };
        Ok(())
    }
}

/// The oldest event and when it was accepted.
fn oldest(connection: &Connection) -> rusqlite::Result<Option<(Sequence, Timestamp)>> {
    connection
        .prepare_cached("SELECT sequence, accepted_at FROM events ORDER BY sequence LIMIT 1")?
        .query_row((), |row| {
            // A time that cannot be read is that of the oldest event of all.
            Ok((codec::sequence(row, 0)?, Timestamp::from_millis(codec::number(row, 1).unwrap_or_default())))
        })
        .optional()
}
