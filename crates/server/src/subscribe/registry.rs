//! Who is attached: one stream per client id. A newer one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use gitstafette_core::event::{ClientId, Timestamp};
use gitstafette_core::filter::Filter;
use gitstafette_core::subscription::Flow;
use gitstafette_proto::convert::Attached;
use tokio_util::sync::CancellationToken;

/// The attached streams by client id.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    attached: DashMap<ClientId, Entry>,
    next: AtomicU64,
}

#[derive(Clone, Debug)]
struct Entry {
    stream: u64,
    standing: Arc<Standing>,
    taken_over: CancellationToken,
    ended: CancellationToken,
    /// The ends of those it takes over from: the last one, and those that one was still waiting for.
    earlier: Vec<CancellationToken>,
}

/// What operators are told of an attached stream.
#[derive(Debug)]
pub(crate) struct Standing {
    since: Timestamp,
    peer: String,
    filter: Filter,
    unacknowledged: AtomicU64,
    deferred: AtomicU64,
    sent: AtomicU64,
    missed: AtomicU64,
}

impl Standing {
    /// Of a stream that begins at `since`, of a client at `peer`, for what `filter` selects.
    pub(crate) fn new(since: Timestamp, peer: String, filter: Filter) -> Self {
        let zero = AtomicU64::default;
        Self { since, peer, filter, unacknowledged: zero(), deferred: zero(), sent: zero(), missed: zero() }
    }

    /// Follows the flow.
    pub(super) fn follow(&self, flow: &Flow) {
        self.unacknowledged.store(flow.outstanding() as u64, Ordering::Relaxed);
        self.deferred.store(flow.deferred() as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether nothing was missed on this stream so far.
    pub(super) fn has_missed_none(&self) -> bool {
        self.missed.load(Ordering::Relaxed) == 0
    }

    pub(super) fn missed(&self, events: u64) {
        self.missed.fetch_add(events, Ordering::Relaxed);
    }

    fn attached(&self) -> Attached {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Attached {
            since: self.since,
            peer: self.peer.clone(),
            repositories: self.filter.repositories.clone(),
            events: self.filter.events.iter().map(ToString::to_string).collect(),
            unacknowledged: value(&self.unacknowledged),
            deferred: value(&self.deferred),
            sent: value(&self.sent),
            missed: value(&self.missed),
        }
    }
}

/// A stream's place in the registry, left when it is dropped.
#[derive(Debug)]
pub(crate) struct Attachment {
    registry: Arc<Registry>,
    client: ClientId,
    entry: Entry,
    /// The stream that it takes over from, until that has ended.
    previous: Option<Entry>,
}

impl Registry {
    /// Attaches a stream. One that is attached under the same id is told to end, and has ended when this returns:
    /// what it still acknowledges counts.
    pub(crate) async fn attach(self: &Arc<Self>, client: ClientId, standing: Arc<Standing>) -> Attachment {
        let mut entry = self.entry(standing);
        let mut attachment = match self.attached.entry(client.clone()) {
            dashmap::Entry::Vacant(place) => {
                place.insert(entry.clone());
                Attachment { registry: Arc::clone(self), client, entry, previous: None }
            }
            dashmap::Entry::Occupied(mut place) => {
                entry.earlier.clone_from(&place.get().earlier);
                entry.earlier.push(place.get().ended.clone());
                entry.earlier.retain(|ended| !ended.is_cancelled());
                let previous = place.insert(entry.clone());
                Attachment { registry: Arc::clone(self), client, entry, previous: Some(previous) }
            }
        };
        if let Some(previous) = &attachment.previous {
            previous.taken_over.cancel();
        }
        for ended in &attachment.entry.earlier {
            ended.cancelled().await;
        }
        attachment.previous = None;
        attachment
    }

    /// Occupies the id of a client that is not connected; `None` if it is. A stream that comes meanwhile waits until the
    /// returned attachment is dropped.
    pub(crate) fn occupy(self: &Arc<Self>, client: &ClientId, standing: Arc<Standing>) -> Option<Attachment> {
        let entry = self.entry(standing);
        match self.attached.entry(client.clone()) {
            dashmap::Entry::Occupied(place) if !place.get().ended.is_cancelled() => return None,
            dashmap::Entry::Occupied(mut place) => drop(place.insert(entry.clone())),
            dashmap::Entry::Vacant(place) => drop(place.insert(entry.clone())),
        }
        Some(Attachment { registry: Arc::clone(self), client: client.clone(), entry, previous: None })
    }

    /// The ids of all attached clients, in no order.
    pub(crate) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.attached.iter().map(|entry| entry.key().clone())
    }

    fn entry(&self, standing: Arc<Standing>) -> Entry {
        Entry {
            stream: self.next.fetch_add(1, Ordering::Relaxed),
            standing,
            taken_over: CancellationToken::new(),
            ended: CancellationToken::new(),
            earlier: Vec::new(),
        }
    }

    /// Who is attached, in no order.
    pub(crate) fn attached(&self) -> Vec<(ClientId, Attached)> {
        let live = self.attached.iter().filter(|entry| !entry.ended.is_cancelled());
        live.map(|entry| (entry.key().clone(), entry.standing.attached())).collect()
    }

    /// Whether a stream of this client is attached.
    pub(crate) fn is_attached(&self, client: &ClientId) -> bool {
        self.attached.get(client).is_some_and(|entry| !entry.ended.is_cancelled())
    }

    /// How many streams are attached.
    pub(crate) fn len(&self) -> usize {
        self.attached.len()
    }
}

impl Attachment {
    /// Waits until a newer stream takes over.
    pub(crate) async fn taken_over(&self) {
        self.entry.taken_over.cancelled().await;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let Some(previous) = self.previous.take() else {
            self.registry.attached.remove_if(&self.client, |_, entry| entry.stream == self.entry.stream);
            self.entry.ended.cancel();
            return;
        };
        // It gave up before it had taken over: the older one has its place again, until it has ended.
        if let Some(mut place) = self.registry.attached.get_mut(&self.client)
            && place.stream == self.entry.stream
        {
            *place = previous;
        }
        self.entry.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Arc<Standing> {
        Arc::new(Standing::new(Timestamp::default(), "somewhere".to_owned(), Filter::default()))
    }

    #[tokio::test]
    async fn who_gives_up_waiting_lets_nobody_past_the_older() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone(), standing()).await;
        let attach = || {
            let (registry, client) = (Arc::clone(&registry), client.clone());
            tokio::spawn(async move { registry.attach(client, standing()).await })
        };
        let second = attach();
        first.taken_over().await;
        let third = attach();
        tokio::task::yield_now().await;
        second.abort();
        assert!(second.await.is_err());
        let fourth = attach();
        tokio::task::yield_now().await;
        third.abort();
        assert!(third.await.is_err());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!fourth.is_finished(), "the first has not ended");
        drop(first);
        drop(fourth.await.unwrap());
        assert_eq!(registry.len(), 0);
    }

    #[tokio::test]
    async fn a_newer_stream_waits_for_the_older_to_end() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone(), standing()).await;
        let other = registry.attach("b".parse().unwrap(), standing()).await;
        let second = tokio::spawn({
            let (registry, client) = (Arc::clone(&registry), client.clone());
            async move { registry.attach(client, standing()).await }
        });
        first.taken_over().await;
        assert!(!second.is_finished());
        drop(first);
        let second = second.await.unwrap();
        assert_eq!(registry.len(), 2, "the older one's end does not remove the newer one");
        drop(second);
        drop(other);
        assert_eq!(registry.len(), 0);
    }
}
