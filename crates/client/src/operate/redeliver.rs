//! `events redeliver`. The server tells what it appends as it goes, so that a command that breaks off knows where to go on.

use std::time::Duration;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::Listing;
use gitstafette_proto::convert::{MAX_REDELIVERED, RedeliveryRequest};
use gitstafette_proto::v1::{self, ShowStatisticsRequest};
use serde::Serialize;
use tonic::Status;

use super::commands::{Format, Redeliver};
use super::pages::Pages;
use super::table::{Column, Table};
use super::{Console, OperateError, answered};
use crate::connect::{Connection, ServerAddress};

/// How long the server may be silent. It tells its progress every few seconds.
const SILENCE: Duration = Duration::from_secs(60);

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

/// Call after call until all is done; how many events were appended. If that breaks off, the error says how to go on.
async fn append(
    mut request: RedeliveryRequest,
    most: usize,
    format: Format,
    connection: &mut Connection,
    console: &mut Console,
) -> Result<usize, OperateError> {
    let mut redelivering = Redelivering {
        table: Table::new([Column::number("SEQUENCE"), Column::number("REDELIVERED AS")]),
        format,
        count: 0,
    };
    loop {
        request.listing.limit = (MAX_REDELIVERED as usize).min(most.saturating_sub(redelivering.count));
        let call = redelivering.follow(&mut request, connection, console);
        let result = tokio::select! {
            result = call => result,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                Err(OperateError::Failed("interrupted".into()))
            }
        };
        match result {
            Ok(true) if redelivering.count < most => {}
            Ok(_) => return Ok(redelivering.count),
            // Nobody wants to know, or there is only one event.
            Err(error) if error.is_quiet() || request.is_for_one_event() => return Err(error),
            Err(error) => return Err(redelivering.broken_off(&error, &request, most)),
        }
    }
}

/// What was redelivered so far.
struct Redelivering {
    table: Table<2>,
    format: Format,
    count: usize,
}

impl Redelivering {
    /// Prints what one call appends as it is told. Sets the request to go on from there; whether anything is left.
    async fn follow(
        &mut self,
        request: &mut RedeliveryRequest,
        connection: &mut Connection,
        console: &mut Console,
    ) -> Result<bool, OperateError> {
        let call = connection.calls.redeliver_events(v1::RedeliverEventsRequest::from(&*request));
        let mut messages = answered(call).await?;
        let mut next = None;
        loop {
            let message = tokio::time::timeout(SILENCE, messages.message()).await.map_err(|_| {
                Status::unavailable(format!("no message from the server for {} s", SILENCE.as_secs()))
            })?;
            let Some(progress) = message? else { break };
            self.count += progress.redelivered.len();
            next = Some(progress.next).filter(|next| *next > 0).map(Sequence::new);
            request.listing.first = next.unwrap_or(request.listing.first);
            print(&progress.redelivered, self.format, &mut self.table, console)?;
        }
        Ok(next.is_some())
    }

    fn broken_off(&self, error: &OperateError, request: &RedeliveryRequest, most: usize) -> OperateError {
        let Listing { first, last, .. } = request.listing;
        let limit = match most {
            usize::MAX => String::new(),
            most => format!(" --limit {}", most.saturating_sub(self.count)),
        };
        OperateError::Failed(format!(
            "{error}; {} redelivered, maybe some more that the server did not tell; to go on, repeat the command with \
             --first {} --last {last}{limit}",
            events(self.count),
            first.max(Sequence::new(1))
        ))
    }
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
