//! `events redeliver`.

use gitstafette_core::event::Sequence;
use gitstafette_proto::convert::RedeliveryRequest;
use gitstafette_proto::v1::{self, ShowStatisticsRequest};
use serde::Serialize;

use super::commands::{Format, Redeliver};
use super::pages::Pages;
use super::table::{Column, Table};
use super::{Console, OperateError, answered};
use crate::connect::{Connection, ServerAddress};

/// How many events one call delivers again: as many as the server commits at once. A call must end in good time on slow
/// disks, too, and what it did is only known by its answer.
const BATCH: usize = 256;

/// One event that is delivered again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Redelivered {
    sequence: u64,
    redelivered_as: u64,
}

/// Has events delivered again, and prints as what.
pub(super) async fn redeliver(
    mut request: RedeliveryRequest,
    asked: &Redeliver,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let must_ask = asked.sequence.is_none() && !asked.yes;
    if must_ask {
        console.require_answers()?;
    }
    let mut connection = server.connect().await?;
    let statistics = answered(connection.calls.show_statistics(ShowStatisticsRequest {})).await?;
    let head = Sequence::new(statistics.head);
    // What is appended is not to be found by the calls that follow.
    request.listing.last = request.listing.last.min(head);
    let most = asked.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut count = 0;
    // An empty range is not to be sent: where the log is empty, its end would mean no end.
    if request.listing.first.max(Sequence::new(1)) <= head {
        if must_ask {
            let found = count_events(&request, most, &mut connection).await?;
            if found > 0 && !console.confirms(&format!("deliver {} again?", events(found))).await? {
                console.remark("nothing was redelivered");
                return Ok(());
            }
            // A person may take longer than a proxy keeps a connection that is idle.
            connection = server.connect().await?;
        }
        count = append(request, most, asked.format, &mut connection, console).await?;
    }
    match (count, asked.sequence) {
        (0, Some(sequence)) => Err(OperateError::Failed(format!(
            "there is no event {sequence} in the store; it may have been removed by retention"
        ))),
        (0, None) => {
            console.remark("no such events");
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn count_events(
    request: &RedeliveryRequest,
    most: usize,
    connection: &mut Connection,
) -> Result<usize, OperateError> {
    let mut pages = Pages::new(&request.listing, most);
    let mut count = 0;
    while let Some(entries) = pages.next(connection).await? {
        count += entries.len();
    }
    Ok(count)
}

/// Call after call until all is done; how many events that were.
async fn append(
    mut request: RedeliveryRequest,
    most: usize,
    format: Format,
    connection: &mut Connection,
    console: &mut Console,
) -> Result<usize, OperateError> {
    let mut table = Table::new([Column::number("SEQUENCE"), Column::number("REDELIVERED AS")]);
    let mut count = 0;
    while count < most {
        request.listing.limit = BATCH.min(most - count);
        let answer =
            answered(connection.calls.redeliver_events(v1::RedeliverEventsRequest::from(&request))).await?;
        count += distinct(&answer.redelivered);
        print(&answer.redelivered, format, &mut table, console)?;
        match answer.next {
            0 => break,
            next => request.listing.first = Sequence::new(next),
        }
    }
    Ok(count)
}

/// How many events these are: one that is dead at two targets is appended twice.
fn distinct(redelivered: &[v1::Redelivered]) -> usize {
    let mut sequences: Vec<_> = redelivered.iter().map(|one| one.sequence).collect();
    sequences.dedup();
    sequences.len()
}

fn print(
    redelivered: &[v1::Redelivered],
    format: Format,
    table: &mut Table<2>,
    console: &mut Console,
) -> Result<(), OperateError> {
    let lines = redelivered
        .iter()
        .map(|one| Redelivered { sequence: one.sequence, redelivered_as: one.redelivered_as });
    if format.json {
        for line in lines {
            console.json(&line)?;
        }
    } else {
        let rows: Vec<_> =
            lines.map(|line| [line.sequence.to_string(), line.redelivered_as.to_string()]).collect();
        table.print(&mut console.output, &rows)?;
    }
    Ok(console.flush()?)
}

fn events(count: usize) -> String {
    if count == 1 { "1 event".into() } else { format!("{count} events") }
}
