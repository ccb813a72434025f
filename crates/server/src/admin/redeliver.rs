//! Delivering stored events again, batch by batch, so that a caller learns how far a redelivery has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::{Stream, stream};
use gitstafette_core::event::{Address, ClientId, Sequence};
use gitstafette_core::outcomes::{MAX_TARGETS, OTHER_TARGETS};
use gitstafette_core::store::{Entry, Fate, Listing, StoreError};
use gitstafette_core::target::DECODER;
use gitstafette_proto::convert::{RedeliveryRequest, WireError};
use serde::Serialize;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Admin, missing};

/// How many redeliveries wait for one commit together: as many as the store writes at once.
const BATCH_EVENTS: usize = 256;
/// How many bytes of events one batch copies, and at least one event: a slow disk must have written them in a few seconds.
const BATCH_BYTES: u64 = 16 << 20;
/// How often a caller hears of a batch that is under way. Proxies close connections that are silent for 60 s.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// One event that is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Redelivered {
    /// The event.
    pub(super) sequence: Sequence,
    /// The new event with its bytes.
    pub(super) redelivered_as: Sequence,
}

/// What a redelivery did since it was last asked, and how far it has come.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Progress {
    /// In the order of the log.
    pub(super) redelivered: Vec<Redelivered>,
    /// The `first` of the next call, unless all is done.
    pub(super) next: Option<Sequence>,
    /// The `last` of the next call: what was appended meanwhile lies beyond it, this call's own events too.
    pub(super) last: Sequence,
    /// How many events the call has appended so far.
    pub(super) total: usize,
}

/// Why a redelivery ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedeliveryError {
    /// It names one event, which is not stored.
    #[error("{}", missing(*.0))]
    Missing(Sequence),
    /// The server goes down.
    #[error("the server shuts down; go on at event {0} when it is back")]
    Draining(Sequence),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A redelivery under way.
pub(super) struct Redelivery {
    admin: Arc<Admin>,
    request: RedeliveryRequest,
    /// Without a list of events.
    progress: Progress,
}

impl Admin {
    /// A redelivery of what is in the log now.
    ///
    /// # Errors
    /// It would deliver everything again.
    pub(super) fn redelivery(self: &Arc<Self>, request: RedeliveryRequest) -> Result<Redelivery, WireError> {
        let head = *self.store.head().borrow();
        request.check(head)?;
        let Listing { first, last, .. } = request.listing;
        // What this call appends is not part of it.
        let progress =
            Progress { redelivered: Vec::new(), next: Some(first), last: last.min(head), total: 0 };
        Ok(Redelivery { admin: Arc::clone(self), request, progress })
    }
}

impl Redelivery {
    /// Works for at most this long, and says how far it came.
    pub(super) async fn run_for(mut self, time: Duration) -> Result<Progress, RedeliveryError> {
        let started = Instant::now();
        let mut redelivered = Vec::new();
        loop {
            match self.step().await {
                Ok(batch) => redelivered.extend(batch),
                Err(error) if redelivered.is_empty() => return Err(error),
                // What was done must be told. The next call fails in the same way, if that lasts.
                Err(_) => break,
            }
            if self.is_over() || started.elapsed() >= time {
                break;
            }
        }
        Ok(Progress { redelivered, ..self.progress })
    }

    /// Works as far as the caller reads, and says how far it has come: after each batch, and while one takes long. The last
    /// item is an error, or says where to go on.
    pub(super) fn progress(self) -> impl Stream<Item = Result<Progress, RedeliveryError>> + Send {
        let progress = self.progress.clone();
        stream::unfold(Some((self.batch(), progress)), |state| async {
            let (mut batch, progress) = state?;
            Some(match tokio::time::timeout(PROGRESS_INTERVAL, &mut batch).await {
                Err(_) => (Ok(progress.clone()), Some((batch, progress))),
                Ok((_, Err(error))) => (Err(error), None),
                Ok((this, Ok(redelivered))) => {
                    let progress = this.progress.clone();
                    let next = (!this.is_over()).then(|| (this.batch(), progress.clone()));
                    (Ok(Progress { redelivered, ..progress }), next)
                }
            })
        })
    }

    fn batch(mut self) -> BoxFuture<'static, (Self, Result<Vec<Redelivered>, RedeliveryError>)> {
        async move {
            let redelivered = self.step().await;
            (self, redelivered)
        }
        .boxed()
    }

    fn left(&self) -> usize {
        self.request.listing.limit.saturating_sub(self.progress.total)
    }

    fn is_over(&self) -> bool {
        self.progress.next.is_none() || self.left() == 0
    }

    /// Appends the next batch, the oldest events first. If only some of them can be appended, it says so, and the next batch
    /// begins with the first of the others.
    async fn step(&mut self) -> Result<Vec<Redelivered>, RedeliveryError> {
        let Some(first) = self.progress.next.filter(|_| self.left() > 0) else { return Ok(Vec::new()) };
        if self.admin.draining.is_cancelled() {
            return Err(RedeliveryError::Draining(first));
        }
        let limit = self.left().min(BATCH_EVENTS);
        let listing = Listing { first, last: self.progress.last, limit, ..self.request.listing.clone() };
        let listed = self.admin.list(&listing).await?;
        let (copies, cut_at) = self.copies(&listed.entries, limit);
        let store = &self.admin.store;
        let appended =
            join_all(copies.iter().map(|(entry, to)| store.redeliver(entry.sequence, to.clone()))).await;
        let (mut redelivered, mut failed, mut damaged) = (Vec::new(), None, None);
        for ((entry, _), appended) in copies.iter().zip(appended) {
            match appended {
                Ok(Some(copy)) => {
                    self.admin.note_redelivery(entry, copy);
                    redelivered.push(Redelivered { sequence: entry.sequence, redelivered_as: copy });
                }
                Ok(None) => {}
                // It does not keep the others from being redelivered.
                Err(error @ StoreError::DamagedEvent { .. }) if !self.request.is_for_one_event() => {
                    warn!(event.sequence = entry.sequence.get(), reason = %error, "not redelivered");
                    damaged = Some(entry.sequence);
                }
                Err(error) => {
                    failed.get_or_insert((entry.sequence, error));
                }
            }
        }
        let failed_at = match failed {
            Some((_, error)) if redelivered.is_empty() => return Err(error.into()),
            failed => failed.map(|(sequence, _)| sequence),
        };
        // A damaged event has no other copies: to begin with it again would never end.
        let cut_at = cut_at.map(|at| if Some(at) == damaged { at.next() } else { at });
        self.progress.next = failed_at.or(cut_at).or(listed.next);
        self.progress.total += redelivered.len();
        if self.request.is_for_one_event() && self.progress.total == 0 && self.progress.next.is_none() {
            return Err(RedeliveryError::Missing(self.request.listing.first));
        }
        Ok(redelivered)
    }

    /// The copies of one batch, at most `limit`, and the event at which the next batch begins if not all of them fit.
    fn copies<'a>(
        &self,
        entries: &'a [Entry],
        limit: usize,
    ) -> (Vec<(&'a Entry, Address)>, Option<Sequence>) {
        let (mut copies, mut bytes) = (Vec::new(), 0u64);
        for entry in entries {
            for address in addresses(entry, &self.request) {
                bytes = bytes.saturating_add(entry.size);
                if copies.len() >= limit || (bytes > BATCH_BYTES && !copies.is_empty()) {
                    return (copies, Some(entry.sequence));
                }
                copies.push((entry, address));
            }
        }
        (copies, None)
    }
}

impl Admin {
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
}

/// To whom an event is to go: a dead letter once to each client, for all targets where it is dead.
fn addresses(entry: &Entry, request: &RedeliveryRequest) -> Vec<Address> {
    let fate = match &request.listing.fate {
        Some(fate) if fate.fate == Fate::DeadLetter => fate,
        _ => return vec![request.address.clone()],
    };
    let mut targets = BTreeMap::<&ClientId, Vec<&str>>::new();
    for report in entry.reports.iter().filter(|report| report.is_dead_letter() && fate.is_at(report)) {
        targets.entry(&report.client).or_default().push(&report.outcome.target);
    }
    let address = |(client, targets): (&ClientId, Vec<&str>)| {
        // These names stand for no target of the client: the event then goes to all of them.
        let is_for_all = targets.len() > MAX_TARGETS
            || targets.iter().any(|target| [DECODER, OTHER_TARGETS].contains(target));
        let targets = if is_for_all { Vec::new() } else { targets };
        Address { client: Some(client.clone()), targets: targets.into_iter().map(Into::into).collect() }
    };
    targets.into_iter().map(address).collect()
}
