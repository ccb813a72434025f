//! What the writer says to SQLite for each kind of request, within the transaction of its group.

use rusqlite::{MAIN_DB, OptionalExtension, Transaction, params};

use super::{ahead, attempts, codec, counts, reader, times};
use crate::event::{Address, ClientId, Event, Facts, Sequence, Timestamp, Webhook};
use crate::hop::Hops;
use crate::repository::RepositoryPattern;
use crate::store::{Appended, MAX_RUNS, Redelivery, Run, Statistics, WatchlistChange};

/// From this size on a body is written part by part, in bytes. Bound as a parameter, SQLite would hold it twice more: that
/// is nothing for the usual webhook, and 50 MB for the largest. The parts cost a second write of the same pages.
const LARGE_BODY: usize = 1 << 20;

/// The event of an origin and an identity. As a rule an origin is one event: more only after a neighbour was restored.
pub(super) const OF_ORIGIN: &str = "SELECT sequence FROM events INDEXED BY events_by_origin \
     WHERE origin_store = ?1 AND origin_sequence = ?2 AND delivery_id = ?3 AND hook_id IS ?4 AND source = ?5";

/// What makes the log longer, in one transaction.
pub(super) struct Batch<'a> {
    /// The transaction.
    pub(super) transaction: &'a Transaction<'a>,
    /// What the store holds once it is committed; it is in the database only after [`store_position`].
    pub(super) position: Statistics,
    /// When the events are accepted.
    pub(super) now: Timestamp,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The stored event that it needs is damaged.
    Event(Sequence, String),
    /// The database refused.
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// What is stored of an event beside what was sent.
struct Marks<'a> {
    redelivery: bool,
    address: &'a Address,
    /// The event of which an operator made this copy.
    original: Option<Sequence>,
}

impl Batch<'_> {
    /// Appends what a sender sent, unless it is a repeat.
    pub(super) fn append(&mut self, webhook: &Webhook, redelivery: Redelivery) -> rusqlite::Result<Appended> {
        let facts = &webhook.facts;
        if let Some(sequence) = self.of_origin(facts)? {
            return Ok(Appended::Repeat { sequence });
        }
        let hook_id = facts.hook_id.as_ref().map(|id| id.as_str());
        let newest: Option<(Sequence, bool)> = self
            .transaction
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
            && (redelivery == Redelivery::Drop || !delivered && self.is_readable(sequence)?)
        {
            return Ok(Appended::Repeat { sequence });
        }
        let redelivery = newest.is_some() || facts.hops.handed_on_as_redelivery();
        let marks = Marks { redelivery, address: &Address::default(), original: None };
        let sequence = self.insert(webhook, &marks)?;
        Ok(Appended::Stored { sequence, redelivery })
    }

    /// Whether an event can be sent to anybody. One that is damaged has no outcome, and a redelivery must replace it.
    fn is_readable(&self, sequence: Sequence) -> rusqlite::Result<bool> {
        Ok(matches!(reader::webhook(self.transaction, sequence)?, Ok(Some(_))))
    }

    /// The event that is the same and came from there; nothing comes from nowhere.
    fn of_origin(&self, facts: &Facts) -> rusqlite::Result<Option<Sequence>> {
        let Some((store, sequence)) = facts.hops.origin() else { return Ok(None) };
        let mut select = self.transaction.prepare_cached(OF_ORIGIN)?;
        let values = params![
            store.get().cast_signed(),
            codec::signed(sequence.get()),
            facts.delivery_id.as_str(),
            facts.hook_id.as_ref().map(|id| id.as_str()),
            facts.source.as_str(),
        ];
        select.query_row(values, |row| codec::sequence(row, 0)).optional()
    }

    /// Appends a stored event anew and marks the dead letters that it is a second try of; `None` if it is not there.
    pub(super) fn redeliver(
        &mut self,
        sequence: Sequence,
        address: &Address,
    ) -> Result<Option<Event>, Failure> {
        let stored = reader::webhook(self.transaction, sequence)?;
        let stored = stored.map_err(|reason| Failure::Event(sequence, reason))?;
        let Some(mut webhook) = stored else { return Ok(None) };
        webhook.facts.hops = Hops::default();
        let marks = Marks { redelivery: true, address, original: Some(sequence) };
        let new = self.insert(&webhook, &marks)?;
        let mut mark = self.transaction.prepare_cached(
            "UPDATE outcomes SET redelivered_as = ?1 \
             WHERE sequence = ?2 AND result = 'failed' AND redelivered_as IS NULL \
             AND (?3 IS NULL OR client = ?3) AND (?4 IS NULL OR target = ?4)",
        )?;
        let mut mark = |target: Option<&str>| {
            let client = address.client.as_ref().map(ClientId::as_str);
            mark.execute(params![codec::signed(new.get()), codec::signed(sequence.get()), client, target])
        };
        if address.targets.is_empty() {
            mark(None)?;
        }
        for target in &address.targets {
            mark(Some(target))?;
        }
        Ok(Some(Event { sequence: new, redelivery: true, address: address.clone(), webhook }))
    }

    fn insert(&mut self, webhook: &Webhook, marks: &Marks<'_>) -> rusqlite::Result<Sequence> {
        let (facts, size, sequence) = (&webhook.facts, webhook.size(), self.position.head.next());
        let headers = codec::encode_headers(&webhook.headers);
        let origin = facts.hops.origin();
        self.transaction
            .prepare_cached(
                "INSERT INTO events (sequence, source, hook_id, delivery_id, event, action, repository_id, \
                 repository_name, owner, installation_id, received_at, accepted_at, redelivery, size, \
                 for_client, for_target, original, checksum, hops, origin_store, origin_sequence) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, \
                 ?19, ?20, ?21)",
            )?
            .execute(params![
                codec::signed(sequence.get()),
                facts.source.as_str(),
                facts.hook_id.as_ref().map(|id| id.as_str()),
                facts.delivery_id.as_str(),
                facts.event_type.name,
                facts.event_type.action,
                facts.repository_id.map(|id| id.0.cast_signed()),
                facts.repository_name.as_ref().map(|name| name.as_str()),
                facts.owner,
                facts.installation_id.map(u64::cast_signed),
                codec::signed(facts.received_at.as_millis()),
                codec::signed(self.now.as_millis()),
                marks.redelivery,
                codec::signed(size),
                marks.address.client.as_ref().map(ClientId::as_str),
                codec::encode_targets(marks.address),
                marks.original.map(|original| codec::signed(original.get())),
                codec::checksum(&headers, &webhook.body),
                codec::encode_hops(&facts.hops),
                origin.map(|(store, _)| store.get().cast_signed()),
                origin.map(|(_, sequence)| codec::signed(sequence.get())),
            ])?;
        self.insert_payload(sequence, &headers, &webhook.body)?;
        if let Some(id) = facts.repository_id {
            counts::add(self.transaction, id)?;
        }
        times::add(self.transaction, sequence, facts.received_at)?;
        if self.position.events == 0 {
            self.position.first = sequence;
        }
        self.position.head = sequence;
        self.position.events += 1;
        self.position.bytes += size;
        Ok(sequence)
    }

    fn insert_payload(&self, sequence: Sequence, headers: &[u8], body: &[u8]) -> rusqlite::Result<()> {
        let row_id = codec::signed(sequence.get());
        if body.len() < LARGE_BODY {
            let statement = "INSERT INTO payloads (sequence, headers, body) VALUES (?1, ?2, ?3)";
            self.transaction.prepare_cached(statement)?.execute(params![row_id, headers, body])?;
            return Ok(());
        }
        // The body is the last column: only there SQLite does not put the zeros together first.
        let statement = "INSERT INTO payloads (sequence, headers, body) VALUES (?1, ?2, zeroblob(?3))";
        let length = codec::signed(body.len() as u64);
        self.transaction.prepare_cached(statement)?.execute(params![row_id, headers, length])?;
        let mut blob = self.transaction.blob_open(MAIN_DB, "payloads", "body", row_id, false)?;
        for (at, part) in body.chunks(LARGE_BODY).enumerate() {
            blob.write_all_at(part, at * LARGE_BODY)?;
        }
        blob.close()
    }
}

/// Sets the cursor and forgets what was done ahead.
pub(super) fn seek(
    transaction: &Transaction<'_>,
    client: &ClientId,
    cursor: Sequence,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO cursors (client, cursor) VALUES (?1, ?2)")?
        .execute(params![client.as_str(), codec::signed(cursor.get())])?;
    attempts::clear(transaction, client)?;
    ahead::clear(transaction, client)
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

/// Records a run with its first event. Runs that begin there or later had none that is left.
pub(super) fn begin_run(transaction: &Transaction<'_>, run: Run) -> rusqlite::Result<()> {
    let start = codec::signed(run.start.get());
    transaction.execute("DELETE FROM runs WHERE head >= ?1", [start])?;
    let insert = "INSERT INTO runs (run, head) VALUES (?1, ?2)";
    transaction.execute(insert, params![run.id.get().cast_signed(), start])?;
    let newest =
        "DELETE FROM runs WHERE number NOT IN (SELECT number FROM runs ORDER BY number DESC LIMIT ?1)";
    transaction.execute(newest, [codec::signed(MAX_RUNS as u64)])?;
    Ok(())
}

/// Stores what a relay keeps.
pub(super) fn store_relay_state(
    transaction: &Transaction<'_>,
    relay: &str,
    state: &str,
) -> rusqlite::Result<()> {
    let statement = "INSERT OR REPLACE INTO relays (relay, state) VALUES (?1, ?2)";
    transaction.prepare_cached(statement)?.execute([relay, state])?;
    Ok(())
}

/// Keeps or forgets a change of the watchlist.
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
