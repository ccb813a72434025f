//! The servers that an event came through: what keeps a chain from looping, and what makes two ways to one server one
//! event there.

use serde::Serialize;

use crate::event::{Event, Sequence, Timestamp};
use crate::store::StoreId;

/// Through how many servers an event may come. A loop is found at its first turn; this ends one whose servers forget who
/// they are (a store in memory has a new id with each start), and bounds what is kept of any event's way.
pub const MAX_HOPS: usize = 32;

/// One server that an event came through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Its store, which tells servers apart whatever they are called.
    pub store: StoreId,
    /// Its name, for people: one line.
    pub server: Box<str>,
    /// The event's place in its store.
    pub sequence: Sequence,
    /// When it received the event.
    pub received_at: Timestamp,
    /// Whether it stored the event as a redelivery.
    pub redelivery: bool,
}

impl Hop {
    /// The server with this store and name, where `event` is stored.
    pub fn at(store: StoreId, server: &str, event: &Event) -> Self {
        Self {
            store,
            server: server.into(),
            sequence: event.sequence,
            received_at: event.webhook.facts.received_at,
            redelivery: event.redelivery,
        }
    }
}

/// Where an event was accepted first: the store and its sequence there. With the same identity, the same origin is the same
/// event, whichever way it comes; a redelivery has an origin of its own. Other identities share an origin if the store was
/// restored from a backup.
pub type Origin = (StoreId, Sequence);

/// The servers that an event came through before this one, in order. None: the forge itself sent it here. That is so for
/// most, and takes no memory beside the event's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hops(Box<[Hop]>);

/// Why an event is not taken from another server. Nobody's fault: servers may be connected in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HopsError {
    /// It has been here.
    #[error("it has come through this server before")]
    Loop,
    /// It has been almost everywhere.
    #[error("it has come through {MAX_HOPS} servers, which is as far as an event goes")]
    TooMany,
}

impl HopsError {
    /// The word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::TooMany => "too_many_hops",
        }
    }
}

impl Hops {
    /// These servers, in order. More than [`MAX_HOPS`] can be carried, to be refused with a reason.
    pub fn new(hops: Vec<Hop>) -> Self {
        Self(hops.into_boxed_slice())
    }

    /// The servers, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Hop> {
        self.0.iter()
    }

    /// Where the event was accepted first, if that was not here.
    pub fn origin(&self) -> Option<Origin> {
        self.0.first().map(|hop| (hop.store, hop.sequence))
    }

    /// The server that handed the event on to this one.
    pub fn last(&self) -> Option<&Hop> {
        self.0.last()
    }

    /// Whether the server that handed the event on had it as a redelivery.
    pub fn handed_on_as_redelivery(&self) -> bool {
        self.last().is_some_and(|hop| hop.redelivery)
    }

    /// Whether the server with this store may take an event that came this way.
    ///
    /// # Errors
    /// [`HopsError`]: it has been there, or has gone far enough.
    pub fn check(&self, here: StoreId) -> Result<(), HopsError> {
        if self.0.iter().any(|hop| hop.store == here) {
            Err(HopsError::Loop)
        } else if self.0.len() >= MAX_HOPS {
            Err(HopsError::TooMany)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(store: u64) -> Hop {
        Hop {
            store: StoreId::new(store),
            server: format!("server-{store}").into(),
            sequence: Sequence::new(store + 100),
            received_at: Timestamp::default(),
            redelivery: false,
        }
    }

    #[test]
    fn a_way_ends_where_it_was_and_when_it_is_long() {
        let way = Hops::new(vec![hop(1), hop(2)]);
        assert_eq!(way.origin(), Some((StoreId::new(1), Sequence::new(101))));
        assert_eq!(way.check(StoreId::new(3)), Ok(()));
        assert_eq!(way.check(StoreId::new(1)), Err(HopsError::Loop));
        let long = Hops::new((0..MAX_HOPS as u64).map(hop).collect());
        assert_eq!(long.check(StoreId::new(1000)), Err(HopsError::TooMany));
        assert_eq!(long.check(StoreId::new(7)), Err(HopsError::Loop));
        assert_eq!(Hops::default().origin(), None);
    }
}
