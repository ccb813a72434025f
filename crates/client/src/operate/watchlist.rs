//! `watchlist list`, `add` and `remove`.

use gitstafette_proto::convert::{WatchlistEntry, WatchlistOrigin};
use gitstafette_proto::v1::change_watchlist_request::Change;
use gitstafette_proto::v1::{self, ChangeWatchlistRequest, ListWatchlistRequest};

use super::commands::{Format, Patterns, WatchlistCommand};
use super::table::{Column, print_all};
use super::{Console, OperateError, answered};
use crate::connect::ServerAddress;

/// Changes the watchlist if that is asked for, and prints it as it then stands.
pub(super) async fn run(
    command: &WatchlistCommand,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    match command {
        WatchlistCommand::List(format) => {
            let mut calls = server.connect().await?.calls;
            let answer = answered(calls.list_watchlist(ListWatchlistRequest {})).await?;
            print(answer.entries, *format, console)
        }
        WatchlistCommand::Add(patterns) => change(patterns, Change::Add, server, console).await,
        WatchlistCommand::Remove(patterns) => change(patterns, Change::Remove, server, console).await,
    }
}

/// One call a pattern; the last answer is the list with all changes.
async fn change(
    Patterns { patterns, format }: &Patterns,
    change: fn(String) -> Change,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let mut calls = server.connect().await?.calls;
    let mut entries = Vec::new();
    for pattern in patterns {
        let request = ChangeWatchlistRequest { change: Some(change(pattern.to_string())) };
        entries = answered(calls.change_watchlist(request)).await?.entries;
    }
    print(entries, *format, console)
}

fn print(
    entries: Vec<v1::WatchlistEntry>,
    format: Format,
    console: &mut Console,
) -> Result<(), OperateError> {
    let columns = [Column::text("PATTERN"), Column::text("ORIGIN")];
    print_all(entries, format, (columns, row), "the watchlist is empty: nothing is accepted", console)
}

fn row(entry: &WatchlistEntry) -> [String; 2] {
    let origin = match entry.origin {
        WatchlistOrigin::Configured => "configured",
        WatchlistOrigin::Added => "added",
        WatchlistOrigin::Removed => "configured, but removed: not accepted",
    };
    [entry.pattern.to_string(), origin.into()]
}
