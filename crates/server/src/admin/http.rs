//! The operators' interface as JSON over HTTP, on a listener of its own.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt};
use gitstafette_client::operate::ShownEvent;
use gitstafette_core::event::{Address, ClientId, Sequence, Timestamp};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_core::store::{Entry, Fate, FateFilter, Listing, Order, Statistics, WatchlistChange};
use gitstafette_proto::convert::{
    MAX_LISTED, MAX_PATTERNS, MAX_REDELIVERED, RedeliveryRequest, RelayState, SubscriptionState,
    WatchlistEntry, WireError, target_name,
};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::checked::Checked;
use super::redeliver::{Progress, RedeliveryError};
use super::{Admin, Form, RemoveError, ShowError, Shown, missing};
use crate::answers::{Answers, Held};
use crate::auth::{CallLimits, ClientAuth};
use crate::ingest::Problem;
use crate::listen::Caller;
use crate::watchlist::ChangeError;
use crate::whole_number;

/// The entries on a page, and the events of one redelivery, unless the caller says otherwise.
const LISTED: u32 = 100;

/// The bytes of all answers with metrics that are made or on their way, and of one while it is made.
const METRICS_BYTES: usize = 1 << 20;
const METRICS_RESERVED_BYTES: u32 = 256 << 10;

/// How long one call delivers events again, and the batch under way. Its answer comes at the end alone, so it must come
/// before anybody on the way takes the connection for dead.
const REDELIVERY_TIME: Duration = Duration::from_secs(10);

/// What the routes need.
#[derive(Clone, Debug)]
struct Operators {
    admin: Arc<Admin>,
    auth: ClientAuth,
    calls: CallLimits,
}

/// The whole admin surface. Metrics are open to whoever reaches the listener, as scrapers expect; all else takes an
/// operator's token if the server has tokens.
pub(crate) fn router(admin: Arc<Admin>, auth: ClientAuth, calls: CallLimits) -> Router {
    let operators = Operators { admin, auth, calls };
    let counted = Router::new()
        .route("/v1/events", get(list))
        .route("/v1/events/{sequence}", get(show))
        .route("/v1/dead-letters", get(dead_letters))
        .route("/v1/subscriptions", get(subscriptions))
        .route("/v1/subscriptions/release", post(release_subscription).delete(remove_client_named_release))
        .route("/v1/subscriptions/{*client}", delete(remove_subscription))
        .route("/v1/relays", get(relays))
        .route("/v1/statistics", get(statistics))
        .route("/v1/watchlist", get(watchlist).post(add).delete(remove));
    // A redelivery takes long, and its answer is small. The others are streams.
    let guarded = Router::new()
        .route("/v1/events/follow", get(follow))
        .route("/v1/events/redeliver", post(redeliver))
        .route("/v1/events/{sequence}/body", get(show_body))
        .merge(operators.admin.answers.clone().hold(counted))
        .layer(axum::middleware::from_fn_with_state(operators.clone(), guard));
    // Callers without a token have room of their own.
    let open = Answers::new(METRICS_BYTES, METRICS_RESERVED_BYTES);
    Router::new()
        .merge(open.hold(Router::new().route("/metrics", get(metrics))))
        .merge(guarded)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(operators)
}

/// Lets operators pass. Where no token is asked for, the listener is on loopback: then a web page in a browser on this
/// machine must not get through, which asks by a host name of its own (DNS rebinding) or from another origin.
async fn guard(
    State(operators): State<Operators>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    operators.auth.check_operator(authorization)?;
    if !operators.auth.asks_for_token() && !is_local(&headers) {
        let detail = "without tokens the admin interface answers to localhost only; ask by 127.0.0.1, or set --admin-token-file";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    if let Some(caller) = request.extensions().get::<Caller>() {
        caller.keeps_connection();
    }
    let whose = operators.auth.call_of(authorization);
    let call = operators
        .calls
        .begin(whose, request.extensions().get())
        .map_err(|status| Problem::new(StatusCode::TOO_MANY_REQUESTS, status.message()))?;
    Ok(call.answer(next.run(request)).await)
}

fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = host.and_then(|host| host.parse::<http::uri::Authority>().ok());
    let named = authority.is_some_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    });
    named && !headers.contains_key(header::ORIGIN)
}

impl From<ShowError> for Problem {
    fn from(error: ShowError) -> Self {
        match error {
            ShowError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            ShowError::Store(error) => error.into(),
        }
    }
}

async fn not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "there is no such path; the README lists those of the admin interface",
    )
}

async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes other methods, see the header Allow")
}

/// Which events are asked for, as a query or as JSON. Lists are separated by commas.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Asked {
    repository: String,
    event: String,
    delivery: Option<String>,
    /// RFC 3339.
    since: Option<String>,
    fate: Option<String>,
    client: Option<String>,
    target: Option<String>,
    #[serde(deserialize_with = "whole_number::optional")]
    first: Option<u64>,
    #[serde(deserialize_with = "whole_number::optional")]
    last: Option<u64>,
    #[serde(deserialize_with = "whole_number::optional")]
    limit: Option<u32>,
    order: Option<String>,
}

/// What can be asked of events that are still to come.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Followed {
    repository: String,
    event: String,
}

fn filter(repositories: &str, events: &str) -> Result<Filter, Problem> {
    // Before any of them is read.
    let patterns = |list: &str| list.split(',').take(MAX_PATTERNS + 1).count();
    if patterns(repositories) + patterns(events) > MAX_PATTERNS {
        return Err(bad_request("repository", format!("more than {MAX_PATTERNS} patterns")));
    }
    Ok(Filter { repositories: list_of("repository", repositories)?, events: list_of("event", events)? })
}

impl Asked {
    fn listing(&self) -> Result<Listing, Problem> {
        let fate = parsed::<Fate>("fate", self.fate.as_deref())?;
        let client = parsed("client", self.client.as_deref())?;
        let target = self.target.clone().map(target_name).transpose().map_err(bad_wire)?;
        if fate.is_none() && (client.is_some() || target.is_some()) {
            return Err(bad_request(
                "client",
                "a client or a target is where a fate is looked for: give one",
            ));
        }
        Ok(Listing {
            filter: filter(&self.repository, &self.event)?,
            delivery_id: parsed("delivery", self.delivery.as_deref())?,
            received_since: self.since.as_deref().map(time).transpose()?,
            fate: fate.map(|fate| FateFilter { fate, client, target }),
            first: self.first.map_or(Sequence::ZERO, Sequence::new),
            last: self.last.map_or(Sequence::MAX, Sequence::new),
            order: match self.order.as_deref() {
                None | Some("newest") => Order::NewestFirst,
                Some("oldest") => Order::OldestFirst,
                Some(_) => return Err(bad_request("order", "it is newest or oldest")),
            },
            ..Listing::default()
        })
    }

    fn limit(&self, default: u32, most: u32) -> Result<usize, Problem> {
        match self.limit.unwrap_or(default) {
            limit if (1..=most).contains(&limit) => Ok(limit as usize),
            _ => Err(bad_request("limit", format!("it is 1 to {most}"))),
        }
    }
}

#[derive(Debug, Serialize)]
struct ListedEvents {
    events: Vec<Entry>,
    /// The `first` of the next page, or its `last` when the newest come first.
    next: Option<Sequence>,
}

async fn list(
    State(operators): State<Operators>,
    Checked(Query(asked)): Checked<Query<Asked>>,
) -> Result<Json<ListedEvents>, Problem> {
    let listing = Listing { limit: asked.limit(LISTED, MAX_LISTED)?, ..asked.listing()? };
    let listed = operators.admin.list(&listing).await?;
    Ok(Json(ListedEvents { events: listed.entries, next: listed.next }))
}

async fn dead_letters(
    operators: State<Operators>,
    Checked(Query(asked)): Checked<Query<Asked>>,
) -> Result<Json<ListedEvents>, Problem> {
    list(operators, Checked(Query(Asked { fate: Some(Fate::DeadLetter.to_string()), ..asked }))).await
}

async fn show(
    State(operators): State<Operators>,
    Checked(Path(text)): Checked<Path<String>>,
) -> Result<Response, Problem> {
    let sequence = sequence(&text)?;
    let shown = operators.admin.show(sequence, Form::Embedded).await?;
    // The share is held until the answer is made. Then the answer has room of its own.
    let Shown { event, reports, share: _share } =
        shown.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, missing(sequence)))?;
    let body_bytes = event.webhook.body.len() as u64;
    Ok(Json(ShownEvent::new(&event, body_bytes, reports)).into_response())
}

/// The body as it was sent. It is not shown as what it says that it is: a browser must not run it.
async fn show_body(
    State(operators): State<Operators>,
    Checked(Path(text)): Checked<Path<String>>,
) -> Result<Response, Problem> {
    let sequence = sequence(&text)?;
    let shown = operators.admin.show(sequence, Form::Alone).await?;
    let Shown { event, share, .. } =
        shown.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, missing(sequence)))?;
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    // The share is held until the caller has read the body.
    Ok((headers, Body::new(Held::new(event.webhook.body.clone(), share))).into_response())
}

/// Server-sent events (WHATWG HTML, "Server-sent events"): one a webhook, its data an entry. A browser that comes again
/// names the last one it had.
async fn follow(
    State(operators): State<Operators>,
    headers: HeaderMap,
    Checked(Query(asked)): Checked<Query<Followed>>,
) -> Result<Sse<impl Stream<Item = Result<Message, Infallible>>>, Problem> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let filter = filter(&asked.repository, &asked.event)?;
    let entries = operators.admin.follow(filter, last.map(Sequence::new));
    let messages = entries.map(|entry| {
        let message = match entry {
            Ok(entry) => Message::default().id(entry.sequence.to_string()).json_data(entry),
            Err(error) => Ok(Message::default().event("error").data(error.to_string())),
        };
        Ok(message.unwrap_or_default())
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::default()))
}

/// What to deliver again, and to whom.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Redelivery {
    /// One event.
    #[serde(deserialize_with = "whole_number::optional")]
    sequence: Option<u64>,
    /// Several.
    events: Asked,
    /// Only to this client.
    to_client: Option<String>,
    /// Only to targets of this name.
    to_target: Option<String>,
}

async fn redeliver(
    State(operators): State<Operators>,
    Checked(Json(asked)): Checked<Json<Redelivery>>,
) -> Result<Json<Progress>, Problem> {
    let mut listing = asked.events.listing()?;
    if let Some(sequence) = asked.sequence {
        (listing.first, listing.last) = (Sequence::new(sequence), Sequence::new(sequence));
    }
    let request = RedeliveryRequest {
        listing: Listing {
            order: Order::OldestFirst,
            limit: asked.events.limit(LISTED, MAX_REDELIVERED)?,
            ..listing
        },
        address: Address {
            client: parsed("toClient", asked.to_client.as_deref())?,
            targets: asked.to_target.map(target_name).transpose().map_err(bad_wire)?.into_iter().collect(),
        },
    };
    let redelivery = operators.admin.redelivery(request).map_err(bad_wire)?;
    redelivery.run_for(REDELIVERY_TIME).await.map(Json).map_err(|error| match error {
        RedeliveryError::Missing(_) => Problem::new(StatusCode::NOT_FOUND, error.to_string()),
        RedeliveryError::Draining(_) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        RedeliveryError::Store(error) => error.into(),
    })
}

#[derive(Debug, Serialize)]
struct Subscriptions {
    subscriptions: Vec<SubscriptionState>,
}

async fn subscriptions(State(operators): State<Operators>) -> Result<Json<Subscriptions>, Problem> {
    Ok(Json(Subscriptions { subscriptions: operators.admin.subscriptions().await? }))
}

/// The id may contain slashes, as those of the Go implementation's clients do.
async fn remove_subscription(
    State(operators): State<Operators>,
    Checked(Path(client)): Checked<Path<String>>,
) -> Result<StatusCode, Problem> {
    let client: ClientId = client.parse().map_err(|error| bad_request("client", error))?;
    match operators.admin.remove_subscription(&client).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error @ RemoveError::Connected(_)) => Err(Problem::new(StatusCode::CONFLICT, error.to_string())),
        Err(error @ RemoveError::Unknown(_)) => Err(Problem::new(StatusCode::NOT_FOUND, error.to_string())),
        Err(RemoveError::Store(error)) => Err(error.into()),
    }
}

/// The path of this client is that of a method, too.
async fn remove_client_named_release(operators: State<Operators>) -> Result<StatusCode, Problem> {
    remove_subscription(operators, Checked(Path("release".to_owned()))).await
}

/// The client id to release.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    client: String,
}

async fn release_subscription(
    State(operators): State<Operators>,
    Checked(Json(asked)): Checked<Json<Release>>,
) -> Result<StatusCode, Problem> {
    let client: ClientId = asked.client.parse().map_err(|error| bad_request("client", error))?;
    if operators.admin.release_subscription(&client).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(StatusCode::NOT_FOUND, RemoveError::Unknown(client).to_string()))
}

#[derive(Debug, Serialize)]
struct RelayStates {
    relays: Vec<RelayState>,
}

async fn relays(State(operators): State<Operators>) -> Result<Json<RelayStates>, Problem> {
    Ok(Json(RelayStates { relays: operators.admin.relays.states().await? }))
}

async fn statistics(State(operators): State<Operators>) -> Result<Json<Statistics>, Problem> {
    Ok(Json(operators.admin.statistics().await?))
}

#[derive(Debug, Serialize)]
struct Watchlist {
    entries: Vec<WatchlistEntry>,
}

/// One pattern, as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    pattern: String,
}

async fn watchlist(State(operators): State<Operators>) -> Json<Watchlist> {
    Json(Watchlist { entries: operators.admin.watchlist.entries() })
}

async fn add(
    State(operators): State<Operators>,
    Checked(Json(change)): Checked<Json<Change>>,
) -> Result<Json<Watchlist>, Problem> {
    change_watchlist(&operators, &change, WatchlistChange::Added).await
}

async fn remove(
    State(operators): State<Operators>,
    Checked(Json(change)): Checked<Json<Change>>,
) -> Result<Json<Watchlist>, Problem> {
    change_watchlist(&operators, &change, WatchlistChange::Removed).await
}

async fn change_watchlist(
    operators: &Operators,
    Change { pattern }: &Change,
    change: WatchlistChange,
) -> Result<Json<Watchlist>, Problem> {
    let pattern: RepositoryPattern = pattern.parse().map_err(|error| bad_request("pattern", error))?;
    match operators.admin.change_watchlist(&pattern, change).await {
        Ok(entries) => Ok(Json(Watchlist { entries })),
        Err(error @ ChangeError::Unknown(_)) => Err(Problem::new(StatusCode::NOT_FOUND, error.to_string())),
        Err(error @ ChangeError::Full) => Err(Problem::new(StatusCode::CONFLICT, error.to_string())),
        Err(ChangeError::Store(error)) => Err(error.into()),
    }
}

async fn metrics(State(operators): State<Operators>) -> Result<Response, Problem> {
    let (text, content_type) = operators.admin.metrics().await?;
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

fn parsed<T: std::str::FromStr<Err: ToString>>(name: &str, text: Option<&str>) -> Result<Option<T>, Problem> {
    text.map(|text| text.parse().map_err(|error: T::Err| bad_request(name, error))).transpose()
}

fn list_of<T: std::str::FromStr<Err: ToString>>(name: &str, text: &str) -> Result<Vec<T>, Problem> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|error: T::Err| bad_request(name, error))).collect()
}

fn sequence(text: &str) -> Result<Sequence, Problem> {
    let sequence = text.parse().map(Sequence::new);
    sequence.map_err(|_| bad_request("sequence", format!("{text:?} is not a whole number, or is too large")))
}

fn time(text: &str) -> Result<Timestamp, Problem> {
    let time = humantime::parse_rfc3339_weak(text).map(Into::into);
    time.map_err(|_| bad_request("since", format!("{text:?} is not a time such as 2026-01-31T12:00:00Z")))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn bad_wire(error: WireError) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn bad_request(name: &str, reason: impl ToString) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("{name}: {}", reason.to_string()))
}
