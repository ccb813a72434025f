//! `subscriptions list`, `remove` and `release`.

use gitstafette_proto::convert::{Attached, SubscriptionState};
use gitstafette_proto::v1::{
    ListSubscriptionsRequest, ReleaseSubscriptionRequest, RemoveSubscriptionRequest,
};

use super::commands::{Format, ReleaseClient, RemoveClient, SubscriptionsCommand};
use super::table::{Column, print_all};
use super::{Console, OperateError, answered};
use crate::connect::ServerAddress;

const COLUMNS: [Column; 10] = [
    Column::text("CLIENT"),
    Column::number("CURSOR"),
    Column::number("LAG"),
    Column::text("ATTACHED SINCE"),
    Column::text("FROM"),
    Column::number("UNACKNOWLEDGED"),
    Column::number("DEFERRED"),
    Column::number("SENT"),
    Column::number("MISSED"),
    Column::text("WANTS"),
];

/// Prints where each client stands, or removes or releases one.
pub(super) async fn run(
    command: &SubscriptionsCommand,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    match command {
        SubscriptionsCommand::List(format) => list(*format, server, console).await,
        SubscriptionsCommand::Remove(asked) => remove(asked, server, console).await,
        SubscriptionsCommand::Release(asked) => release(asked, server, console).await,
    }
}

async fn release(
    ReleaseClient { client }: &ReleaseClient,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let mut calls = server.connect().await?.calls;
    let request = ReleaseSubscriptionRequest { client_id: client.to_string() };
    answered(calls.release_subscription(request)).await?;
    console.remark(&format!("released client {client}: the next token that uses it gets it"));
    Ok(())
}

async fn remove(
    RemoveClient { client, yes }: &RemoveClient,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let question = format!(
        "remove client {client}? The server forgets its cursor: if it connects again, it receives all stored events."
    );
    if !yes && !console.confirms(&question).await? {
        console.remark("nothing was removed");
        return Ok(());
    }
    let mut calls = server.connect().await?.calls;
    let request = RemoveSubscriptionRequest { client_id: client.to_string() };
    answered(calls.remove_subscription(request)).await?;
    console.remark(&format!("removed client {client}"));
    Ok(())
}

async fn list(format: Format, server: &ServerAddress, console: &mut Console) -> Result<(), OperateError> {
    let mut calls = server.connect().await?.calls;
    let answer = answered(calls.list_subscriptions(ListSubscriptionsRequest {})).await?;
    print_all(answer.subscriptions, format, (COLUMNS, row), "no client has subscribed yet", console)
}

fn row(state: &SubscriptionState) -> [String; 10] {
    let of = |text: fn(&Attached) -> String| state.attached.as_ref().map_or_else(|| "-".into(), text);
    [
        state.client_id.to_string(),
        state.cursor.to_string(),
        state.lag.to_string(),
        of(|attached| attached.since.to_string()),
        of(|attached| attached.peer.clone()),
        of(|attached| attached.unacknowledged.to_string()),
        of(|attached| attached.deferred.to_string()),
        of(|attached| attached.sent.to_string()),
        of(|attached| attached.missed.to_string()),
        of(wants),
    ]
}

/// What the client asked for.
fn wants(attached: &Attached) -> String {
    let repositories: Vec<_> = attached.repositories.iter().map(ToString::to_string).collect();
    let wanted = match (repositories.join(","), attached.events.join(",")) {
        (repositories, events) if repositories.is_empty() && events.is_empty() => "all".into(),
        (repositories, events) if events.is_empty() => repositories,
        (repositories, events) if repositories.is_empty() => events,
        (repositories, events) => format!("{events} of {repositories}"),
    };
    match attached.more_patterns {
        0 => wanted,
        more => format!("{wanted}, and {more} more"),
    }
}
