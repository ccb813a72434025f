//! What the writer does to the tables, one function per task. Each runs in the group's transaction.

use rusqlite::{MAIN_DB, OptionalExtension, Transaction, params};

use super::codec;
use crate::event::{Address, ClientId, Sequence, Timestamp, Webhook};
use crate::repository::RepositoryPattern;
use crate::store::{Acknowledgement, Appended, Redelivery, Statistics, WatchlistChange, beyond};

/// From this size on a body is written part by part, in bytes. Bound as a parameter, SQLite would hold it twice more: that
/// is nothing for the usual webhook, and 50 MB for the largest. The parts cost a second write of the same pages.
const LARGE_BODY: usize = 1 << 20;

/// Appends a webhook, or finds that it is there.
pub(super) fn append(
    transaction: &Transaction<'_>,
    webhook: &Webhook,
    position: &mut Statistics,
    now: Timestamp,
    redelivery: Redelivery,
) -> rusqlite::Result<Appended> {
    let facts = &webhook.facts;
    let hook_id = facts.hook_id.as_ref().map(|id| id.as_str());
    let newest: Option<(Sequence, bool)> = transaction
        .prepare_cached(
            "SELECT sequence, EXISTS (SELECT 1 FROM outcomes WHERE outcomes.sequence = events.sequence) \
             FROM events WHERE delivery_id = ?1 AND hook_id IS ?2 AND source = ?3 AND original IS NULL \
             ORDER BY sequence DESC LIMIT 1",
        )?
        .query_row(params![facts.delivery_id.as_str(), hook_id, facts.source.as_str()], |row| {
            Ok((codec::sequence(row, 0)?, row.get(1)?))
        })
        .optional()?;
    if let Some((sequence, delivered)) = newest
        && (!delivered || redelivery == Redelivery::Drop)
    {
        return Ok(Appended::Repeat { sequence });
    }
    let (sequence, redelivery, size) = (position.head.next(), newest.is_some(), webhook.size());
    transaction
        .prepare_cached(
            "INSERT INTO events (sequence, source, hook_id, delivery_id, event, action, repository_id, \
             repository_name, owner, installation_id, received_at, accepted_at, redelivery, size) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            codec::signed(sequence.get()),
            facts.source.as_str(),
            hook_id,
            facts.delivery_id.as_str(),
            facts.event_type.name,
            facts.event_type.action,
            facts.repository_id.map(|id| id.0.cast_signed()),
            facts.repository_name.as_ref().map(|name| name.as_str()),
            facts.owner,
            facts.installation_id.map(u64::cast_signed),
            codec::signed(facts.received_at.as_millis()),
            codec::signed(now.as_millis()),
            redelivery,
            codec::signed(size),
        ])?;
    insert_payload(transaction, sequence, webhook)?;
    grow(position, sequence, size);
    Ok(Appended::Stored { sequence, redelivery })
}

fn insert_payload(
    transaction: &Transaction<'_>,
    sequence: Sequence,
    webhook: &Webhook,
) -> rusqlite::Result<()> {
    let (row_id, headers) = (codec::signed(sequence.get()), codec::encode_headers(&webhook.headers));
    let body = &*webhook.body;
    if body.len() < LARGE_BODY {
        let statement = "INSERT INTO payloads (sequence, headers, body) VALUES (?1, ?2, ?3)";
        transaction.prepare_cached(statement)?.execute(params![row_id, headers, body])?;
        return Ok(());
    }
    let statement = "INSERT INTO payloads (sequence, headers, body) VALUES (?1, ?2, zeroblob(?3))";
    transaction.prepare_cached(statement)?.execute(params![
        row_id,
        headers,
        codec::signed(body.len() as u64)
    ])?;
    let mut blob = transaction.blob_open(MAIN_DB, "payloads", "body", row_id, false)?;
    for (at, part) in body.chunks(LARGE_BODY).enumerate() {
        blob.write_all_at(part, at * LARGE_BODY)?;
    }
    blob.close()
}

/// Appends a copy of an event for those it is addressed to, and marks the dead letters that it is a second try of.
pub(super) fn redeliver(
    transaction: &Transaction<'_>,
    original: Sequence,
    address: &Address,
    position: &mut Statistics,
    now: Timestamp,
) -> rusqlite::Result<Option<Sequence>> {
    let (old, new) = (codec::signed(original.get()), position.head.next());
    let (client, target) = (address.client.as_ref().map(|client| client.as_str()), address.target.as_deref());
    let size = transaction
        .prepare_cached(
            "INSERT INTO events (sequence, source, hook_id, delivery_id, event, action, repository_id, \
             repository_name, owner, installation_id, received_at, size, accepted_at, redelivery, original, \
             for_client, for_target) \
             SELECT ?2, source, hook_id, delivery_id, event, action, repository_id, repository_name, owner, \
             installation_id, received_at, size, ?3, 1, ?1, ?4, ?5 FROM events WHERE sequence = ?1 RETURNING size",
        )?
        .query_row(
            params![old, codec::signed(new.get()), codec::signed(now.as_millis()), client, target],
            |row| codec::number(row, 0),
        )
        .optional()?;
    let Some(size) = size else { return Ok(None) };
    transaction
        .prepare_cached(
            "INSERT INTO payloads (sequence, headers, body) \
             SELECT ?2, headers, body FROM payloads WHERE sequence = ?1",
        )?
        .execute(params![old, codec::signed(new.get())])?;
    transaction
        .prepare_cached(
            "UPDATE outcomes SET redelivered_as = ?2 WHERE sequence = ?1 AND result = 'failed' \
             AND redelivered_as IS NULL AND client = coalesce(?3, client) AND target = coalesce(?4, target)",
        )?
        .execute(params![old, codec::signed(new.get()), client, target])?;
    grow(position, new, size);
    Ok(Some(new))
}

/// Counts a new event.
fn grow(position: &mut Statistics, sequence: Sequence, size: u64) {
    if position.events == 0 {
        position.first = sequence;
    }
    position.head = sequence;
    position.events += 1;
    position.bytes += size;
}

/// Stores outcomes and moves a cursor forwards.
pub(super) fn acknowledge(
    transaction: &Transaction<'_>,
    client: &ClientId,
    acknowledgements: &[Acknowledgement],
    cursor: Sequence,
) -> rusqlite::Result<()> {
    let name = client.as_str();
    // RETURNING gives the cursor as it then is: it may have been further already.
    let cursor = transaction
        .prepare_cached(
            "INSERT INTO cursors (client, cursor) VALUES (?1, ?2) \
             ON CONFLICT (client) DO UPDATE SET cursor = max(cursor, excluded.cursor) RETURNING cursor",
        )?
        .query_row(params![name, codec::signed(cursor.get())], |row| codec::sequence(row, 0))?;
    transaction
        .prepare_cached("DELETE FROM ahead WHERE client = ?1 AND sequence <= ?2")?
        .execute(params![name, codec::signed(cursor.get())])?;
    // Both inserts take nothing if retention has removed the event.
    let mut ahead = transaction.prepare_cached(
        "INSERT OR IGNORE INTO ahead (client, sequence) SELECT ?1, sequence FROM events WHERE sequence = ?2",
    )?;
    for sequence in beyond(acknowledgements, cursor) {
        ahead.execute(params![name, codec::signed(sequence.get())])?;
    }
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO outcomes (sequence, client, target, result, code, attempts, duration_ns, at, detail) \
         SELECT sequence, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM events WHERE sequence = ?1",
    )?;
    for Acknowledgement { sequence, outcomes } in acknowledgements {
        for outcome in outcomes {
            insert.execute(params![
                codec::signed(sequence.get()),
                name,
                outcome.target,
                outcome.result.as_str(),
                outcome.code,
                outcome.attempts,
                i64::try_from(outcome.duration.as_nanos()).unwrap_or(i64::MAX),
                codec::signed(outcome.at.as_millis()),
                outcome.detail,
            ])?;
        }
    }
    Ok(())
}

/// Sets a cursor.
pub(super) fn seek(
    transaction: &Transaction<'_>,
    client: &ClientId,
    cursor: Sequence,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO cursors (client, cursor) VALUES (?1, ?2)")?
        .execute(params![client.as_str(), codec::signed(cursor.get())])?;
    transaction.prepare_cached("DELETE FROM ahead WHERE client = ?1")?.execute([client.as_str()])?;
    Ok(())
}

/// Keeps a change of the watchlist, or forgets it.
pub(super) fn change_watchlist(
    transaction: &Transaction<'_>,
    pattern: &RepositoryPattern,
    change: Option<WatchlistChange>,
) -> rusqlite::Result<()> {
    let pattern = pattern.to_string();
    match change {
        Some(change) => transaction
            .prepare_cached("INSERT OR REPLACE INTO watchlist (pattern, change) VALUES (?1, ?2)")?
            .execute(params![pattern, change.as_str()])?,
        None => transaction.prepare_cached("DELETE FROM watchlist WHERE pattern = ?1")?.execute([pattern])?,
    };
    Ok(())
}

/// Writes head and totals.
pub(super) fn store_position(transaction: &Transaction<'_>, position: &Statistics) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE position SET head = ?1, events = ?2, bytes = ?3")?.execute(
        params![
            codec::signed(position.head.get()),
            codec::signed(position.events),
            codec::signed(position.bytes)
        ],
    )?;
    Ok(())
}
