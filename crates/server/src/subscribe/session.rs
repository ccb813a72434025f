//! One stream: reads the log after the cursor, sends, takes acknowledgements, until a reason to end.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::store::{Acknowledgement, EventStore, ReadLimit};
use gitstafette_core::subscription::{Flow, Window};
use gitstafette_proto::convert::duration;
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{
    Event, GoAway, GoAwayReason, Heartbeat, Receipt, Started, SubscribeRequest, SubscribeResponse,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info};

use super::StreamOptions;
use super::registry::Attachment;
use super::service::{head, malformed, status};

/// What one read of the log takes at most: it bounds the memory of subscribers that catch up.
const PAGE: ReadLimit = ReadLimit { events: 64, bytes: 512 << 10 };
/// How many messages with acknowledgements may wait for the store: as many are stored at once.
const BATCHES: usize = 64;
/// How long the last message may wait for a client that does not read.
const FAREWELL: Duration = Duration::from_secs(2);

/// One attached subscription.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) server_name: String,
    pub(super) client: ClientId,
    pub(super) filter: Filter,
    pub(super) store: Arc<dyn EventStore>,
    /// Shared by the half that sends and the half that takes acknowledgements; never held across a wait.
    pub(super) flow: Mutex<Flow>,
    /// The cursor as it is stored. The client forgets what is before it, so it is told nothing that is not durable.
    pub(super) cursor: AtomicU64,
    /// Rung when an acknowledgement made room in the window.
    pub(super) room: Notify,
    pub(super) responses: mpsc::Sender<Result<SubscribeResponse, Status>>,
    pub(super) options: StreamOptions,
    pub(super) draining: CancellationToken,
}

/// Why a session ends.
#[derive(Debug)]
enum End {
    /// The client is gone.
    Client,
    /// The server ends it, and says so.
    GoAway(GoAwayReason, &'static str),
    /// Something is wrong.
    Failed(Status),
}

/// The client is: nobody reads the responses.
#[derive(Debug)]
struct Gone;

impl Session {
    /// Runs until the stream ends. All halves run in this one task.
    pub(super) async fn run(self, requests: Streaming<SubscribeRequest>, attachment: Attachment) {
        let (taken, acknowledged) = mpsc::channel(BATCHES);
        let mut storing = pin!(self.store_acknowledgements(acknowledged));
        let mut stored = None;
        let end = tokio::select! {
            end = self.take_acknowledgements(requests, taken) => end,
            end = self.send_events() => end,
            end = self.send_heartbeats() => end,
            end = self.ended_by_server(&attachment) => end,
            () = self.responses.closed() => End::Client,
            result = &mut storing => stored.insert(result).clone().map_or_else(End::Failed, |()| End::Client),
        };
        if stored.is_none() {
            // What was taken is stored before a newer stream of this client may look where to start.
            drop(tokio::time::timeout(FAREWELL, storing).await);
        }
        let last = match &end {
            End::Client => None,
            End::GoAway(reason, message) => {
                let go_away = GoAway { reason: (*reason).into(), message: (*message).to_owned() };
                Some(Ok(wire(Response::GoAway(go_away))))
            }
            End::Failed(status) => Some(Err(status.clone())),
        };
        if let Some(last) = last {
            drop(tokio::time::timeout(FAREWELL, self.responses.send(last)).await);
        }
        let outstanding = self.flow().outstanding();
        match end {
            End::Client => info!(outstanding, "a client detached"),
            End::GoAway(reason, _) => info!(outstanding, reason = reason.as_str_name(), "a stream was ended"),
            End::Failed(status) => info!(outstanding, reason = status.message(), "a stream failed"),
        }
    }

    /// Follows the log: catching up and following live are the same.
    async fn send_events(&self) -> End {
        let started = Started {
            server_name: self.server_name.clone(),
            cursor: self.cursor.load(Ordering::Relaxed),
            head: head(&*self.store).get(),
            heartbeat_interval: Some(duration(self.options.heartbeat)),
            store_id: self.store.id().to_string(),
        };
        info!(cursor = started.cursor, head = started.head, "a client attached");
        if self.send(Response::Started(started)).await.is_err() {
            return End::Client;
        }
        let mut heads = self.store.head();
        loop {
            let (after, room) = self.room().await;
            let limit = ReadLimit { events: room.events.min(PAGE.events), bytes: room.bytes.min(PAGE.bytes) };
            let page = match self.store.read(after, &self.filter, limit).await {
                Ok(page) => page,
                Err(error) => return End::Failed(status(&error)),
            };
            for event in &page.events {
                let size = event.webhook.size();
                {
                    let mut flow = self.flow();
                    if flow.already_done(event.sequence) {
                        continue;
                    }
                    flow.sent(event.sequence, size);
                }
                debug!(event.sequence = event.sequence.get(), delivery.id = %event.webhook.facts.delivery_id, "sent");
                if self.send(Response::Event(Event::from(&**event))).await.is_err() {
                    return End::Client;
                }
            }
            self.flow().read_to(page.read_to);
            if page.read_to <= after && heads.wait_for(|head| *head > after).await.is_err() {
                return End::Failed(Status::unavailable("the server is going down; reconnect"));
            }
        }
    }

    /// Waits until something may be sent: where to read on, and how much.
    async fn room(&self) -> (Sequence, Window) {
        loop {
            let (position, room) = {
                let flow = self.flow();
                (flow.position(), flow.room())
            };
            match room {
                Some(room) => return (position, room),
                // An acknowledgement between the look and the wait leaves a permit: it is not missed.
                None => self.room.notified().await,
            }
        }
    }

    /// Takes acknowledgements as long as the client sends some.
    async fn take_acknowledgements(
        &self,
        mut requests: Streaming<SubscribeRequest>,
        taken: mpsc::Sender<Vec<Acknowledgement>>,
    ) -> End {
        loop {
            let message = match requests.message().await {
                // A client may close its half and go on reading, until its window is full.
                Ok(None) => return std::future::pending().await,
                Err(_) => return End::Client,
                Ok(Some(SubscribeRequest { request: Some(Request::Acknowledgements(message)) })) => message,
                Ok(Some(SubscribeRequest { request: Some(Request::Subscription(_)) })) => {
                    let message = "a stream has one subscription; open another stream for another";
                    return End::Failed(Status::invalid_argument(message));
                }
                Ok(Some(SubscribeRequest { request: Some(_) })) => continue,
                Ok(Some(SubscribeRequest { request: None })) => continue, // from a newer client: not for us
            };
            let acknowledgements = message.acknowledgements.into_iter().map(TryInto::try_into).collect();
            match acknowledgements {
                Ok(acknowledgements) => drop(taken.send(acknowledgements).await),
                Err(error) => return End::Failed(malformed(&error)),
            }
        }
    }

    /// Stores what became of events, and only then gives receipts. What comes while one commit is under way is stored
    /// by the next: a subscriber is not bound to one event per fsync.
    async fn store_acknowledgements(
        &self,
        mut taken: mpsc::Receiver<Vec<Acknowledgement>>,
    ) -> Result<(), Status> {
        let mut batches = Vec::new();
        while taken.recv_many(&mut batches, BATCHES).await > 0 {
            let mut acknowledgements: Vec<_> = batches.drain(..).flatten().collect();
            let sequences = acknowledgements.iter().map(|one| one.sequence.get()).collect();
            let head = head(&*self.store);
            let cursor = {
                let mut flow = self.flow();
                acknowledgements.retain(|one| flow.acknowledged(one.sequence, head));
                flow.cursor()
            };
            self.room.notify_one();
            if !acknowledgements.is_empty() {
                let stored = self.store.acknowledge(&self.client, acknowledgements, cursor).await;
                stored.map_err(|error| status(&error))?;
                self.cursor.store(cursor.get(), Ordering::Relaxed);
            }
            // A client that is gone needs no receipt: the session ends by another half.
            drop(self.send(Response::Receipt(Receipt { sequences })).await);
        }
        Ok(())
    }

    async fn send_heartbeats(&self) -> End {
        let mut beats = tokio::time::interval(self.options.heartbeat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beats.tick().await; // the first is immediate, and Started says the same
        loop {
            beats.tick().await;
            let cursor = self.cursor.load(Ordering::Relaxed);
            let heartbeat = Heartbeat { head: head(&*self.store).get(), cursor };
            if self.send(Response::Heartbeat(heartbeat)).await.is_err() {
                return End::Client;
            }
        }
    }

    async fn ended_by_server(&self, attachment: &Attachment) -> End {
        let window = async {
            match self.options.window {
                Some(window) => tokio::time::sleep(window).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.draining.cancelled() => End::GoAway(GoAwayReason::Drain, "the server is going down; reconnect"),
            () = window => End::GoAway(GoAwayReason::Window, "the stream window is over; reconnect at once"),
            () = attachment.taken_over() => End::GoAway(
                GoAwayReason::TakenOver,
                "another client attached with the same client id; give each client its own --client-id",
            ),
        }
    }

    async fn send(&self, response: Response) -> Result<(), Gone> {
        self.responses.send(Ok(wire(response))).await.map_err(|_| Gone)
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        // Its methods do not panic half-way; the whole session would be gone with them anyway.
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wire(response: Response) -> SubscribeResponse {
    SubscribeResponse { response: Some(response) }
}
