//! Reading from the disk: two connections, each used by one task at a time on tokio's blocking pool.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, MAIN_DB, OptionalExtension, params};
use tokio::sync::Semaphore;

use super::codec::Damage;
use super::{Shared, ahead, codec, damage, schema};
use crate::event::{ClientId, Event, Sequence, Webhook};
use crate::filter::Filter;
use crate::headers::Headers;
use crate::repository::RepositoryPattern;
use crate::store::tail::{Gather, Look};
use crate::store::{Order, Page, ReadLimit, Report, StoreError, WatchlistChange};
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

/// Reads events after a sequence and up to `head`. Passes and reports those that are damaged.
///
/// If the database is damaged as a whole, the page ends before the damage, and the next begins with the error.
pub(super) fn page(
    connection: &Connection,
    after: Sequence,
    head: Sequence,
    filter: &Filter,
    limit: ReadLimit,
) -> rusqlite::Result<Page> {
    // One transaction: retention may remove an event between its two rows.
    let transaction = connection.unchecked_transaction()?;
    let removed_to = schema::first(&transaction)?;
    let removed_to = if removed_to == Sequence::ZERO { head } else { removed_to.previous() };
    let mut gather = Gather::new(after, removed_to, limit);
    while gather.read_to() < head {
        if gather.is_full() {
            return Ok(gather.stop());
        }
        match scan(&transaction, &mut gather, head, filter) {
            Ok(Scanned::Full) => return Ok(gather.stop()),
            Ok(Scanned::All) => return Ok(gather.finish(head)),
            Ok(Scanned::UnreadablePage(error)) => {
                let first = gather.read_to().next();
                match damage::end_of_unreadable_page(&transaction, first, Order::OldestFirst) {
                    Some(last) => gather.pass_damaged(first, last.min(head), &damage::reason(&error)),
                    None if gather.read_to() > after => return Ok(gather.stop()),
                    None => return Err(error),
                }
            }
            Err(_) if gather.read_to() > after => return Ok(gather.stop()),
            Err(error) => return Err(error),
        }
    }
    Ok(gather.finish(head))
}

/// How a scan of the table of events ended.
enum Scanned {
    /// At the head.
    All,
    /// The page is complete.
    Full,
    /// SQLite cannot read the row after the last.
    UnreadablePage(rusqlite::Error),
}

/// Adds the events after those that were looked at.
fn scan(
    transaction: &Connection,
    gather: &mut Gather,
    head: Sequence,
    filter: &Filter,
) -> rusqlite::Result<Scanned> {
    // Not `sequence > ?1`: to find the next row, SQLite would look for that one first, which may be on an unreadable page.
    let mut scan = transaction.prepare_cached(&format!(
        "SELECT {} FROM events WHERE sequence >= ?1 AND sequence <= ?2 ORDER BY events.sequence",
        codec::FACTS
    ))?;
    let first = gather.read_to().next();
    let mut rows = scan.query(params![codec::signed(first.get()), codec::signed(head.get())])?;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(Scanned::All),
            Err(error) if damage::is_unreadable_page(&error) => return Ok(Scanned::UnreadablePage(error)),
            Err(error) => return Err(error),
        };
        if gather.is_full() {
            return Ok(Scanned::Full);
        }
        let sequence = codec::sequence(row, 0)?;
        let facts = match codec::facts(row) {
            Ok(facts) => facts,
            Err(damage) => {
                gather.pass_damaged(sequence, sequence, &damage.to_string());
                continue;
            }
        };
        match gather.look(sequence, &facts, codec::size(row), filter) {
            Look::Stop => return Ok(Scanned::Full),
            Look::Pass => {}
            Look::Take => match payload(transaction, sequence)? {
                Ok((headers, body)) => gather.take(Arc::new(Event {
                    sequence,
                    redelivery: codec::redelivery(row),
                    address: codec::address(row),
                    webhook: Webhook { facts, headers, body },
                })),
                Err(reason) => gather.pass_damaged(sequence, sequence, &reason),
            },
        }
    }
}

/// What was sent as this event, or nothing if it is not there. The inner error says why the event cannot be read, when the
/// database as a whole can.
pub(super) fn webhook(
    connection: &Connection,
    sequence: Sequence,
) -> rusqlite::Result<Result<Option<Webhook>, String>> {
    let facts = connection
        .prepare_cached(&format!("SELECT {} FROM events WHERE sequence = ?1", codec::FACTS))?
        .query_row([codec::signed(sequence.get())], |row| Ok(codec::facts(row)))
        .optional();
    let facts = match facts {
        Ok(None) => return Ok(Ok(None)),
        Ok(Some(Ok(facts))) => facts,
        Ok(Some(Err(damage))) => return Ok(Err(damage.to_string())),
        Err(error) if damage::is_unreadable_page(&error) => return Ok(Err(damage::reason(&error))),
        Err(error) => return Err(error),
    };
    Ok(payload(connection, sequence)?.map(|(headers, body)| Some(Webhook { facts, headers, body })))
}

/// Bytes of the event's headers and body, or nothing if it is not there. Zero if its row cannot be read.
pub(super) fn size(connection: &Connection, sequence: Sequence) -> rusqlite::Result<Option<u64>> {
    let size = connection
        .prepare_cached("SELECT size FROM events WHERE sequence = ?1")?
        .query_row([codec::signed(sequence.get())], |row| Ok(codec::number(row, 0).unwrap_or_default()))
        .optional();
    match size {
        Err(error) if damage::is_unreadable_page(&error) => Ok(Some(0)),
        size => size,
    }
}

/// The event's headers and body. The inner error says why this event's cannot be read, when those of others can.
fn payload(
    connection: &Connection,
    sequence: Sequence,
) -> rusqlite::Result<Result<(Headers, Bytes), String>> {
    match read_payload(connection, sequence) {
        Ok(Ok(payload)) => Ok(Ok(payload)),
        Ok(Err(damage)) => Ok(Err(damage.to_string())),
        Err(error) if damage::is_damage(&error) && damage::payloads_are_readable(connection) => {
            Ok(Err(damage::reason(&error)))
        }
        Err(error) => Err(error),
    }
}

fn read_payload(
    connection: &Connection,
    sequence: Sequence,
) -> rusqlite::Result<Result<(Headers, Bytes), Damage>> {
    let row_id = codec::signed(sequence.get());
    let mut select = connection.prepare_cached(
        "SELECT headers, length(body), checksum FROM payloads JOIN events USING (sequence) WHERE sequence = ?1",
    )?;
    let row = select.query_row([row_id], |row| row.try_into()).optional()?;
    let Some((blob, length, checksum)): Option<(Vec<u8>, u32, Option<i64>)> = row else {
        return Ok(Err(Damage::NoPayload));
    };
    // Not as a column: SQLite would put it together in memory of its own first.
    let mut body = vec![0; length as usize];
    connection.blob_open(MAIN_DB, "payloads", "body", row_id, true)?.read_at_exact(&mut body, 0)?;
    // What the first version stored has none.
    if checksum.is_some_and(|stored| stored != i64::from(codec::checksum(&blob, &body))) {
        return Ok(Err(Damage::Checksum));
    }
    Ok(codec::decode_headers(&blob).map(|headers| (headers, Bytes::from(body))))
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
    let reports = select.query_map([codec::signed(sequence.get())], |row| Ok(codec::report(row)))?;
    reports.filter_map(Result::transpose).collect()
}

/// Every client with a cursor, and the cursor. An id that no client can have is left out.
pub(super) fn cursors(connection: &Connection) -> rusqlite::Result<Vec<(ClientId, Sequence)>> {
    let mut select = connection.prepare_cached("SELECT client, cursor FROM cursors ORDER BY client")?;
    let cursors = select.query_map((), |row| {
        let client: Option<ClientId> = codec::optional(row, 0);
        client.map(|client| Ok((client, codec::sequence(row, 1)?))).transpose()
    })?;
    cursors.filter_map(Result::transpose).collect()
}

/// What a relay stored.
pub(super) fn relay_state(connection: &Connection, relay: &str) -> rusqlite::Result<Option<String>> {
    let mut select = connection.prepare_cached("SELECT state FROM relays WHERE relay = ?1")?;
    select.query_row([relay], |row| row.get(0)).optional()
}

/// What was changed about the watchlist. A change that cannot be read counts as not made.
pub(super) fn watchlist_changes(
    connection: &Connection,
) -> rusqlite::Result<Vec<(RepositoryPattern, WatchlistChange)>> {
    let mut select = connection.prepare_cached("SELECT pattern, change FROM watchlist")?;
    let changes = select.query_map((), |row| {
        let change: Option<(RepositoryPattern, WatchlistChange)> =
            codec::optional(row, 0).zip(codec::optional(row, 1));
        if change.is_none() {
            tracing::error!("a change of the watchlist in the store cannot be read; it has no effect");
        }
        Ok(change)
    })?;
    changes.filter_map(Result::transpose).collect()
}
