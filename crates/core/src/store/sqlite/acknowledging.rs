//! What the writer stores of acknowledgements: the cursor, what is done beyond it, and outcomes within their bounds.

use rusqlite::{Connection, params};

use super::statements::Batch;
use super::{ahead, attempts, codec};
use crate::event::{ClientId, Sequence};
use crate::outcomes::{Outcomes, ROW_BYTES, Reported};
use crate::store::{Acknowledgement, beyond};

impl Batch<'_> {
    /// Stores outcomes and moves the cursor: see [`EventStore::acknowledge`](crate::store::EventStore::acknowledge).
    pub(super) fn acknowledge(
        &mut self,
        client: &ClientId,
        acknowledgements: &[Acknowledgement],
        cursor: Sequence,
    ) -> rusqlite::Result<()> {
        // RETURNING gives the cursor as it then is: it may have been further already.
        let cursor = self
            .transaction
            .prepare_cached(
                "INSERT INTO cursors (client, cursor) VALUES (?1, ?2) \
                 ON CONFLICT (client) DO UPDATE SET cursor = max(cursor, excluded.cursor) RETURNING cursor",
            )?
            .query_row(params![client.as_str(), codec::signed(cursor.get())], |row| {
                codec::sequence(row, 0)
            })?;
        ahead::remove_through(self.transaction, client, cursor)?;
        ahead::insert(self.transaction, client, beyond(acknowledgements, cursor))?;
        attempts::forget(self.transaction, client, acknowledgements, cursor)?;
        let mut event = self.transaction.prepare_cached("SELECT 1 FROM events WHERE sequence = ?1")?;
        for acknowledgement in acknowledgements.iter().filter(|one| !one.outcomes.is_empty()) {
            // Nothing is stored if retention has removed the event.
            if event.exists([codec::signed(acknowledgement.sequence.get())])? {
                self.report(client, acknowledgement)?;
            }
        }
        Ok(())
    }

    /// Stores what one client reports of one event. The bytes of outcomes count for retention.
    fn report(&mut self, client: &ClientId, reported: &Acknowledgement) -> rusqlite::Result<()> {
        let before = load(self.transaction, client, reported.sequence)?;
        let mut after = before.clone();
        reported.outcomes.iter().for_each(|outcome| after.add(outcome.clone()));
        let mut insert = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO outcomes (sequence, client, target, result, code, attempts, duration_ns, at, \
             detail, redelivered_as) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NULL)",
        )?;
        let is_new = |one: &&Reported| before.get(&one.outcome.target) != Some(one);
        for Reported { outcome, .. } in after.iter().filter(is_new) {
            insert.execute(params![
                codec::signed(reported.sequence.get()),
                client.as_str(),
                outcome.target,
                outcome.result.as_str(),
                outcome.code,
                outcome.attempts,
                i64::try_from(outcome.duration.as_nanos()).unwrap_or(i64::MAX),
                codec::signed(outcome.at.as_millis()),
                outcome.detail,
            ])?;
        }
        let stored = |outcomes: &Outcomes| outcomes.stored_bytes(client.as_str().len());
        self.position.bytes = (self.position.bytes + stored(&after)).saturating_sub(stored(&before));
        Ok(())
    }
}

/// What a client has reported of an event. An outcome that cannot be read counts as absent.
fn load(connection: &Connection, client: &ClientId, sequence: Sequence) -> rusqlite::Result<Outcomes> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {} FROM outcomes WHERE sequence = ?1 AND client = ?2",
        codec::OUTCOME
    ))?;
    let mut rows = select.query(params![codec::signed(sequence.get()), client.as_str()])?;
    let mut outcomes = Outcomes::default();
    while let Some(row) = rows.next()? {
        if let Some(report) = codec::report(row) {
            outcomes.insert(Reported { outcome: report.outcome, redelivered_as: report.redelivered_as });
        }
    }
    Ok(outcomes)
}

/// About how many bytes all outcomes of the event in column `events.sequence` take, as SQL. It is what
/// [`Outcomes::stored_bytes`] says of each client's.
pub(super) fn stored_bytes() -> String {
    format!(
        "coalesce((SELECT sum({ROW_BYTES} + octet_length(client) + octet_length(target) + octet_length(detail)) \
         FROM outcomes WHERE outcomes.sequence = events.sequence), 0)"
    )
}
