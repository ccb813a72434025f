//! The event model: what is received, what was read from it, and what the store makes of it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::headers::Headers;
use crate::hop::Hops;
use crate::repository::{RepositoryId, RepositoryName};
use crate::text::is_showable;

/// The store's own number of an event: starts at 1, grows in the order of acceptance, is never reused. There may
/// be gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Sequence(u64);

impl Sequence {
    /// Before the first event: reading after it reads everything.
    pub const ZERO: Self = Self(0);
    /// The greatest number that a store can hold (SQLite's integers are signed).
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The sequence with this number; greater ones than [`Sequence::MAX`] become it.
    pub const fn new(number: u64) -> Self {
        if number > Self::MAX.0 { Self::MAX } else { Self(number) }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self::new(self.0 + 1)
    }

    /// The number before, or [`Sequence::ZERO`].
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time, in milliseconds since the Unix epoch: what every store and wire keeps of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last millisecond of the year 9999: RFC 3339 has no form for later times.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// The point this many milliseconds after the Unix epoch. Later points than [`Timestamp::MAX`] become it.
    pub const fn from_millis(millis: u64) -> Self {
        if millis > Self::MAX.0 { Self::MAX } else { Self(millis) }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This point less `age`, not before the epoch.
    #[must_use]
    pub fn minus(self, age: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// `2026-01-31T12:00:00.123Z` (RFC 3339).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis((*self).into()).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        Self::UNIX_EPOCH + Duration::from_millis(time.0)
    }
}

/// Who sent a webhook and how it is verified: `github`, later others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Source(Cow<'static, str>);

impl Source {
    /// GitHub: github.com and GitHub Enterprise Server.
    pub const GITHUB: Self = Self(Cow::Borrowed("github"));
    /// The source of a stored or relayed event whose source cannot be read.
    pub const UNKNOWN: Self = Self(Cow::Borrowed("unknown"));

    /// The source's name, lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a type for an identifier that came from outside.
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $is_valid:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name(Box<str>);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdentifierError;

            fn from_str(text: &str) -> Result<Self, IdentifierError> {
                if $is_valid(text) { Ok(Self(text.into())) } else { Err(IdentifierError($rule)) }
            }
        }
    };
}

identifier!(
    /// The sender's id of a webhook (`X-GitHub-Delivery`). Redeliveries of an event share it. GitHub sends a UUID, but a
    /// webhook with another id is not refused for it.
    DeliveryId,
    is_showable,
    "a delivery id is 1 to 256 bytes of text that can be shown on one line"
);
identifier!(
    /// The sender's id of the hook that fired (`X-GitHub-Hook-ID`). All hooks on one GitHub event share the
    /// delivery id, so an event's identity needs both.
    HookId,
    is_visible_ascii,
    "a hook id is 1 to 128 visible ASCII characters"
);
identifier!(
    /// Names a subscriber: its cursor is kept under this id.
    ClientId,
    is_visible_ascii,
    "a client id is 1 to 128 visible ASCII characters"
);

fn is_visible_ascii(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl FromStr for Source {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, IdentifierError> {
        let usable = (1..=32).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if usable {
            Ok(Self(Cow::Owned(text.to_owned())))
        } else {
            Err(IdentifierError("a source is 1 to 32 of a-z and -"))
        }
    }
}

/// The text cannot be used as the identifier it was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentifierError(&'static str);

/// The event's kind at its source: `pull_request` and its action `opened`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventType {
    /// The event's name (`X-GitHub-Event`): text that can be shown on a line.
    pub name: Box<str>,
    /// The payload's `action`, where the event has one that can be shown on a line (that of a `repository_dispatch` is
    /// anybody's choice).
    pub action: Option<Box<str>>,
}

impl EventType {
    /// The name of a stored or relayed event whose name cannot be read.
    pub const UNKNOWN: &'static str = "unknown";
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Some(action) => write!(f, "{}.{action}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Serialize for EventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is known of a webhook without its headers and body: all that routing, filters and listings need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Who sent it.
    pub source: Source,
    /// The hook that fired, if it says so.
    pub hook_id: Option<HookId>,
    /// The sender's id of it.
    pub delivery_id: DeliveryId,
    /// Event and action.
    pub event_type: EventType,
    /// The repository's number, if the event has a repository.
    pub repository_id: Option<RepositoryId>,
    /// The repository's full name, likewise.
    pub repository_name: Option<RepositoryName>,
    /// Whom it belongs to: the repository's owner, else the account that the event names.
    pub owner: Option<Box<str>>,
    /// The GitHub App installation that it was sent for.
    pub installation_id: Option<u64>,
    /// When this server received it.
    pub received_at: Timestamp,
    /// The servers that it came through before.
    pub hops: Hops,
}

impl Facts {
    /// What identifies the event: seen again, it is a repeat or a redelivery.
    pub fn identity(&self) -> (&Source, Option<&HookId>, &DeliveryId) {
        (&self.source, self.hook_id.as_ref(), &self.delivery_id)
    }

    /// The repository's name for people: its full name, else its number, else the owner, else `-`.
    pub fn repository_label(&self) -> Cow<'_, str> {
        match (&self.repository_name, self.repository_id, &self.owner) {
            (Some(name), ..) => Cow::Borrowed(name.as_str()),
            (None, Some(id), _) => Cow::Owned(id.to_string()),
            (None, None, Some(owner)) => Cow::Owned(format!("{owner}/*")),
            (None, None, None) => Cow::Borrowed("-"),
        }
    }
}

/// A webhook as it was received and understood, not yet accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// What was read from it.
    pub facts: Facts,
    /// Every end-to-end header field, as sent.
    pub headers: Headers,
    /// The raw body, as sent.
    pub body: Bytes,
}

impl Webhook {
    /// Bytes of headers and body: what limits and retention count.
    pub fn size(&self) -> u64 {
        (self.headers.size() + self.body.len()) as u64
    }
}

/// For whom an event is. A webhook as it comes is for everybody; an operator may redeliver one to a single client, or
/// to some targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Address {
    /// Only for this client.
    pub client: Option<ClientId>,
    /// Only for targets of these names, each on one line; none is all. At most [`MAX_TARGETS`](crate::outcomes::MAX_TARGETS).
    pub targets: Vec<Box<str>>,
}

impl Address {
    /// Whether the event is for this client.
    pub fn includes_client(&self, client: &ClientId) -> bool {
        self.client.as_ref().is_none_or(|only| only == client)
    }

    /// Whether the event is for the target of this name.
    pub fn includes_target(&self, target: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|only| **only == *target)
    }
}

/// One accepted webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the store.
    pub sequence: Sequence,
    /// Whether it was delivered before and is to be delivered again: a person pressed Redeliver, at the forge or here.
    pub redelivery: bool,
    /// For whom it is.
    pub address: Address,
    /// What was sent.
    pub webhook: Webhook,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_bounded_and_visible() {
        assert!("72d3162e-cc78-11e3-81ab-4c9367dc0958".parse::<DeliveryId>().is_ok());
        for text in ["", "a b", "a\n", "ä", &"x".repeat(129)] {
            assert!(text.parse::<ClientId>().is_err(), "{text:?}");
            assert!(text.parse::<HookId>().is_err(), "{text:?}");
        }
        for text in ["a b", "ä", &"x".repeat(256)] {
            assert!(text.parse::<DeliveryId>().is_ok(), "{text:?}");
        }
        for text in ["", "a\n", "a\u{202e}", &"x".repeat(257)] {
            assert!(text.parse::<DeliveryId>().is_err(), "{text:?}");
        }
        assert_eq!("github".parse::<Source>(), Ok(Source::GITHUB));
        assert!("GitHub".parse::<Source>().is_err());
    }

    #[test]
    fn sequences_stay_in_range() {
        assert_eq!(Sequence::new(u64::MAX), Sequence::MAX);
        assert_eq!(Sequence::MAX.next(), Sequence::MAX);
        assert_eq!(Sequence::ZERO.previous(), Sequence::ZERO);
    }

    #[test]
    fn times_round_trip() {
        let time = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        assert_eq!(time.minus(Duration::from_millis(23)).as_millis(), 1_700_000_000_100);
        assert_eq!(time.minus(Duration::MAX).as_millis(), 0);
    }

    #[test]
    fn no_time_is_too_late_to_be_shown() {
        for millis in [253_402_300_799_999, 253_402_300_800_000, i64::MAX as u64, u64::MAX] {
            let time = Timestamp::from_millis(millis);
            assert_eq!(time.to_string(), "9999-12-31T23:59:59.999Z");
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
        let beyond = SystemTime::UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert_eq!(Timestamp::from(beyond), Timestamp::MAX);
        assert_eq!(Timestamp::default().to_string(), "1970-01-01T00:00:00.000Z");
    }
}
