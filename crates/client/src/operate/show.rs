//! `events show`.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gitstafette_core::event::Event;
use gitstafette_core::store::{Entry, Report};
use gitstafette_core::text::is_steering;
use gitstafette_proto::convert::MAX_SHOWN_BODY;
use gitstafette_proto::v1::{self, ShowEventBodyRequest, ShowEventBodyResponse, ShowEventRequest};
use serde::Serialize;
use tonic::Streaming;

use super::commands::Show;
use super::table::{Column, Table};
use super::{Console, OperateError, answered_within};
use crate::connect::ServerAddress;
use crate::target::print::{LAYOUT, render};

/// How long one event may take to come: 64 MiB over a slow line.
const TRANSFER: Duration = Duration::from_secs(600);

const COLUMNS: [Column; 9] = [
    Column::text("CLIENT"),
    Column::text("TARGET"),
    Column::text("RESULT"),
    Column::number("CODE"),
    Column::number("TRIES"),
    Column::number("TOOK"),
    Column::text("AT"),
    Column::number("REDELIVERED AS"),
    Column::text("DETAIL"),
];

/// Prints one event.
pub(super) async fn show(
    asked: &Show,
    server: &ServerAddress,
    console: &mut Console,
) -> Result<(), OperateError> {
    let mut calls = server.connect().await?.calls;
    if asked.body {
        let request = ShowEventBodyRequest { sequence: asked.sequence };
        let parts = answered_within(TRANSFER, calls.show_event_body(request)).await?;
        return write_body(parts, console).await;
    }
    let request = ShowEventRequest { sequence: asked.sequence };
    let v1::ShowEventResponse { event, reports, body_bytes } =
        answered_within(TRANSFER, calls.show_event(request)).await?;
    let event = Event::try_from(event.unwrap_or_default())?;
    let reports: Vec<Report> = reports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    if asked.json {
        Ok(console.json(&ShownEvent::new(&event, body_bytes, reports))?)
    } else {
        print(&event, body_bytes, &reports, console)
    }
}

/// Writes the body as its parts come. A terminal gets it only as a whole, if it is safe.
async fn write_body(
    mut parts: Streaming<ShowEventBodyResponse>,
    console: &mut Console,
) -> Result<(), OperateError> {
    let mut shown = Vec::new();
    loop {
        let part = tokio::time::timeout(TRANSFER, parts.message()).await;
        let part = part.map_err(|_| OperateError::Failed("the server sent no more of the body".into()))??;
        let Some(ShowEventBodyResponse { part }) = part else { break };
        if !console.is_terminal {
            console.output.write_all(&part)?;
            continue;
        }
        shown.extend_from_slice(&part);
        if shown.len() > MAX_SHOWN_BODY {
            let reason = "the body is larger than 1 MiB; pipe it, or redirect it to a file";
            return Err(OperateError::Failed(reason.into()));
        }
    }
    let steers = |text: &str| text.chars().any(|char| is_steering(char) && !LAYOUT.contains(&char));
    if std::str::from_utf8(&shown).map_or(true, steers) {
        let reason = "the body has characters that would steer the terminal; pipe it, or leave --body out";
        return Err(OperateError::Failed(reason.into()));
    }
    Ok(console.output.write_all(&shown)?)
}

fn print(
    event: &Event,
    body_bytes: u64,
    reports: &[Report],
    console: &mut Console,
) -> Result<(), OperateError> {
    writeln!(console.output, "{}{}", render(event), origin(event))?;
    if body_bytes > event.webhook.body.len() as u64 {
        let sequence = event.sequence;
        writeln!(
            console.output,
            "\nthe body is not shown: it has {body_bytes} bytes; to get it, run\n\n    \
             gitstafette-client events show {sequence} --body > event-{sequence}"
        )?;
    }
    if reports.is_empty() {
        writeln!(console.output, "\npending: no client has reported an outcome")?;
        return Ok(());
    }
    writeln!(console.output)?;
    let rows: Vec<_> = reports.iter().map(row).collect();
    Ok(Table::new(COLUMNS).print(&mut console.output, &rows)?)
}

/// Where the event comes from and for whom it is.
fn origin(event: &Event) -> String {
    let facts = &event.webhook.facts;
    let mut text = format!("── from {}", facts.source);
    if let Some(hook) = &facts.hook_id {
        text.push_str(&format!(", hook {hook}"));
    }
    text.push_str(&format!(" · received {}", facts.received_at));
    if event.redelivery {
        text.push_str(" · a redelivery");
    }
    if let Some(client) = &event.address.client {
        text.push_str(&format!(" · only for client {client}"));
    }
    if !event.address.targets.is_empty() {
        text.push_str(&format!(" · only for target {}", event.address.targets.join(", ")));
    }
    text
}

fn row(report: &Report) -> [String; 9] {
    let outcome = &report.outcome;
    [
        report.client.to_string(),
        outcome.target.clone(),
        outcome.result.to_string(),
        outcome.code.map(|code| code.to_string()).unwrap_or_default(),
        outcome.attempts.to_string(),
        format!("{} ms", outcome.duration.as_millis()),
        outcome.at.to_string(),
        report.redelivered_as.map(|sequence| sequence.to_string()).unwrap_or_default(),
        outcome.detail.clone(),
    ]
}

/// One event with its headers and body, as JSON has it: here, and over the server's admin interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownEvent {
    #[serde(flatten)]
    entry: Entry,
    headers: Vec<(String, String)>,
    /// The body, if it is text.
    body: Option<String>,
    /// The body in base64 (RFC 4648 §4), if it is not.
    body_base64: Option<String>,
    /// Bytes of the body. It is left out if it is larger than [`MAX_SHOWN_BODY`].
    body_bytes: u64,
}

impl ShownEvent {
    /// An event whose body has so many bytes, and what was reported of it. The event may come without its body.
    pub fn new(event: &Event, body_bytes: u64, reports: Vec<Report>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (headers, body) = (&event.webhook.headers, &event.webhook.body);
        let is_shown = body.len() as u64 == body_bytes && body.len() <= MAX_SHOWN_BODY;
        let readable = std::str::from_utf8(body).ok().filter(|_| is_shown).map(str::to_owned);
        let mut entry = Entry::new(event, reports);
        entry.size += body_bytes.saturating_sub(body.len() as u64);
        Self {
            entry,
            headers: headers.iter().map(|(name, value)| (name.to_owned(), text(value))).collect(),
            body_base64: (is_shown && readable.is_none()).then(|| STANDARD.encode(body)),
            body: readable,
            body_bytes,
        }
    }
}
