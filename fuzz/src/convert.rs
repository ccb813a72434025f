//! The conversions from the wire: bytes of a peer that may be anybody with a token, or no peer of ours at all.
//!
//! An input is one message. What it is is not known, so it is read as each of the three that carry something.

use std::fmt::Debug;

use gitstafette_core::event::{Event, Sequence, Timestamp};
use gitstafette_core::repository::RepositoryId;
use gitstafette_core::store::{Acknowledgement, Listed, Listing};
use gitstafette_core::text::is_showable;
use gitstafette_proto::convert::{
    self, MAX_DETAIL_BYTES, MAX_PATTERNS, RedeliveryRequest, RelayState, Subscription, SubscriptionState,
    WatchlistEntry, WireError, from_first_attempts,
};
use gitstafette_proto::v1;
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use prost::Message;

use crate::assert_one_line;

/// Reads the message and what is in it, and sends it once more.
pub fn run(data: &[u8]) {
    if let Ok(message) = v1::SubscribeRequest::decode(data) {
        match message.request {
            Some(Request::Subscription(wire)) => drop(subscription(wire)),
            Some(Request::Acknowledgements(wire)) => {
                for wire in wire.acknowledgements {
                    drop(acknowledgement(wire));
                }
            }
            Some(Request::FirstAttempts(wire)) => drop(from_first_attempts(wire)),
            Some(Request::Deferral(_) | Request::Recall(_)) | None => {}
        }
    }
    if let Ok(message) = v1::SubscribeResponse::decode(data) {
        match message.response {
            Some(Response::Event(wire)) => drop(event(wire)),
            Some(Response::Started(wire)) => started(&wire),
            Some(
                Response::Heartbeat(_) | Response::Receipt(_) | Response::Missed(_) | Response::GoAway(_),
            )
            | None => {}
        }
    }
    if let Ok(wire) = v1::Event::decode(data) {
        drop(event(wire));
    }
    servers(data);
    operators(data);
}

/// What other servers hand on, and those of the Go implementation.
fn servers(data: &[u8]) {
    if let Ok(v1::PublishRequest { event: Some(wire), .. }) = v1::PublishRequest::decode(data) {
        drop(event(wire));
    }
    if let Ok(wire) = v1::WebhookEvent::decode(data)
        && let Err(error) = convert::from_go_event(wire, RepositoryId(537_845_873), Timestamp::default())
    {
        assert_one_line(&error.to_string());
    }
}

/// What operators ask and are told: the conversions that only they use.
fn operators(data: &[u8]) {
    if let Ok(wire) = v1::ListEventsRequest::decode(data) {
        drop(again::<_, Listing>(wire, |listing| listing.into()));
    }
    if let Ok(wire) = v1::RedeliverEventsRequest::decode(data)
        && let Ok(request) = again::<_, RedeliveryRequest>(wire, |request| request.into())
    {
        drop(request.check(Sequence::new(9)));
    }
    if let Ok(wire) = v1::ListRelaysResponse::decode(data) {
        for relay in wire.relays {
            drop(again::<_, RelayState>(relay, |state| state.into()));
        }
    }
    if let Ok(wire) = v1::ListEventsResponse::decode(data) {
        drop(again::<_, Listed>(wire, |listed| listed.into()));
    }
    if let Ok(wire) = v1::SubscriptionState::decode(data) {
        drop(again::<_, SubscriptionState>(wire, |state| state.into()));
    }
    if let Ok(wire) = v1::WatchlistEntry::decode(data) {
        drop(again::<_, WatchlistEntry>(wire, |entry| entry.into()));
    }
}

pub(crate) fn subscription(wire: v1::Subscription) -> Result<Subscription, WireError> {
    let subscription = again::<_, Subscription>(wire, |subscription| subscription.clone().into())?;
    assert!(subscription.filter.repositories.len() + subscription.filter.events.len() <= MAX_PATTERNS);
    assert!(subscription.max_events != Some(0) && subscription.max_bytes != Some(0), "0 is for none");
    Ok(subscription)
}

pub(crate) fn acknowledgement(wire: v1::Acknowledgement) -> Result<Acknowledgement, WireError> {
    let acknowledgement = again::<_, Acknowledgement>(wire, |acknowledgement| acknowledgement.into())?;
    assert!(!acknowledgement.outcomes.is_empty(), "only an explicit outcome moves a cursor");
    assert!(acknowledgement.outcomes.iter().all(|outcome| outcome.detail.len() <= MAX_DETAIL_BYTES));
    Ok(acknowledgement)
}

pub(crate) fn event(wire: v1::Event) -> Result<Event, WireError> {
    let fields: Vec<_> =
        wire.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.clone())).collect();
    let event = again::<_, Event>(wire, |event| event.into())?;
    assert!(event.sequence > Sequence::ZERO);
    let facts = &event.webhook.facts;
    assert!(is_showable(&facts.event_type.name));
    assert!(facts.event_type.action.as_deref().is_none_or(is_showable));
    assert!(facts.owner.as_deref().is_none_or(is_showable));
    assert_one_line(&facts.repository_label());
    assert!(event.webhook.size() >= event.webhook.body.len() as u64);
    let same = |((name, value), (sent, bytes)): ((&str, &[u8]), &(String, bytes::Bytes))| {
        name == sent && value == &**bytes
    };
    assert!(event.webhook.headers.len() == fields.len());
    assert!(event.webhook.headers.iter().zip(&fields).all(same), "fields keep order, repeats and bytes");
    Ok(event)
}

fn started(wire: &v1::Started) {
    let Some(sent) = wire.heartbeat_interval else { return };
    let interval = convert::from_duration(sent);
    assert_eq!(convert::from_duration(convert::duration(interval)), interval);
}

/// From the wire to the core, back over the wire, and to the core again: the same.
fn again<W, T>(wire: W, send: impl Fn(&T) -> W) -> Result<T, WireError>
where
    W: Message + Default,
    T: TryFrom<W, Error = WireError> + PartialEq + Debug,
{
    let read = |wire| T::try_from(wire).inspect_err(|error| assert_one_line(&error.to_string()));
    let core = read(wire)?;
    let sent = W::decode(&*send(&core).encode_to_vec()).expect("what is encoded can be decoded");
    assert_eq!(read(sent).as_ref(), Ok(&core), "what was taken in can be passed on");
    Ok(core)
}
