//! What operators see and do: the log, redelivery, subscriptions, the store, the watchlist. Over gRPC in `rpc`, as JSON
//! over HTTP in `http`; both only translate.

mod http;
mod rpc;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use futures_util::future::join_all;
use gitstafette_core::event::{Address, ClientId, Event, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_core::store::{
    Entry, EventStore, Fate, Listed, Listing, Order, ReadLimit, Report, Statistics, StoreError,
    WatchlistChange,
};
use gitstafette_core::target::DECODER;
use gitstafette_proto::convert::{MAX_SHOWN_BODY, RedeliveryRequest, SubscriptionState, WatchlistEntry};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::{Metrics, Sample, lag};
use crate::relay::Relays;
use crate::subscribe::{Registry, Standing};
use crate::watchlist::{ChangeError, LiveWatchlist};

pub(crate) use http::router;

/// The bytes of all events that are shown at once; a larger one is shown alone.
pub(crate) const SHOWN_BYTES: u32 = 8 << 20;
/// How many times the bytes of a body are in memory where it is embedded: as it is, as text, and as JSON, in which a
/// character may take six bytes.
const EMBEDDED_COST: u64 = 8;
/// How many redeliveries wait for one commit together: as many as the store writes at once.
const REDELIVERED_AT_ONCE: usize = 256;
/// How often the store is asked again for one page of a listing. Each time it looks at some thousand events; what finds
/// little goes on with the caller's next page.
const LOOKS: usize = 64;
/// How many entries are asked of the store at once: each brings all that was reported of it.
const AT_ONCE: usize = 100;
/// After how many bytes of reports a page ends.
const LISTED_BYTES: usize = 4 << 20;

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
    /// Room for the bytes of events that are shown.
    pub(crate) shown: Arc<Semaphore>,
}

/// One event that is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Redelivered {
    /// The event.
    sequence: Sequence,
    /// The new event with its bytes.
    redelivered_as: Sequence,
}

/// What one call had delivered again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Redeliveries {
    /// In the order of the log.
    redelivered: Vec<Redelivered>,
    /// The `first` of the next call, if the limit was reached.
    next: Option<Sequence>,
    /// The `last` of the next call: what was appended meanwhile lies beyond it, this call's own events too.
    last: Sequence,
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
    /// One page of the log. It is cut short when what was reported of its events becomes much.
    async fn list(&self, listing: &Listing) -> Result<Listed, StoreError> {
        let mut wanted = listing.clone();
        let mut listed = Listed::default();
        let mut bytes = 0;
        for _ in 0..LOOKS {
            wanted.limit = (listing.limit - listed.entries.len()).min(AT_ONCE);
            let page = self.store.list(&wanted).await?;
            bytes += page.entries.iter().map(reported_bytes).sum::<usize>();
            listed.entries.extend(page.entries);
            listed.next = page.next;
            let is_full = listed.entries.len() >= listing.limit || bytes > LISTED_BYTES;
            let Some(next) = page.next.filter(|_| !is_full) else { break };
            match listing.order {
                Order::OldestFirst => wanted.first = next,
                Order::NewestFirst => wanted.last = next,
            }
        }
        Ok(listed)
    }

    /// One event, and what was reported of it; `None` if it is not stored, an error if it is damaged. It holds its share of
    /// what all that are shown at once may take: over HTTP for as long as it is on its way, over gRPC until it is handed to the connection.
    async fn show(&self, sequence: Sequence, form: Form) -> Result<Option<Shown>, StoreError> {
        let listing = Listing { first: sequence, last: sequence, limit: 1, ..Listing::default() };
        let Some(entry) = self.store.list(&listing).await?.entries.pop() else { return Ok(None) };
        let share = match form {
            Form::Embedded if entry.size <= MAX_SHOWN_BODY as u64 => entry.size * EMBEDDED_COST,
            Form::Embedded | Form::Alone => entry.size,
        };
        let share = u32::try_from(share).unwrap_or(u32::MAX).min(SHOWN_BYTES);
        let share =
            Arc::clone(&self.shown).acquire_many_owned(share).await.map_err(|_| StoreError::Closed)?;
        let limit = ReadLimit { events: 1, bytes: 0 };
        let page = self.store.read(sequence.previous(), &Filter::default(), limit).await?;
        if let Some(event) = page.events.into_iter().find(|event| event.sequence == sequence) {
            return Ok(Some(Shown { event, reports: entry.reports, share }));
        }
        match page.damaged.into_iter().find(|damage| (damage.first..=damage.last).contains(&sequence)) {
            Some(damage) => Err(StoreError::DamagedEvent { sequence, reason: damage.reason }),
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
                    let listing = Listing {
                        filter: filter.clone(),
                        first: at.next(),
                        last: head,
                        order: Order::OldestFirst,
                        limit: AT_ONCE,
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

    /// Appends events anew, the oldest first. Dead letters go where they are dead.
    async fn redeliver(&self, request: &RedeliveryRequest) -> Result<Redeliveries, StoreError> {
        let head = *self.store.head().borrow();
        // What this call appends is not part of it.
        let last = request.listing.last.min(head);
        let mut listing = Listing { last, ..request.listing.clone() };
        let mut done = Redeliveries { redelivered: Vec::new(), next: Some(listing.first), last };
        let mut left = request.listing.limit;
        while let Some(first) = done.next.filter(|_| left > 0) {
            (listing.first, listing.limit) = (first, left.min(REDELIVERED_AT_ONCE));
            let listed = self.list(&listing).await?;
            left -= listed.entries.len();
            done.next = listed.next;
            self.redeliver_together(&listed.entries, request, &mut done.redelivered).await?;
        }
        Ok(done)
    }

    /// Redelivers several events, so that they share commits. The copies have the order of the originals.
    async fn redeliver_together(
        &self,
        entries: &[Entry],
        request: &RedeliveryRequest,
        redelivered: &mut Vec<Redelivered>,
    ) -> Result<(), StoreError> {
        let calls: Vec<_> = entries
            .iter()
            .flat_map(|entry| addresses(entry, request).into_iter().map(move |address| (entry, address)))
            .collect();
        for calls in calls.chunks(REDELIVERED_AT_ONCE) {
            let call =
                |(entry, address): &(&Entry, Address)| self.store.redeliver(entry.sequence, address.clone());
            let copies = join_all(calls.iter().map(call)).await;
            for ((entry, _), copy) in calls.iter().zip(copies) {
                let copy = match copy {
                    // It does not keep the others from being redelivered.
                    Err(error @ StoreError::DamagedEvent { .. }) if !request.is_for_one_event() => {
                        warn!(event.sequence = entry.sequence.get(), reason = %error, "not redelivered");
                        continue;
                    }
                    copy => copy?,
                };
                let Some(copy) = copy else { continue };
                self.note_redelivery(entry, copy);
                redelivered.push(Redelivered { sequence: entry.sequence, redelivered_as: copy });
            }
        }
        Ok(())
    }

    fn note_redelivery(&self, entry: &Entry, copy: Sequence) {
        info!(
            event.sequence = copy.get(),
            delivery.id = entry.facts.as_ref().map(|facts| facts.delivery_id.as_str()),
            repository.name = entry.facts.as_ref().map(|facts| facts.repository_label().into_owned()),
            redelivery.of = entry.sequence.get(),
            "redelivered by an operator"
        );
        self.metrics.redelivered.inc();
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
        let standing = Standing::new(SystemTime::now().into(), String::new(), Filter::default());
        let connected = || RemoveError::Connected(client.clone());
        // While it is occupied, the client cannot begin a stream with the cursor that is about to go.
        let _occupied = self.registry.occupy(client, Arc::new(standing)).ok_or_else(connected)?;
        if !self.store.remove_client(client).await? {
            return Err(RemoveError::Unknown(client.clone()));
        }
        info!(client.id = %client, "client id removed by an operator");
        Ok(())
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

impl Redeliveries {
    /// Why a request for one event did nothing; `None` if it did something, or was for whatever there is.
    fn is_nothing_of(&self, request: &RedeliveryRequest) -> Option<String> {
        (request.is_for_one_event() && self.redelivered.is_empty()).then(|| missing(request.listing.first))
    }
}

/// Why an event is neither shown nor delivered again.
fn missing(sequence: Sequence) -> String {
    format!("there is no event {sequence} in the store; it may have been removed by retention")
}

/// About how many bytes the reports of an entry take.
fn reported_bytes(entry: &Entry) -> usize {
    entry.reports.iter().map(|report| 128 + report.outcome.target.len() + report.outcome.detail.len()).sum()
}

/// To whom an event is to go.
fn addresses(entry: &Entry, request: &RedeliveryRequest) -> Vec<Address> {
    match &request.listing.fate {
        Some(fate) if fate.fate == Fate::DeadLetter => entry
            .reports
            .iter()
            .filter(|report| report.is_dead_letter() && fate.is_at(report))
            .map(|report| Address {
                client: Some(report.client.clone()),
                // What the client could not decode has reached none of its targets.
                target: Some(&report.outcome.target)
                    .filter(|target| *target != DECODER)
                    .map(|target| target.as_str().into()),
            })
            .collect(),
        _ => vec![request.address.clone()],
    }
}
