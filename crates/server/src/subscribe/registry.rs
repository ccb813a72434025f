//! Who is attached: one stream per client id. A newer one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use gitstafette_core::event::{ClientId, Timestamp};
use gitstafette_core::filter::Filter;
use gitstafette_core::subscription::Flow;
use gitstafette_proto::convert::Attached;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

/// The attached streams by client id.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    places: DashMap<ClientId, Place>,
    next: AtomicU64,
}

/// The streams of one client id: at most one is attached, and others wait for its end.
#[derive(Debug)]
struct Place {
    /// How many there are. The place is removed with the last.
    streams: usize,
    /// Tells the newest one that a newer one takes over.
    newest: CancellationToken,
    /// The attached one holds the lock. The others wait for it, in the order of their arrival.
    turn: Arc<Mutex<()>>,
    /// The attached one's number, and what operators are told of it.
    attached: Option<(u64, Arc<Standing>)>,
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

/// A stream in the registry. It leaves when it is dropped.
#[derive(Debug)]
pub(crate) struct Attachment {
    registry: Arc<Registry>,
    client: ClientId,
    stream: u64,
    taken_over: CancellationToken,
    /// `None` while it waits for an older stream to end.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Registry {
    /// Attaches a stream. The streams of the same id that are attached or wait are told to end. The attached one has ended
    /// when this returns: the acknowledgements that it stored count.
    pub(crate) async fn attach(self: &Arc<Self>, client: ClientId, standing: Arc<Standing>) -> Attachment {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let taken_over = CancellationToken::new();
        let turn = {
            let mut place = self.places.entry(client.clone()).or_insert_with(|| Place {
                streams: 0,
                newest: CancellationToken::new(),
                turn: Arc::default(),
                attached: None,
            });
            place.streams += 1;
            std::mem::replace(&mut place.newest, taken_over.clone()).cancel();
            Arc::clone(&place.turn)
        };
        let mut attachment =
            Attachment { registry: Arc::clone(self), client, stream, taken_over, turn: None };
        attachment.turn = Some(turn.lock_owned().await);
        if let Some(mut place) = self.places.get_mut(&attachment.client) {
            place.attached = Some((stream, standing));
        }
        attachment
    }

    /// Occupies the id of a client that is not connected; `None` if it is. A stream that comes meanwhile waits until the
    /// returned attachment is dropped.
    pub(crate) fn occupy(self: &Arc<Self>, client: &ClientId, standing: Arc<Standing>) -> Option<Attachment> {
        let dashmap::Entry::Vacant(vacant) = self.places.entry(client.clone()) else { return None };
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let (taken_over, turn) = (CancellationToken::new(), Arc::<Mutex<()>>::default());
        let held = Arc::clone(&turn).try_lock_owned().ok();
        vacant.insert(Place {
            streams: 1,
            newest: taken_over.clone(),
            turn,
            attached: Some((stream, standing)),
        });
        Some(Attachment {
            registry: Arc::clone(self),
            client: client.clone(),
            stream,
            taken_over,
            turn: held,
        })
    }

    /// The ids of all attached clients, in no order.
    pub(crate) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.places.iter().map(|place| place.key().clone())
    }

    /// The attached streams, in no order.
    pub(crate) fn attached(&self) -> Vec<(ClientId, Attached)> {
        let standing = |place: &Place| place.attached.as_ref().map(|(_, standing)| standing.attached());
        self.places.iter().filter_map(|place| Some((place.key().clone(), standing(&place)?))).collect()
    }

    /// Whether a stream of this client is attached, or is about to be.
    pub(crate) fn is_attached(&self, client: &ClientId) -> bool {
        self.places.contains_key(client)
    }

    /// How many clients have a stream.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }
}

impl Attachment {
    /// Waits until a newer stream takes over.
    pub(crate) async fn taken_over(&self) {
        self.taken_over.cancelled().await;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let stream = self.stream;
        // The lock is released after this: the next stream enters its own standing then.
        self.registry.places.remove_if_mut(&self.client, |_, place| {
            place.streams -= 1;
            place.attached.take_if(|(attached, _)| *attached == stream);
            place.streams == 0
        });
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
    async fn streams_that_give_up_leave_no_entry() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone(), standing()).await;
        let attach = || {
            let (registry, client) = (Arc::clone(&registry), client.clone());
            tokio::spawn(async move { registry.attach(client, standing()).await })
        };
        let (second, third) = (attach(), attach());
        first.taken_over().await;
        tokio::task::yield_now().await;
        for waiting in [second, third] {
            waiting.abort();
            assert!(waiting.await.is_err());
            assert!(registry.is_attached(&client), "the first stream is still there");
            assert_eq!((registry.len(), registry.attached().len()), (1, 1));
        }
        drop(first);
        assert!(!registry.is_attached(&client));
        assert_eq!((registry.len(), registry.attached().len()), (0, 0));
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
