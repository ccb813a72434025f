//! `relays list`.

use gitstafette_proto::convert::RelayState;
use gitstafette_proto::v1::ListRelaysRequest;

use super::commands::RelaysCommand;
use super::table::{Column, Table};
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
    let states: Vec<RelayState> =
        answer.relays.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    if states.is_empty() {
        console.remark("the server has no relays");
    }
    if format.json {
        states.iter().try_for_each(|state| console.json(state))?;
    } else {
        let rows: Vec<_> = states.iter().map(row).collect();
        Table::new(COLUMNS).print(&mut console.output, &rows)?;
    }
    Ok(())
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
