//! What clients have done beyond their cursors: the table `ahead`.
//!
//! A row is a range, and no two of a client overlap or are adjacent. While one event is stuck, its client's cursor
//! stays before it and the client goes on: that may be all events there are, in one row.

use rusqlite::{Connection, Transaction, params};

use super::codec;
use crate::event::{ClientId, Sequence};
use crate::ranges::Ranges;

/// What a client has done ahead.
pub(super) fn load(connection: &Connection, client: &ClientId) -> rusqlite::Result<Ranges> {
    let mut select = connection.prepare_cached("SELECT first, last FROM ahead WHERE client = ?1")?;
    let mut rows = select.query([client.as_str()])?;
    let mut ranges = Ranges::default();
    while let Some(row) = rows.next()? {
        ranges.insert_range(codec::sequence(row, 0)?, codec::sequence(row, 1)?);
    }
    Ok(ranges)
}

/// Adds those of these sequences whose events are there: retention may have removed some.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    client: &ClientId,
    sequences: impl IntoIterator<Item = Sequence>,
) -> rusqlite::Result<()> {
    let mut exists = transaction.prepare_cached("SELECT 1 FROM events WHERE sequence = ?1")?;
    let mut new = Ranges::default();
    for sequence in sequences {
        if exists.exists([codec::signed(sequence.get())])? {
            new.insert(sequence);
        }
    }
    // The rows that the range touches. The one it begins in, or at the end of, is the last that begins before it;
    // without that bound all earlier ones would be looked through.
    let mut absorb = transaction.prepare_cached(
        "DELETE FROM ahead WHERE client = ?1 AND last >= ?2 - 1 AND first <= ?3 + 1 AND first >= \
         coalesce((SELECT max(first) FROM ahead WHERE client = ?1 AND first <= ?2), ?2) \
         RETURNING first, last",
    )?;
    let mut insert =
        transaction.prepare_cached("INSERT INTO ahead (client, first, last) VALUES (?1, ?2, ?3)")?;
    for (mut first, mut last) in new.iter() {
        let (from, to) = (codec::signed(first.get()), codec::signed(last.get()));
        let mut rows = absorb.query(params![client.as_str(), from, to])?;
        while let Some(row) = rows.next()? {
            first = first.min(codec::sequence(row, 0)?);
            last = last.max(codec::sequence(row, 1)?);
        }
        let (from, to) = (codec::signed(first.get()), codec::signed(last.get()));
        insert.execute(params![client.as_str(), from, to])?;
    }
    Ok(())
}

/// Forgets what a client's cursor has passed.
pub(super) fn remove_through(
    transaction: &Transaction<'_>,
    client: &ClientId,
    cursor: Sequence,
) -> rusqlite::Result<()> {
    let values = params![client.as_str(), codec::signed(cursor.get())];
    transaction
        .prepare_cached("DELETE FROM ahead WHERE client = ?1 AND first <= ?2 AND last <= ?2")?
        .execute(values)?;
    // One range at most reaches beyond.
    transaction
        .prepare_cached("UPDATE ahead SET first = ?2 + 1 WHERE client = ?1 AND first <= ?2")?
        .execute(values)?;
    Ok(())
}

/// Forgets what retention has removed, of all clients: whoever is ahead has a cursor.
pub(super) fn remove_through_for_all(
    transaction: &Transaction<'_>,
    removed_to: Sequence,
) -> rusqlite::Result<()> {
    // By client, because that is what the table is ordered by.
    for statement in [
        "DELETE FROM ahead WHERE client IN (SELECT client FROM cursors) AND first <= ?1 AND last <= ?1",
        "UPDATE ahead SET first = ?1 + 1 WHERE client IN (SELECT client FROM cursors) AND first <= ?1",
    ] {
        transaction.prepare_cached(statement)?.execute([codec::signed(removed_to.get())])?;
    }
    Ok(())
}

/// Forgets all that a client has done ahead.
pub(super) fn clear(transaction: &Transaction<'_>, client: &ClientId) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM ahead WHERE client = ?1")?.execute([client.as_str()])?;
    Ok(())
}
