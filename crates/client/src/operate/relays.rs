//! `relays list`.

use gitstafette_proto::convert::RelayState;
use gitstafette_proto::v1::ListRelaysRequest;

use super::commands::RelaysCommand;
use super::table::{Column, print_all};
use super::{Console, OperateError, answered};
use crate::connect::ServerAddress;

const COLUMNS: [Column; 10] = [
    Column::text("RELAY"),
    Column::text("DIRECTION"),
    Column::text("ADDRESS"),
    Column::text("CONNECTED"),
    Column::number("LAG"),
    Column::number("RELAYED"),
    Column::number("UNWANTED"),
    Column::number("DEAD LETTERS"),
    Column::number("MISSED"),
    Column::text("LAST ERROR"),
];

/// Prints how each relay is doing.
pub(super) async fn run(
    command: &RelaysCommand,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let RelaysCommand::List(format) = command;
    let mut calls = server.connect().await?.calls;
    let answer = answered(calls.list_relays(ListRelaysRequest {})).await?;
    print_all(answer.relays, *format, (COLUMNS, row), "the server has no relays", console)
}

fn row(state: &RelayState) -> [String; 10] {
    [
        state.name.clone(),
        state.direction.as_str().to_owned(),
        state.address.clone(),
        if state.connected { "yes" } else { "no" }.to_owned(),
        state.lag.to_string(),
        state.relayed.to_string(),
        state.unwanted.to_string(),
        state.dead_letters.to_string(),
        state.missed.to_string(),
        state.last_error.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
