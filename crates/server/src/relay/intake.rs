//! Taking an event that another server hands on: what was published here, and what was drawn from there.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use gitstafette_core::classify::{self, ClassifyError, Hearsay};
use gitstafette_core::event::{Event, Facts, Sequence, Timestamp, Webhook};
use gitstafette_core::hop::HopsError;
use gitstafette_core::store::{Appended, EventStore, StoreError};
use gitstafette_core::verify::{INLINE_BYTES, Unverified};
use gitstafette_proto::convert::{EventSizeError, check_size};
use tracing::{info, warn};

use crate::REFUSALS;
use crate::auth::Publisher;
use crate::ingest::end_to_end;
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
    /// It cannot be sent on.
    TooLargeToSend(EventSizeError),
    /// It is no webhook.
    Unreadable(ClassifyError),
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
            Self::TooLarge { .. } | Self::TooLargeToSend(_) => "too_large",
            Self::Unreadable(_) => "refused",
        }
    }
}

impl Intake {
    /// Takes one event: it is durable when this returns `Stored` or `Repeat`. Its sequence is the other server's; its last
    /// hop is that server.
    ///
    /// The metadata is read again from the webhook itself: a faulty peer must not store an event under another repository.
    /// A trusted peer is believed about the repository's number if the webhook names no repository.
    ///
    /// # Errors
    /// The store cannot take it now.
    pub(crate) async fn take(&self, event: Event, publisher: Publisher) -> Result<Taken, StoreError> {
        let started = Instant::now();
        let bytes = event.webhook.body.len();
        let (facts, taken) = self.read_and_store(event.webhook, publisher).await?;
        self.metrics.relayed.with_label_values(&[taken.as_str()]).inc();
        log(&facts, bytes, &taken, started);
        Ok(taken)
    }

    async fn read_and_store(
        &self,
        mut webhook: Webhook,
        publisher: Publisher,
    ) -> Result<(Facts, Taken), StoreError> {
        let claimed = webhook.facts.clone();
        webhook.headers = end_to_end(webhook.headers.iter());
        if let Err(error) = claimed.hops.check(self.store.id()) {
            return Ok((claimed, Taken::Unwanted(error.into())));
        }
        if webhook.body.len() as u64 > self.body_limit {
            return Ok((claimed, Taken::TooLarge { limit: self.body_limit }));
        }
        let webhook = match read_again(webhook, publisher).await? {
            Ok(webhook) => webhook,
            Err(error) => return Ok((claimed, Taken::Unreadable(error))),
        };
        let facts = webhook.facts.clone();
        log_contradictions(&claimed, &facts);
        let watchlist = self.watchlist.current();
        if !watchlist.admits(facts.repository_id, facts.repository_name.as_ref(), facts.owner.as_deref()) {
            let repository = facts.repository_label().into_owned();
            return Ok((facts, Taken::Unwanted(Unwanted::NotWatched(repository))));
        }
        if let Err(error) = check_size(&webhook) {
            return Ok((facts, Taken::TooLargeToSend(error)));
        }
        let taken = match self.store.append(webhook).await? {
            Appended::Stored { sequence, .. } => Taken::Stored(sequence),
            Appended::Repeat { sequence } => Taken::Repeat(sequence),
        };
        Ok((facts, taken))
    }

    /// Notes an event that is not believed.
    pub(crate) fn refuse(&self, facts: &Facts, reason: &str) {
        self.metrics.relayed.with_label_values(&["refused"]).inc();
        warn!(
            target: REFUSALS,
            {
                delivery.id = %facts.delivery_id,
                event.type = %facts.event_type,
                repository.name = %facts.repository_label(),
                relay.from = facts.hops.last().map(|hop| &*hop.server),
                reason,
            },
            "event of another server refused"
        );
    }
}

/// Reads a webhook's metadata from its headers and body. Only the hops and the source are the peer's.
async fn read_again(
    webhook: Webhook,
    publisher: Publisher,
) -> Result<Result<Webhook, ClassifyError>, StoreError> {
    let Webhook { facts: claimed, headers, body } = webhook;
    let hearsay = Hearsay {
        delivery_id: Some(claimed.delivery_id),
        repository_id: claimed.repository_id.filter(|_| publisher == Publisher::Believed),
    };
    let received_at: Timestamp = SystemTime::now().into();
    let is_small = body.len() <= INLINE_BYTES;
    let read = move || -> Result<Webhook, ClassifyError> {
        // Its signature is verified by now, or its publisher is trusted.
        let mut webhook = classify::relayed(Unverified { headers, body }.waive(), &hearsay, received_at)?;
        webhook.facts.hops = claimed.hops;
        webhook.facts.source = claimed.source;
        Ok(webhook)
    };
    if is_small {
        return Ok(read());
    }
    // It can only fail while the server goes down.
    tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::Closed)
}

/// Logs what a peer says of a webhook that the webhook itself does not say.
fn log_contradictions(claimed: &Facts, read: &Facts) {
    fn differs<T: PartialEq>(claimed: Option<&T>, read: Option<&T>) -> bool {
        claimed.is_some() && claimed != read
    }
    let (claimed_type, read_type) = (&claimed.event_type, &read.event_type);
    let contradictions = [
        ("delivery id", claimed.delivery_id != read.delivery_id),
        ("hook id", differs(claimed.hook_id.as_ref(), read.hook_id.as_ref())),
        ("event", claimed_type.name != read_type.name),
        ("action", differs(claimed_type.action.as_ref(), read_type.action.as_ref())),
        ("repository id", differs(claimed.repository_id.as_ref(), read.repository_id.as_ref())),
        ("repository name", differs(claimed.repository_name.as_ref(), read.repository_name.as_ref())),
        ("owner", differs(claimed.owner.as_ref(), read.owner.as_ref())),
        ("installation id", differs(claimed.installation_id.as_ref(), read.installation_id.as_ref())),
    ];
    let fields: Vec<_> =
        contradictions.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect();
    if fields.is_empty() {
        return;
    }
    warn!(
        delivery.id = %read.delivery_id,
        repository.name = %read.repository_label(),
        relay.from = read.hops.last().map(|hop| &*hop.server),
        claimed.delivery.id = %claimed.delivery_id,
        claimed.event.type = %claimed.event_type,
        claimed.repository.name = %claimed.repository_label(),
        fields = fields.join(", "),
        "the peer's metadata contradicts the webhook, using the webhook's"
    );
}

/// The one line about an event of another server.
fn log(facts: &Facts, bytes: usize, taken: &Taken, started: Instant) {
    let (sequence, reason) = match taken {
        Taken::Stored(sequence) | Taken::Repeat(sequence) => (Some(sequence.get()), None),
        Taken::Unwanted(unwanted) => (None, Some(unwanted.to_string())),
        Taken::TooLarge { limit } => (None, Some(format!("its body is larger than {limit} bytes"))),
        Taken::TooLargeToSend(error) => (None, Some(error.to_string())),
        Taken::Unreadable(error) => (None, Some(error.to_string())),
    };
    let what = match taken {
        Taken::Stored(_) => "event of another server stored",
        Taken::Repeat(_) => "event of another server is a repeat",
        Taken::Unwanted(_) => "event of another server dropped",
        Taken::TooLarge { .. } | Taken::TooLargeToSend(_) | Taken::Unreadable(_) => {
            "event of another server refused"
        }
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
