//! Entries of the log as they are shown, in listings and to followers.

use gitstafette_core::event::Facts;
use gitstafette_core::store::{Entry, Report};
use gitstafette_core::target::OutcomeResult;

use super::commands::Format;
use super::table::{Column, Table, size};
use super::{Console, OperateError};

const COLUMNS: [Column; 7] = [
    Column::number("SEQUENCE"),
    Column::text("TIME"),
    Column::text("EVENT"),
    Column::text("REPOSITORY"),
    Column::text("DELIVERY"),
    Column::number("SIZE"),
    Column::text("FATE"),
];

/// Prints entries, as a table or as JSON.
#[derive(Debug)]
pub(super) struct EntryPrinter {
    /// `None` prints JSON.
    table: Option<Table<7>>,
}

impl EntryPrinter {
    /// For entries that come many at once.
    pub(super) fn of_pages(format: Format) -> Self {
        Self { table: (!format.json).then(|| Table::new(COLUMNS)) }
    }

    /// For entries that come one by one: the columns are as wide as they usually get.
    pub(super) fn of_followers(format: Format) -> Self {
        let [sequence, time, event, repository, delivery, bytes, fate] = COLUMNS;
        let columns = [
            sequence,
            time,
            event.at_least(20),
            repository.at_least(24),
            delivery.at_least(36),
            bytes.at_least(9),
            fate,
        ];
        Self { table: (!format.json).then(|| Table::new(columns)) }
    }

    /// Prints entries and sends them on their way.
    pub(super) fn print(&mut self, entries: &[Entry], console: &mut Console) -> Result<(), OperateError> {
        match &mut self.table {
            None => entries.iter().try_for_each(|entry| console.json(entry))?,
            Some(table) => {
                let rows: Vec<_> = entries.iter().map(row).collect();
                table.print(&mut console.output, &rows)?;
            }
        }
        Ok(console.flush()?)
    }
}

fn row(entry: &Entry) -> [String; 7] {
    let mut fate = match &entry.damage {
        Some(reason) => format!("damaged: {reason}"),
        None => fate(&entry.reports),
    };
    if entry.redelivery {
        fate.push_str(" (redelivery)");
    }
    let shown = |show: fn(&Facts) -> String| entry.facts.as_ref().map_or_else(|| "-".to_owned(), show);
    [
        entry.sequence.to_string(),
        shown(|facts| facts.received_at.to_string()),
        shown(|facts| facts.event_type.to_string()),
        shown(|facts| facts.repository_label().into_owned()),
        shown(|facts| facts.delivery_id.to_string()),
        if entry.facts.is_some() { size(entry.size) } else { "-".to_owned() },
        fate,
    ]
}

/// What became of an event, in few words; the worst first.
fn fate(reports: &[Report]) -> String {
    let mut words = Vec::new();
    let dead: Vec<_> = reports.iter().filter(|report| report.is_dead_letter()).map(place).collect();
    if !dead.is_empty() {
        words.push(format!("dead letter ({})", dead.join(", ")));
    }
    let mut again: Vec<_> = reports.iter().filter_map(|report| report.redelivered_as).collect();
    again.dedup();
    words.extend(again.iter().map(|sequence| format!("redelivered as {sequence}")));
    let is_any = |result| reports.iter().any(|report| report.outcome.result == result);
    if is_any(OutcomeResult::Delivered) {
        words.push("delivered".into());
    }
    match (words.is_empty(), reports.is_empty()) {
        (true, true) => "pending".into(),
        (true, false) => "filtered".into(),
        (false, _) => words.join(", "),
    }
}

/// Where it is dead, and of what.
fn place(report: &Report) -> String {
    let target = &report.outcome.target;
    report.outcome.code.map_or_else(|| format!("at {target}"), |code| format!("{code} at {target}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gitstafette_core::event::{Address, Sequence, Timestamp};
    use gitstafette_core::target::Outcome;

    use super::*;

    fn report(target: &str, result: OutcomeResult, code: Option<u32>, again: Option<u64>) -> Report {
        Report {
            client: "home".parse().unwrap(),
            outcome: Outcome {
                target: target.into(),
                result,
                code,
                attempts: 1,
                duration: Duration::ZERO,
                at: Timestamp::default(),
                detail: String::new(),
            },
            redelivered_as: again.map(Sequence::new),
        }
    }

    #[test]
    fn damage_is_shown_with_its_reason() {
        let reports = vec![report("a:80", OutcomeResult::Delivered, None, None)];
        let entry = Entry {
            sequence: Sequence::new(7),
            redelivery: false,
            address: Address::default(),
            facts: None,
            size: 0,
            damage: Some("its delivery id cannot be read".into()),
            reports,
        };
        assert_eq!(row(&entry), ["7", "-", "-", "-", "-", "-", "damaged: its delivery id cannot be read"]);
    }

    #[test]
    fn fates_in_few_words() {
        use OutcomeResult::{Delivered, Failed, Filtered};
        let (bad, gone) = (report("a:80", Failed, Some(502), None), report("b", Failed, None, None));
        let (good, none) = (report("c", Delivered, Some(200), None), report("", Filtered, None, None));
        let again = report("a:80", Failed, Some(502), Some(9));
        assert_eq!(fate(&[]), "pending");
        assert_eq!(fate(std::slice::from_ref(&none)), "filtered");
        assert_eq!(fate(&[none, good.clone()]), "delivered");
        assert_eq!(fate(&[bad, gone, good]), "dead letter (502 at a:80, at b), delivered");
        assert_eq!(fate(&[again]), "redelivered as 9");
    }
}
