//! Between the wire's messages and the core's types. Wire to core can fail: the peer may send anything.

use std::time::SystemTime;

use gitstafette_core::event::{
    Address, ClientId, Event, EventType, Facts, Sequence, Source, Timestamp, Webhook,
};
use gitstafette_core::filter::Filter;
use gitstafette_core::headers::Headers;
use gitstafette_core::hop::{Hop, Hops, MAX_HOPS};
use gitstafette_core::outcomes::{MAX_TARGETS, Outcomes};
use gitstafette_core::repository::RepositoryId;
use gitstafette_core::store::Acknowledgement;
use gitstafette_core::target::{Outcome, OutcomeResult};
use gitstafette_core::text::{is_showable, shorten};

use crate::v1;

mod first_attempts;
mod go;
mod operator;
mod relay;
mod seen;
mod size;
mod time;

pub use gitstafette_core::outcomes::MAX_DETAIL_BYTES;

pub use first_attempts::{first_attempts, from_first_attempts};
pub use go::{GoEventError, GoHeaderError, MAX_GO_MESSAGE_BYTES, from_go_event, from_go_headers};
pub use relay::{RelayDirection, RelayState};
pub use seen::{Seen, history, runs};
pub use size::{EventSizeError, check_size};
pub use time::{duration, from_duration, timestamp};

use time::{from_timestamp, readable_time};

pub use operator::{
    Attached, MAX_LISTED, MAX_REDELIVERED, MAX_SHOWN_BODY, MAX_SHOWN_PATTERNS, RedeliveryRequest,
    SubscriptionState, WatchlistEntry, WatchlistOrigin,
};

/// The most patterns that one subscription may name.
pub const MAX_PATTERNS: usize = 1000;
/// The most bytes that all of them may have: the server keeps them as long as the stream lives.
pub const MAX_PATTERN_BYTES: usize = 64 << 10;
/// The most header fields that an event may have. hyper takes 100 with a request; what the Go implementation sends is three
/// empty ones with each.
pub const MAX_HEADERS: usize = 1000;
/// The most bytes that they may have together: what a message has room for beside the body.
const MAX_HEADER_BYTES: usize = crate::MAX_MESSAGE_BYTES - crate::MAX_BODY_BYTES as usize;
/// The most events that a subscription may have deferred.
pub const MAX_DEFERRED: usize = 16_384;
/// The most entries of a message that a subscriber sends: acknowledgements, outcomes in all of them, deferred or recalled
/// events, first attempts. A message also has no more entries than the subscription's window has events.
pub const MAX_ENTRIES: usize = 1024;
/// The longest name of a target or a server, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// The name of a server on an event's way whose own name cannot be shown.
const UNKNOWN_SERVER: &str = "unknown";

/// A message that cannot be what it claims. The peer's fault; sending it again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct WireError {
    field: &'static str,
    reason: String,
}

impl WireError {
    fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the client's cursor; at the oldest stored event if it has none.
    #[default]
    Cursor,
    /// After this sequence.
    After(Sequence),
    /// At the first event received then or later.
    Since(Timestamp),
    /// After the newest stored event.
    Latest,
}

/// What a start means for a client id that has a cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExistingCursor {
    /// The cursor is moved to the start.
    #[default]
    Move,
    /// It goes on at its cursor: the start is for new ids.
    Keep,
}

/// A subscription as a client asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Who subscribes.
    pub client_id: ClientId,
    /// To what.
    pub filter: Filter,
    /// From where.
    pub start: Start,
    /// What the start means for a client id that has a cursor.
    pub existing_cursor: ExistingCursor,
    /// Events that may be unacknowledged; `None` leaves it to the server.
    pub max_events: Option<u32>,
    /// Bytes that may be unacknowledged; `None` leaves it to the server.
    pub max_bytes: Option<u64>,
    /// Events deferred on an earlier stream and not wanted yet, at most [`MAX_DEFERRED`].
    pub deferred: Vec<Sequence>,
    /// How far the subscriber knows the server's log, or a log; `None` if it has not seen any, or does not say.
    pub seen: Option<Seen>,
    /// Whether the cursor moves back to `seen`, because the subscriber has nothing beyond it.
    pub resume_at_seen: bool,
}

impl Subscription {
    /// Everything that the server accepts, from the cursor on, in a window that the server chooses.
    pub fn new(client_id: ClientId) -> Self {
        Self {
            client_id,
            filter: Filter::default(),
            start: Start::default(),
            existing_cursor: ExistingCursor::default(),
            max_events: None,
            max_bytes: None,
            deferred: Vec::new(),
            seen: None,
            resume_at_seen: false,
        }
    }
}

impl From<Subscription> for v1::Subscription {
    fn from(subscription: Subscription) -> Self {
        use v1::subscription::Start as Wire;
        let seen_sequence = subscription.seen.as_ref().map(|seen| seen.sequence.get());
        let Seen { store, history, .. } = subscription.seen.unwrap_or_default();
        Self {
            client_id: subscription.client_id.to_string(),
            repositories: subscription.filter.repositories.iter().map(ToString::to_string).collect(),
            events: subscription.filter.events.iter().map(ToString::to_string).collect(),
            start: match subscription.start {
                Start::Cursor => None,
                Start::After(sequence) => Some(Wire::AfterSequence(sequence.get())),
                Start::Since(time) => Some(Wire::ReceivedSince(timestamp(time))),
                Start::Latest => Some(Wire::Latest(v1::Latest {})),
            },
            max_unacknowledged_events: subscription.max_events.unwrap_or(0),
            max_unacknowledged_bytes: subscription.max_bytes.unwrap_or(0),
            keep_cursor: subscription.existing_cursor == ExistingCursor::Keep,
            deferred: numbers(subscription.deferred),
            store_id: store,
            run_id: seen::run_id(&history),
            seen_sequence,
            runs: runs(&history),
            resume_at_seen: subscription.resume_at_seen,
        }
    }
}

impl TryFrom<v1::Subscription> for Subscription {
    type Error = WireError;

    fn try_from(wire: v1::Subscription) -> Result<Self, WireError> {
        use v1::subscription::Start as Wire;
        if wire.deferred.len() > MAX_DEFERRED {
            return Err(WireError::new("deferred", format!("more than {MAX_DEFERRED} events")));
        }
        Ok(Self {
            client_id: parse("client_id", &wire.client_id)?,
            filter: filter(&wire.repositories, &wire.events)?,
            start: match wire.start {
                None => Start::Cursor,
                Some(Wire::AfterSequence(sequence)) => Start::After(Sequence::new(sequence)),
                Some(Wire::ReceivedSince(time)) => Start::Since(from_timestamp(time)),
                Some(Wire::Latest(_)) => Start::Latest,
            },
            existing_cursor: if wire.keep_cursor { ExistingCursor::Keep } else { ExistingCursor::Move },
            max_events: Some(wire.max_unacknowledged_events).filter(|events| *events > 0),
            max_bytes: Some(wire.max_unacknowledged_bytes).filter(|bytes| *bytes > 0),
            deferred: sequences(&wire.deferred),
            seen: wire.seen_sequence.map(|sequence| Seen {
                history: seen::history_with(&wire.runs, &wire.run_id, sequence),
                store: wire.store_id,
                sequence: Sequence::new(sequence),
            }),
            resume_at_seen: wire.resume_at_seen,
        })
    }
}

/// An event on the wire without headers and body.
fn event_without_payload(
    sequence: Sequence,
    redelivery: bool,
    address: &Address,
    facts: &Facts,
) -> v1::Event {
    v1::Event {
        sequence: sequence.get(),
        source: facts.source.to_string(),
        hook_id: facts.hook_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        delivery_id: facts.delivery_id.to_string(),
        event: facts.event_type.name.to_string(),
        action: facts.event_type.action.as_deref().map(str::to_owned),
        repository_id: facts.repository_id.map(|id| id.0),
        repository_name: facts.repository_name.as_ref().map(ToString::to_string),
        owner: facts.owner.as_deref().map(str::to_owned),
        installation_id: facts.installation_id,
        received_at: Some(timestamp(facts.received_at)),
        redelivery,
        headers: Vec::new(),
        body: bytes::Bytes::new(),
        address: (*address != Address::default()).then(|| address.into()),
        hops: facts.hops.iter().map(Into::into).collect(),
        first_attempts: Vec::new(),
    }
}

impl From<&Hop> for v1::Hop {
    fn from(hop: &Hop) -> Self {
        Self {
            store_id: hop.store.to_string(),
            server_name: hop.server.to_string(),
            sequence: hop.sequence.get(),
            received_at: Some(timestamp(hop.received_at)),
            redelivery: hop.redelivery,
        }
    }
}

/// A server on the way of an event that was received at this time. `None` if the hop does not say which store it means.
fn hop(wire: v1::Hop, event_received_at: Timestamp) -> Option<Hop> {
    Some(Hop {
        store: wire.store_id.parse().ok()?,
        server: showable(wire.server_name).unwrap_or_else(|| UNKNOWN_SERVER.into()),
        sequence: Sequence::new(wire.sequence),
        received_at: readable_time(wire.received_at).unwrap_or(event_received_at),
        redelivery: wire.redelivery,
    })
}

/// The header fields of an event.
fn headers(wire: Vec<v1::HeaderField>) -> Result<Headers, WireError> {
    if wire.len() > MAX_HEADERS {
        return Err(WireError::new("headers", format!("more than {MAX_HEADERS} fields")));
    }
    let headers: Headers = wire.into_iter().map(|field| (field.name, field.value)).collect();
    if headers.size() > MAX_HEADER_BYTES {
        return Err(WireError::new("headers", format!("more than {MAX_HEADER_BYTES} bytes")));
    }
    Ok(headers)
}

/// The way of an event. One hop too many is carried, so that the event can be refused with a reason.
fn hops(wire: Vec<v1::Hop>, event_received_at: Timestamp) -> Hops {
    let hops = wire.into_iter().take(MAX_HOPS + 1).filter_map(|wire| hop(wire, event_received_at));
    Hops::new(hops.collect())
}

impl From<&Event> for v1::Event {
    fn from(event: &Event) -> Self {
        let Webhook { facts, headers, body } = &event.webhook;
        Self {
            headers: headers
                .iter()
                .map(|(name, value)| v1::HeaderField { name: name.to_owned(), value: value.to_vec().into() })
                .collect(),
            body: body.clone(),
            ..event_without_payload(event.sequence, event.redelivery, &event.address, facts)
        }
    }
}

impl From<&Address> for v1::Address {
    fn from(address: &Address) -> Self {
        Self {
            client_id: address.client.as_ref().map(ToString::to_string),
            targets: address.targets.iter().map(|target| target.to_string()).collect(),
        }
    }
}

impl TryFrom<v1::Address> for Address {
    type Error = WireError;

    fn try_from(wire: v1::Address) -> Result<Self, WireError> {
        if wire.targets.len() > MAX_TARGETS {
            return Err(WireError::new("targets", format!("more than {MAX_TARGETS}")));
        }
        Ok(Self {
            client: parse_optional("client_id", wire.client_id.as_deref())?,
            targets: wire.targets.into_iter().map(target_name).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = WireError;

    /// Only the sequence, the delivery id, the headers and the body are required. Any other field that cannot be read counts
    /// as absent: a newer server, or a row that a failing disk has changed, must not stop the stream. An event without a time
    /// counts as received now.
    fn try_from(wire: v1::Event) -> Result<Self, WireError> {
        if wire.sequence == 0 {
            return Err(WireError::new("sequence", "sequences start at 1"));
        }
        let received_at = readable_time(wire.received_at).unwrap_or_else(|| SystemTime::now().into());
        let facts = Facts {
            source: wire.source.parse().unwrap_or(Source::UNKNOWN),
            hook_id: wire.hook_id.parse().ok(),
            delivery_id: parse("delivery_id", &wire.delivery_id)?,
            event_type: EventType {
                name: showable(wire.event).unwrap_or_else(|| EventType::UNKNOWN.into()),
                action: wire.action.and_then(showable),
            },
            repository_id: wire.repository_id.map(RepositoryId),
            repository_name: wire.repository_name.and_then(|name| name.parse().ok()),
            owner: wire.owner.and_then(showable),
            installation_id: wire.installation_id,
            received_at,
            hops: hops(wire.hops, received_at),
        };
        let address = wire.address.map(|address| Address {
            client: address.client_id.and_then(|id| id.parse().ok()),
            targets: address.targets.into_iter().filter_map(|name| target_name(name).ok()).collect(),
        });
        Ok(Self {
            sequence: Sequence::new(wire.sequence),
            redelivery: wire.redelivery,
            address: address.unwrap_or_default(),
            webhook: Webhook { facts, headers: headers(wire.headers)?, body: wire.body },
        })
    }
}

impl From<&Acknowledgement> for v1::Acknowledgement {
    fn from(acknowledgement: &Acknowledgement) -> Self {
        Self {
            sequence: acknowledgement.sequence.get(),
            outcomes: acknowledgement.outcomes.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Acknowledgement> for Acknowledgement {
    type Error = WireError;

    /// Of any number of outcomes, as many stay as a store keeps.
    fn try_from(wire: v1::Acknowledgement) -> Result<Self, WireError> {
        if wire.outcomes.is_empty() {
            return Err(WireError::new("outcomes", "an acknowledgement has at least one outcome"));
        }
        let outcomes = wire.outcomes.into_iter().map(Outcome::try_from).collect::<Result<Outcomes, _>>()?;
        Ok(Self { sequence: Sequence::new(wire.sequence), outcomes: outcomes.into() })
    }
}

impl From<&Outcome> for v1::Outcome {
    fn from(outcome: &Outcome) -> Self {
        Self {
            target: outcome.target.clone(),
            result: match outcome.result {
                OutcomeResult::Delivered => v1::OutcomeResult::Delivered,
                OutcomeResult::Failed => v1::OutcomeResult::Failed,
                OutcomeResult::Filtered => v1::OutcomeResult::Filtered,
            }
            .into(),
            code: outcome.code.unwrap_or(0),
            attempts: outcome.attempts,
            duration: Some(duration(outcome.duration)),
            at: Some(timestamp(outcome.at)),
            detail: cut(outcome.detail.clone()),
        }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(wire: v1::Outcome) -> Result<Self, WireError> {
        let result = match v1::OutcomeResult::try_from(wire.result) {
            Ok(v1::OutcomeResult::Delivered) => OutcomeResult::Delivered,
            Ok(v1::OutcomeResult::Failed) => OutcomeResult::Failed,
            Ok(v1::OutcomeResult::Filtered) => OutcomeResult::Filtered,
            Ok(v1::OutcomeResult::Unspecified) | Err(_) => {
                return Err(WireError::new("result", "an outcome is delivered, failed or filtered"));
            }
        };
        Ok(Self {
            target: target_name(wire.target)?.into(),
            result,
            code: Some(wire.code).filter(|code| *code > 0),
            attempts: wire.attempts,
            duration: from_duration(wire.duration.unwrap_or_default()),
            at: readable_time(wire.at).unwrap_or_else(|| SystemTime::now().into()),
            detail: cut(wire.detail),
        })
    }
}

/// Text that will be shown as it is, if it can be.
fn showable(text: String) -> Option<Box<str>> {
    is_showable(&text).then(|| text.into())
}

/// Text that will be shown as it is.
fn shown(field: &'static str, text: String) -> Result<Box<str>, WireError> {
    if is_showable(&text) {
        Ok(text.into())
    } else {
        Err(WireError::new(field, "text that cannot be shown on one line"))
    }
}

fn parse<T: std::str::FromStr<Err: ToString>>(field: &'static str, text: &str) -> Result<T, WireError> {
    text.parse().map_err(|error: T::Err| WireError::new(field, error.to_string()))
}

fn parse_optional<T: std::str::FromStr<Err: ToString>>(
    field: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, WireError> {
    text.map(|text| parse(field, text)).transpose()
}

fn parse_all<T: std::str::FromStr<Err: ToString>>(
    field: &'static str,
    texts: &[String],
) -> Result<Vec<T>, WireError> {
    texts.iter().map(|text| parse(field, text)).collect()
}

fn filter(repositories: &[String], events: &[String]) -> Result<Filter, WireError> {
    if repositories.len() + events.len() > MAX_PATTERNS {
        return Err(WireError::new("repositories", format!("more than {MAX_PATTERNS} patterns")));
    }
    let bytes: usize = repositories.iter().chain(events).map(String::len).sum();
    if bytes > MAX_PATTERN_BYTES {
        return Err(WireError::new(
            "repositories",
            format!("patterns of more than {MAX_PATTERN_BYTES} bytes"),
        ));
    }
    Ok(Filter {
        repositories: parse_all("repositories", repositories)?,
        events: parse_all("events", events)?,
    })
}

/// The name of a target, which is shown in listings and logs.
///
/// # Errors
/// It is empty, longer than 256 bytes, or cannot be shown on one line.
pub fn target_name(name: String) -> Result<Box<str>, WireError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(WireError::new("target", format!("a target's name has 1 to {MAX_NAME_BYTES} bytes")));
    }
    shown("target", name)
}

/// Sequences from the wire.
pub fn sequences(wire: &[u64]) -> Vec<Sequence> {
    wire.iter().copied().map(Sequence::new).collect()
}

/// Sequences on the wire.
pub fn numbers(sequences: impl IntoIterator<Item = Sequence>) -> Vec<u64> {
    sequences.into_iter().map(Sequence::get).collect()
}

fn cut(mut detail: String) -> String {
    shorten(&mut detail, MAX_DETAIL_BYTES);
    detail
}

#[cfg(test)]
mod tests;
