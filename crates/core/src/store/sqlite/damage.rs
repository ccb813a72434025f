//! Damage: which errors mean it, whether it is one event's or the whole store's, and what was found so far.
//!
//! A table is damaged as a whole if its newest row cannot be found: then its root or the page that grows is unreadable, and
//! appends fail, too. Otherwise only the rows on the unreadable pages are lost, and reads pass them.

use std::collections::BTreeMap;

use rusqlite::{Connection, ErrorCode};

use super::codec;
use crate::event::Sequence;
use crate::store::tail::SCAN_LIMIT;
use crate::store::{DamagedEvents, Order};

/// How many ranges of damaged events are remembered. Events beyond that are passed and reported as well, but are neither
/// logged nor listed as damaged.
const MOST_RANGES: usize = 1024;

/// Whether the error comes from what is in the file: SQLite cannot make sense of a page, or this store of a row.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    is_unreadable_page(error)
        || matches!(
            error,
            Error::FromSqlConversionFailure(..)
                | Error::InvalidColumnType(..)
                | Error::IntegralValueOutOfRange(..)
                | Error::BlobSizeError
                | Error::QueryReturnedNoRows
        )
}

/// Whether SQLite cannot make sense of a page. It then writes nothing more in the same transaction.
pub(super) fn is_unreadable_page(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The reason for people.
pub(super) fn reason(error: &rusqlite::Error) -> String {
    if is_unreadable_page(error) {
        "its page in the database cannot be read".to_owned()
    } else {
        error.to_string()
    }
}

/// Whether the headers and the bodies of other events can be read.
pub(super) fn payloads_are_readable(connection: &Connection) -> bool {
    newest(connection, "SELECT sequence FROM payloads ORDER BY sequence DESC LIMIT 1")
}

/// The events on an unreadable page: how far they go from `from` on, in this order. At most [`SCAN_LIMIT`] are looked for.
/// `None` if the table is damaged as a whole.
pub(super) fn end_of_unreadable_page(
    connection: &Connection,
    from: Sequence,
    order: Order,
) -> Option<Sequence> {
    if !newest(connection, "SELECT sequence FROM events ORDER BY sequence DESC LIMIT 1") {
        return None;
    }
    let (statement, step): (_, fn(Sequence) -> Sequence) = match order {
        Order::OldestFirst => {
            ("SELECT 1 FROM events WHERE sequence >= ?1 ORDER BY sequence ASC LIMIT 1", Sequence::next)
        }
        Order::NewestFirst => {
            ("SELECT 1 FROM events WHERE sequence <= ?1 ORDER BY sequence DESC LIMIT 1", Sequence::previous)
        }
    };
    let mut end = from;
    for _ in 1..SCAN_LIMIT {
        let next = step(end);
        if next == Sequence::ZERO || can_read(connection, statement, next) {
            break;
        }
        end = next;
    }
    Some(end)
}

fn newest(connection: &Connection, statement: &str) -> bool {
    let newest = connection
        .prepare_cached(statement)
        .and_then(|mut select| select.query_row((), |row| row.get::<_, i64>(0)));
    newest.is_ok()
}

fn can_read(connection: &Connection, statement: &str, from: Sequence) -> bool {
    let found = connection
        .prepare_cached(statement)
        .and_then(|mut select| select.exists([codec::signed(from.get())]));
    found.is_ok()
}

/// Damaged events that were found since the store was opened.
#[derive(Debug, Default)]
pub(super) struct KnownDamage {
    /// By the first of each range. None lies within another.
    ranges: BTreeMap<Sequence, DamagedEvents>,
}

impl KnownDamage {
    /// Adds what was found; `false` if it was known.
    pub(super) fn add(&mut self, damage: &DamagedEvents) -> bool {
        let DamagedEvents { first, last, .. } = damage;
        let is_known = self.range_at(*first).is_some_and(|known| known.last >= *last);
        if is_known || self.ranges.len() >= MOST_RANGES {
            return false;
        }
        self.ranges.retain(|_, known| known.first < *first || known.last > *last);
        self.ranges.insert(*first, damage.clone());
        true
    }

    /// Why an event cannot be read, if that was found.
    pub(super) fn reason(&self, sequence: Sequence) -> Option<&str> {
        self.range_at(sequence).map(|known| &*known.reason)
    }

    /// Forgets what retention has removed.
    pub(super) fn remove_through(&mut self, sequence: Sequence) {
        while let Some(range) = self.ranges.first_entry()
            && *range.key() <= sequence
        {
            let known = range.remove();
            if known.last > sequence {
                let first = sequence.next();
                let rest = DamagedEvents { first, ..known };
                // Another range may begin there and reach further.
                let place = self.ranges.entry(first).or_insert_with(|| rest.clone());
                if place.last < rest.last {
                    *place = rest;
                }
            }
        }
    }

    /// How many events are known to be damaged, at most: there may be gaps.
    pub(super) fn events(&self) -> u64 {
        let mut counted = Sequence::ZERO;
        let ranges = self.ranges.values().map(|known| {
            let before = counted.max(known.first.previous());
            counted = counted.max(known.last);
            counted.get() - before.get()
        });
        ranges.sum()
    }

    /// The ranges are in the order of their ends as well, so the nearest before reaches furthest.
    fn range_at(&self, sequence: Sequence) -> Option<&DamagedEvents> {
        let (_, known) = self.ranges.range(..=sequence).next_back()?;
        (known.last >= sequence).then_some(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(first: u64, last: u64) -> DamagedEvents {
        DamagedEvents { first: Sequence::new(first), last: Sequence::new(last), reason: "test".into() }
    }

    fn known(damage: &KnownDamage) -> Vec<u64> {
        (0..30).filter(|number| damage.reason(Sequence::new(*number)).is_some()).collect()
    }

    #[test]
    fn damage_is_counted_once_until_retention_removes_it() {
        let mut found = KnownDamage::default();
        for (first, last) in [(5, 6), (10, 12), (11, 11), (5, 6), (11, 14), (4, 7)] {
            found.add(&damage(first, last));
        }
        assert_eq!(known(&found), [4, 5, 6, 7, 10, 11, 12, 13, 14]);
        assert_eq!(found.events(), 9);
        found.remove_through(Sequence::new(10));
        assert_eq!((known(&found), found.events()), (vec![11, 12, 13, 14], 4));
        found.remove_through(Sequence::new(11));
        assert_eq!((known(&found), found.events()), (vec![12, 13, 14], 3));
        found.remove_through(Sequence::new(20));
        assert_eq!(found.events(), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut found = KnownDamage::default();
        let new = (0..3000).filter(|number| found.add(&damage(number * 2, number * 2))).count();
        assert_eq!((new, found.ranges.len()), (MOST_RANGES, MOST_RANGES));
    }
}
