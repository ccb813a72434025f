//! Taking an event that another server hands on: what was published here, and what was drawn from there.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use gitstafette_core::event::{Event, Facts, Sequence};
use gitstafette_core::hop::HopsError;
use gitstafette_core::store::{Appended, EventStore, StoreError};
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::watchlist::LiveWatchlist;

/// Takes events of other servers into the store.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) watchlist: Arc<LiveWatchlist>,
    pub(crate) metrics: Arc<Metrics>,
    /// The largest body that is taken, in bytes.
    pub(crate) body_limit: u64,
}

/// What became of an event of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is stored for good.
    Stored(Sequence),
    /// It was there before.
    Repeat(Sequence),
    /// It is not wanted here, and nothing is wrong.
    Unwanted(Unwanted),
    /// It cannot be taken.
    TooLarge {
        /// The largest body, in bytes.
        limit: u64,
    },
}

/// Why an event is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unwanted {
    #[error(transparent)]
    Hops(#[from] HopsError),
    #[error("{0} is not on the watchlist")]
    NotWatched(String),
}

impl Taken {
    /// The word for metrics.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Repeat(_) => "repeat",
            Self::Unwanted(Unwanted::Hops(error)) => error.as_str(),
            Self::Unwanted(Unwanted::NotWatched(_)) => "not_watched",
            Self::TooLarge { .. } => "too_large",
        }
    }
}

impl Intake {
    /// Takes one event: it is durable when this returns `Stored` or `Repeat`. Its sequence is the other server's; its last
    /// hop is that server.
    ///
    /// # Errors
    /// The store cannot take it now.
    pub(crate) async fn take(&self, event: Event) -> Result<Taken, StoreError> {
        let started = Instant::now();
        let mut webhook = event.webhook;
        webhook.facts.received_at = SystemTime::now().into();
        let facts = webhook.facts.clone();
        let bytes = webhook.body.len();
        let taken = match self.judge(&facts, bytes) {
            Some(refused) => refused,
            None => match self.store.append(webhook).await? {
                Appended::Stored { sequence, .. } => Taken::Stored(sequence),
                Appended::Repeat { sequence } => Taken::Repeat(sequence),
            },
        };
        self.metrics.relayed.with_label_values(&[taken.as_str()]).inc();
        log(&facts, bytes, &taken, started);
        Ok(taken)
    }

    /// Notes an event that is not believed.
    pub(crate) fn refuse(&self, facts: &Facts, reason: &str) {
        self.metrics.relayed.with_label_values(&["refused"]).inc();
        warn!(
            delivery.id = %facts.delivery_id,
            event.type = %facts.event_type,
            repository.name = %facts.repository_label(),
            relay.from = facts.hops.last().map(|hop| &*hop.server),
            reason,
            "event of another server refused"
        );
    }

    /// What can be said without the store.
    fn judge(&self, facts: &Facts, bytes: usize) -> Option<Taken> {
        if let Err(error) = facts.hops.check(self.store.id()) {
            return Some(Taken::Unwanted(error.into()));
        }
        let watchlist = self.watchlist.current();
        if !watchlist.admits(facts.repository_id, facts.repository_name.as_ref(), facts.owner.as_deref()) {
            let repository = facts.repository_label().into_owned();
            return Some(Taken::Unwanted(Unwanted::NotWatched(repository)));
        }
        (bytes as u64 > self.body_limit).then_some(Taken::TooLarge { limit: self.body_limit })
    }
}

/// The one line about an event of another server.
fn log(facts: &Facts, bytes: usize, taken: &Taken, started: Instant) {
    let (sequence, reason) = match taken {
        Taken::Stored(sequence) | Taken::Repeat(sequence) => (Some(sequence.get()), None),
        Taken::Unwanted(unwanted) => (None, Some(unwanted.to_string())),
        Taken::TooLarge { limit } => (None, Some(format!("its body is larger than {limit} bytes"))),
    };
    let what = match taken {
        Taken::Stored(_) => "event of another server stored",
        Taken::Repeat(_) => "event of another server is a repeat",
        Taken::Unwanted(_) => "event of another server dropped",
        Taken::TooLarge { .. } => "event of another server refused",
    };
    info!(
        event.sequence = sequence,
        delivery.id = %facts.delivery_id,
        event.type = %facts.event_type,
        repository.name = %facts.repository_label(),
        body.bytes = bytes,
        relay.from = facts.hops.last().map(|hop| &*hop.server),
        relay.hops = facts.hops.iter().len(),
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        reason,
        "{what}"
    );
}
