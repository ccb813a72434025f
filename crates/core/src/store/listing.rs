//! What an operator asks of the log: entries without bodies, by filter and fate, page by page.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::tail::{Look, SCAN_LIMIT};
use crate::event::{Address, ClientId, DeliveryId, Event, Facts, Sequence, Timestamp};
use crate::filter::Filter;
use crate::outcomes::Reported;
use crate::target::{Outcome, OutcomeResult};

/// The bytes of one page of a listing, about, unless the caller says otherwise.
pub const LISTED_BYTES: usize = 1 << 20;

/// Which entries of the log are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// By repository and kind.
    pub filter: Filter,
    /// By the sender's id: an event, its redeliveries, and the same event of other hooks.
    pub delivery_id: Option<DeliveryId>,
    /// Received then or later.
    pub received_since: Option<Timestamp>,
    /// By what became of it.
    pub fate: Option<FateFilter>,
    /// Not before this.
    pub first: Sequence,
    /// Not after this.
    pub last: Sequence,
    /// Which come first.
    pub order: Order,
    /// Entries on one page, at least 1.
    pub limit: usize,
    /// Bytes of the entries that are looked at for one page, about. One entry is looked at whatever its size.
    pub bytes: usize,
}

impl Default for Listing {
    /// The newest hundred, as far as they fit [`LISTED_BYTES`].
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            delivery_id: None,
            received_since: None,
            fate: None,
            first: Sequence::ZERO,
            last: Sequence::MAX,
            order: Order::NewestFirst,
            limit: 100,
            bytes: LISTED_BYTES,
        }
    }
}

/// Selects events by what became of them, anywhere or at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FateFilter {
    /// What became of it.
    pub fate: Fate,
    /// As this client reported.
    pub client: Option<ClientId>,
    /// At the target of this name.
    pub target: Option<Box<str>>,
}

impl FateFilter {
    /// Whether this is the fate of an event with these reports.
    pub fn matches(&self, reports: &[Report]) -> bool {
        let mut here = reports.iter().filter(|report| self.is_at(report));
        match self.fate {
            Fate::Pending => here.next().is_none(),
            Fate::Delivered => here.any(|report| report.outcome.result == OutcomeResult::Delivered),
            Fate::DeadLetter => here.any(Report::is_dead_letter),
            Fate::Filtered => here.any(|report| report.outcome.result == OutcomeResult::Filtered),
        }
    }

    /// Whether the report is from the client and the target that are looked at.
    pub fn is_at(&self, report: &Report) -> bool {
        self.client.as_ref().is_none_or(|client| *client == report.client)
            && self.target.as_deref().is_none_or(|target| *target == *report.outcome.target)
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody has reported an outcome.
    Pending,
    /// A target has it.
    Delivered,
    /// A target did not take it, and it was not redelivered since.
    DeadLetter,
    /// No route of a client wanted it.
    Filtered,
}

impl Fate {
    /// The word for command lines and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::DeadLetter => "dead-letter",
            Self::Filtered => "filtered",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Fate {
    type Err = FateError;

    fn from_str(text: &str) -> Result<Self, FateError> {
        [Self::Pending, Self::Delivered, Self::DeadLetter, Self::Filtered]
            .into_iter()
            .find(|fate| fate.as_str() == text)
            .ok_or(FateError)
    }
}

/// The text names no fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is pending, delivered, dead-letter or filtered")]
pub struct FateError;

/// Which entries of a listing come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they were accepted.
    OldestFirst,
    /// The last accepted first.
    NewestFirst,
}

/// One page of a listing. It may be short of its limit, even empty, and yet not the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// In the order that was asked for.
    pub entries: Vec<Entry>,
    /// Where to go on, if the log goes on: the `first` of the next page, or its `last` when the newest come first.
    pub next: Option<Sequence>,
}

/// An event without its headers and body, with all that was reported of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its place in the store.
    pub sequence: Sequence,
    /// Whether it was delivered before, see [`Event::redelivery`].
    pub redelivery: bool,
    /// For whom it is.
    pub address: Address,
    /// What was read from it; `None` if that cannot be read.
    #[serde(flatten)]
    pub facts: Option<Facts>,
    /// Bytes of headers and body.
    pub size: u64,
    /// Why the event cannot be read, if it is damaged and the store has found that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<Box<str>>,
    /// By client and target.
    pub reports: Vec<Report>,
}

impl Entry {
    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        let hops = self.facts.iter().flat_map(|facts| facts.hops.iter());
        let targets = self.address.targets.iter().map(|target| target.len());
        let outcomes = self.reports.iter().map(|report| {
            let Outcome { target, detail, .. } = &report.outcome;
            size_of::<Report>() + report.client.as_str().len() + target.len() + detail.len()
        });
        // The texts of the metadata are short.
        size_of::<Self>()
            + 1024
            + hops.map(|hop| size_of_val(hop) + hop.server.len()).sum::<usize>()
            + targets.sum::<usize>()
            + outcomes.sum::<usize>()
    }

    /// The entry of an event.
    pub fn new(event: &Event, reports: Vec<Report>) -> Self {
        Self {
            sequence: event.sequence,
            redelivery: event.redelivery,
            address: event.address.clone(),
            facts: Some(event.webhook.facts.clone()),
            size: event.webhook.size(),
            damage: None,
            reports,
        }
    }
}

/// A client's word on what became of an event at a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Who reported it.
    pub client: ClientId,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// As which event an operator had it delivered again.
    pub redelivered_as: Option<Sequence>,
}

impl Report {
    /// What a client reported, with what became of it since.
    pub(super) fn new(client: &ClientId, reported: &Reported) -> Self {
        let Reported { outcome, redelivered_as } = reported.clone();
        Self { client: client.clone(), outcome, redelivered_as }
    }

    /// Whether the target did not take it, and it was not redelivered since.
    pub fn is_dead_letter(&self) -> bool {
        self.outcome.result == OutcomeResult::Failed && self.redelivered_as.is_none()
    }
}

/// A page of a listing in the making: the one place that knows what a listing selects and when its page is complete.
#[derive(Debug)]
pub(super) struct Sieve<'a> {
    listing: &'a Listing,
    listed: Listed,
    last: Option<Sequence>,
    looked_at: usize,
    /// Bytes of the entries that were looked at.
    bytes: usize,
}

impl<'a> Sieve<'a> {
    /// An empty page.
    pub(super) fn new(listing: &'a Listing) -> Self {
        Self { listing, listed: Listed::default(), last: None, looked_at: 0, bytes: 0 }
    }

    /// Decides about the next event between the listing's first and last, in its order. One that comes twice in a row
    /// is passed over. One whose metadata cannot be read belongs to any repository and kind.
    pub(super) fn look(&mut self, sequence: Sequence, facts: Option<&Facts>) -> Look {
        if self.last == Some(sequence) {
            return Look::Pass;
        }
        let is_full = self.listed.entries.len() >= self.listing.limit.max(1)
            || (self.bytes > 0 && self.bytes >= self.listing.bytes);
        if is_full || self.looked_at == SCAN_LIMIT {
            self.listed.next = Some(sequence);
            return Look::Stop;
        }
        self.looked_at += 1;
        self.last = Some(sequence);
        let Listing { filter, delivery_id, received_since, .. } = self.listing;
        let selected = facts.is_none_or(|facts| filter.matches(facts))
            && delivery_id.as_ref().is_none_or(|id| facts.is_none_or(|facts| *id == facts.delivery_id))
            && received_since.is_none_or(|since| facts.is_none_or(|facts| facts.received_at >= since));
        if selected { Look::Take } else { Look::Pass }
    }

    /// How far the listing has come.
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code, reason = "only a scan of a table begins anew"))]
    pub(super) fn last(&self) -> Option<Sequence> {
        self.last
    }

    /// Adds the entry that was to be taken, if its fate is the one that is wanted.
    pub(super) fn take(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        if self.listing.fate.as_ref().is_none_or(|fate| fate.matches(&entry.reports)) {
            self.listed.entries.push(entry);
        }
    }

    /// The page, complete or at the end of the log.
    pub(super) fn finish(self) -> Listed {
        self.listed
    }
}
