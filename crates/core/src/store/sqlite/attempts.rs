//! When the first attempt of an event at a target was, for events that are tried in vain: see
//! [`EventStore::record_first_attempts`](crate::store::EventStore::record_first_attempts). The table is empty while all goes
//! well.

use std::ops::RangeInclusive;
use std::time::Duration;

use rusqlite::{Connection, Transaction, params};

use super::codec;
use crate::event::{ClientId, Sequence, Timestamp};
use crate::store::{Acknowledgement, FirstAttempt, MAX_FIRST_ATTEMPTS};

/// Records first attempts, as far as there is room for the client.
pub(super) fn record(
    transaction: &Transaction<'_>,
    client: &ClientId,
    first_attempts: &[FirstAttempt],
    now: Timestamp,
) -> rusqlite::Result<()> {
    let mut count = transaction
        .prepare_cached("SELECT count(*) FROM first_attempts WHERE client = ?1")?
        .query_row([client.as_str()], |row| codec::number(row, 0))?;
    // Takes nothing if retention has removed the event, or if the client has no cursor.
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO first_attempts (client, sequence, target, at) \
         SELECT client, sequence, ?3, max(?4, accepted_at) FROM events, cursors WHERE sequence = ?2 AND client = ?1",
    )?;
    for FirstAttempt { sequence, target, age } in first_attempts {
        if count >= MAX_FIRST_ATTEMPTS as u64 {
            break;
        }
        let at = codec::signed(now.minus(*age).as_millis());
        count += insert.execute(params![client.as_str(), codec::signed(sequence.get()), target, at])? as u64;
    }
    Ok(())
}

/// What is recorded for a client, with the ages that it has now.
pub(super) fn load(
    connection: &Connection,
    client: &ClientId,
    sequences: &RangeInclusive<Sequence>,
    now: Timestamp,
) -> rusqlite::Result<Vec<FirstAttempt>> {
    let mut select = connection.prepare_cached(
        "SELECT sequence, target, at FROM first_attempts WHERE client = ?1 AND sequence BETWEEN ?2 AND ?3 \
         ORDER BY sequence, target",
    )?;
    let (first, last) = (codec::signed(sequences.start().get()), codec::signed(sequences.end().get()));
    let rows = select.query_map(params![client.as_str(), first, last], |row| {
        let at = codec::number(row, 2)?;
        Ok(FirstAttempt {
            sequence: codec::sequence(row, 0)?,
            target: row.get(1)?,
            age: Duration::from_millis(now.as_millis().saturating_sub(at)),
        })
    })?;
    rows.collect()
}

/// The last event of which something is recorded for a client; zero if there is none.
pub(super) fn last(connection: &Connection, client: &ClientId) -> rusqlite::Result<Sequence> {
    let select = "SELECT coalesce(max(sequence), 0) FROM first_attempts WHERE client = ?1";
    connection.prepare_cached(select)?.query_row([client.as_str()], |row| codec::sequence(row, 0))
}

/// Forgets what the client has done.
pub(super) fn forget(
    transaction: &Transaction<'_>,
    client: &ClientId,
    acknowledgements: &[Acknowledgement],
    cursor: Sequence,
) -> rusqlite::Result<()> {
    let passed = "DELETE FROM first_attempts WHERE client = ?1 AND sequence <= ?2";
    transaction.prepare_cached(passed)?.execute(params![client.as_str(), codec::signed(cursor.get())])?;
    let done = "DELETE FROM first_attempts WHERE client = ?1 AND sequence = ?2";
    let mut done = transaction.prepare_cached(done)?;
    for acknowledgement in acknowledgements.iter().filter(|one| one.sequence > cursor) {
        done.execute(params![client.as_str(), codec::signed(acknowledgement.sequence.get())])?;
    }
    Ok(())
}

/// Forgets what retention has removed, up to this event.
pub(super) fn remove_through_for_all(transaction: &Transaction<'_>, last: Sequence) -> rusqlite::Result<()> {
    // Each client in `cursors` is one range of the table's key.
    let delete = "DELETE FROM first_attempts WHERE client IN (SELECT client FROM cursors) AND sequence <= ?1";
    transaction.prepare_cached(delete)?.execute([codec::signed(last.get())])?;
    Ok(())
}

/// Forgets all about a client.
pub(super) fn clear(transaction: &Transaction<'_>, client: &ClientId) -> rusqlite::Result<()> {
    let clear = "DELETE FROM first_attempts WHERE client = ?1";
    transaction.prepare_cached(clear)?.execute([client.as_str()])?;
    Ok(())
}
