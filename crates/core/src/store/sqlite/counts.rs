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

/// One page of them, by number, that begins with `from`.
pub(super) fn load(
    connection: &Connection,
    from: RepositoryId,
    limit: usize,
) -> rusqlite::Result<Vec<(RepositoryId, u64)>> {
    let mut counts = Vec::new();
    let mut select = connection.prepare_cached(
        "SELECT id, events FROM repositories WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
    )?;
    // The greatest ids are negative numbers to SQLite, and come last.
    for (first, last) in [(0, i64::MAX.cast_unsigned()), (i64::MIN.cast_unsigned(), u64::MAX)] {
        let first = from.0.max(first);
        if first > last {
            continue;
        }
        let left = codec::signed(limit.saturating_sub(counts.len()) as u64);
        let mut rows = select.query(params![first.cast_signed(), last.cast_signed(), left])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            counts.push((RepositoryId(id.cast_unsigned()), codec::number(row, 1)?));
        }
    }
    Ok(counts)
}
