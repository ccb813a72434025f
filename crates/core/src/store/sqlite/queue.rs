//! The queue before the writer, bounded by requests and by bytes: what does not fit waits in front of it, first come,
//! first served, and what is in it will be done.
//!
//! There is one room for appends and redeliveries and one for everything else, so that acknowledgements and seeks, which let subscribers go on,
//! never stand behind a burst of large webhooks. Behind the two rooms is one queue in the order of entry. Room is held
//! until the answer is given: what the writer is working on still counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

#[cfg(test)]
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use crate::event::{Address, ClientId, Event, Sequence, Webhook};
use crate::repository::RepositoryPattern;
use crate::store::{
    Acknowledgement, Appended, FirstAttempt, Owner, Registration, StoreError, WatchlistChange,
};

/// How many bytes of webhooks may be queued or in the group that is written; a larger one takes the whole room.
const APPEND_BYTES: u32 = 8 << 20;
/// What a webhook takes of that at least, which bounds their number as well: to 1024.
const APPEND_LEAST: u32 = 8 << 10;
/// How many acknowledgements, seeks and changes may be queued or in the group that is written.
const PROGRESS_REQUESTS: usize = 1024;
/// How many appends may wait for room. Above that the disk is not keeping up and the sender must hear of it.
pub(super) const WAITING_APPENDS: usize = 4096;

/// Where one request's result goes. The result is held back until it is durable.
pub(super) struct Answer<T> {
    sender: oneshot::Sender<Result<T, StoreError>>,
    held: Option<T>,
}

impl<T> Answer<T> {
    fn new(sender: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { sender, held: None }
    }

    /// Keeps the result, in place of an earlier one.
    pub(super) fn hold(&mut self, result: T) {
        self.held = Some(result);
    }

    /// Sends the result.
    pub(super) fn send(self) {
        // Whoever asked may have gone; what they asked for is done all the same.
        drop(self.sender.send(self.held.ok_or(StoreError::Closed)));
    }

    /// Sends that it was not done.
    fn fail(self, error: StoreError) {
        drop(self.sender.send(Err(error)));
    }
}

/// What the writer can be asked to do.
pub(super) enum Task {
    /// [`EventStore::append`](crate::store::EventStore::append).
    Append {
        /// What to append.
        webhook: Box<Webhook>,
        /// Where the result goes.
        answer: Answer<Appended>,
    },
    /// [`EventStore::redeliver`](crate::store::EventStore::redeliver).
    Redeliver {
        /// Which event.
        sequence: Sequence,
        /// For whom.
        address: Address,
        /// Bytes of its headers and body, which the writer takes into memory.
        size: u64,
        /// The new event, when it is appended.
        event: Option<Arc<Event>>,
        /// Where the result goes.
        answer: Answer<Option<Sequence>>,
    },
    /// [`EventStore::acknowledge`](crate::store::EventStore::acknowledge).
    Acknowledge {
        /// Who acknowledges.
        client: ClientId,
        /// What.
        acknowledgements: Vec<Acknowledgement>,
        /// The new cursor.
        cursor: Sequence,
        /// Where the result goes.
        answer: Answer<()>,
    },
    /// [`EventStore::record_first_attempts`](crate::store::EventStore::record_first_attempts).
    RecordFirstAttempts {
        /// Whose attempts.
        client: ClientId,
        /// Which.
        first_attempts: Vec<FirstAttempt>,
        /// Where the result goes.
        answer: Answer<()>,
    },
    /// [`EventStore::seek`](crate::store::EventStore::seek).
    Seek {
        /// Whose cursor.
        client: ClientId,
        /// Where to.
        cursor: Sequence,
        /// Where the result goes.
        answer: Answer<()>,
    },
    /// [`EventStore::register_client`](crate::store::EventStore::register_client).
    RegisterClient {
        /// Which client.
        client: ClientId,
        /// Whose it is if it is new.
        owner: Owner,
        /// Where the result goes.
        answer: Answer<Registration>,
    },
    /// [`EventStore::release_client`](crate::store::EventStore::release_client).
    ReleaseClient {
        /// Which client.
        client: ClientId,
        /// Where the result goes.
        answer: Answer<bool>,
    },
    /// [`EventStore::remove_client`](crate::store::EventStore::remove_client).
    RemoveClient {
        /// Which client.
        client: ClientId,
        /// Where the result goes.
        answer: Answer<bool>,
    },
    /// [`EventStore::forget_clients`](crate::store::EventStore::forget_clients).
    ForgetClients {
        /// How long a client may stay away.
        age: Duration,
        /// Clients that are seen now.
        connected: Vec<ClientId>,
        /// Where the result goes.
        answer: Answer<Vec<ClientId>>,
    },
    /// [`EventStore::change_watchlist`](crate::store::EventStore::change_watchlist).
    ChangeWatchlist {
        /// Which pattern.
        pattern: RepositoryPattern,
        /// What is kept of it.
        change: Option<WatchlistChange>,
        /// Where the result goes.
        answer: Answer<()>,
    },
    /// [`EventStore::store_relay_state`](crate::store::EventStore::store_relay_state).
    StoreRelayState {
        /// Which relay.
        relay: String,
        /// Its state.
        state: String,
        /// Where the result goes.
        answer: Answer<()>,
    },
    /// Runs with the writer's connection, between groups.
    #[cfg(test)]
    Inspect {
        /// What to run.
        run: Box<dyn FnOnce(&Connection) + Send>,
        /// Told when it ran.
        answer: Answer<()>,
    },
}

impl Task {
    /// About how many bytes it keeps in memory.
    fn weight(&self) -> u64 {
        match self {
            Self::Append { webhook, .. } => webhook.size(),
            Self::Redeliver { size, .. } => *size,
            Self::Acknowledge { acknowledgements, .. } => {
                let outcomes = acknowledgements.iter().flat_map(|ack| &ack.outcomes);
                outcomes.map(|outcome| (128 + outcome.target.len() + outcome.detail.len()) as u64).sum()
            }
            Self::RecordFirstAttempts { first_attempts, .. } => {
                first_attempts.iter().map(|one| (64 + one.target.len()) as u64).sum()
            }
            _ => 0,
        }
    }

    /// Ends a task whose result is durable: the event that it has appended, and what tells whoever asked.
    pub(super) fn finish(self) -> (Option<Arc<Event>>, Box<dyn FnOnce()>) {
        fn tell<T: 'static>(answer: Answer<T>) -> Box<dyn FnOnce()> {
            Box::new(move || answer.send())
        }
        match self {
            Self::Append { webhook, answer } => {
                let event = match answer.held {
                    Some(Appended::Stored { sequence, redelivery }) => {
                        let address = Address::default();
                        Some(Arc::new(Event { sequence, redelivery, address, webhook: *webhook }))
                    }
                    _ => None,
                };
                (event, tell(answer))
            }
            Self::Redeliver { event, answer, .. } => (event, tell(answer)),
            Self::RegisterClient { answer, .. } => (None, tell(answer)),
            Self::ReleaseClient { answer, .. } | Self::RemoveClient { answer, .. } => (None, tell(answer)),
            Self::ForgetClients { answer, .. } => (None, tell(answer)),
            Self::Acknowledge { answer, .. }
            | Self::RecordFirstAttempts { answer, .. }
            | Self::Seek { answer, .. }
            | Self::ChangeWatchlist { answer, .. }
            | Self::StoreRelayState { answer, .. } => (None, tell(answer)),
            #[cfg(test)]
            Self::Inspect { answer, .. } => (None, tell(answer)),
        }
    }

    /// Tells whoever asked that it was not done.
    pub(super) fn fail(self, error: StoreError) {
        match self {
            Self::Append { answer, .. } => answer.fail(error),
            Self::Redeliver { answer, .. } => answer.fail(error),
            Self::RegisterClient { answer, .. } => answer.fail(error),
            Self::ReleaseClient { answer, .. } | Self::RemoveClient { answer, .. } => answer.fail(error),
            Self::ForgetClients { answer, .. } => answer.fail(error),
            Self::Acknowledge { answer, .. }
            | Self::RecordFirstAttempts { answer, .. }
            | Self::Seek { answer, .. }
            | Self::ChangeWatchlist { answer, .. }
            | Self::StoreRelayState { answer, .. } => answer.fail(error),
            #[cfg(test)]
            Self::Inspect { answer, .. } => answer.fail(error),
        }
    }
}

/// A task that is queued or worked on; it holds its room as long.
pub(super) struct Request {
    /// What to do.
    pub(super) task: Task,
    /// Its share in what is queued.
    pub(super) weight: Weight,
}

/// The share of one request in what is queued.
pub(super) struct Weight {
    bytes: u64,
    _room: OwnedSemaphorePermit,
}

impl Weight {
    /// How many bytes it stands for.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The way to the writer. When it is closed or dropped, the writer does what it was given and ends.
pub(super) struct Queue {
    /// `None` once closed.
    sender: RwLock<Option<Sender<Request>>>,
    /// Room for appends, in bytes.
    appends: Arc<Semaphore>,
    /// Room for everything else, in requests.
    progress: Arc<Semaphore>,
    /// How many appends wait for room.
    waiting: AtomicUsize,
}

/// A queue and its other end.
pub(super) fn queue() -> (Queue, Receiver<Request>) {
    // The channel itself has no bound: nobody sends without room.
    let (sender, receiver) = channel();
    let queue = Queue {
        sender: RwLock::new(Some(sender)),
        appends: Arc::new(Semaphore::new(APPEND_BYTES as usize)),
        progress: Arc::new(Semaphore::new(PROGRESS_REQUESTS)),
        waiting: AtomicUsize::new(0),
    };
    (queue, receiver)
}

impl Queue {
    /// Queues a task as soon as there is room; the result comes through the returned receiver. A task whose future is
    /// dropped before is not queued.
    pub(super) async fn offer<T>(
        &self,
        task: impl FnOnce(Answer<T>) -> Task,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        let (sender, result) = oneshot::channel();
        let task = task(Answer::new(sender));
        let bytes = task.weight();
        let appends = matches!(task, Task::Append { .. } | Task::Redeliver { .. });
        let room = if appends { self.room_to_append(bytes).await? } else { self.room_for_progress().await? };
        let request = Request { task, weight: Weight { bytes, _room: room } };
        let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
        let sent = sender.as_ref().map(|sender| sender.send(request));
        if matches!(sent, Some(Ok(()))) { Ok(result) } else { Err(StoreError::Closed) }
    }

    /// Lets the writer end when it has done what is queued. Whoever waits for room hears of it.
    pub(super) fn close(&self) {
        self.appends.close();
        self.progress.close();
        drop(self.sender.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// How many appends wait for room.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    async fn room_to_append(&self, bytes: u64) -> Result<OwnedSemaphorePermit, StoreError> {
        let share = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(APPEND_LEAST, APPEND_BYTES);
        // This overtakes nobody: what is given back goes to who waits first, even if it is not yet enough for them.
        match Arc::clone(&self.appends).try_acquire_many_owned(share) {
            Ok(room) => return Ok(room),
            Err(TryAcquireError::Closed) => return Err(StoreError::Closed),
            Err(TryAcquireError::NoPermits) => {}
        }
        let _place = Place::take(&self.waiting)?;
        Arc::clone(&self.appends).acquire_many_owned(share).await.map_err(|_| StoreError::Closed)
    }

    async fn room_for_progress(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        Arc::clone(&self.progress).acquire_owned().await.map_err(|_| StoreError::Closed)
    }
}

/// A place among the appends that wait for room.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self, StoreError> {
        let before = waiting.fetch_add(1, Ordering::AcqRel);
        let place = Self(waiting);
        if before < WAITING_APPENDS { Ok(place) } else { Err(StoreError::Overloaded) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
