//! What operators see and do: the log, redelivery, subscriptions, the store, the watchlist. Over gRPC in `rpc`, as JSON
//! over HTTP in `http`; both only translate.

mod checked;
mod http;
mod redeliver;
mod rpc;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use gitstafette_core::event::{ClientId, Event, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_core::store::{
    Entry, EventStore, Listed, Listing, Order, ReadLimit, Report, Statistics, StoreError, WatchlistChange,
};
use gitstafette_proto::convert::{MAX_SHOWN_BODY, SubscriptionState, WatchlistEntry};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::answers::Answers;
use crate::metrics::{Metrics, Sample, lag};
use crate::relay::Relays;
use crate::subscribe::{Registry, Standing};
use crate::watchlist::{ChangeError, LiveWatchlist};

pub(crate) use http::router;

/// The bytes of all events that are shown at once; a larger one is shown alone.
pub(crate) const SHOWN_BYTES: u32 = 8 << 20;
/// The bytes of all answers that are made or on their way.
pub(crate) const ANSWERS_BYTES: usize = 16 << 20;
/// What one of them takes while it is made, about: a page of a listing is there three times.
pub(crate) const RESERVED_BYTES: u32 = 4 << 20;
/// The gRPC methods whose answers are counted: all of the operators' that are no streams.
pub(crate) const ANSWERED: [&str; 9] = [
    "/gitstafette.v1.Gitstafette/ListEvents",
    "/gitstafette.v1.Gitstafette/ShowEvent",
    "/gitstafette.v1.Gitstafette/ListSubscriptions",
    "/gitstafette.v1.Gitstafette/ShowStatistics",
    "/gitstafette.v1.Gitstafette/ListWatchlist",
    "/gitstafette.v1.Gitstafette/ChangeWatchlist",
    "/gitstafette.v1.Gitstafette/ListRelays",
    "/gitstafette.v1.Gitstafette/RemoveSubscription",
    "/gitstafette.v1.Gitstafette/ReleaseSubscription",
];
/// How long a caller waits for others whose events are shown.
const SHOWN_WAIT: Duration = Duration::from_secs(10);
/// How many times the bytes of a body are in memory where it is embedded: as it is, as text, and as JSON, in which a
/// character may take six bytes.
const EMBEDDED_COST: u64 = 8;
/// How often the store is asked again for one page of a listing. Each time it looks at some thousand events; what finds
/// little goes on with the caller's next page.
const LOOKS: usize = 64;
/// How much of the log a follower is given at once: so many entries, and so many bytes of them.
const FOLLOWED: (usize, usize) = (100, 64 << 10);

/// What both faces of the admin interface share.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) watchlist: Arc<LiveWatchlist>,
    pub(crate) relays: Arc<Relays>,
    pub(crate) metrics: Arc<Metrics>,
    /// Followers end with it.
    pub(crate) draining: CancellationToken,
    /// How often a follower is sent a heartbeat over gRPC.
    pub(crate) heartbeat: Duration,
    /// Room for answers, until they are sent.
    pub(crate) answers: Answers,
    /// Room for the bytes of events that are shown.
    pub(crate) shown: Arc<Semaphore>,
}

/// In which form an event is shown.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// With its body inside the message, if it is no larger than [`MAX_SHOWN_BODY`].
    Embedded,
    /// The body alone, as it is.
    Alone,
}

/// One event that is shown.
struct Shown {
    event: Arc<Event>,
    reports: Vec<Report>,
    share: OwnedSemaphorePermit,
}

impl Admin {
    /// One page of the log. It ends early when its entries become large.
    async fn list(&self, listing: &Listing) -> Result<Listed, StoreError> {
        let mut wanted = listing.clone();
        let mut listed = Listed::default();
        for _ in 0..LOOKS {
            let page = self.store.list(&wanted).await?;
            let bytes = page.entries.iter().map(Entry::bytes).sum();
            wanted.limit = wanted.limit.saturating_sub(page.entries.len());
            wanted.bytes = wanted.bytes.saturating_sub(bytes);
            listed.entries.extend(page.entries);
            listed.next = page.next;
            let is_full = wanted.limit == 0 || wanted.bytes == 0;
            let Some(next) = page.next.filter(|_| !is_full) else { break };
            match listing.order {
                Order::OldestFirst => wanted.first = next,
                Order::NewestFirst => wanted.last = next,
            }
        }
        Ok(listed)
    }

    /// One event, and what was reported of it; `None` if it is not stored, an error if it is damaged. It holds its share of
    /// what all that are shown at once may take. The caller holds the share until the answer is made, or the body is sent.
    async fn show(&self, sequence: Sequence, form: Form) -> Result<Option<Shown>, ShowError> {
        let listing = Listing { first: sequence, last: sequence, limit: 1, ..Listing::default() };
        let Some(entry) = self.store.list(&listing).await?.entries.pop() else { return Ok(None) };
        let share = match form {
            Form::Embedded if entry.size <= MAX_SHOWN_BODY as u64 => entry.size * EMBEDDED_COST,
            Form::Embedded | Form::Alone => entry.size,
        };
        let share = u32::try_from(share).unwrap_or(u32::MAX).min(SHOWN_BYTES);
        let share = Arc::clone(&self.shown).acquire_many_owned(share);
        let share = tokio::time::timeout(SHOWN_WAIT, share).await.map_err(|_| ShowError::Busy)?;
        let share = share.map_err(|_| StoreError::Closed)?;
        let limit = ReadLimit { events: 1, bytes: 0 };
        let page = self.store.read(sequence.previous(), &Filter::default(), limit).await?;
        if let Some(event) = page.events.into_iter().find(|event| event.sequence == sequence) {
            return Ok(Some(Shown { event, reports: entry.reports, share }));
        }
        match page.damaged.into_iter().find(|damage| (damage.first..=damage.last).contains(&sequence)) {
            Some(damage) => Err(StoreError::DamagedEvent { sequence, reason: damage.reason }.into()),
            None => Ok(None),
        }
    }

    /// Entries as events are accepted: after a sequence, or from now on.
    fn follow(
        self: Arc<Self>,
        filter: Filter,
        after: Option<Sequence>,
    ) -> impl Stream<Item = Result<Entry, StoreError>> + Send {
        let heads = self.store.head();
        let after = after.unwrap_or_else(|| *heads.borrow());
        let state = Some((heads, after, Vec::new().into_iter()));
        futures_util::stream::unfold(state, move |state| {
            let (admin, filter) = (Arc::clone(&self), filter.clone());
            async move {
                let (mut heads, mut at, mut ready) = state?;
                loop {
                    if let Some(entry) = ready.next() {
                        return Some((Ok(entry), Some((heads, at, ready))));
                    }
                    let more = admin.draining.run_until_cancelled(heads.wait_for(|head| *head > at)).await;
                    let head = *more?.ok()?;
                    let (limit, bytes) = FOLLOWED;
                    let listing = Listing {
                        filter: filter.clone(),
                        first: at.next(),
                        last: head,
                        order: Order::OldestFirst,
                        limit,
                        bytes,
                        ..Listing::default()
                    };
                    match admin.store.list(&listing).await {
                        Ok(listed) => {
                            at = listed.next.map_or(head, Sequence::previous);
                            ready = listed.entries.into_iter();
                        }
                        // With the error it ends.
                        Err(error) => return Some((Err(error), None)),
                    }
                }
            }
        })
    }

    /// Every client with a cursor or a stream.
    async fn subscriptions(&self) -> Result<Vec<SubscriptionState>, StoreError> {
        let statistics = self.store.statistics().await?;
        let mut states: BTreeMap<_, _> = self
            .store
            .cursors()
            .await?
            .into_iter()
            .map(|(client, cursor)| (client, (cursor, None)))
            .collect();
        for (client, attached) in self.registry.attached() {
            states.entry(client).or_default().1 = Some(attached);
        }
        let state = |(client_id, (cursor, attached))| SubscriptionState {
            client_id,
            cursor,
            lag: lag(cursor, &statistics),
            attached,
        };
        Ok(states.into_iter().map(state).collect())
    }

    /// Removes a client id that is not connected.
    async fn remove_subscription(&self, client: &ClientId) -> Result<(), RemoveError> {
        let standing = Standing::new(SystemTime::now().into(), String::new(), Arc::default());
        let connected = || RemoveError::Connected(client.clone());
        // While it is occupied, the client cannot begin a stream with the cursor that is about to go.
        let _occupied = self.registry.occupy(client, Arc::new(standing)).ok_or_else(connected)?;
        if !self.store.remove_client(client).await? {
            return Err(RemoveError::Unknown(client.clone()));
        }
        info!(client.id = %client, "client id removed by an operator");
        Ok(())
    }

    /// Takes a client id from its token, so that another may use it; `false` if there is no such client.
    async fn release_subscription(&self, client: &ClientId) -> Result<bool, StoreError> {
        let is_known = self.store.release_client(client).await?;
        if is_known {
            info!(client.id = %client, "client id released by an operator");
        }
        Ok(is_known)
    }

    async fn statistics(&self) -> Result<Statistics, StoreError> {
        self.store.statistics().await
    }

    async fn change_watchlist(
        &self,
        pattern: &RepositoryPattern,
        change: WatchlistChange,
    ) -> Result<Vec<WatchlistEntry>, ChangeError> {
        let entries = self.watchlist.change(pattern, change).await?;
        info!(%pattern, ?change, "the watchlist was changed by an operator");
        Ok(entries)
    }

    /// All metrics as text, and its content type.
    async fn metrics(&self) -> Result<(Vec<u8>, String), StoreError> {
        let statistics = self.store.statistics().await?;
        let cursors = self.store.cursors().await?;
        let lags = cursors.into_iter().map(|(client, cursor)| (client, lag(cursor, &statistics))).collect();
        let relays = self.relays.states().await?;
        Ok(self.metrics.render(Sample { statistics, attached: self.registry.len(), lags, relays }))
    }
}

/// Why an event is not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShowError {
    #[error("other events are being shown, and take all the memory for that; try again in a minute")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a subscription was not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error("client {0} is connected; stop it, then remove its subscription")]
    Connected(ClientId),
    #[error("there is no client {0}; list the subscriptions to see their ids")]
    Unknown(ClientId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an event is neither shown nor delivered again.
fn missing(sequence: Sequence) -> String {
    format!("there is no event {sequence} in the store; it may have been removed by retention")
}
