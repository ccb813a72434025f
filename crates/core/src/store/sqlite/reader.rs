//! Reading from the disk: two connections, each used by one task at a time on tokio's blocking pool.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, MAIN_DB, OptionalExtension, Rows, params};
use tokio::sync::Semaphore;

use super::{Shared, ahead, codec, schema};
use crate::event::{ClientId, Event, Sequence, Webhook};
use crate::filter::Filter;
use crate::repository::RepositoryPattern;
use crate::store::tail::{Gather, Look};
use crate::store::{Page, ReadLimit, Report, StoreError, WatchlistChange};
use crate::subscription::Progress;

/// How many reads run at once: a second one lets a short read pass a long one; more would wait for the same disk.
const CONNECTIONS: usize = 2;

/// The read connections.
#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    /// Connections that are open and free. They are opened when first needed.
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Readers {
    /// No connection yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            idle: Arc::new(Mutex::new(Vec::new())),
        }
    }

    /// Runs `read` with a connection, off the async threads. Reads wait their turn in order.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (shared, idle) = (Arc::clone(&self.shared), Arc::clone(&self.idle));
        let task = tokio::task::spawn_blocking(move || {
            // A dropped future does not stop the read: the permit goes with it, so that the bound holds.
            let _permit = permit;
            let free = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = free.map_or_else(|| open(&shared.database), Ok);
            let result = connection.and_then(|connection| {
                let result = read(&connection)?;
                // After an error the connection is not used again: what is wrong with it is not known.
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                Ok(result)
            });
            result.map_err(|error| shared.failure(error))
        });
        // It fails if it panicked, or if the runtime shuts down.
        task.await.map_err(|error| StoreError::Failed(Arc::new(error)))?
    }

    /// Waits for the reads that run, then closes the connections. Later reads are refused.
    pub(super) async fn close(&self) {
        let all = self.permits.acquire_many(CONNECTIONS as u32).await;
        self.permits.close();
        drop(all);
        self.release();
    }

    /// Closes the connections that are free.
    pub(super) fn release(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn open(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(database, schema::flags())?;
    schema::configure(&connection, schema::READER_CACHE)?;
    connection.execute_batch("PRAGMA query_only = ON;")?;
    Ok(connection)
}

/// Reads events after a sequence and up to `head`.
pub(super) fn page(
    connection: &Connection,
    after: Sequence,
    head: Sequence,
    filter: &Filter,
    limit: ReadLimit,
) -> rusqlite::Result<Page> {
    // One transaction: retention may remove an event between its two rows.
    let transaction = connection.unchecked_transaction()?;
    let mut scan = transaction.prepare_cached(&format!(
        "SELECT {} FROM events WHERE sequence > ?1 AND sequence <= ?2 ORDER BY events.sequence",
        codec::FACTS
    ))?;
    let mut rows = scan.query(params![codec::signed(after.get()), codec::signed(head.get())])?;
    let removed_to = schema::first(&transaction)?;
    let removed_to = if removed_to == Sequence::ZERO { head } else { removed_to.previous() };
    let mut gather = Gather::new(after, removed_to, limit);
    let mut reached = after;
    loop {
        match look(&transaction, &mut rows, &mut gather, filter) {
            Ok(Some((_, Look::Stop))) => return Ok(gather.stop()),
            Ok(Some((sequence, _))) => reached = sequence,
            Ok(None) => return Ok(gather.finish(head)),
            // What lies before the damage is not withheld. Who reads on meets it first.
            Err(_) if reached > after => return Ok(Page { read_to: reached, ..gather.stop() }),
            Err(error) => return Err(error),
        }
    }
}

/// Looks at the next event and takes it if it is to be; `None` at the end.
fn look(
    transaction: &Connection,
    rows: &mut Rows<'_>,
    gather: &mut Gather,
    filter: &Filter,
) -> rusqlite::Result<Option<(Sequence, Look)>> {
    let Some(row) = rows.next()? else { return Ok(None) };
    let sequence = codec::sequence(row, 0)?;
    let facts = codec::facts(row)?;
    let look = gather.look(sequence, &facts, codec::number(row, 1)?, filter);
    if look == Look::Take {
        let (redelivery, address) = (row.get(2)?, codec::address(row)?);
        let (headers, body) = payload(transaction, sequence)?;
        let webhook = Webhook { facts, headers, body };
        gather.take(Arc::new(Event { sequence, redelivery, address, webhook }));
    }
    Ok(Some((sequence, look)))
}

/// What was sent as this event, or nothing if it is not there.
pub(super) fn webhook(connection: &Connection, sequence: Sequence) -> rusqlite::Result<Option<Webhook>> {
    let facts = connection
        .prepare_cached(&format!("SELECT {} FROM events WHERE sequence = ?1", codec::FACTS))?
        .query_row([codec::signed(sequence.get())], codec::facts)
        .optional()?;
    let Some(facts) = facts else { return Ok(None) };
    let (headers, body) = payload(connection, sequence)?;
    Ok(Some(Webhook { facts, headers, body }))
}

/// Bytes of the event's headers and body, or nothing if it is not there.
pub(super) fn size(connection: &Connection, sequence: Sequence) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT size FROM events WHERE sequence = ?1")?
        .query_row([codec::signed(sequence.get())], |row| codec::number(row, 0))
        .optional()
}

fn payload(
    connection: &Connection,
    sequence: Sequence,
) -> rusqlite::Result<(crate::headers::Headers, Bytes)> {
    let row_id = codec::signed(sequence.get());
    let mut select = connection.prepare_cached(
        "SELECT headers, length(body), checksum FROM payloads JOIN events USING (sequence) WHERE sequence = ?1",
    )?;
    let (blob, length, checksum): (Vec<u8>, u32, Option<u32>) =
        select.query_row([row_id], |row| row.try_into())?;
    let damaged = |error: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, error)
    };
    // Not as a column: SQLite would put it together in memory of its own first.
    let mut body = vec![0; length as usize];
    connection.blob_open(MAIN_DB, "payloads", "body", row_id, true)?.read_at_exact(&mut body, 0)?;
    // What the first version stored has none.
    if checksum.is_some_and(|stored| stored != codec::checksum(&blob, &body)) {
        return Err(damaged(codec::ChecksumError(sequence).into()));
    }
    let headers = codec::decode_headers(&blob).map_err(|error| damaged(error.into()))?;
    Ok((headers, Bytes::from(body)))
}

/// How far the client has come.
pub(super) fn progress(connection: &Connection, client: &ClientId) -> rusqlite::Result<Option<Progress>> {
    let transaction = connection.unchecked_transaction()?;
    let cursor = transaction
        .prepare_cached("SELECT cursor FROM cursors WHERE client = ?1")?
        .query_row([client.as_str()], |row| codec::sequence(row, 0))
        .optional()?;
    let Some(cursor) = cursor else { return Ok(None) };
    Ok(Some(Progress { cursor, ahead: ahead::load(&transaction, client)? }))
}

/// All that was reported of one event.
pub(super) fn reports(connection: &Connection, sequence: Sequence) -> rusqlite::Result<Vec<Report>> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {} FROM outcomes WHERE sequence = ?1 ORDER BY client, target",
        codec::OUTCOME
    ))?;
    let reports = select.query_map([codec::signed(sequence.get())], codec::report)?;
    reports.collect()
}

/// Every client with a cursor, and the cursor.
pub(super) fn cursors(connection: &Connection) -> rusqlite::Result<Vec<(ClientId, Sequence)>> {
    let mut select = connection.prepare_cached("SELECT client, cursor FROM cursors ORDER BY client")?;
    let cursors = select.query_map((), |row| Ok((codec::text(row, 0)?, codec::sequence(row, 1)?)))?;
    cursors.collect()
}

/// What was changed about the watchlist.
pub(super) fn watchlist_changes(
    connection: &Connection,
) -> rusqlite::Result<Vec<(RepositoryPattern, WatchlistChange)>> {
    let mut select = connection.prepare_cached("SELECT pattern, change FROM watchlist")?;
    let changes = select.query_map((), |row| Ok((codec::text(row, 0)?, codec::text(row, 1)?)))?;
    changes.collect()
}
