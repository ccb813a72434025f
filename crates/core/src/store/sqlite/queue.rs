//! The queue before the writer, bounded by requests and by bytes: what does not fit is refused at once, and what is
//! in it will be done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

#[cfg(test)]
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::event::{ClientId, Sequence, Webhook};
use crate::store::{Acknowledgement, Appended, StoreError};

/// How many requests may wait. Above that the disk is not keeping up and the sender must hear of it.
const QUEUE_REQUESTS: usize = 1024;
/// How many bytes may wait, queued or in the group that is written; one request may exceed it.
const QUEUE_BYTES: u64 = 8 << 20;
/// Where one request's result goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer can be asked to do.
pub(super) enum Task {
    /// [`EventStore::append`](crate::store::EventStore::append).
    Append {
        /// What to append.
        webhook: Box<Webhook>,
        /// Where the result goes.
        answer: Answer<Appended>,
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
    /// [`EventStore::seek`](crate::store::EventStore::seek).
    Seek {
        /// Whose cursor.
        client: ClientId,
        /// Where to.
        cursor: Sequence,
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
    /// About how many bytes it keeps in memory while it waits.
    fn weight(&self) -> u64 {
        match self {
            Self::Append { webhook, .. } => webhook.size(),
            Self::Acknowledge { acknowledgements, .. } => {
                let outcomes = acknowledgements.iter().flat_map(|ack| &ack.outcomes);
                outcomes.map(|outcome| (128 + outcome.target.len() + outcome.detail.len()) as u64).sum()
            }
            _ => 0,
        }
    }

    /// Tells whoever asked that it was not done.
    pub(super) fn fail(self, error: StoreError) {
        // Whoever asked may have gone; then nobody wants to know.
        match self {
            Self::Append { answer, .. } => drop(answer.send(Err(error))),
            Self::Acknowledge { answer, .. } | Self::Seek { answer, .. } => drop(answer.send(Err(error))),
            #[cfg(test)]
            Self::Inspect { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

/// A task that waits or is worked on; its bytes count as long.
pub(super) struct Request {
    /// What to do.
    pub(super) task: Task,
    /// Its share in what waits.
    pub(super) weight: Weight,
}

/// The share of one request in the bytes that wait.
pub(super) struct Weight {
    bytes: u64,
    waiting: Arc<AtomicU64>,
}

impl Weight {
    /// How many bytes it stands for.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The way to the writer. When it is dropped, the writer does what it was given and ends.
pub(super) struct Queue {
    sender: SyncSender<Request>,
    waiting: Arc<AtomicU64>,
}

/// A queue and its other end.
pub(super) fn queue() -> (Queue, Receiver<Request>) {
    let (sender, receiver) = sync_channel(QUEUE_REQUESTS);
    (Queue { sender, waiting: Arc::default() }, receiver)
}

impl Queue {
    /// Queues a task, if there is room; the result comes through the returned receiver.
    pub(super) fn offer<T>(
        &self,
        task: impl FnOnce(Answer<T>) -> Task,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        let (answer, result) = oneshot::channel();
        let task = task(answer);
        let bytes = task.weight();
        let before = self.waiting.fetch_add(bytes, Ordering::AcqRel);
        let weight = Weight { bytes, waiting: Arc::clone(&self.waiting) };
        if before >= QUEUE_BYTES {
            return Err(StoreError::Overloaded);
        }
        match self.sender.try_send(Request { task, weight }) {
            Ok(()) => Ok(result),
            Err(TrySendError::Full(_)) => Err(StoreError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(StoreError::Closed),
        }
    }
}
