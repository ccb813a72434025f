//! Who is attached: one stream per client id. A newer one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use gitstafette_core::event::{ClientId, Timestamp};
use gitstafette_core::filter::Filter;
use gitstafette_core::subscription::Flow;
use gitstafette_proto::convert::{Attached, MAX_SHOWN_PATTERNS};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The attached streams by client id.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    places: DashMap<ClientId, Place>,
    next: AtomicU64,
}

/// The streams of one client id: one is attached, and at most one other waits for its end. The place is removed with the
/// last.
#[derive(Debug)]
struct Place {
    attached: Entrant,
    waiting: Option<(Entrant, oneshot::Sender<()>)>,
}

/// A stream of a place.
#[derive(Debug)]
struct Entrant {
    stream: u64,
    /// Tells the stream that a newer one takes over.
    taken_over: CancellationToken,
    /// What operators are told of it.
    standing: Arc<Standing>,
}

/// What operators are told of an attached stream.
#[derive(Debug)]
pub(crate) struct Standing {
    since: Timestamp,
    peer: String,
    filter: Arc<Filter>,
    unacknowledged: AtomicU64,
    deferred: AtomicU64,
    sent: AtomicU64,
    missed: AtomicU64,
}

impl Standing {
    /// Of a stream that begins at `since`, of a client at `peer`, for what `filter` selects.
    pub(crate) fn new(since: Timestamp, peer: String, filter: Arc<Filter>) -> Self {
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
        let Filter { repositories, events } = &*self.filter;
        let more = |patterns: usize| patterns.saturating_sub(MAX_SHOWN_PATTERNS) as u64;
        Attached {
            since: self.since,
            peer: self.peer.clone(),
            repositories: repositories.iter().take(MAX_SHOWN_PATTERNS).cloned().collect(),
            events: events.iter().take(MAX_SHOWN_PATTERNS).map(ToString::to_string).collect(),
            more_patterns: more(repositories.len()) + more(events.len()),
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
    has_waited: bool,
}

/// A newer stream of the same client id came while this one waited for an older one to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakenOver;

impl Registry {
    /// Attaches a stream. The attached stream of the same id is told to end, and has ended when this returns: the
    /// acknowledgements that it stored count. Another stream that waits for that gives up.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        client: ClientId,
        standing: Arc<Standing>,
    ) -> Result<Attachment, TakenOver> {
        let (entrant, mut attachment) = self.entrant(client, standing);
        let admitted = match self.places.entry(attachment.client.clone()) {
            dashmap::Entry::Vacant(vacant) => {
                vacant.insert(Place { attached: entrant, waiting: None });
                return Ok(attachment);
            }
            dashmap::Entry::Occupied(mut occupied) => {
                let place = occupied.get_mut();
                place.attached.taken_over.cancel();
                let (admit, admitted) = oneshot::channel();
                // With the sender of an earlier one goes its place in the queue.
                place.waiting = Some((entrant, admit));
                admitted
            }
        };
        admitted.await.map_err(|_| TakenOver)?;
        attachment.has_waited = true;
        Ok(attachment)
    }

    /// Occupies the id of a client that is not connected; `None` if it is. A stream that comes meanwhile waits until the
    /// returned attachment is dropped.
    pub(crate) fn occupy(self: &Arc<Self>, client: &ClientId, standing: Arc<Standing>) -> Option<Attachment> {
        let dashmap::Entry::Vacant(vacant) = self.places.entry(client.clone()) else { return None };
        let (entrant, attachment) = self.entrant(client.clone(), standing);
        vacant.insert(Place { attached: entrant, waiting: None });
        Some(attachment)
    }

    fn entrant(self: &Arc<Self>, client: ClientId, standing: Arc<Standing>) -> (Entrant, Attachment) {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let taken_over = CancellationToken::new();
        let entrant = Entrant { stream, taken_over: taken_over.clone(), standing };
        let registry = Arc::clone(self);
        (entrant, Attachment { registry, client, stream, taken_over, has_waited: false })
    }

    /// The ids of all attached clients, in no order.
    pub(crate) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.places.iter().map(|place| place.key().clone())
    }

    /// The attached streams, in no order.
    pub(crate) fn attached(&self) -> Vec<(ClientId, Attached)> {
        let attached = |place: &Place| place.attached.standing.attached();
        self.places.iter().map(|place| (place.key().clone(), attached(&place))).collect()
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

    /// Whether another stream of the client had to end first.
    pub(crate) fn has_waited(&self) -> bool {
        self.has_waited
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let stream = self.stream;
        self.registry.places.remove_if_mut(&self.client, |_, place| {
            if place.attached.stream != stream {
                // It gave up waiting, or a newer one has its place.
                place.waiting.take_if(|(waiting, _)| waiting.stream == stream);
                return false;
            }
            let Some((next, admit)) = place.waiting.take() else { return true };
            place.attached = next;
            // One that has given up meanwhile leaves the place when it is dropped.
            admit.send(()).ok();
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Arc<Standing> {
        Arc::new(Standing::new(Timestamp::default(), "somewhere".to_owned(), Arc::default()))
    }

    async fn settle() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_newer_stream_waits_for_the_older_to_end() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone(), standing()).await.unwrap();
        let other = registry.attach("b".parse().unwrap(), standing()).await.unwrap();
        assert!(!first.has_waited());
        let second = tokio::spawn({
            let (registry, client) = (Arc::clone(&registry), client.clone());
            async move { registry.attach(client, standing()).await }
        });
        first.taken_over().await;
        assert!(!second.is_finished());
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert!(second.has_waited());
        assert_eq!(registry.len(), 2, "the older one's end does not remove the newer one");
        drop(second);
        drop(other);
        assert_eq!(registry.len(), 0);
    }

    #[tokio::test]
    async fn a_third_stream_replaces_the_one_that_waits() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone(), standing()).await.unwrap();
        let attach = || {
            let (registry, client) = (Arc::clone(&registry), client.clone());
            tokio::spawn(async move { registry.attach(client, standing()).await })
        };
        let mut newest = attach();
        settle().await;
        for _ in 0..1000 {
            let newer = attach();
            assert!(newest.await.unwrap().is_err(), "it ends at once, though the first has not ended");
            newest = newer;
        }
        assert_eq!((registry.len(), registry.attached().len()), (1, 1));
        drop(first);
        drop(newest.await.unwrap().unwrap());
        assert_eq!(registry.len(), 0);
    }

    #[tokio::test]
    async fn streams_that_give_up_leave_no_entry() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let first = registry.attach(client.clone(), standing()).await.unwrap();
        let attach = || {
            let (registry, client) = (Arc::clone(&registry), client.clone());
            tokio::spawn(async move { registry.attach(client, standing()).await })
        };
        let second = attach();
        first.taken_over().await;
        settle().await;
        second.abort();
        assert!(second.await.is_err());
        assert!(registry.is_attached(&client), "the first stream is still there");
        let third = attach();
        settle().await;
        assert!(!third.is_finished(), "the second lets nobody past the first");
        drop(first);
        // It has its place, and gives up before it knows.
        third.abort();
        drop(third.await);
        assert!(!registry.is_attached(&client));
        assert_eq!((registry.len(), registry.attached().len()), (0, 0));
    }

    #[tokio::test]
    async fn an_occupied_id_passes_to_the_stream_that_waits() {
        let registry = Arc::new(Registry::default());
        let client: ClientId = "a".parse().unwrap();
        let occupied = registry.occupy(&client, standing()).unwrap();
        assert!(registry.occupy(&client, standing()).is_none());
        let waiting = tokio::spawn({
            let (registry, client) = (Arc::clone(&registry), client.clone());
            async move { registry.attach(client, standing()).await }
        });
        settle().await;
        drop(occupied);
        assert!(waiting.await.unwrap().unwrap().has_waited());
        assert_eq!(registry.len(), 0);
    }
}
