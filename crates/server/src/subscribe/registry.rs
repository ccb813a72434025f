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
}

impl Registry {
    /// Attaches a stream. One that is attached under the same id is told to end, and has ended when this returns:
    /// what it still acknowledges counts.
    pub(crate) async fn attach(self: &Arc<Self>, client: ClientId, standing: Arc<Standing>) -> Attachment {
        let entry = Entry {
            stream: self.next.fetch_add(1, Ordering::Relaxed),
            standing,
            taken_over: CancellationToken::new(),
            ended: CancellationToken::new(),
        };
        let previous = self.attached.insert(client.clone(), entry.clone());
        let attachment = Attachment { registry: Arc::clone(self), client, entry };
        if let Some(previous) = previous {
            previous.taken_over.cancel();
            previous.ended.cancelled().await;
        }
        attachment
    }

    /// Who is attached, in no order.
    pub(crate) fn attached(&self) -> Vec<(ClientId, Attached)> {
        self.attached.iter().map(|entry| (entry.key().clone(), entry.standing.attached())).collect()
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
        self.registry.attached.remove_if(&self.client, |_, entry| entry.stream == self.entry.stream);
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
