//! The gRPC method `Subscribe`: checks the first message and starts a session. tonic's types stop here and in the
//! session.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{TryStreamExt, stream};
use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::store::{EventStore, Owner, Registration, StoreError};
use gitstafette_core::subscription::{Flow, Progress, Window};
use gitstafette_proto::convert::{ExistingCursor, Start, Subscription, WireError};
use gitstafette_proto::v1::subscribe_request::Request as First;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{GoAwayReason, SubscribeRequest, SubscribeResponse};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::codegen::BoxStream;
use tracing::Instrument;

use super::outbox::outbox;
use super::registry::Standing;
use super::send_progress::SendProgress;
use super::session::{Session, TAKEN_OVER, farewell, wire};
use super::taking::refusal;
use super::traffic::Traffic;
use super::{Registry, StreamOptions};
use crate::auth::Peer;
use crate::metrics::Metrics;
use crate::relay::RELAY_CLIENTS;
use crate::watchlist::LiveWatchlist;

/// How long a client may take for its first message.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves subscriptions from a store.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    pub(crate) server_name: String,
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) watchlist: Arc<LiveWatchlist>,
    pub(crate) options: StreamOptions,
    pub(crate) registry: Arc<Registry>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: CancellationToken,
}

/// Who subscribes.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// Where it is, for operators.
    pub(crate) from: String,
    /// Cuts its connection, whatever is on it.
    pub(crate) cut: CancellationToken,
    /// How its connection takes what it is sent.
    pub(crate) progress: Arc<SendProgress>,
    /// Whose client ids it uses.
    owner: Owner,
    /// Whether it is one of this server's relays, which have client ids of their own.
    is_relay: bool,
}

impl Subscriber {
    /// A client, if its peer is known.
    pub(crate) fn client(peer: Option<&Peer>, progress: Arc<SendProgress>, owner: Owner) -> Self {
        Self {
            owner,
            progress,
            from: peer.map_or_else(String::new, |peer| peer.address.to_string()),
            cut: peer.map(|peer| peer.cut.clone()).unwrap_or_default(),
            is_relay: false,
        }
    }

    /// One of this server's relays, to the server at this address.
    pub(crate) fn relay(to: String) -> Self {
        let owner = Owner { label: "relay".to_owned(), max_ids: usize::MAX, current: Arc::default() };
        Self {
            from: to,
            cut: CancellationToken::new(),
            progress: Arc::new(SendProgress::of_server()),
            owner,
            is_relay: true,
        }
    }
}

impl Subscriptions {
    /// Opens a stream. The subscriber is a client on a connection, or a part of this server: what passes between the two
    /// are messages, not bytes.
    pub(crate) async fn subscribe(
        &self,
        subscriber: Subscriber,
        mut requests: BoxStream<SubscribeRequest>,
    ) -> Result<BoxStream<SubscribeResponse>, Status> {
        if self.draining.is_cancelled() {
            return Err(Status::unavailable("the server is going down; reconnect"));
        }
        let Subscriber { from, cut, progress, owner, is_relay } = subscriber;
        let subscription = first_message(&mut requests).await?;
        if subscription.client_id.as_str().starts_with(RELAY_CLIENTS) && !is_relay {
            let message = format!("client_id: {RELAY_CLIENTS}… are the server's own relays; choose another");
            return Err(Status::invalid_argument(message));
        }
        self.check_repositories(&subscription)?;
        let client = subscription.client_id.clone();
        let span = tracing::info_span!("session", client.id = %client, client.address = from);
        // First: a caller that may not use the id must not end the stream of the client that may.
        self.register(&client, &owner).await?;
        let filter = Arc::new(subscription.filter.clone());
        let standing = Standing::new(SystemTime::now().into(), from, Arc::clone(&filter));
        let standing = Arc::new(standing);
        let Ok(attachment) = self.registry.attach(client.clone(), Arc::clone(&standing)).await else {
            return Ok(taken_over());
        };
        if attachment.has_waited() {
            // Meanwhile the id may have been removed.
            self.register(&client, &owner).await?;
        }
        let common = self.common(&subscription);
        let progress_of_client = self.start(&subscription, common).await.map_err(|error| status(&error))?;
        // What the client deferred are other events here, unless its log is this one.
        let is_known = subscription.seen.as_ref().is_none_or(|seen| common == Some(seen.sequence));
        let mut deferred = if is_known { subscription.deferred } else { Vec::new() };
        // No stream sent an event that is not there yet.
        let head = head(&*self.store);
        deferred.retain(|sequence| *sequence <= head);
        let last_tried = self.store.last_first_attempt(&client).await.map_err(|error| status(&error))?;
        let window = self.window(subscription.max_events, subscription.max_bytes);
        let (outbox, outgoing) = outbox(Arc::clone(&progress));
        let session = Session {
            server_name: self.server_name.clone(),
            client,
            filter,
            store: Arc::clone(&self.store),
            cursor: progress_of_client.cursor.get().into(),
            last_tried,
            window,
            flow: Flow::new(progress_of_client, window, deferred).into(),
            common: common.filter(|_| !is_known),
            changed: Notify::new(),
            outbox,
            traffic: Arc::clone(&self.traffic),
            standing,
            metrics: Arc::clone(&self.metrics),
            options: self.options,
            draining: self.draining.clone(),
            cut,
            progress,
            ending: CancellationToken::new(),
        };
        self.tasks.spawn(session.run(requests, attachment).instrument(span));
        Ok(Box::pin(outgoing))
    }

    /// A subscription for what is never accepted would wait for ever: it is refused.
    fn check_repositories(&self, subscription: &Subscription) -> Result<(), Status> {
        let watchlist = self.watchlist.current();
        let outside = subscription.filter.repositories.iter().find(|pattern| !watchlist.may_admit(pattern));
        match outside {
            None => Ok(()),
            Some(pattern) => Err(Status::not_found(format!(
                "{pattern} is not on the server's watchlist; subscribe to another repository, or add it with --repositories"
            ))),
        }
    }

    /// Registers the client. Refuses a caller that makes up ever new ids, and one that uses the id of another.
    async fn register(&self, client: &ClientId, owner: &Owner) -> Result<(), Status> {
        match self.store.register_client(client, owner).await.map_err(|error| status(&error))? {
            Registration::Registered => Ok(()),
            Registration::OwnedByAnother => Err(Status::permission_denied(format!(
                "client_id: {client} belongs to another token; use an id of your own, or the token that has used this one, or \
                 let an operator release it with gitstafette-client subscriptions release {client}"
            ))),
            Registration::LimitReached => Err(Status::resource_exhausted(format!(
                "client_id: {client} is new, and this token already has {} client ids; use one of them, remove one with \
                 gitstafette-client subscriptions remove ID, or raise the server's --max-client-ids",
                owner.max_ids
            ))),
        }
    }

    /// The last sequence that the subscriber has seen and that means the same event here; `None` if it names none, or one of
    /// another store.
    fn common(&self, subscription: &Subscription) -> Option<Sequence> {
        let seen = subscription.seen.as_ref()?;
        let common = seen.last_common(&self.store.id().to_string(), self.store.history())?;
        Some(common.min(head(&*self.store)))
    }

    /// Where the subscription starts. Anything but the cursor moves the cursor there first.
    async fn start(
        &self,
        subscription: &Subscription,
        common: Option<Sequence>,
    ) -> Result<Progress, StoreError> {
        let client = &subscription.client_id;
        let existing = match (subscription.start, subscription.existing_cursor) {
            (Start::Cursor, _) | (_, ExistingCursor::Keep) => self.store.progress(client).await?,
            (_, ExistingCursor::Move) => None,
        };
        // What retention has removed before the start is not missed by anybody.
        let oldest = self.store.statistics().await?.removed_to();
        let cursor = match subscription.start {
            // A cursor from the start: what retention takes from it before its first acknowledgement is missed.
            Start::Cursor => oldest,
            // Beyond the head nothing was seen yet: starting there would skip what comes.
            Start::After(sequence) => sequence.max(oldest).min(head(&*self.store)),
            Start::Since(time) => self.store.before(time).await?,
            Start::Latest => head(&*self.store),
        };
        let Some(progress) = existing else {
            self.store.seek(client, cursor).await?;
            return Ok(Progress { cursor, ahead: Default::default() });
        };
        // The subscriber has nothing beyond this: its own store was set back. It asked for nothing before its start.
        let start = if subscription.start == Start::Latest { Sequence::ZERO } else { cursor };
        let common = common.filter(|_| subscription.resume_at_seen);
        let Some(back) = common.map(|common| common.max(start)).filter(|back| *back < progress.cursor) else {
            return Ok(progress);
        };
        tracing::warn!(
            client.id = %client,
            from = progress.cursor.get(),
            to = back.get(),
            "the cursor moves back: the subscriber has nothing of what is beyond"
        );
        self.store.seek(client, back).await?;
        Ok(Progress { cursor: back, ahead: Default::default() })
    }

    /// The smaller of what the client asks for and what the server allows.
    fn window(&self, events: Option<u32>, bytes: Option<u64>) -> Window {
        let Window { events: most_events, bytes: most_bytes } = self.options.unacknowledged;
        let events = events.and_then(|events| usize::try_from(events).ok()).unwrap_or(usize::MAX);
        Window { events: events.min(most_events), bytes: bytes.unwrap_or(u64::MAX).min(most_bytes) }
    }
}

/// The stream of a client that a newer one replaced before it began.
fn taken_over() -> BoxStream<SubscribeResponse> {
    let message = wire(Response::GoAway(farewell(GoAwayReason::TakenOver, TAKEN_OVER)));
    Box::pin(stream::once(async { Ok(message) }))
}

async fn first_message(requests: &mut BoxStream<SubscribeRequest>) -> Result<Subscription, Status> {
    let expected = "the first message of a stream is a subscription";
    let message = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, requests.try_next())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("{expected}; none came in time")))?
        .map_err(|status| refusal(&status).unwrap_or(status))?;
    match message.and_then(|message| message.request) {
        Some(First::Subscription(subscription)) => {
            subscription.try_into().map_err(|error: WireError| malformed(&error))
        }
        Some(_) | None => Err(Status::invalid_argument(expected)),
    }
}

pub(crate) fn malformed(error: &WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Whose fault a store's error is, and whether it may be tried again, as a gRPC status. The details of a broken disk
/// are the operator's: they are in the log.
pub(crate) fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Overloaded => Status::unavailable("the server's store is busy; reconnect"),
        StoreError::Closed => Status::unavailable("the server is going down; reconnect"),
        StoreError::DamagedEvent { .. } => Status::data_loss(error.to_string()),
        StoreError::Full { .. } | StoreError::Failed(_) | StoreError::Damaged { .. } => {
            tracing::error!(%error, "the store failed a client");
            Status::unavailable("the server's store failed; its log says why")
        }
    }
}

/// The head as it is now.
pub(super) fn head(store: &dyn EventStore) -> Sequence {
    *store.head().borrow()
}
