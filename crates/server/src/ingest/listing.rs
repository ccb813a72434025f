//! The two listings of the Go implementation (joostvdg/gitstafette 0.3), in its JSON, behind the bearer token.

use std::sync::Arc;

use axum::Json;
use axum::RequestPartsExt;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::{RepositoryError, RepositoryPattern};
use gitstafette_core::store::ReadLimit;
use gitstafette_core::target::OutcomeResult;
use gitstafette_proto::convert::MAX_SHOWN_BODY;
use http::request::Parts;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};

use super::Ingest;
use super::problem::Problem;
use crate::listen::Caller;
use crate::whole_number;

/// What one listing holds at most.
const LIMIT: ReadLimit = ReadLimit { events: 100, bytes: 1 << 20 };
/// The bytes of all listings that are made or on their way.
pub(super) const LISTINGS_BYTES: usize = 16 << 20;
/// What one takes while it is made, about: in JSON a character may take six bytes. So one is made at a time.
pub(super) const RESERVED_BYTES: u32 = 12 << 20;
/// How often the store is asked for one listing. Each time it looks at some thousand events.
const LOOKS: usize = 64;

#[derive(Debug, Serialize)]
pub(super) struct WatchedRepositories {
    #[serde(rename = "GitHubRepositoryIDs")]
    repositories: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct RepositoryEvents {
    #[serde(rename = "Events")]
    events: Vec<ListedEvent>,
    /// The `after` of the next listing, if this one ended before the log. The Go implementation does not have it.
    #[serde(rename = "Next", skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedEvent {
    id: String,
    sequence: u64,
    is_relayed: bool,
    relayed_time: Option<String>,
    received_time: String,
    headers: Vec<ListedHeader>,
    event_body: String,
    /// Bytes of the body. A body of more than 1 MiB is left out.
    event_body_bytes: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedHeader {
    key: String,
    first_value: String,
}

/// Where a listing starts.
#[derive(Debug, Deserialize)]
struct Paging {
    /// After this sequence.
    #[serde(default, deserialize_with = "whole_number::optional")]
    after: Option<u64>,
}

/// What events are asked for.
#[derive(Debug)]
pub(super) struct Asked {
    filter: Filter,
    after: Sequence,
}

/// `GET /v1/watchlist`.
pub(super) async fn watchlist(State(ingest): State<Arc<Ingest>>) -> Json<WatchedRepositories> {
    let repositories = ingest.watchlist.current().patterns().iter().map(ToString::to_string).collect();
    Json(WatchedRepositories { repositories })
}

/// `GET /v1/events/{repository}`, by the repository's number, and `GET /v1/events/{owner}/{name}`, by its name.
pub(super) async fn events(
    State(ingest): State<Arc<Ingest>>,
    Asked { filter, mut after }: Asked,
) -> Result<Json<RepositoryEvents>, Problem> {
    let mut events = Vec::new();
    // A page may be empty because nothing on it was selected: read on until something is, or the end.
    for _ in 0..LOOKS {
        if !events.is_empty() {
            break;
        }
        let page = ingest.store.read(after, &filter, LIMIT).await?;
        if page.read_to <= after {
            break;
        }
        after = page.read_to;
        for event in page.events {
            events.push(listed(&ingest, &event).await?);
        }
    }
    let is_cut_short = after < *ingest.store.head().borrow();
    Ok(Json(RepositoryEvents { events, next: is_cut_short.then_some(after.get()) }))
}

async fn listed(ingest: &Ingest, event: &Event) -> Result<ListedEvent, Problem> {
    let reports = ingest.store.reports(event.sequence).await?;
    let delivered = reports
        .iter()
        .filter(|report| report.outcome.result == OutcomeResult::Delivered)
        .map(|report| report.outcome.at);
    let relayed = delivered.min();
    let webhook = &event.webhook;
    Ok(ListedEvent {
        id: webhook.facts.delivery_id.to_string(),
        sequence: event.sequence.get(),
        is_relayed: relayed.is_some(),
        relayed_time: relayed.map(|at| at.to_string()),
        received_time: webhook.facts.received_at.to_string(),
        headers: webhook
            .headers
            .iter()
            .map(|(name, value)| ListedHeader {
                key: name.to_owned(),
                first_value: String::from_utf8_lossy(value).into_owned(),
            })
            .collect(),
        event_body: if webhook.body.len() <= MAX_SHOWN_BODY {
            String::from_utf8_lossy(&webhook.body).into_owned()
        } else {
            String::new()
        },
        event_body_bytes: webhook.body.len(),
    })
}

/// Lets callers with a client's token pass. The listings are on the public listener: they always need a token, even where
/// clients need none.
pub(super) async fn require_token(
    State(ingest): State<Arc<Ingest>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if ingest.auth.tokens.is_empty() {
        let detail =
            "listings need a bearer token, and the server has none; set one with --client-token-file";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    ingest.auth.check_token(request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()))?;
    if let Some(caller) = request.extensions().get::<Caller>() {
        caller.keeps_connection();
    }
    Ok(next.run(request).await)
}

impl FromRequestParts<Arc<Ingest>> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Ingest>) -> Result<Self, Problem> {
        let Path(segments): Path<Vec<String>> =
            parts.extract().await.map_err(bad_request::<PathRejection>)?;
        let Query(paging): Query<Paging> = parts.extract().await.map_err(bad_request::<QueryRejection>)?;
        let repository: RepositoryPattern =
            segments.join("/").parse().map_err(bad_request::<RepositoryError>)?;
        let filter = Filter { repositories: vec![repository], events: vec![] };
        Ok(Self { filter, after: Sequence::new(paging.after.unwrap_or_default()) })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn bad_request<E: ToString>(error: E) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, error.to_string())
}
