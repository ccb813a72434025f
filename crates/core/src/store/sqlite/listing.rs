//! Listings from the disk: rows of `events` and what was reported of them, never a payload.

use rusqlite::{Connection, params};

use super::{codec, reader};
use crate::event::Sequence;
use crate::store::tail::SCAN_LIMIT;
use crate::store::{Entry, Fate, Listed, Listing, Order};

/// One page, up to `head`.
pub(super) fn page(connection: &Connection, listing: &Listing, head: Sequence) -> rusqlite::Result<Listed> {
    // One transaction: retention may remove an event between its row and its reports.
    let transaction = connection.unchecked_transaction()?;
    let mut select = transaction.prepare_cached(&statement(listing))?;
    let last = listing.last.min(head);
    let delivery = listing.delivery_id.as_ref().map(|id| id.as_str());
    let mut rows =
        select.query(params![codec::signed(listing.first.get()), codec::signed(last.get()), delivery])?;
    let mut listed = Listed::default();
    let (mut looked_at, mut before) = (0, None);
    while let Some(row) = rows.next()? {
        let sequence = codec::sequence(row, 0)?;
        // A dead letter at two targets is two rows of one event.
        if before.replace(sequence) == Some(sequence) {
            continue;
        }
        if looked_at == SCAN_LIMIT || listed.entries.len() >= listing.limit.max(1) {
            listed.next = Some(sequence);
            break;
        }
        looked_at += 1;
        let facts = codec::facts(row)?;
        let selected = listing.filter.matches(&facts)
            && listing.received_since.is_none_or(|since| facts.received_at >= since);
        if !selected {
            continue;
        }
        let reports = reader::reports(&transaction, sequence)?;
        if listing.fate.as_ref().is_none_or(|fate| fate.matches(&reports)) {
            let (redelivery, size) = (row.get(2)?, codec::number(row, 1)?);
            let address = codec::address(row)?;
            listed.entries.push(Entry { sequence, redelivery, address, facts, size, reports });
        }
    }
    Ok(listed)
}

/// Where the rows come from: an index, if what is wanted is rare.
pub(super) fn statement(listing: &Listing) -> String {
    let order = match listing.order {
        Order::OldestFirst => "ASC",
        Order::NewestFirst => "DESC",
    };
    let wants_dead_letters = listing.fate.as_ref().is_some_and(|fate| fate.fate == Fate::DeadLetter);
    let (from, place) = if listing.delivery_id.is_none() && wants_dead_letters {
        let dead = "(SELECT sequence AS place FROM outcomes INDEXED BY dead_letters \
            WHERE result = 'failed' AND redelivered_as IS NULL AND sequence BETWEEN ?1 AND ?2)";
        (format!("{dead} CROSS JOIN events ON events.sequence = place"), "place")
    } else {
        ("events".to_owned(), "sequence")
    };
    format!(
        "SELECT {} FROM {from} WHERE {place} BETWEEN ?1 AND ?2 AND (?3 IS NULL OR delivery_id = ?3) \
         ORDER BY {place} {order}",
        codec::FACTS
    )
}
