//! Listing the log for an operator: the small rows only, never a body, and a bounded number of them at each call.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::{codec, damage, reader, times};
use crate::event::{Address, Sequence};
use crate::store::listing::Sieve;
use crate::store::tail::Look;
use crate::store::{Entry, Fate, FateFilter, Listed, Listing, Order};

/// One page of the log up to `head`. It also shows the events on unreadable pages. But a listing by delivery id or of dead
/// letters fails there, because its index does not say which events those are.
pub(super) fn list(connection: &Connection, listing: &Listing, head: Sequence) -> rusqlite::Result<Listed> {
    // One transaction: an event and its reports are of the same moment.
    let transaction = connection.unchecked_transaction()?;
    let mut first = listing.first.max(Sequence::ZERO.next());
    if let Some(since) = listing.received_since {
        first = first.max(times::before(&transaction, since, head)?.next());
    }
    let range = (first, listing.last.min(head));
    let mut sieve = Sieve::new(listing);
    loop {
        let (first, last) = rest(listing.order, range, &sieve);
        // Beyond the range, SQLite may meet the unreadable page again.
        if first > last {
            return Ok(sieve.finish());
        }
        let Err(error) = scan(&transaction, listing, (first, last), &mut sieve) else {
            return Ok(sieve.finish());
        };
        let (first, last) = rest(listing.order, range, &sieve);
        let from = if listing.order == Order::OldestFirst { first } else { last };
        let goes_by_index = listing.delivery_id.is_some()
            || listing.fate.as_ref().is_some_and(|filter| filter.fate == Fate::DeadLetter);
        if goes_by_index || !damage::is_unreadable_page(&error) {
            return Err(error);
        }
        let Some(end) = damage::end_of_unreadable_page(&transaction, from, listing.order) else {
            return Err(error);
        };
        let reason = damage::reason(&error);
        let numbers = first.max(end.min(from)).get()..=last.min(end.max(from)).get();
        let numbers: Box<dyn Iterator<Item = u64>> = match listing.order {
            Order::OldestFirst => Box::new(numbers),
            Order::NewestFirst => Box::new(numbers.rev()),
        };
        for sequence in numbers.map(Sequence::new) {
            match sieve.look(sequence, None) {
                Look::Stop => return Ok(sieve.finish()),
                Look::Pass => {}
                Look::Take => sieve.take(unreadable(&transaction, sequence, &reason)?),
            }
        }
    }
}

/// The part of a range that was not looked at yet.
fn rest(order: Order, (first, last): (Sequence, Sequence), sieve: &Sieve<'_>) -> (Sequence, Sequence) {
    match (order, sieve.last()) {
        (_, None) => (first, last),
        (Order::OldestFirst, Some(looked_at)) => (looked_at.next(), last),
        (Order::NewestFirst, Some(looked_at)) => (first, looked_at.previous()),
    }
}

/// Looks at a range, until the page is complete.
fn scan(
    transaction: &Connection,
    listing: &Listing,
    (first, last): (Sequence, Sequence),
    sieve: &mut Sieve<'_>,
) -> rusqlite::Result<()> {
    let (statement, key) = statement(listing);
    let mut values =
        vec![Value::Integer(codec::signed(first.get())), Value::Integer(codec::signed(last.get()))];
    values.extend(key.map(|key| Value::Text(key.to_owned())));
    let mut select = transaction.prepare_cached(&statement)?;
    let mut rows = select.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        let sequence = codec::sequence(row, 0)?;
        let (facts, damage) = match codec::facts(row) {
            Ok(facts) => (Some(facts), None),
            Err(damage) => (None, Some(damage.to_string().into())),
        };
        match sieve.look(sequence, facts.as_ref()) {
            Look::Stop => break,
            Look::Pass => {}
            Look::Take => sieve.take(Entry {
                sequence,
                redelivery: codec::redelivery(row),
                address: codec::address(row),
                facts,
                size: codec::size(row),
                damage,
                reports: reader::reports(transaction, sequence)?,
            }),
        }
    }
    Ok(())
}

/// The entry of an event whose row cannot be read.
fn unreadable(transaction: &Connection, sequence: Sequence, reason: &str) -> rusqlite::Result<Entry> {
    Ok(Entry {
        sequence,
        redelivery: false,
        address: Address::default(),
        facts: None,
        size: 0,
        damage: Some(reason.into()),
        reports: reader::reports(transaction, sequence)?,
    })
}

/// How to come by the rows to look at, in order, each with the columns [`codec::FACTS`]; and its third parameter, if
/// it has one. The first two are the first and the last sequence.
///
/// Each statement says by which index it goes, so that it never sorts, and never reads more rows than are taken from
/// it. One with several dead letters comes several times in a row.
fn statement(listing: &Listing) -> (String, Option<&str>) {
    const DEAD_LETTERS: &str = "CROSS JOIN events ON events.sequence = outcomes.sequence \
         WHERE outcomes.result = 'failed' AND outcomes.redelivered_as IS NULL";
    let (from, by, key) = match (&listing.delivery_id, &listing.fate) {
        (Some(id), _) => (
            "events INDEXED BY events_by_delivery WHERE delivery_id = ?3".to_owned(),
            "events",
            Some(id.as_str()),
        ),
        (None, Some(FateFilter { fate: Fate::DeadLetter, target: Some(target), .. })) => (
            format!("outcomes INDEXED BY dead_letters_by_target {DEAD_LETTERS} AND outcomes.target = ?3"),
            "outcomes",
            Some(&**target),
        ),
        (None, Some(FateFilter { fate: Fate::DeadLetter, .. })) => {
            (format!("outcomes INDEXED BY dead_letters {DEAD_LETTERS}"), "outcomes", None)
        }
        _ => ("events WHERE true".to_owned(), "events", None),
    };
    let order = match listing.order {
        Order::OldestFirst => "ASC",
        Order::NewestFirst => "DESC",
    };
    let statement = format!(
        "SELECT {} FROM {from} AND {by}.sequence >= ?1 AND {by}.sequence <= ?2 ORDER BY {by}.sequence {order}",
        codec::FACTS
    );
    (statement, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema;

    /// What SQLite will do for a listing, step by step.
    fn plan(listing: &Listing) -> Vec<String> {
        let folder = tempfile::TempDir::new().unwrap();
        let connection = schema::open(&folder.path().join(schema::FILE)).unwrap();
        let (statement, key) = statement(listing);
        let mut values = vec![Value::Integer(1), Value::Integer(9)];
        values.extend(key.map(|key| Value::Text(key.to_owned())));
        let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let steps = explain.query_map(params_from_iter(values), |row| row.get(3)).unwrap();
        steps.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn every_listing_goes_by_an_index_and_sorts_nothing() {
        let dead = |target: Option<&str>| FateFilter {
            fate: Fate::DeadLetter,
            client: Some("a".parse().unwrap()),
            target: target.map(Into::into),
        };
        for order in [Order::OldestFirst, Order::NewestFirst] {
            let all = Listing { order, ..Listing::default() };
            let range = "(rowid>? AND rowid<?)";
            assert_eq!(plan(&all), [format!("SEARCH events USING INTEGER PRIMARY KEY {range}")]);
            let one = Listing { delivery_id: Some("delivery-1".parse().unwrap()), ..all.clone() };
            assert_eq!(
                plan(&one),
                ["SEARCH events USING INDEX events_by_delivery (delivery_id=? AND rowid>? AND rowid<?)"]
            );
            let event = "SEARCH events USING INTEGER PRIMARY KEY (rowid=?)";
            let letters = Listing { fate: Some(dead(None)), ..all.clone() };
            assert_eq!(
                plan(&letters),
                ["SEARCH outcomes USING INDEX dead_letters (sequence>? AND sequence<?)", event]
            );
            let here = Listing { fate: Some(dead(Some("jenkins"))), ..all };
            assert_eq!(
                plan(&here),
                [
                    "SEARCH outcomes USING INDEX dead_letters_by_target (target=? AND sequence>? AND sequence<?)",
                    event
                ]
            );
        }
    }
}
