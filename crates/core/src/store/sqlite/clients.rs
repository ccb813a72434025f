//! Which client ids are registered, for whom, and when each was seen last: the table `clients`.
//!
//! Times are those of the store's clock, which never goes back: see [`retention`](super::retention). So a machine that
//! wakes up with a wrong date forgets nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{ahead, attempts, codec};
use crate::event::{ClientId, Timestamp};
use crate::store::{Owner, Registration};

/// How exact the time of the last contact is. A client that reconnects every few minutes costs a write once an hour.
const PRECISION: Duration = Duration::from_secs(3600);
/// How many clients are forgotten in one transaction.
const FORGOTTEN_AT_ONCE: usize = 256;

/// Whose a client id is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The client is not registered.
    Unknown,
    /// The client is registered. Clients from before version 4 of the schema, and released ones, have no owner.
    Known(Option<String>),
}

/// Whose the client id is.
pub(super) fn ownership(connection: &Connection, client: &ClientId) -> rusqlite::Result<Ownership> {
    let mut select = connection.prepare_cached("SELECT owner FROM clients WHERE client = ?1")?;
    let owner = select.query_row([client.as_str()], |row| row.get(0)).optional()?;
    Ok(owner.map_or(Ownership::Unknown, Ownership::Known))
}

/// Registers a client: see [`EventStore::register_client`](crate::store::EventStore::register_client).
pub(super) fn register(
    transaction: &Transaction<'_>,
    client: &ClientId,
    owner: &Owner,
    now: Timestamp,
) -> rusqlite::Result<Registration> {
    if let Ownership::Known(label) = ownership(transaction, client)? {
        if !owner.inherits_from(label.as_deref()) {
            return Ok(Registration::OwnedByAnother);
        }
        transaction
            .prepare_cached(
                "UPDATE clients SET seen_at = ?2, owner = ?3 \
                 WHERE client = ?1 AND (seen_at <= ?4 OR owner IS NOT ?3)",
            )?
            .execute(params![client.as_str(), time(now), owner.label, time(now.minus(PRECISION))])?;
        return Ok(Registration::Registered);
    }
    let ids: u64 = transaction
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM clients WHERE owner = ?1 LIMIT ?2)")?
        .query_row(params![owner.label, codec::signed(owner.max_ids as u64)], |row| codec::number(row, 0))?;
    if ids >= owner.max_ids as u64 {
        return Ok(Registration::LimitReached);
    }
    transaction
        .prepare_cached("INSERT INTO clients (client, owner, seen_at) VALUES (?1, ?2, ?3)")?
        .execute(params![client.as_str(), owner.label, time(now)])?;
    Ok(Registration::Registered)
}

/// Takes a client id from its owner: see [`EventStore::release_client`](crate::store::EventStore::release_client).
pub(super) fn release(transaction: &Transaction<'_>, client: &ClientId) -> rusqlite::Result<bool> {
    let mut release = transaction.prepare_cached("UPDATE clients SET owner = NULL WHERE client = ?1")?;
    let mut has_cursor = transaction.prepare_cached("SELECT 1 FROM cursors WHERE client = ?1")?;
    Ok(release.execute([client.as_str()])? > 0 || has_cursor.exists([client.as_str()])?)
}

/// Removes all that is kept for a client; whether there was anything.
pub(super) fn remove(transaction: &Transaction<'_>, client: &ClientId) -> rusqlite::Result<bool> {
    let mut rows = 0;
    for statement in ["DELETE FROM clients WHERE client = ?1", "DELETE FROM cursors WHERE client = ?1"] {
        rows += transaction.prepare_cached(statement)?.execute([client.as_str()])?;
    }
    attempts::clear(transaction, client)?;
    ahead::clear(transaction, client)?;
    Ok(rows > 0)
}

/// Removes clients that were not seen for `age`: see
/// [`EventStore::forget_clients`](crate::store::EventStore::forget_clients).
pub(super) fn forget(
    transaction: &Transaction<'_>,
    age: Duration,
    connected: &[ClientId],
    now: Timestamp,
) -> rusqlite::Result<Vec<ClientId>> {
    let mut touch =
        transaction.prepare_cached("UPDATE clients SET seen_at = ?2 WHERE client = ?1 AND seen_at <= ?3")?;
    for client in connected {
        touch.execute(params![client.as_str(), time(now), time(now.minus(PRECISION))])?;
    }
    let connected: BTreeSet<_> = connected.iter().collect();
    let mut expired = Vec::new();
    let mut select = transaction.prepare_cached("SELECT client FROM clients WHERE seen_at <= ?1")?;
    let mut rows = select.query([time(now.minus(age))])?;
    while expired.len() < FORGOTTEN_AT_ONCE
        && let Some(row) = rows.next()?
    {
        let Some(client) = codec::optional::<ClientId>(row, 0) else { continue };
        if !connected.contains(&client) {
            expired.push(client);
        }
    }
    for client in &expired {
        remove(transaction, client)?;
    }
    Ok(expired)
}

fn time(time: Timestamp) -> i64 {
    codec::signed(time.as_millis())
}
