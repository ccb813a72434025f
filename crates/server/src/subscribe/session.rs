//! One stream: its halves and its end. What goes out is in `sending`, what comes in in `taking`.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::store::EventStore;
use gitstafette_core::subscription::{Flow, Window};
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{GoAway, GoAwayReason, Heartbeat, SubscribeRequest, SubscribeResponse};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::BoxStream;
use tracing::{info, warn};

use super::StreamOptions;
use super::outbox::{Gone, Outbox};
use super::registry::{Attachment, Standing};
use super::send_progress::{STALLED, SendProgress};
use super::service::head;
use super::taking::{BATCHES, Batch};
use super::traffic::Traffic;
use crate::metrics::Metrics;

/// How long the acknowledgements that came may take to be stored at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a client is told whose stream a newer one replaces.
pub(super) const TAKEN_OVER: &str =
    "another client attached with the same client id; give each client its own --client-id";

/// One attached subscription.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) server_name: String,
    pub(super) client: ClientId,
    pub(super) filter: Arc<Filter>,
    pub(super) store: Arc<dyn EventStore>,
    /// What the client was granted.
    pub(super) window: Window,
    /// The last sequence that means the same event to the client, if the store was set back since the client saw it.
    pub(super) common: Option<Sequence>,
    /// Shared by the half that sends and the half that takes; never held across a wait.
    pub(super) flow: Mutex<Flow>,
    /// The cursor as it is stored. The client forgets what is before it, so it is told nothing that is not durable.
    pub(super) cursor: AtomicU64,
    /// The last event that the client had tried in vain before this stream; zero if there is none.
    pub(super) last_tried: Sequence,
    /// Rung when the client made room in the window, or wants something again.
    pub(super) changed: Notify,
    pub(super) outbox: Outbox,
    pub(super) traffic: Arc<Traffic>,
    pub(super) standing: Arc<Standing>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) options: StreamOptions,
    pub(super) draining: CancellationToken,
    /// Cuts the connection.
    pub(super) cut: CancellationToken,
    /// How the connection takes what it is given.
    pub(super) progress: Arc<SendProgress>,
    /// Cancelled when the session ends: from then on a receipt does not wait for a client that does not read.
    pub(super) ending: CancellationToken,
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client is gone.
    Client,
    /// The server ends it, and says so.
    GoAway(GoAwayReason, &'static str),
    /// Something is wrong.
    Failed(Status),
    /// The client does not read.
    Stalled,
}

impl Session {
    /// Runs until the stream ends, and its connection has taken the rest of it.
    pub(super) async fn run(self, requests: BoxStream<SubscribeRequest>, attachment: Attachment) {
        let (progress, cut) = (Arc::clone(&self.progress), self.cut.clone());
        self.serve(requests, attachment).await;
        progress.end_or_cut(&cut).await;
    }

    /// Serves until the stream ends. All halves run in this one task.
    async fn serve(self, requests: BoxStream<SubscribeRequest>, attachment: Attachment) {
        let (taken, acknowledged) = mpsc::channel(BATCHES);
        let end = {
            let mut storing = pin!(self.store_acknowledgements(acknowledged));
            let mut stored = None;
            let end = tokio::select! {
                end = self.take_requests(requests, taken.clone()) => end,
                end = self.send_events() => end,
                end = self.send_heartbeats(&taken) => end,
                end = self.ended_by_server(&attachment) => end,
                () = self.outbox.closed() => End::Client,
                result = &mut storing => stored.insert(result).clone().map_or_else(End::Failed, |()| End::Client),
            };
            self.ending.cancel();
            if stored.is_none() {
                // What was taken is stored before a newer stream of this client may look where to start. The empty batch
                // is for a cursor that passed what was not selected.
                drop(taken.try_send(Batch::default()));
                drop(taken);
                drop(tokio::time::timeout(FAREWELL, storing).await);
            }
            end
        };
        // A newer stream does not wait until this client has read the last message.
        drop(attachment);
        self.finish(end);
    }

    /// Says the last word, and notes the end.
    fn finish(self, end: End) {
        let outstanding = self.flow().outstanding();
        let reason = match &end {
            End::Client => "client",
            End::Stalled => "stalled",
            End::GoAway(reason, _) => reason.as_str_name(),
            End::Failed(_) => "failed",
        };
        self.metrics.streams_ended.with_label_values(&[reason]).inc();
        match end {
            End::Client => info!(outstanding, "a client detached"),
            End::Stalled => {
                warn!(outstanding, "a client did not read; it was cut off");
                // Nothing that is said would be read. What is on its way goes with the connection.
                self.cut.cancel();
            }
            End::GoAway(go_away, message) => {
                info!(outstanding, reason, "a stream was ended");
                self.outbox.end(Ok(wire(Response::GoAway(farewell(go_away, message)))));
            }
            End::Failed(status) => {
                info!(outstanding, reason = status.message(), "a stream failed");
                self.outbox.end(Err(status));
            }
        }
    }

    async fn send_heartbeats(&self, taken: &mpsc::Sender<Batch>) -> End {
        let mut beats = tokio::time::interval(self.options.heartbeat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        beats.tick().await; // the first is immediate, and Started says the same
        loop {
            beats.tick().await;
            if self.outbox.progress().is_stalled() {
                return End::Stalled;
            }
            // With nothing to acknowledge: the cursor may have passed what was not selected.
            drop(taken.try_send(Batch::default()));
            let heartbeat = Heartbeat { head: head(&*self.store).get(), cursor: self.stored_cursor().get() };
            match tokio::time::timeout(STALLED, self.send(Response::Heartbeat(heartbeat))).await {
                Ok(Ok(())) => {}
                Ok(Err(Gone)) => return End::Client,
                Err(_) => return End::Stalled,
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
            () = attachment.taken_over() => End::GoAway(GoAwayReason::TakenOver, TAKEN_OVER),
        }
    }

    pub(super) async fn send(&self, response: Response) -> Result<(), Gone> {
        self.outbox.say(wire(response)).await
    }

    pub(super) fn flow(&self) -> MutexGuard<'_, Flow> {
        // Its methods do not panic half-way; the whole session would be gone with them anyway.
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stored_cursor(&self) -> Sequence {
        Sequence::new(self.cursor.load(Ordering::Relaxed))
    }
}

pub(super) fn farewell(reason: GoAwayReason, message: &str) -> GoAway {
    GoAway { reason: reason.into(), message: message.to_owned() }
}

pub(super) fn wire(response: Response) -> SubscribeResponse {
    SubscribeResponse { response: Some(response) }
}
