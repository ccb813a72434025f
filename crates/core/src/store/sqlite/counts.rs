//! How many events of each repository are stored, kept as they come and go.
//!
//! An index over the events would give the same numbers, but it has a page to write for nearly every event of a server
//! with some hundred repositories, which made appending a fifth slower. These rows are few and lie together.

use std::collections::BTreeMap;

use rusqlite::{Connection, Transaction, params};

use super::codec;
use crate::repository::RepositoryId;

/// One event more.
pub(super) fn add(transaction: &Transaction<'_>, id: RepositoryId) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO repositories (id, events) VALUES (?1, 1) \
             ON CONFLICT (id) DO UPDATE SET events = events + 1",
        )?
        .execute([id.0.cast_signed()])?;
    Ok(())
}

/// So many events less. A repository without events is forgotten.
pub(super) fn remove(
    transaction: &Transaction<'_>,
    events: &BTreeMap<RepositoryId, u64>,
) -> rusqlite::Result<()> {
    let mut update =
        transaction.prepare_cached("UPDATE repositories SET events = events - ?2 WHERE id = ?1")?;
    let mut delete = transaction.prepare_cached("DELETE FROM repositories WHERE id = ?1 AND events <= 0")?;
    for (id, count) in events {
        let id = id.0.cast_signed();
        update.execute(params![id, codec::signed(*count)])?;
        delete.execute([id])?;
    }
    Ok(())
}

/// All of them, by number.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<Vec<(RepositoryId, u64)>> {
    let mut select = connection.prepare_cached("SELECT id, events FROM repositories")?;
    let counts = select.query_map((), |row| {
        let id: i64 = row.get(0)?;
        Ok((RepositoryId(id.cast_unsigned()), codec::number(row, 1)?))
    })?;
    let mut counts = counts.collect::<rusqlite::Result<Vec<_>>>()?;
    // The greatest are negative numbers to SQLite.
    counts.sort_unstable();
    Ok(counts)
}
