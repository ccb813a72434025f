//! The commands and their flags.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use gitstafette_core::event::{Address, ClientId, DeliveryId, Sequence, Timestamp};
use gitstafette_core::filter::{EventPattern, Filter};
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_core::store::{Fate, FateFilter, Listing, Order};
use gitstafette_proto::convert::RedeliveryRequest;

use super::OperateError;

/// What an operator does on the server.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// List, show, follow and redeliver the webhooks that the server holds
    Events {
        /// What to do with events.
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Where each client stands
    Subscriptions {
        /// What to do with subscriptions.
        #[command(subcommand)]
        command: SubscriptionsCommand,
    },
    /// The other servers that the server hands events on to, or draws them from
    Relays {
        /// What to do with relays.
        #[command(subcommand)]
        command: RelaysCommand,
    },
    /// The repositories whose webhooks the server accepts
    Watchlist {
        /// What to do with the watchlist.
        #[command(subcommand)]
        command: WatchlistCommand,
    },
    /// What the server's store holds
    Statistics {
        /// How it is printed.
        #[command(flatten)]
        format: Format,
    },
}

/// What to do with events.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// List events and what became of them, the newest first
    List(List),
    /// Show one event: headers, body, and what was reported of it
    Show(Show),
    /// Show events as they are accepted, until interrupted
    Follow(Follow),
    /// Have events delivered again
    Redeliver(Redeliver),
}

/// What to do with subscriptions.
#[derive(Debug, Subcommand)]
pub enum SubscriptionsCommand {
    /// List every client that has a cursor or is attached
    List(Format),
    /// Remove a client that is not connected: the server forgets its cursor
    Remove(RemoveClient),
    /// Let another token use a client id: the server keeps its cursor
    Release(ReleaseClient),
}

/// Which client id to release.
#[derive(Debug, Args)]
pub struct ReleaseClient {
    /// The client id, as `subscriptions list` shows it
    #[arg(value_name = "ID")]
    pub(super) client: ClientId,
}

/// Which client to remove.
#[derive(Debug, Args)]
pub struct RemoveClient {
    /// The client id, as `subscriptions list` shows it
    #[arg(value_name = "ID")]
    pub(super) client: ClientId,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

/// What to do with relays.
#[derive(Debug, Subcommand)]
pub enum RelaysCommand {
    /// List every relay of the server and how it is doing
    List(Format),
}

/// What to do with the watchlist.
#[derive(Debug, Subcommand)]
pub enum WatchlistCommand {
    /// List what is accepted, and where that comes from
    List(Format),
    /// Accept more; kept across restarts of the server
    Add(Patterns),
    /// Accept less; kept across restarts of the server
    Remove(Patterns),
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Format {
    /// Print JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// Patterns to add or remove.
#[derive(Debug, Args)]
pub struct Patterns {
    /// Repositories: id, owner/name, owner/* or *
    #[arg(value_name = "PATTERN", required = true, value_delimiter = ',')]
    pub(super) patterns: Vec<RepositoryPattern>,
    #[command(flatten)]
    pub(super) format: Format,
}

/// By repository and kind.
#[derive(Debug, Args)]
struct Kinds {
    /// Only these repositories: id, owner/name, owner/* or *; repeatable
    #[arg(long, value_name = "REPOSITORY", value_delimiter = ',')]
    repo: Vec<RepositoryPattern>,
    /// Only these kinds: push, pull_request.opened; repeatable
    #[arg(long, value_name = "EVENT", value_delimiter = ',')]
    event: Vec<EventPattern>,
}

impl Kinds {
    fn filter(&self) -> Filter {
        Filter { repositories: self.repo.clone(), events: self.event.clone() }
    }
}

/// Which events of the log.
#[derive(Debug, Args)]
struct Selection {
    #[command(flatten)]
    kinds: Kinds,
    /// Only with this delivery id: an event and its redeliveries
    #[arg(long, value_name = "ID")]
    delivery: Option<DeliveryId>,
    /// Only received since: 2h, 7d, 2026-01-31, 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Not before this sequence
    #[arg(long, value_name = "SEQUENCE", value_parser = sequence)]
    first: Option<u64>,
    /// Not after this sequence
    #[arg(long, value_name = "SEQUENCE", value_parser = sequence)]
    last: Option<u64>,
}

impl Selection {
    fn listing(&self, fate: Option<FateFilter>, now: Timestamp) -> Result<Listing, OperateError> {
        let first = self.first.map_or(Sequence::ZERO, Sequence::new);
        let last = self.last.map_or(Sequence::MAX, Sequence::new);
        if first > last {
            return Err(OperateError::Usage(format!("--first {first} is after --last {last}")));
        }
        Ok(Listing {
            filter: self.kinds.filter(),
            delivery_id: self.delivery.clone(),
            received_since: self.since.map(|since| since.at(now)),
            fate,
            first,
            last,
            ..Listing::default()
        })
    }
}

/// Which events to list.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    selection: Selection,
    /// Only what became: pending, delivered, dead-letter or filtered
    #[arg(long, value_name = "FATE")]
    fate: Option<Fate>,
    /// The fate as this client reported it
    #[arg(long, value_name = "ID", requires = "fate")]
    client: Option<ClientId>,
    /// The fate at the target of this name
    #[arg(long, value_name = "NAME", requires = "fate")]
    target: Option<Box<str>>,
    /// How many events at most
    #[arg(long, value_name = "COUNT", default_value = "20", value_parser = count)]
    pub(super) limit: u32,
    /// The first accepted first
    #[arg(long)]
    oldest_first: bool,
    #[command(flatten)]
    pub(super) format: Format,
}

impl List {
    pub(super) fn listing(&self, now: Timestamp) -> Result<Listing, OperateError> {
        let (client, target) = (self.client.clone(), self.target.clone());
        let fate = self.fate.map(|fate| FateFilter { fate, client, target });
        let order = if self.oldest_first { Order::OldestFirst } else { Order::NewestFirst };
        Ok(Listing { order, ..self.selection.listing(fate, now)? })
    }
}

/// Which event to show, and how.
#[derive(Debug, Args)]
pub struct Show {
    /// The event
    #[arg(value_parser = sequence)]
    pub(super) sequence: u64,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Write the body alone, byte for byte, to be piped
    #[arg(long, conflicts_with = "json")]
    pub(super) body: bool,
}

/// Which events to follow.
#[derive(Debug, Args)]
pub struct Follow {
    #[command(flatten)]
    kinds: Kinds,
    #[command(flatten)]
    pub(super) format: Format,
}

impl Follow {
    pub(super) fn listing(&self) -> Listing {
        Listing { filter: self.kinds.filter(), order: Order::OldestFirst, ..Listing::default() }
    }
}

/// Which events to have delivered again, and to whom.
#[derive(Debug, Args)]
pub struct Redeliver {
    /// One event
    #[arg(
        value_parser = sequence,
        conflicts_with_all = ["repo", "event", "delivery", "since", "first", "last", "dead_letters", "limit"],
    )]
    pub(super) sequence: Option<u64>,
    #[command(flatten)]
    selection: Selection,
    /// What a target did not take; each goes to the client and the target where it is dead
    #[arg(long, conflicts_with_all = ["to_client", "to_target"])]
    dead_letters: bool,
    /// Only the dead letters of this client
    #[arg(long, value_name = "ID", requires = "dead_letters")]
    client: Option<ClientId>,
    /// Only the dead letters at the target of this name
    #[arg(long, value_name = "NAME", requires = "dead_letters")]
    target: Option<Box<str>>,
    /// Only to this client
    #[arg(long, value_name = "ID")]
    to_client: Option<ClientId>,
    /// Only to targets of this name
    #[arg(long, value_name = "NAME")]
    to_target: Option<Box<str>>,
    /// How many events at most, the oldest first
    #[arg(long, value_name = "COUNT", value_parser = count)]
    pub(super) limit: Option<u32>,
    /// Do not ask before several events are redelivered; needed without a terminal
    #[arg(long)]
    pub(super) yes: bool,
    #[command(flatten)]
    pub(super) format: Format,
}

impl Redeliver {
    pub(super) fn request(&self, now: Timestamp) -> Result<RedeliveryRequest, OperateError> {
        let (client, target) = (self.client.clone(), self.target.clone());
        let fate = self.dead_letters.then_some(FateFilter { fate: Fate::DeadLetter, client, target });
        let mut listing = Listing { order: Order::OldestFirst, ..self.selection.listing(fate, now)? };
        if let Some(sequence) = self.sequence {
            (listing.first, listing.last) = (Sequence::new(sequence), Sequence::new(sequence));
        }
        let targets = self.to_target.iter().cloned().collect();
        let address = Address { client: self.to_client.clone(), targets };
        let request = RedeliveryRequest { listing, address };
        // Whether the range ends within the log is known when the log is.
        request.check(Sequence::MAX.previous()).map_err(|_| {
            let what = "a SEQUENCE, --first and --last, --delivery or --dead-letters";
            OperateError::Usage(format!("everything would be delivered again; say what is meant: {what}"))
        })?;
        Ok(request)
    }
}

/// A time as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl Since {
    fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(age) => now.minus(age),
            Self::At(time) => time,
        }
    }
}

/// A sequence as it is typed.
fn sequence(text: &str) -> Result<u64, String> {
    at_least_1(text).ok_or_else(|| format!("not a sequence: a whole number from 1 to {}", u64::MAX))
}

/// A number of events as it is typed.
fn count(text: &str) -> Result<u32, String> {
    at_least_1(text).ok_or_else(|| format!("not a whole number from 1 to {}", u32::MAX))
}

fn at_least_1<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number| *number >= T::from(1))
}

fn since(text: &str) -> Result<Since, String> {
    let whole_day = format!("{text}T00:00:00Z");
    humantime::parse_duration(text)
        .map(Since::Ago)
        .or_else(|_| humantime::parse_rfc3339_weak(text).map(|time| Since::At(time.into())))
        .or_else(|_| humantime::parse_rfc3339_weak(&whole_day).map(|time| Since::At(time.into())))
        .map_err(|_| {
            "neither a duration (2h, 7d) nor a time in UTC (2026-01-31, 2026-01-31T12:00:00Z)".into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_from_1() {
        assert_eq!((sequence("1"), sequence("18446744073709551615")), (Ok(1), Ok(u64::MAX)));
        assert_eq!((count("1"), count("4294967295")), (Ok(1), Ok(u32::MAX)));
        for wrong in ["0", "-1", "x", "", "18446744073709551616"] {
            assert_eq!(
                sequence(wrong),
                Err("not a sequence: a whole number from 1 to 18446744073709551615".into())
            );
            assert_eq!(count(wrong), Err("not a whole number from 1 to 4294967295".into()));
        }
    }

    #[test]
    fn times_are_ages_or_points() {
        let now = Timestamp::from_millis(1_769_860_800_000); // 2026-01-31T12:00:00Z
        let at = |text: &str| since(text).map(|since| since.at(now).to_string());
        assert_eq!(at("2h").unwrap(), "2026-01-31T10:00:00.000Z");
        assert_eq!(at("2026-01-30").unwrap(), "2026-01-30T00:00:00.000Z");
        assert_eq!(at("2026-01-30 01:02:03").unwrap(), "2026-01-30T01:02:03.000Z");
        assert_eq!(at("2026-01-30T01:02:03.5Z").unwrap(), "2026-01-30T01:02:03.500Z");
        assert!(at("noon").is_err());
    }
}
