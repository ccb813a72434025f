//! What a session takes from its client: acknowledgements, which are stored, and what it puts down and wants again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use gitstafette_core::event::Sequence;
use gitstafette_core::store::Acknowledgement;
use gitstafette_proto::convert::{MAX_DEFERRED, WireError, from_first_attempts, sequences};
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{Acknowledgements, FirstAttempts, Receipt, SubscribeRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;
use tonic::codegen::BoxStream;

use super::service::{head, malformed, status};
use super::session::{End, Session};

/// How many messages with acknowledgements may wait for the store: as many are stored at once.
pub(super) const BATCHES: usize = 64;
/// How many outcomes may wait for the store, over all these messages; one message may exceed it alone. A client of ours
/// sends 1024 in one.
const OUTCOMES: usize = 4096;

/// The acknowledgements of one message. They hold their room until they are stored.
#[derive(Debug, Default)]
pub(super) struct Batch {
    acknowledgements: Vec<Acknowledgement>,
    /// All sequences of the message: the client gets a receipt for those that mean nothing, too.
    sequences: Vec<u64>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Session {
    /// Takes what the client sends, as long as it sends.
    pub(super) async fn take_requests(
        &self,
        mut requests: BoxStream<SubscribeRequest>,
        taken: mpsc::Sender<Batch>,
    ) -> End {
        let room = Arc::new(Semaphore::new(OUTCOMES));
        loop {
            let request = match requests.next().await {
                // A client may close its half and go on reading, until its window is full.
                None => return std::future::pending().await,
                Some(Err(_)) => return End::Client,
                Some(Ok(SubscribeRequest { request: None })) => continue, // from a newer client: not for us
                Some(Ok(SubscribeRequest { request: Some(request) })) => request,
            };
            let done = match request {
                Request::Acknowledgements(message) => match acknowledgements(message) {
                    Ok(acknowledgements) => {
                        drop(taken.send(self.batch(acknowledgements, &room).await).await);
                        Ok(())
                    }
                    Err(error) => Err(malformed(&error)),
                },
                Request::FirstAttempts(message) => self.take_first_attempts(message).await,
                Request::Deferral(message) => self.defer(&sequences(&message.sequences)),
                Request::Recall(message) => {
                    self.recall(&sequences(&message.sequences));
                    Ok(())
                }
                Request::Subscription(_) => Err(Status::invalid_argument(
                    "a stream has one subscription; open another stream for another",
                )),
            };
            if let Err(status) = done {
                return End::Failed(status);
            }
        }
    }

    /// Keeps what may mean something, as soon as there is room for it: a client may send what it likes, and faster than the
    /// disk takes it.
    async fn batch(&self, mut acknowledgements: Vec<Acknowledgement>, room: &Arc<Semaphore>) -> Batch {
        let sequences = acknowledgements.iter().map(|one| one.sequence.get()).collect();
        let head = head(&*self.store);
        {
            let flow = self.flow();
            acknowledgements.retain(|one| flow.is_awaited(one.sequence, head));
        }
        let outcomes: usize = acknowledgements.iter().map(|one| one.outcomes.len()).sum();
        let share = u32::try_from(outcomes.min(OUTCOMES)).unwrap_or(u32::MAX);
        let room = Arc::clone(room).acquire_many_owned(share).await.ok();
        Batch { acknowledgements, sequences, _room: room }
    }

    /// Stores since when the client tries events. Only of those that it may still acknowledge.
    async fn take_first_attempts(&self, message: FirstAttempts) -> Result<(), Status> {
        let mut first_attempts = from_first_attempts(message).map_err(|error| malformed(&error))?;
        let head = head(&*self.store);
        {
            let flow = self.flow();
            first_attempts.retain(|one| flow.is_awaited(one.sequence, head));
        }
        if first_attempts.is_empty() {
            return Ok(());
        }
        let recorded = self.store.record_first_attempts(&self.client, first_attempts).await;
        recorded.map_err(|error| status(&error))
    }

    fn defer(&self, sequences: &[Sequence]) -> Result<(), Status> {
        let deferred = {
            let mut flow = self.flow();
            sequences.iter().for_each(|sequence| flow.defer(*sequence));
            self.standing.follow(&flow);
            flow.deferred()
        };
        self.changed.notify_one();
        if deferred > MAX_DEFERRED {
            let message =
                format!("more than {MAX_DEFERRED} events are deferred; keep further ones unacknowledged");
            return Err(Status::resource_exhausted(message));
        }
        Ok(())
    }

    fn recall(&self, sequences: &[Sequence]) {
        let mut flow = self.flow();
        sequences.iter().for_each(|sequence| flow.recall(*sequence));
        drop(flow);
        self.changed.notify_one();
    }

    /// Stores what became of events, and only then gives receipts. What comes while one commit is under way is stored
    /// by the next: a subscriber is not bound to one event per fsync.
    pub(super) async fn store_acknowledgements(
        &self,
        mut taken: mpsc::Receiver<Batch>,
    ) -> Result<(), Status> {
        let mut batches = Vec::new();
        while taken.recv_many(&mut batches, BATCHES).await > 0 {
            let mut acknowledgements = Vec::new();
            let mut receipt = Vec::new();
            for batch in &mut batches {
                acknowledgements.append(&mut batch.acknowledgements);
                receipt.append(&mut batch.sequences);
            }
            self.store_batch(acknowledgements).await?;
            batches.clear();
            if !receipt.is_empty() {
                // A client that is gone needs no receipt: the session ends by another half.
                drop(self.send(Response::Receipt(Receipt { sequences: receipt })).await);
            }
        }
        Ok(())
    }

    async fn store_batch(&self, mut acknowledgements: Vec<Acknowledgement>) -> Result<(), Status> {
        let head = head(&*self.store);
        let cursor = {
            let mut flow = self.flow();
            acknowledgements.retain(|one| flow.acknowledged(one.sequence, head));
            self.standing.follow(&flow);
            flow.cursor()
        };
        self.changed.notify_one();
        if acknowledgements.is_empty() && cursor <= self.stored_cursor() {
            return Ok(());
        }
        for outcome in acknowledgements.iter().flat_map(|one| &one.outcomes) {
            self.metrics.outcomes.with_label_values(&[outcome.result.as_str()]).inc();
        }
        let stored = self.store.acknowledge(&self.client, acknowledgements, cursor).await;
        stored.map_err(|error| status(&error))?;
        self.cursor.store(cursor.get(), Ordering::Relaxed);
        Ok(())
    }
}

fn acknowledgements(message: Acknowledgements) -> Result<Vec<Acknowledgement>, WireError> {
    message.acknowledgements.into_iter().map(TryInto::try_into).collect()
}
