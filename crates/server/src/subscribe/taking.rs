//! What a session takes from its client: acknowledgements, which are stored, and what it puts down and wants again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use gitstafette_core::event::Sequence;
use gitstafette_core::store::{Acknowledgement, Listing, StoreError};
use gitstafette_core::target::Outcome;
use gitstafette_proto::MAX_REQUEST_BYTES;
use gitstafette_proto::convert::{MAX_DEFERRED, WireError, from_first_attempts, sequences};
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{Acknowledgements, FirstAttempts, Receipt, SubscribeRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::codegen::BoxStream;
use tonic::{Code, Status};

use super::service::{head, malformed, status};
use super::session::{End, Session, wire};

/// How many messages with acknowledgements may wait for the store: as many are stored at once.
pub(super) const BATCHES: usize = 64;
/// How many bytes of acknowledgements and receipts one subscription may have here: acknowledgements until they are stored,
/// receipts until the connection has taken them. One message may exceed it alone.
const ROOM: usize = 256 << 10;
/// About how many bytes an acknowledgement takes here beside its outcomes.
const ACKNOWLEDGEMENT_BYTES: usize = 64;
/// About how many bytes an outcome takes here beside its texts.
const OUTCOME_BYTES: usize = 128;

/// The acknowledgements of one message. They hold their room until the connection has taken their receipt.
#[derive(Debug, Default)]
pub(super) struct Batch {
    acknowledgements: Vec<Acknowledgement>,
    /// All sequences of the message: the client gets a receipt for those that mean nothing, too.
    sequences: Vec<u64>,
    room: Option<OwnedSemaphorePermit>,
}

impl Session {
    /// Takes what the client sends, as long as it sends.
    pub(super) async fn take_requests(
        &self,
        mut requests: BoxStream<SubscribeRequest>,
        taken: mpsc::Sender<Batch>,
    ) -> End {
        let room = Arc::new(Semaphore::new(ROOM));
        loop {
            let request = match requests.next().await {
                // A client may close its half and go on reading, until its window is full.
                None => return std::future::pending().await,
                Some(Err(status)) => return refusal(&status).map_or(End::Client, End::Failed),
                Some(Ok(SubscribeRequest { request: None })) => continue, // from a newer client: not for us
                Some(Ok(SubscribeRequest { request: Some(request) })) => request,
            };
            if let Err(status) = self.take_request(request, &room, &taken).await {
                return End::Failed(status);
            }
        }
    }

    async fn take_request(
        &self,
        request: Request,
        room: &Arc<Semaphore>,
        taken: &mpsc::Sender<Batch>,
    ) -> Result<(), Status> {
        let invalid = |error: WireError| malformed(&error);
        match request {
            Request::Acknowledgements(message) => {
                self.check_entries("acknowledgements", message.acknowledgements.len())?;
                let acknowledgements = acknowledgements(message).map_err(invalid)?;
                drop(taken.send(self.batch(acknowledgements, room).await?).await);
                Ok(())
            }
            Request::FirstAttempts(message) => {
                self.check_entries("first attempts", message.first_attempts.len())?;
                self.take_first_attempts(message).await
            }
            Request::Deferral(message) => {
                self.check_entries("deferred events", message.sequences.len())?;
                self.defer(&sequences(&message.sequences))
            }
            Request::Recall(message) => {
                self.check_entries("recalled events", message.sequences.len())?;
                self.recall(&sequences(&message.sequences));
                Ok(())
            }
            Request::Subscription(_) => Err(Status::invalid_argument(
                "a stream has one subscription; open another stream for another",
            )),
        }
    }

    /// A message has no more entries than the window has events: a client has no more to tell at once.
    fn check_entries(&self, what: &str, entries: usize) -> Result<(), Status> {
        let most = self.window.events.max(1);
        if entries <= most {
            return Ok(());
        }
        Err(Status::invalid_argument(format!(
            "{entries} {what} in one message, and this stream may have {most} events unacknowledged \
             (max_unacknowledged_events of Started); send no more than that in one message"
        )))
    }

    /// Keeps what means something, as soon as there is room for it: a client may send what it likes, and faster than the
    /// disk takes it.
    async fn batch(
        &self,
        mut acknowledgements: Vec<Acknowledgement>,
        room: &Arc<Semaphore>,
    ) -> Result<Batch, Status> {
        let sequences: Vec<_> = acknowledgements.iter().map(|one| one.sequence.get()).collect();
        let head = head(&*self.store);
        let not_sent: BTreeSet<_> = {
            let flow = self.flow();
            acknowledgements.retain(|one| flow.is_awaited(one.sequence, head));
            let sequences = acknowledgements.iter().map(|one| one.sequence);
            sequences.filter(|sequence| !flow.is_outstanding(*sequence)).collect()
        };
        if !not_sent.is_empty() {
            let refused = self.not_selected(not_sent).await.map_err(|error| status(&error))?;
            self.flow().refused_early(refused.len());
            acknowledgements.retain(|one| !refused.contains(&one.sequence));
        }
        let texts = |outcome: &Outcome| OUTCOME_BYTES + outcome.target.len() + outcome.detail.len();
        let outcomes: usize = acknowledgements.iter().flat_map(|one| &one.outcomes).map(texts).sum();
        let bytes = (outcomes + sequences.len() * ACKNOWLEDGEMENT_BYTES).min(ROOM);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(room).acquire_many_owned(bytes).await.ok();
        Ok(Batch { acknowledgements, sequences, room })
    }

    /// Those of these events that this subscription does not select: they are for another client, or outside the filter. No
    /// stream of this client was sent them, so it has no outcome of theirs.
    async fn not_selected(
        &self,
        mut sequences: BTreeSet<Sequence>,
    ) -> Result<BTreeSet<Sequence>, StoreError> {
        let mut listing = Listing { filter: (*self.filter).clone(), limit: 1, ..Listing::default() };
        for sequence in sequences.clone() {
            (listing.first, listing.last) = (sequence, sequence);
            let entries = self.store.list(&listing).await?.entries;
            if entries.iter().any(|entry| entry.address.includes_client(&self.client)) {
                sequences.remove(&sequence);
            }
        }
        Ok(sequences)
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
            let mut rooms: Option<OwnedSemaphorePermit> = None;
            for batch in &mut batches {
                acknowledgements.append(&mut batch.acknowledgements);
                receipt.append(&mut batch.sequences);
                match (&mut rooms, batch.room.take()) {
                    (Some(rooms), Some(room)) => rooms.merge(room),
                    (rooms @ None, room) => *rooms = room,
                    (Some(_), None) => {}
                }
            }
            self.store_batch(acknowledgements).await?;
            batches.clear();
            {
                // The server has dropped some early acknowledgements. The client acknowledges those events again when they come.
                let (flow, head) = (self.flow(), head(&*self.store));
                receipt.retain(|sequence| !flow.is_to_come(Sequence::new(*sequence), head));
            }
            if !receipt.is_empty() {
                self.send_receipt(receipt, rooms).await;
            }
        }
        Ok(())
    }

    async fn send_receipt(&self, sequences: Vec<u64>, room: Option<OwnedSemaphorePermit>) {
        let receipt = wire(Response::Receipt(Receipt { sequences }));
        tokio::select! {
            biased;
            // A client that is gone needs no receipt: the session ends by another half.
            sent = self.outbox.receipt(receipt, room) => drop(sent),
            () = self.ending.cancelled() => {}
        }
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

/// What a client is told whose message was not decoded; `None` if it was not the message's fault.
pub(super) fn refusal(status: &Status) -> Option<Status> {
    match status.code() {
        Code::InvalidArgument | Code::DeadlineExceeded => Some(status.clone()),
        // tonic's code for a message that is larger than it may be.
        Code::OutOfRange => Some(Status::resource_exhausted(format!(
            "a message of more than {MAX_REQUEST_BYTES} bytes; send its entries in several messages"
        ))),
        _ => None,
    }
}

fn acknowledgements(message: Acknowledgements) -> Result<Vec<Acknowledgement>, WireError> {
    message.acknowledgements.into_iter().map(TryInto::try_into).collect()
}
