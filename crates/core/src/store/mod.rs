//! Where events are kept: the contract of every store, its two implementations and the suite that both pass.
//!
//! A store is a log with cursors beside it. Ingest appends; subscribers read after their cursor and wait on the
//! head; acknowledgements move cursors and leave outcomes. Fan-out is reading: the store knows no subscriber.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use serde::Serialize;

use crate::event::{Address, ClientId, Event, Sequence, Timestamp, Webhook};
use crate::filter::Filter;
use crate::repository::{RepositoryId, RepositoryPattern};
use crate::subscription::Progress;
use crate::target::Outcome;

mod clients;
mod error;
mod first_attempts;
mod history;
mod identity;
mod listing;
mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tail;
mod watchlist;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(test)]
mod model;

pub use clients::{Owner, Registration};
pub use error::{OpenError, StoreError};
pub use first_attempts::{FirstAttempt, MAX_FIRST_ATTEMPTS};
pub use history::{History, MAX_RUNS, Run};
pub use identity::{RunId, StoreId, StoreIdError};
pub use listing::{Entry, Fate, FateError, FateFilter, LISTED_BYTES, Listed, Listing, Order, Report};
pub use memory::MemoryStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use watchlist::{WatchlistChange, WatchlistChangeError};

/// A log of events with cursors and outcomes.
///
/// # Contract
///
/// - **Durable.** [`append`](Self::append) and [`acknowledge`](Self::acknowledge) return when what they did
///   survives the death of the process (a memory store: of everything but the process). What was not returned for
///   may or may not be there after a crash, but never in part.
/// - **Ordered.** Sequences start at 1 and grow in the order in which appends are accepted; an append that starts
///   after another returned gets a greater sequence. Sequences are never reused, not even after retention or a
///   restart. There may be gaps, and another process may append.
/// - **Visible when durable.** An event can be read, and the head shows it, only after it is durable. Whoever reads
///   after a sequence and waits for the head to pass it misses nothing.
/// - **One identity, one event.** An append whose identity (source, hook id, delivery id) is in the store is a
///   repeat while no outcome has been reported for the newest event of that identity; after that it is a redelivery,
///   stored anew and marked, or refused if [`Redelivery::Drop`] is set. A repeat that comes before the first is
///   durable is answered when the first is. Identities that retention removed are forgotten.
/// - **One origin, one event.** An append that came through other servers, and whose [origin](crate::hop::Hops::origin) is
///   in the store with an event of the same identity, is a repeat, whatever was reported of it. Any other is judged by its
///   identity as above, and is marked as a redelivery also if the server that handed it on had it as one. So an origin
///   alone makes no repeat: a store that was restored from a backup gives the same origins to other events, and a server
///   may claim one that is not its own. Origins that retention removed are forgotten.
/// - **Addressed.** An event that [`redeliver`](Self::redeliver) appended, to whomever it is addressed, takes no part in
///   that: it stands beside what the sender sent. Only the outcomes of what the sender sent decide about the sender's
///   next; the copy's neither make a repeat of it nor let it pass as a redelivery. When retention has removed what the
///   sender sent, its identity is forgotten, though a copy be there. A copy carries no hops: it begins here, so for the
///   next server its origin is this one.
/// - **Progress.** A client's cursor moves only by `acknowledge` and `seek`. Acknowledgements beyond the cursor are
///   kept until it has passed them or retention removes their event.
/// - **Retention** removes the oldest events first, by age, count or bytes, whichever strikes first, and their
///   outcomes with them. It follows an append, soon; it never stops one for long. The newest event stays unless it is
///   too old. Age counts from acceptance by this store.
/// - **Patient.** When the disk is slower than what comes, whatever changes the store waits, each kind in the order of
///   its calls. A store bounds how many appends and redeliveries wait, and refuses those beyond; what the waiting ones
///   hold in memory is bounded by whoever lets them in, such as the server's limit on bodies in flight. All else is
///   never refused: a client waits for one acknowledgement before it makes the next.
/// - **Recovering.** A full or broken disk fails what cannot be made durable, and nothing that was; reading goes on. It
///   ends without a restart, and [`Statistics::writable`] shows it without anybody's asking for a write.
/// - **Damage to one event stops nothing.** A read passes events that cannot be read, and reports them in
///   [`Page::damaged`]. A listing shows them with the reason. A store logs such an event once, when it finds the damage.
///   Of a stored event only the sequence, the delivery id, the headers and the body are required. Any other field that
///   cannot be read counts as absent. Damage to the store as a whole fails whatever needs it with
///   [`StoreError::Damaged`]: a read first returns the events before the damage.
/// - **Told apart from its copies.** Each start of a store is a run with a random id, see [`History`]. A run is recorded
///   with its first event. After a store was set back to an older copy, its history shows up to which sequence its events
///   are those of before.
/// - **Cancel safe.** A dropped future leaves the store whole; what it asked for may still be done.
#[async_trait]
pub trait EventStore: Send + Sync + fmt::Debug + 'static {
    /// Appends a webhook, or finds that it is there. Returns when it is durable; waits if the disk is behind.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] if very many appends, thousands, are waiting already; [`StoreError::Full`],
    /// [`StoreError::Damaged`] or [`StoreError::Failed`] if it cannot be made durable; [`StoreError::Closed`]. On any
    /// error the webhook is not accepted.
    async fn append(&self, webhook: Webhook) -> Result<Appended, StoreError>;

    /// Reads events after a sequence, in order, up to the limits and the head. An empty page whose `read_to` is not
    /// beyond `after` means that there is nothing yet: wait for the head. An empty page that was read further means
    /// that nothing was selected so far: read on. Damaged events are passed, and reported in the page.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], [`StoreError::Failed`], [`StoreError::Closed`].
    async fn read(&self, after: Sequence, filter: &Filter, limit: ReadLimit) -> Result<Page, StoreError>;

    /// The sequence of the newest durable event ever accepted, to wait on. It stays when retention removes the event.
    /// When the store closes, waiting ends with an error.
    fn head(&self) -> watch::Receiver<Sequence>;

    /// The greatest sequence whose reading-after starts with the first event received at `time` or later; the head
    /// if there is none.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn before(&self, time: Timestamp) -> Result<Sequence, StoreError>;

    /// How far the client has acknowledged; `None` if it has no cursor yet.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn progress(&self, client: &ClientId) -> Result<Option<Progress>, StoreError>;

    /// Sets the client's cursor, forwards or backwards, and forgets what it acknowledged beyond it.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn seek(&self, client: &ClientId, cursor: Sequence) -> Result<(), StoreError>;

    /// Stores outcomes and moves the client's cursor to `cursor` if that is forwards; a client without one gets it.
    /// All or nothing. An event that retention has removed is no error: its outcomes are dropped. A second report for
    /// the same event, client and target replaces the first. What one client reports of an event is bounded as
    /// [`Outcomes`](crate::outcomes::Outcomes) says. It counts for retention by bytes.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn acknowledge(
        &self,
        client: &ClientId,
        acknowledgements: Vec<Acknowledgement>,
        cursor: Sequence,
    ) -> Result<(), StoreError>;

    /// Stores since when a client has tried events in vain. The first report for an event, client and target counts, and
    /// no time before the event's acceptance. It is forgotten with the client's acknowledgement of the event, with a seek,
    /// and when retention removes the event. Dropped are reports of removed events, of clients without a cursor, and
    /// those beyond [`MAX_FIRST_ATTEMPTS`] per client.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn record_first_attempts(
        &self,
        client: &ClientId,
        first_attempts: Vec<FirstAttempt>,
    ) -> Result<(), StoreError>;

    /// What was recorded of a client's first attempts of these events, by sequence and target, with the ages now.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn first_attempts(
        &self,
        client: &ClientId,
        sequences: RangeInclusive<Sequence>,
    ) -> Result<Vec<FirstAttempt>, StoreError>;

    /// The last event of which a first attempt of the client is recorded; zero if there is none.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn last_first_attempt(&self, client: &ClientId) -> Result<Sequence, StoreError>;

    /// All that was reported of one event, by client and target.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn reports(&self, sequence: Sequence) -> Result<Vec<Report>, StoreError>;

    /// One page of the log for an operator. A call looks at a bounded number of events, and at a bounded number of bytes
    /// of entries while it builds the page. So a page may be short, even empty, and not the last.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn list(&self, listing: &Listing) -> Result<Listed, StoreError>;

    /// Appends a stored event anew, as a redelivery for those it is now addressed to; `None` if it is not in the
    /// store. The dead letters that it is a second try of are marked with the new sequence: all of the event's at that
    /// address. If one task makes several calls at the same time, their order is that of their first polls.
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`StoreError::DamagedEvent`] if the event cannot be read.
    async fn redeliver(&self, sequence: Sequence, address: Address) -> Result<Option<Sequence>, StoreError>;

    /// How many events of each repository with a number are in the store, by number: one page that begins with `from`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn counts(&self, from: RepositoryId, limit: usize) -> Result<Vec<(RepositoryId, u64)>, StoreError>;

    /// Every client id with a cursor, and the cursor, by client id.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn cursors(&self) -> Result<Vec<(ClientId, Sequence)>, StoreError>;

    /// Records that the client is connected. A new client id belongs to this owner, and counts for it, until it is removed,
    /// [released](Self::release_client) or forgotten. A client id without an owner, or of an owner that is not
    /// [current](Owner::current), passes to this owner. The store records nothing if the client belongs to another owner, or if
    /// it is new and the owner already has as many ids as it may have. The store also registers a known client while the
    /// disk is full.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn register_client(&self, client: &ClientId, owner: &Owner) -> Result<Registration, StoreError>;

    /// Takes a client id from its owner, and returns whether the store knows the client. The next owner that uses the id
    /// gets it. The cursor and everything else stays.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn release_client(&self, client: &ClientId) -> Result<bool, StoreError>;

    /// Removes a client id, its cursor and its acknowledgements beyond the cursor, and returns whether there was one.
    /// The outcomes that it reported belong to the events and stay.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn remove_client(&self, client: &ClientId) -> Result<bool, StoreError>;

    /// Removes registered clients that were not seen for `age`, as [`remove_client`](Self::remove_client) does, and
    /// returns them. Clients in `connected` count as seen now. One call removes a bounded number: call again until it
    /// returns none.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn forget_clients(
        &self,
        age: Duration,
        connected: Vec<ClientId>,
    ) -> Result<Vec<ClientId>, StoreError>;

    /// What was changed about the configured watchlist at run time, in no order.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn watchlist_changes(&self) -> Result<Vec<(RepositoryPattern, WatchlistChange)>, StoreError>;

    /// Keeps a change of the watchlist, in place of an earlier one of the same pattern; `None` forgets it. Patterns
    /// are the same if they are written the same.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn change_watchlist(
        &self,
        pattern: &RepositoryPattern,
        change: Option<WatchlistChange>,
    ) -> Result<(), StoreError>;

    /// Which store this is. It stays as long as its events do.
    fn id(&self) -> StoreId;

    /// The runs of this store, the current one last. They do not change while it is open.
    fn history(&self) -> &History;

    /// Whether the store survives the process.
    fn is_durable(&self) -> bool;

    /// The state that a relay stored under its name; `None` if there is none. It is set back with the store.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn relay_state(&self, relay: &str) -> Result<Option<String>, StoreError>;

    /// Stores a relay's state in place of an earlier one.
    ///
    /// # Errors
    /// As [`append`](Self::append), but never [`StoreError::Overloaded`].
    async fn store_relay_state(&self, relay: &str, state: String) -> Result<(), StoreError>;

    /// What the store holds now. It answers from memory, however slow the disk is.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn statistics(&self) -> Result<Statistics, StoreError>;

    /// Finishes what was taken and closes. Later calls get [`StoreError::Closed`], and so do those that still wait to
    /// be taken.
    async fn close(&self);
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Stored as a new event.
    Stored {
        /// Its sequence.
        sequence: Sequence,
        /// Whether it is one seen before whose outcome is known, here or at the server that handed it on.
        redelivery: bool,
    },
    /// The event is there already: not yet delivered, or also of the same origin, or redeliveries are dropped.
    Repeat {
        /// The sequence of the event that is there.
        sequence: Sequence,
    },
}

impl Appended {
    /// The event's sequence, new or old.
    pub fn sequence(self) -> Sequence {
        match self {
            Self::Stored { sequence, .. } | Self::Repeat { sequence } => sequence,
        }
    }
}

/// One event's outcomes at all targets of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The event.
    pub sequence: Sequence,
    /// One per target, at least one.
    pub outcomes: Vec<Outcome>,
}

/// How much one read may return. The first event is returned whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Events, at least 1.
    pub events: usize,
    /// Bytes of headers and bodies.
    pub bytes: u64,
}

/// What one read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The selected events, in order.
    pub events: Vec<Arc<Event>>,
    /// How far the log was read, selected or not: read on after this.
    pub read_to: Sequence,
    /// Retention has removed everything up to here. Who reads after an earlier sequence has missed what lay between.
    pub removed_to: Sequence,
    /// The events on the way that cannot be read, in order. The filter applies to those whose metadata can be read.
    pub damaged: Vec<DamagedEvents>,
}

/// Stored events that cannot be read: one, or several in a row for the same reason. There may be gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedEvents {
    /// The first.
    pub first: Sequence,
    /// The last.
    pub last: Sequence,
    /// Why they cannot be read, in one line for people.
    pub reason: Box<str>,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Events.
    pub events: u64,
    /// Bytes of their headers and bodies, and of the outcomes that were reported of them.
    pub bytes: u64,
    /// The oldest event, or zero.
    pub first: Sequence,
    /// The newest event ever accepted, or zero.
    pub head: Sequence,
    /// Events that retention removed since the store was opened.
    pub removed: u64,
    /// Damaged events that were found since the store was opened and that retention has not removed.
    pub damaged: u64,
    /// Bytes of its files; zero if it has none.
    pub disk_bytes: u64,
    /// Whether the last write was durable. It turns false when the disk is full or broken, and true again by itself
    /// when there is room.
    pub writable: bool,
}

impl Statistics {
    /// Retention has removed everything up to here.
    pub fn removed_to(&self) -> Sequence {
        if self.events == 0 { self.head } else { self.first.previous() }
    }
}

/// What a store keeps, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is kept for how long.
    pub retention: Retention,
    /// What a redelivery is.
    pub redelivery: Redelivery,
}

/// The bounds of what is kept, whichever strikes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Not longer than this after acceptance.
    pub age: Duration,
    /// Not more events than this, at least 1.
    pub count: u64,
    /// Not more bytes of headers, bodies and outcomes than this; one event may exceed it alone.
    pub bytes: u64,
}

impl Default for Retention {
    /// Seven days, a million events, 1 GiB.
    fn default() -> Self {
        Self { age: Duration::from_secs(7 * 24 * 3600), count: 1_000_000, bytes: 1 << 30 }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { retention: Retention::default(), redelivery: Redelivery::Deliver }
    }
}

/// What is done with an event whose identity is known and whose outcome was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redelivery {
    /// It is stored anew and delivered: somebody pressed Redeliver.
    Deliver,
    /// It is a repeat like any other.
    Drop,
}

impl FromStr for Redelivery {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "deliver" => Ok(Self::Deliver),
            "drop" => Ok(Self::Drop),
            _ => Err("it is deliver or drop"),
        }
    }
}

/// The sequences of these acknowledgements that lie beyond `cursor`.
fn beyond(acknowledgements: &[Acknowledgement], cursor: Sequence) -> BTreeSet<Sequence> {
    acknowledgements.iter().map(|ack| ack.sequence).filter(|sequence| *sequence > cursor).collect()
}
