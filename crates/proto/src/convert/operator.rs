//! What operators ask and are told.

use gitstafette_core::event::{Address, ClientId, Event, Sequence, Timestamp};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_core::store::{Entry, Fate, FateFilter, Listed, Listing, Order, Report, Statistics};
use serde::Serialize;

use super::{
    WireError, cut, event_without_payload, filter, from_timestamp, parse, parse_optional, shown, target_name,
    timestamp,
};
use crate::v1;

/// The most entries on one page of a listing.
pub const MAX_LISTED: u32 = 1000;
/// The entries on a page unless the caller says otherwise.
const LISTED: u32 = 100;
/// The most events that one call delivers again.
pub const MAX_REDELIVERED: u32 = 10_000;

/// The most repositories, and the most kinds of events, that are shown of a subscription's filter.
pub const MAX_SHOWN_PATTERNS: usize = 32;
/// The largest body that is shown with its event. A larger one is fetched alone, part by part.
pub const MAX_SHOWN_BODY: usize = 1 << 20;

impl From<&Listing> for v1::EventSelection {
    fn from(listing: &Listing) -> Self {
        let fate = listing.fate.as_ref();
        Self {
            repositories: listing.filter.repositories.iter().map(ToString::to_string).collect(),
            events: listing.filter.events.iter().map(ToString::to_string).collect(),
            delivery_id: listing.delivery_id.as_ref().map(ToString::to_string),
            received_since: listing.received_since.map(timestamp),
            fate: fate.map_or(v1::EventFate::Unspecified, |filter| filter.fate.into()).into(),
            client_id: fate.and_then(|filter| filter.client.as_ref()).map(ToString::to_string),
            target: fate.and_then(|filter| filter.target.as_deref()).map(str::to_owned),
            first: listing.first.get(),
            last: (listing.last != Sequence::MAX).then(|| listing.last.get()),
        }
    }
}

impl TryFrom<v1::EventSelection> for Listing {
    type Error = WireError;

    fn try_from(wire: v1::EventSelection) -> Result<Self, WireError> {
        let client = parse_optional("client_id", wire.client_id.as_deref())?;
        let target = wire.target.map(target_name).transpose()?;
        let fate = match v1::EventFate::try_from(wire.fate) {
            Err(_) => return Err(WireError::new("fate", "there is no such fate")),
            Ok(v1::EventFate::Unspecified) if client.is_some() || target.is_some() => {
                return Err(WireError::new(
                    "fate",
                    "a client or a target is where a fate is looked for: give one",
                ));
            }
            Ok(fate) => fate_of(fate).map(|fate| FateFilter { fate, client, target }),
        };
        Ok(Self {
            filter: filter(&wire.repositories, &wire.events)?,
            delivery_id: parse_optional("delivery_id", wire.delivery_id.as_deref())?,
            received_since: wire.received_since.map(from_timestamp),
            fate,
            first: Sequence::new(wire.first),
            last: wire.last.map_or(Sequence::MAX, Sequence::new),
            ..Self::default()
        })
    }
}

impl From<&Listing> for v1::ListEventsRequest {
    fn from(listing: &Listing) -> Self {
        Self {
            selection: Some(listing.into()),
            limit: u32::try_from(listing.limit).unwrap_or(MAX_LISTED),
            oldest_first: listing.order == Order::OldestFirst,
        }
    }
}

impl TryFrom<v1::ListEventsRequest> for Listing {
    type Error = WireError;

    fn try_from(wire: v1::ListEventsRequest) -> Result<Self, WireError> {
        Ok(Self {
            order: if wire.oldest_first { Order::OldestFirst } else { Order::NewestFirst },
            limit: limit(wire.limit, LISTED, MAX_LISTED)?,
            ..wire.selection.unwrap_or_default().try_into()?
        })
    }
}

impl From<Fate> for v1::EventFate {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Pending => Self::Pending,
            Fate::Delivered => Self::Delivered,
            Fate::DeadLetter => Self::DeadLetter,
            Fate::Filtered => Self::Filtered,
        }
    }
}

fn fate_of(wire: v1::EventFate) -> Option<Fate> {
    match wire {
        v1::EventFate::Unspecified => None,
        v1::EventFate::Pending => Some(Fate::Pending),
        v1::EventFate::Delivered => Some(Fate::Delivered),
        v1::EventFate::DeadLetter => Some(Fate::DeadLetter),
        v1::EventFate::Filtered => Some(Fate::Filtered),
    }
}

fn limit(wire: u32, default: u32, most: u32) -> Result<usize, WireError> {
    let limit = if wire == 0 { default } else { wire };
    if limit > most {
        return Err(WireError::new("limit", format!("it is at most {most}")));
    }
    Ok(limit as usize)
}

impl From<&Listed> for v1::ListEventsResponse {
    fn from(listed: &Listed) -> Self {
        Self {
            entries: listed.entries.iter().map(Into::into).collect(),
            next: listed.next.map_or(0, Sequence::get),
        }
    }
}

impl TryFrom<v1::ListEventsResponse> for Listed {
    type Error = WireError;

    fn try_from(wire: v1::ListEventsResponse) -> Result<Self, WireError> {
        Ok(Self {
            entries: wire.entries.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            next: optional(wire.next),
        })
    }
}

impl From<&Entry> for v1::Entry {
    fn from(entry: &Entry) -> Self {
        let event = match &entry.facts {
            Some(facts) => event_without_payload(entry.sequence, entry.redelivery, &entry.address, facts),
            None => v1::Event { sequence: entry.sequence.get(), ..v1::Event::default() },
        };
        Self {
            event: Some(event),
            size: entry.size,
            reports: entry.reports.iter().map(Into::into).collect(),
            damage: entry.damage.as_deref().map(str::to_owned),
        }
    }
}

impl TryFrom<v1::Entry> for Entry {
    type Error = WireError;

    /// An event that cannot be read is shown as damaged. A report that cannot be read is left out.
    fn try_from(wire: v1::Entry) -> Result<Self, WireError> {
        let event = wire.event.unwrap_or_default();
        if event.sequence == 0 {
            return Err(WireError::new("sequence", "sequences start at 1"));
        }
        let sequence = Sequence::new(event.sequence);
        let reports = wire.reports.into_iter().filter_map(|report| report.try_into().ok()).collect();
        let damage = wire.damage.and_then(|reason| shown("damage", cut(reason)).ok());
        let entry = match Event::try_from(event) {
            Ok(event) => Self { size: wire.size, damage, ..Self::new(&event, reports) },
            Err(error) => Self {
                sequence,
                redelivery: false,
                address: Address::default(),
                facts: None,
                size: wire.size,
                damage: damage.or_else(|| Some(error.to_string().into())),
                reports,
            },
        };
        Ok(entry)
    }
}

impl From<&Report> for v1::Report {
    fn from(report: &Report) -> Self {
        Self {
            client_id: report.client.to_string(),
            outcome: Some((&report.outcome).into()),
            redelivered_as: report.redelivered_as.map_or(0, Sequence::get),
        }
    }
}

impl TryFrom<v1::Report> for Report {
    type Error = WireError;

    fn try_from(wire: v1::Report) -> Result<Self, WireError> {
        Ok(Self {
            client: parse("client_id", &wire.client_id)?,
            outcome: wire.outcome.unwrap_or_default().try_into()?,
            redelivered_as: optional(wire.redelivered_as),
        })
    }
}

/// Which events are to be delivered again, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeliveryRequest {
    /// Which; the oldest go first, at most as many as its limit.
    pub listing: Listing,
    /// To whom. Dead letters go where they are dead.
    pub address: Address,
}

impl RedeliveryRequest {
    /// Whether it names a single event.
    pub fn is_for_one_event(&self) -> bool {
        self.listing.first == self.listing.last && self.listing.fate.is_none()
    }

    /// Refuses a request that would deliver everything again: that was hardly meant. A range says what is meant only if it
    /// ends within the log, whose last event is `head`.
    ///
    /// # Errors
    /// Neither a range, nor a delivery id, nor a fate is named.
    pub fn check(&self, head: Sequence) -> Result<(), WireError> {
        let Listing { delivery_id, fate, first, last, .. } = &self.listing;
        let is_range = *first > Sequence::ZERO && *last <= head;
        if delivery_id.is_some() || fate.is_some() || is_range || self.is_for_one_event() {
            return Ok(());
        }
        let reason = format!(
            "everything would be delivered again; name a delivery id, a fate, or a first and a last up to {head}"
        );
        Err(WireError::new("selection", reason))
    }
}

impl From<&RedeliveryRequest> for v1::RedeliverEventsRequest {
    fn from(request: &RedeliveryRequest) -> Self {
        Self {
            selection: Some((&request.listing).into()),
            address: (request.address != Address::default()).then(|| (&request.address).into()),
            limit: u32::try_from(request.listing.limit).unwrap_or(MAX_REDELIVERED),
        }
    }
}

impl TryFrom<v1::RedeliverEventsRequest> for RedeliveryRequest {
    type Error = WireError;

    fn try_from(wire: v1::RedeliverEventsRequest) -> Result<Self, WireError> {
        let listing = Listing {
            order: Order::OldestFirst,
            limit: limit(wire.limit, MAX_REDELIVERED, MAX_REDELIVERED)?,
            ..wire.selection.unwrap_or_default().try_into()?
        };
        let address = wire.address.map(Address::try_from).transpose()?.unwrap_or_default();
        Ok(Self { listing, address })
    }
}

/// Where a client stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionState {
    /// Who.
    pub client_id: ClientId,
    /// All up to here is done.
    pub cursor: Sequence,
    /// Events of the log beyond the cursor, wanted by the client or not.
    pub lag: u64,
    /// Its stream, if one is attached.
    pub attached: Option<Attached>,
}

/// The stream of an attached client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// Since when.
    pub since: Timestamp,
    /// Where it comes from: an address and a port, as the listener saw it.
    pub peer: String,
    /// Repositories it asked for; none is all.
    pub repositories: Vec<RepositoryPattern>,
    /// Kinds of events it asked for; none is all.
    pub events: Vec<String>,
    /// Patterns that it asked for beyond those: each list ends at [`MAX_SHOWN_PATTERNS`].
    pub more_patterns: u64,
    /// Events sent and not acknowledged.
    pub unacknowledged: u64,
    /// Events that the client has deferred.
    pub deferred: u64,
    /// Events sent on this stream.
    pub sent: u64,
    /// Events that retention removed before they were sent.
    pub missed: u64,
}

impl From<&SubscriptionState> for v1::SubscriptionState {
    fn from(state: &SubscriptionState) -> Self {
        Self {
            client_id: state.client_id.to_string(),
            cursor: state.cursor.get(),
            lag: state.lag,
            attached: state.attached.as_ref().map(|attached| v1::Attached {
                since: Some(timestamp(attached.since)),
                peer: attached.peer.clone(),
                repositories: attached.repositories.iter().map(ToString::to_string).collect(),
                events: attached.events.clone(),
                more_patterns: attached.more_patterns,
                unacknowledged: attached.unacknowledged,
                deferred: attached.deferred,
                sent: attached.sent,
                missed: attached.missed,
            }),
        }
    }
}

impl TryFrom<v1::SubscriptionState> for SubscriptionState {
    type Error = WireError;

    fn try_from(wire: v1::SubscriptionState) -> Result<Self, WireError> {
        let attached = wire.attached.map(|attached| {
            let Filter { repositories, events } = filter(&attached.repositories, &attached.events)?;
            Ok(Attached {
                since: from_timestamp(attached.since.unwrap_or_default()),
                peer: attached.peer,
                repositories,
                events: events.iter().map(ToString::to_string).collect(),
                more_patterns: attached.more_patterns,
                unacknowledged: attached.unacknowledged,
                deferred: attached.deferred,
                sent: attached.sent,
                missed: attached.missed,
            })
        });
        Ok(Self {
            client_id: parse("client_id", &wire.client_id)?,
            cursor: Sequence::new(wire.cursor),
            lag: wire.lag,
            attached: attached.transpose()?,
        })
    }
}

impl From<&Statistics> for v1::ShowStatisticsResponse {
    /// Without the store's id and runs, which statistics do not have.
    fn from(statistics: &Statistics) -> Self {
        Self {
            store_id: String::new(),
            events: statistics.events,
            bytes: statistics.bytes,
            first: statistics.first.get(),
            head: statistics.head.get(),
            removed: statistics.removed,
            disk_bytes: statistics.disk_bytes,
            writable: statistics.writable,
            damaged: statistics.damaged,
            runs: Vec::new(),
        }
    }
}

impl From<&v1::ShowStatisticsResponse> for Statistics {
    fn from(wire: &v1::ShowStatisticsResponse) -> Self {
        Self {
            events: wire.events,
            bytes: wire.bytes,
            first: Sequence::new(wire.first),
            head: Sequence::new(wire.head),
            removed: wire.removed,
            disk_bytes: wire.disk_bytes,
            writable: wire.writable,
            damaged: wire.damaged,
        }
    }
}

/// One pattern of the watchlist, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchlistEntry {
    /// What is accepted.
    pub pattern: RepositoryPattern,
    /// Where it comes from.
    pub origin: WatchlistOrigin,
}

/// Where a pattern of the watchlist comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchlistOrigin {
    /// The configuration.
    Configured,
    /// It was added at run time.
    Added,
    /// It is configured, and was removed at run time: nothing is accepted by it.
    Removed,
}

impl From<&WatchlistEntry> for v1::WatchlistEntry {
    fn from(entry: &WatchlistEntry) -> Self {
        let origin = match entry.origin {
            WatchlistOrigin::Configured => v1::WatchlistOrigin::Configured,
            WatchlistOrigin::Added => v1::WatchlistOrigin::Added,
            WatchlistOrigin::Removed => v1::WatchlistOrigin::Removed,
        };
        Self { pattern: entry.pattern.to_string(), origin: origin.into() }
    }
}

impl TryFrom<v1::WatchlistEntry> for WatchlistEntry {
    type Error = WireError;

    fn try_from(wire: v1::WatchlistEntry) -> Result<Self, WireError> {
        let origin = match v1::WatchlistOrigin::try_from(wire.origin) {
            Ok(v1::WatchlistOrigin::Configured) => WatchlistOrigin::Configured,
            Ok(v1::WatchlistOrigin::Added) => WatchlistOrigin::Added,
            Ok(v1::WatchlistOrigin::Removed) => WatchlistOrigin::Removed,
            Ok(v1::WatchlistOrigin::Unspecified) | Err(_) => {
                return Err(WireError::new("origin", "a pattern is configured, added or removed"));
            }
        };
        Ok(Self { pattern: parse("pattern", &wire.pattern)?, origin })
    }
}

fn optional(sequence: u64) -> Option<Sequence> {
    (sequence > 0).then(|| Sequence::new(sequence))
}
