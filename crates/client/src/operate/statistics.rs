//! `statistics`.

use gitstafette_core::store::Statistics;
use gitstafette_proto::v1::ShowStatisticsRequest;
use serde::Serialize;

use super::commands::Format;
use super::table::{one_line, size};
use super::{Console, OperateError, answered};
use crate::connect::ServerAddress;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    store_id: &'a str,
    #[serde(flatten)]
    statistics: Statistics,
}

/// Prints what the store holds.
pub(super) async fn show(
    format: Format,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let mut calls = server.connect().await?.calls;
    let answer = answered(calls.show_statistics(ShowStatisticsRequest {})).await?;
    let statistics = Statistics::from(&answer);
    if format.json {
        return Ok(console.json(&Shown { store_id: &answer.store_id, statistics })?);
    }
    let writable =
        if statistics.writable { "yes" } else { "no: the last write failed; the server's log says why" };
    for (name, value) in [
        ("store", one_line(&answer.store_id)),
        ("events", format!("{} ({} to {})", statistics.events, statistics.first, statistics.head)),
        ("size", size(statistics.bytes)),
        ("on disk", size(statistics.disk_bytes)),
        ("removed", format!("{} by retention since the server started", statistics.removed)),
        ("damaged", format!("{} found since the server started", statistics.damaged)),
        ("writable", writable.to_owned()),
    ] {
        writeln!(console.output, "{name:<10}{value}")?;
    }
    Ok(())
}
