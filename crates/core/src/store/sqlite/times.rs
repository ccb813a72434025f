//! Where in the log a time begins: the table `times`.
//!
//! Events that come through other servers keep the time at which the first server received them, so times are not in the
//! order of the log, and an index over them would have to be read to its end. A row is a block of the log with the latest
//! time in it. The first event of a time or later lies in the first block whose latest time is not earlier. That is one
//! short scan for the block and another inside it, however long the log is. A row is written more often than an index entry,
//! but it is always the same page.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::codec;
use crate::event::{Sequence, Timestamp};

/// Blocks of the log in which an event of a time or later was received. Retention may have removed it from the oldest.
const BLOCKS: &str = "SELECT block FROM times WHERE latest >= ?1 ORDER BY block";
/// The first event of a time or later in a block.
const IN_BLOCK: &str = "SELECT sequence FROM events \
    WHERE sequence BETWEEN ?2 << 12 AND (?2 << 12) + 4095 AND received_at >= ?1 ORDER BY sequence LIMIT 1";

/// Notes when an event was received.
pub(super) fn add(
    transaction: &Transaction<'_>,
    sequence: Sequence,
    received_at: Timestamp,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO times (block, latest) VALUES (?1 >> 12, ?2) \
             ON CONFLICT (block) DO UPDATE SET latest = excluded.latest WHERE excluded.latest > latest",
        )?
        .execute(params![codec::signed(sequence.get()), codec::signed(received_at.as_millis())])?;
    Ok(())
}

/// Forgets the blocks that retention has removed.
pub(super) fn remove_through(transaction: &Transaction<'_>, last: Sequence) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM times WHERE block < (?1 + 1) >> 12")?
        .execute([codec::signed(last.get())])?;
    Ok(())
}

/// The sequence before the first event received at `time` or later; `head` if there is none.
pub(super) fn before(connection: &Connection, time: Timestamp, head: Sequence) -> rusqlite::Result<Sequence> {
    let time = codec::signed(time.as_millis());
    let mut blocks = connection.prepare_cached(BLOCKS)?;
    let mut in_block = connection.prepare_cached(IN_BLOCK)?;
    let mut rows = blocks.query([time])?;
    while let Some(row) = rows.next()? {
        let block: i64 = row.get(0)?;
        let first = in_block.query_row([time, block], |row| codec::sequence(row, 0)).optional()?;
        if let Some(first) = first {
            return Ok(if first <= head { first.previous() } else { head });
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::store::sqlite::schema;

    /// A log of so many events, each received a second after the one before, but for every hundredth, which was received
    /// an hour earlier.
    fn log(connection: &Connection, events: u64) {
        connection
            .execute(
                "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1) \
                 INSERT INTO events (sequence, source, delivery_id, event, received_at, accepted_at, redelivery, size) \
                 SELECT n, 'github', 'd' || n, 'push', n * 1000 - (n % 100 = 0) * 3600000, n * 1000, 0, 1 FROM numbers",
                [codec::signed(events)],
            )
            .unwrap();
        connection
            .execute_batch("INSERT INTO times SELECT sequence >> 12, max(received_at) FROM events GROUP BY 1")
            .unwrap();
    }

    #[test]
    fn a_time_is_found_without_looking_at_the_whole_log() {
        const EVENTS: u64 = 100_000;
        let folder = tempfile::TempDir::new().unwrap();
        let connection = schema::open(&folder.path().join(schema::FILE)).unwrap();
        log(&connection, EVENTS);
        let head = Sequence::new(EVENTS);
        for (millis, expected) in [
            (0, 0),
            (1_000, 0),
            (1_001, 1),
            (50_000_500, 50_000),
            (99_999_000, 99_998),
            (100_000_000, EVENTS),
        ] {
            let steps = || -> i32 {
                [BLOCKS, IN_BLOCK]
                    .into_iter()
                    .map(|sql| connection.prepare_cached(sql).unwrap().get_status(StatementStatus::VmStep))
                    .sum()
            };
            let before_steps = steps();
            let found = before(&connection, Timestamp::from_millis(millis), head).unwrap();
            assert_eq!(found, Sequence::new(expected), "{millis}");
            // Each row that is looked at takes a handful of steps: a block, and the rows of the table of blocks.
            let taken = steps() - before_steps;
            assert!(taken < 8 * (4096 + 25), "{millis}: {taken} steps");
        }
    }
}
