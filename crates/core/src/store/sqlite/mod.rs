//! The durable store, on SQLite.
//!
//! # Constraints
//!
//! - An append returns after the event is on the disk, and the disk syncs a few hundred times a second at best:
//!   everybody who waits must share one sync.
//! - Memory is a few MiB, whatever is stored and whoever lags: page caches, queue and tail all have a bound.
//! - What was admitted is not refused for want of room in the queue, as GitHub would not send it again: it waits, and
//!   whoever admitted it has bounded its memory. Only when [`queue::WAITING_APPENDS`] wait is the next one refused.
//! - A kill at any moment needs no repair: SQLite's write-ahead log is that, with `synchronous=FULL`.
//!
//! # Threads
//!
//! ```text
//! append, redeliver, acknowledge, seek ─► room ─► queue ─► writer thread: one transaction per group ─► commit (sync)
//!                                                             │                                         │
//!                                               between groups: retention               tail, head, then the answers
//!
//! read ─► tail, if it reaches back far enough
//!      └► one of two read connections, on tokio's blocking pool; so does whatever an operator lists
//! ```
//!
//! The writer takes whatever waits, at most [`writer::GROUP_REQUESTS`], so a group is as large as the disk is slow.
//! Waiting for a group to fill would gain nothing. Requests see each other in the transaction, which makes a repeat
//! within a group an ordinary repeat. A request that fails by itself must not fail the others: it has a savepoint, and is
//! undone alone. After an unreadable page SQLite writes nothing more in a transaction: then the group begins anew without
//! that request. A full or broken disk fails the group; the writer tries again with the next one, or by itself when
//! none comes, and needs no restart: see [`outage`].
//!
//! # Layout
//!
//! One folder: `lock` (held while the store is open, with the holder's process id), `events.db`, and SQLite's own
//! `events.db-wal` and `events.db-shm`. The tables are in [`schema`]. An event is two rows: a small one with
//! everything that filters, listings and retention need, and its headers and body, which are touched only when they
//! are written, delivered or removed. Head, count and bytes are one row, and each repository's count another, so that
//! nothing is ever counted. The latest time of each 4096 events is a row, too, so that nobody looks for a time in all of them.
//!
//! # Recovery
//!
//! SQLite replays its log by itself. A new database is made under another name and renamed when it is complete, so
//! an `events.db` that is empty or has no tables is never a store that was interrupted at birth: it is damaged, and
//! is refused rather than begun anew. The folders above it are durable before it has its name. The store does not scan
//! at open; damage inside a page is found when it is read. Reads pass the events on such a page, and report them: see
//! [`damage`].

mod acknowledging;
mod ahead;
mod attempts;
mod catalog;
mod clients;
mod clock;
mod codec;
mod counts;
mod damage;
mod folder;
mod outage;
mod queue;
mod reader;
mod retention;
mod schema;
mod statements;
mod times;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::watch;

use self::clock::Clock;
use self::damage::KnownDamage;
use self::queue::{Answer, Queue, Task};
use self::reader::Readers;
use self::statements::Failure;
use self::writer::Writer;
use super::tail::{Bounds, Tail};
use super::{
    Acknowledgement, Appended, DamagedEvents, EventStore, FirstAttempt, History, Listed, Listing, OpenError,
    Options, Owner, Page, ReadLimit, Registration, Report, Statistics, StoreError, StoreId, WatchlistChange,
};
use crate::event::{Address, ClientId, Sequence, Timestamp, Webhook};
use crate::filter::Filter;
use crate::repository::{RepositoryId, RepositoryPattern};
use crate::subscription::Progress;

/// What the tail holds: seconds of a busy server, for followers that keep up.
const TAIL: Bounds = Bounds { count: 4096, bytes: 4 << 20 };

/// A store in a folder, durable.
pub struct SqliteStore {
    id: StoreId,
    shared: Arc<Shared>,
    readers: Readers,
    queue: Queue,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    head: watch::Receiver<Sequence>,
    /// Fails when the writer has ended.
    ended: watch::Receiver<()>,
    closed: AtomicBool,
    /// Held by a redelivery while it looks for its event.
    redelivering: tokio::sync::Mutex<()>,
    /// Reads the writer's clock.
    clock: Clock,
}

/// What the writer publishes and everybody sees.
#[derive(Debug)]
struct Shared {
    database: PathBuf,
    tail: RwLock<Tail>,
    statistics: Mutex<Statistics>,
    /// Does not change while the store is open.
    history: History,
    /// Whether the database as a whole was found damaged, so that it is logged once.
    damaged: AtomicBool,
    /// The damaged events that were found.
    damage: Mutex<KnownDamage>,
}

impl Shared {
    fn statistics(&self) -> Statistics {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failure means for whoever asked. Damage is logged when it is found first.
    fn refusal(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Database(error) => self.failure(error),
            Failure::Event(sequence, reason) => {
                let reason = reason.into_boxed_str();
                let damage = DamagedEvents { first: sequence, last: sequence, reason: reason.clone() };
                self.found_damage(&[damage]);
                StoreError::DamagedEvent { sequence, reason }
            }
        }
    }

    /// Remembers damaged events, and logs those that were not known.
    fn found_damage(&self, damaged: &[DamagedEvents]) {
        let mut known = self.damage();
        for damage in damaged {
            if known.add(damage) {
                tracing::error!(
                    store.path = %self.database.display(),
                    event.first = damage.first.get(),
                    event.last = damage.last.get(),
                    reason = %damage.reason,
                    "stored events are damaged and will not be delivered; to get them back, restore the store from a backup"
                );
            }
        }
    }

    fn damage(&self) -> MutexGuard<'_, KnownDamage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an error of SQLite means for whoever asked. Damage is logged when it is found first.
    fn failure(&self, error: rusqlite::Error) -> StoreError {
        // The file beside the database in which its connections meet (-shm) grows too, and has its own code for that.
        const IOERR_SHMSIZE: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        let path = self.database.display().to_string();
        let full = error
            .sqlite_error()
            .is_some_and(|code| code.code == ErrorCode::DiskFull || code.extended_code == IOERR_SHMSIZE);
        if full {
            return StoreError::Full { path };
        }
        if !damage::is_damage(&error) {
            return StoreError::Failed(Arc::new(error));
        }
        let error = StoreError::Damaged { path, reason: error.to_string() };
        if !self.damaged.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the store is damaged; what can be read of it is served");
        }
        error
    }
}

impl SqliteStore {
    /// Opens the store in `folder`, or makes it. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong and what to do about it. A store that cannot be read is never begun anew.
    pub fn open(folder: &Path, options: Options) -> Result<Self, OpenError> {
        // Only an absolute path names all the folders that must be durable.
        let folder = &std::path::absolute(folder).map_err(|error| folder::unusable(folder, &error))?;
        let lock = folder::lock(folder)?;
        let database = folder.join(schema::FILE);
        let connection = schema::open(&database)?;
        let mut statistics =
            schema::statistics(&connection).map_err(|error| schema::refusal(&database, &error))?;
        statistics.disk_bytes = schema::disk_bytes(&database);
        let id = schema::id(&connection).map_err(|error| schema::refusal(&database, &error))?;
        let history = schema::history(&connection, statistics.head)
            .map_err(|error| schema::refusal(&database, &error))?;

        let shared = Arc::new(Shared {
            database: database.clone(),
            tail: RwLock::new(Tail::new(statistics.head, statistics.removed_to(), TAIL)),
            statistics: Mutex::new(statistics),
            history,
            damaged: AtomicBool::new(false),
            damage: Mutex::default(),
        });
        let (head_sender, head) = watch::channel(statistics.head);
        let (end_sender, ended) = watch::channel(());
        let (queue, requests) = queue::queue();
        let writer = Writer::new(connection, options, Arc::clone(&shared), head_sender, requests)
            .map_err(|error| schema::refusal(&database, &error))?;
        let clock = writer.clock.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                writer.run();
                // In this order: who sees the end may open the folder again.
                drop(lock);
                drop(end_sender);
            })
            .map_err(|error| OpenError::Unusable {
                path: database.display().to_string(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            id,
            readers: Readers::new(Arc::clone(&shared)),
            shared,
            queue,
            thread: Mutex::new(Some(thread)),
            head,
            ended,
            closed: AtomicBool::new(false),
            redelivering: tokio::sync::Mutex::default(),
            clock,
        })
    }

    /// Gives the writer a task; returns when it is durable.
    async fn write<T>(&self, task: impl FnOnce(Answer<T>) -> Task) -> Result<T, StoreError> {
        let answer = self.queue.offer(task).await?;
        // The writer answers everything it took; without an answer it has ended.
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Lets the writer end, when it has done what it was given.
    fn end(&self) {
        self.closed.store(true, Ordering::Release);
        self.queue.close();
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

#[async_trait]
impl EventStore for SqliteStore {
    async fn append(&self, webhook: Webhook) -> Result<Appended, StoreError> {
        self.write(|answer| Task::Append { webhook: Box::new(webhook), answer }).await
    }

    async fn read(&self, after: Sequence, filter: &Filter, limit: ReadLimit) -> Result<Page, StoreError> {
        self.check_open()?;
        let head = {
            let tail = self.shared.tail.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(page) = tail.read(after, filter, limit) {
                return Ok(page);
            }
            tail.head()
        };
        let filter = filter.clone();
        let read = move |connection: &Connection| reader::page(connection, after, head, &filter, limit);
        let page = self.readers.run(read).await?;
        self.shared.found_damage(&page.damaged);
        Ok(page)
    }

    fn head(&self) -> watch::Receiver<Sequence> {
        self.head.clone()
    }

    async fn before(&self, time: Timestamp) -> Result<Sequence, StoreError> {
        self.check_open()?;
        let head = *self.head.borrow();
        self.readers.run(move |connection| times::before(connection, time, head)).await
    }

    async fn progress(&self, client: &ClientId) -> Result<Option<Progress>, StoreError> {
        self.check_open()?;
        let client = client.clone();
        self.readers.run(move |connection| reader::progress(connection, &client)).await
    }

    async fn seek(&self, client: &ClientId, cursor: Sequence) -> Result<(), StoreError> {
        let client = client.clone();
        self.write(|answer| Task::Seek { client, cursor, answer }).await
    }

    async fn acknowledge(
        &self,
        client: &ClientId,
        acknowledgements: Vec<Acknowledgement>,
        cursor: Sequence,
    ) -> Result<(), StoreError> {
        let client = client.clone();
        self.write(|answer| Task::Acknowledge { client, acknowledgements, cursor, answer }).await
    }

    async fn record_first_attempts(
        &self,
        client: &ClientId,
        first_attempts: Vec<FirstAttempt>,
    ) -> Result<(), StoreError> {
        let client = client.clone();
        self.write(|answer| Task::RecordFirstAttempts { client, first_attempts, answer }).await
    }

    async fn first_attempts(
        &self,
        client: &ClientId,
        sequences: RangeInclusive<Sequence>,
    ) -> Result<Vec<FirstAttempt>, StoreError> {
        self.check_open()?;
        let (client, now) = (client.clone(), self.clock.now());
        self.readers.run(move |connection| attempts::load(connection, &client, &sequences, now)).await
    }

    async fn last_first_attempt(&self, client: &ClientId) -> Result<Sequence, StoreError> {
        self.check_open()?;
        let client = client.clone();
        self.readers.run(move |connection| attempts::last(connection, &client)).await
    }

    async fn reports(&self, sequence: Sequence) -> Result<Vec<Report>, StoreError> {
        self.check_open()?;
        self.readers.run(move |connection| reader::reports(connection, sequence)).await
    }

    async fn list(&self, listing: &Listing) -> Result<Listed, StoreError> {
        self.check_open()?;
        let (head, listing) = (*self.head.borrow(), listing.clone());
        let mut listed =
            self.readers.run(move |connection| catalog::list(connection, &listing, head)).await?;
        // A listing reads no payload, so it does not find damage there.
        let known = self.shared.damage();
        for entry in listed.entries.iter_mut().filter(|entry| entry.damage.is_none()) {
            entry.damage = known.reason(entry.sequence).map(Into::into);
        }
        Ok(listed)
    }

    async fn redeliver(&self, sequence: Sequence, address: Address) -> Result<Option<Sequence>, StoreError> {
        self.check_open()?;
        // The writer reads the event, when there is room for it: until then only its size is known. Calls of one task at
        // the same time read it in turn, and go on to the queue at once: so they keep their order, and share commits.
        let size = {
            let _turn = self.redelivering.lock().await;
            self.readers.run(move |connection| reader::size(connection, sequence)).await?
        };
        let Some(size) = size else { return Ok(None) };
        self.write(|answer| Task::Redeliver { sequence, address, size, event: None, answer }).await
    }

    async fn counts(&self, from: RepositoryId, limit: usize) -> Result<Vec<(RepositoryId, u64)>, StoreError> {
        self.check_open()?;
        self.readers.run(move |connection| counts::load(connection, from, limit)).await
    }

    async fn cursors(&self) -> Result<Vec<(ClientId, Sequence)>, StoreError> {
        self.check_open()?;
        self.readers.run(reader::cursors).await
    }

    async fn register_client(&self, client: &ClientId, owner: &Owner) -> Result<Registration, StoreError> {
        self.check_open()?;
        let (client, owner) = (client.clone(), owner.clone());
        let known = client.clone();
        let ownership = self.readers.run(move |connection| clients::ownership(connection, &known)).await?;
        let is_own = ownership == clients::Ownership::Known(Some(owner.label.clone()));
        if let clients::Ownership::Known(label) = ownership
            && !owner.inherits_from(label.as_deref())
        {
            return Ok(Registration::OwnedByAnother);
        }
        let task = |answer| Task::RegisterClient { client, owner, answer };
        if is_own {
            // A known client may connect while the disk is full, so it does not wait for the time of its contact.
            drop(self.queue.offer(task).await?);
            return Ok(Registration::Registered);
        }
        self.write(task).await
    }

    async fn release_client(&self, client: &ClientId) -> Result<bool, StoreError> {
        let client = client.clone();
        self.write(|answer| Task::ReleaseClient { client, answer }).await
    }

    async fn remove_client(&self, client: &ClientId) -> Result<bool, StoreError> {
        let client = client.clone();
        self.write(|answer| Task::RemoveClient { client, answer }).await
    }

    async fn forget_clients(
        &self,
        age: Duration,
        connected: Vec<ClientId>,
    ) -> Result<Vec<ClientId>, StoreError> {
        self.write(|answer| Task::ForgetClients { age, connected, answer }).await
    }

    async fn watchlist_changes(&self) -> Result<Vec<(RepositoryPattern, WatchlistChange)>, StoreError> {
        self.check_open()?;
        self.readers.run(reader::watchlist_changes).await
    }

    async fn change_watchlist(
        &self,
        pattern: &RepositoryPattern,
        change: Option<WatchlistChange>,
    ) -> Result<(), StoreError> {
        let pattern = pattern.clone();
        self.write(|answer| Task::ChangeWatchlist { pattern, change, answer }).await
    }

    fn id(&self) -> StoreId {
        self.id
    }

    fn history(&self) -> &History {
        &self.shared.history
    }

    fn is_durable(&self) -> bool {
        true
    }

    async fn relay_state(&self, relay: &str) -> Result<Option<String>, StoreError> {
        self.check_open()?;
        let relay = relay.to_owned();
        self.readers.run(move |connection| reader::relay_state(connection, &relay)).await
    }

    async fn store_relay_state(&self, relay: &str, state: String) -> Result<(), StoreError> {
        let relay = relay.to_owned();
        self.write(|answer| Task::StoreRelayState { relay, state, answer }).await
    }

    async fn statistics(&self) -> Result<Statistics, StoreError> {
        self.check_open()?;
        let damaged = self.shared.damage().events();
        Ok(Statistics { damaged, ..self.shared.statistics() })
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // First the readers: a connection that still reads would keep the writer from emptying the log.
        self.readers.close().await;
        self.end();
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
        // The thread is past its last statement, so this does not block.
        self.join();
    }
}

impl Drop for SqliteStore {
    /// Closes a store that was not closed. Blocks for one group, as the folder may be opened again right after.
    fn drop(&mut self) {
        self.readers.release();
        self.end();
        self.join();
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("database", &self.shared.database).finish_non_exhaustive()
    }
}
