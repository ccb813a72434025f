//! Brings a subscription's events to an old client, which never says what it has received.
//!
//! An event is acknowledged when its message counts as read: the connection has taken it, and the client has had the time
//! that it takes for a message. That time, the pace, is nothing for most clients. The Go implementation's own reads one
//! message every five seconds, however many lie there, and forgets what it has not read when its window ends: for it
//! the courier goes by a model of its reading. While a message is unread, what comes is collected into the next one. What
//! is unread when the stream ends stays unacknowledged, and comes again on the next.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt};
use gitstafette_core::event::ClientId;
use gitstafette_proto::convert::{MAX_GO_MESSAGE_BYTES, timestamp};
use gitstafette_proto::v1;
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{GoAwayReason, OutcomeResult};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::BoxStream;
use tracing::{debug, info, warn};

use super::Compat;
use crate::metrics::Metrics;
use crate::subscribe::{CHECK, SendProgress, Share, Traffic};

/// What one client may have collected without a share of the traffic that all have.
const OWN_BYTES: usize = 32 << 10;
/// As which target an old client stands in outcomes.
const TARGET: &str = "fetch";
/// How long the end may take: for the last message to be taken, for the last acknowledgement to be stored.
const FAREWELL: Duration = Duration::from_secs(2);

/// The courier's end of the way to the connection: at most one message and the last word are on it.
#[derive(Debug)]
pub(super) struct Outgoing {
    sender: mpsc::Sender<Parcel>,
    progress: Arc<SendProgress>,
}

/// The connection's end. Asking for the next message says that the last is taken.
#[derive(Debug)]
pub(super) struct Doorstep {
    receiver: mpsc::Receiver<Parcel>,
    taken: Option<oneshot::Sender<()>>,
    progress: Arc<SendProgress>,
}

#[derive(Debug)]
struct Parcel {
    message: Result<v1::WebhookEventsResponse, Status>,
    taken: Option<oneshot::Sender<()>>,
}

/// The two ends.
pub(super) fn doorstep(progress: Arc<SendProgress>) -> (Outgoing, Doorstep) {
    let (sender, receiver) = mpsc::channel(2);
    let doorstep = Doorstep { receiver, taken: None, progress: Arc::clone(&progress) };
    (Outgoing { sender, progress }, doorstep)
}

impl Stream for Doorstep {
    type Item = Result<v1::WebhookEventsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(taken) = self.taken.take() {
            self.progress.taken();
            taken.send(()).ok(); // the courier may have ended
        }
        self.receiver.poll_recv(context).map(|parcel| {
            let Parcel { message, taken } = parcel?;
            self.taken = taken;
            Some(message)
        })
    }
}

impl Drop for Doorstep {
    fn drop(&mut self) {
        self.progress.end();
    }
}

/// Events for one message.
#[derive(Debug, Default)]
struct Batch {
    message: v1::WebhookEventsResponse,
    /// As it is encoded.
    bytes: usize,
    /// Of the traffic, for what is beyond [`OWN_BYTES`].
    shares: Vec<Share>,
}

/// The message that was sent last.
#[derive(Debug)]
struct Unread {
    sequences: Vec<u64>,
    /// Tells that the connection has taken it; `None` when it has.
    taken: Option<oneshot::Receiver<()>>,
    /// When the client has read it.
    at: Instant,
}

impl Unread {
    /// Waits until the connection has taken it.
    async fn taken(&mut self) -> Result<(), End> {
        if let Some(taken) = &mut self.taken {
            taken.await.map_err(|_| End::Gone)?;
            self.taken = None;
        }
        Ok(())
    }
}

/// Why a stream ends.
#[derive(Debug)]
enum End {
    /// The client is gone, or its connection is cut.
    Gone,
    /// In order: the client may come again.
    Over(&'static str),
    /// Something is wrong.
    Failed(Status),
}

/// One stream of an old client.
pub(super) struct Courier {
    incoming: BoxStream<v1::SubscribeResponse>,
    requests: mpsc::UnboundedSender<v1::SubscribeRequest>,
    outgoing: Outgoing,
    traffic: Arc<Traffic>,
    client: ClientId,
    metrics: Arc<Metrics>,
    cut: CancellationToken,
    /// What the client takes for one message.
    pace: Duration,
    /// What comes with the next message.
    batch: Batch,
    /// An event that did not fit into it. Meanwhile nothing more is taken from the subscription, which counts it.
    waiting: Option<v1::WebhookEventsResponse>,
    unread: Option<Unread>,
    /// When the client has read all that was sent.
    idle_at: Instant,
    is_to_show_life: bool,
    /// How many acknowledgements are not stored yet.
    unconfirmed: usize,
}

impl Courier {
    pub(super) fn new(
        compat: &Compat,
        client: ClientId,
        incoming: BoxStream<v1::SubscribeResponse>,
        requests: mpsc::UnboundedSender<v1::SubscribeRequest>,
        outgoing: Outgoing,
        pace: Duration,
        cut: CancellationToken,
    ) -> Self {
        Self {
            incoming,
            requests,
            outgoing,
            traffic: Arc::clone(&compat.subscriptions.traffic),
            client,
            metrics: Arc::clone(&compat.metrics),
            cut,
            pace,
            batch: Batch::default(),
            waiting: None,
            unread: None,
            idle_at: Instant::now(),
            is_to_show_life: false,
            unconfirmed: 0,
        }
    }

    /// Runs until the stream ends, at the latest after its lifetime.
    pub(super) async fn run(mut self, lifetime: Option<Duration>) {
        let door = self.outgoing.sender.clone();
        let (progress, cut) = (Arc::clone(&self.outgoing.progress), self.cut.clone());
        let over = async {
            match lifetime {
                Some(lifetime) => tokio::time::sleep(lifetime).await,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            end = self.bring() => end,
            () = over => End::Over("its duration is over"),
            () = door.closed() => End::Gone,
        };
        self.settle(&end).await;
        match end {
            End::Gone => debug!("an old client is gone"),
            End::Over(reason) => info!(reason, "an old client's stream was ended"),
            End::Failed(status) => {
                info!(reason = status.message(), "an old client's stream failed");
                drop(door.try_send(Parcel { message: Err(status), taken: None }));
            }
        }
        drop((door, self));
        progress.end_or_cut(&cut).await;
    }

    /// Brings messages as they come.
    async fn bring(&mut self) -> End {
        loop {
            if self.unread.is_some() {
                self.collect();
            } else if let Some(batch) = self.next_message() {
                if let Err(end) = self.hand_over(batch).await {
                    return end;
                }
                continue;
            }
            let read_at = self.unread.as_ref().map(|unread| unread.at);
            let read = async {
                match read_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = read => self.has_read(),
                response = self.incoming.next(), if self.waiting.is_none() => {
                    if let Err(end) = self.take(response) {
                        return end;
                    }
                }
            }
        }
    }

    /// Puts the event that waits into the next message, if it has room for it.
    fn collect(&mut self) {
        let Some(event) = &self.waiting else { return };
        let bytes = self.batch.bytes + event.encoded_len();
        if bytes > MAX_GO_MESSAGE_BYTES {
            return;
        }
        if bytes > OWN_BYTES {
            let Some(share) = self.traffic.try_share(&self.client, event.encoded_len() as u64) else {
                return;
            };
            self.batch.shares.push(share);
        }
        self.batch.bytes = bytes;
        self.batch
            .message
            .webhook_events
            .extend(self.waiting.take().into_iter().flat_map(|one| one.webhook_events));
    }

    /// What is to be sent now that the last message is read: what was collected, else the event that waits, which the
    /// subscription counts until it is taken, else a sign of life.
    fn next_message(&mut self) -> Option<Batch> {
        let shows_life = std::mem::take(&mut self.is_to_show_life) && self.idle_at <= Instant::now();
        if !self.batch.message.webhook_events.is_empty() {
            return Some(std::mem::take(&mut self.batch));
        }
        match self.waiting.take() {
            Some(message) => Some(Batch { message, ..Batch::default() }),
            None => shows_life.then(Batch::default),
        }
    }

    /// Hands a message over and waits until the connection has taken it. While others wait for the bytes of a large one, the
    /// connection has less time for it.
    async fn hand_over(&mut self, Batch { message, bytes, shares }: Batch) -> Result<(), End> {
        let sequences: Vec<u64> = message.webhook_events.iter().map(|event| event.sequence).collect();
        let (signal, taken) = oneshot::channel();
        let parcel = Parcel { message: Ok(message), taken: Some(signal) };
        let Outgoing { sender, progress } = &self.outgoing;
        sender.try_send(parcel).map_err(|_| End::Gone)?; // the last one is taken: there is room
        progress.queued();
        let since = Instant::now();
        self.idle_at = self.idle_at.max(since) + self.pace;
        let shows_life = sequences.is_empty();
        let unread = self.unread.insert(Unread { sequences, taken: Some(taken), at: self.idle_at });
        loop {
            if let Ok(taken) = tokio::time::timeout(CHECK, unread.taken()).await {
                taken?;
                break;
            }
            let is_in_the_way = !shares.is_empty()
                && self.traffic.has_waiting()
                && progress.is_in_the_way(bytes as u64, since);
            if progress.is_stalled() || is_in_the_way {
                warn!("an old client did not read; it was cut off");
                self.cut.cancel();
                return Err(End::Gone);
            }
        }
        if shows_life {
            // Events need not wait until it is read.
            self.unread = None;
        }
        Ok(())
    }

    /// The client has read the last message.
    fn has_read(&mut self) {
        if let Some(unread) = self.unread.take() {
            let detail = "handed to the connection; this client does not report what became of it";
            self.acknowledge(unread.sequences, OutcomeResult::Delivered, detail);
        }
    }

    /// Takes what the subscription sends.
    fn take(&mut self, response: Option<Result<v1::SubscribeResponse, Status>>) -> Result<(), End> {
        let response = match response {
            None => return Err(End::Over("its subscription ended")),
            Some(response) => response.map_err(End::Failed)?.response,
        };
        match response {
            Some(Response::Event(event)) => self.take_event(event),
            Some(Response::Heartbeat(_)) => self.is_to_show_life = self.unread.is_none(),
            Some(Response::Receipt(receipt)) => {
                self.unconfirmed = self.unconfirmed.saturating_sub(receipt.sequences.len());
            }
            Some(Response::GoAway(go_away)) => {
                return Err(match go_away.reason() {
                    GoAwayReason::TakenOver => End::Failed(Status::aborted(
                        "a newer stream of the same client id and repository took over; give each client an id of its \
                         own (-clientId)",
                    )),
                    reason => End::Over(reason.as_str_name()),
                });
            }
            Some(Response::Started(_) | Response::Missed(_)) | None => {}
        }
        Ok(())
    }

    fn take_event(&mut self, event: v1::Event) {
        let sequence = event.sequence;
        let targets = event.address.as_ref().map_or(&[][..], |address| &address.targets);
        if !targets.is_empty() && !targets.iter().any(|target| target == TARGET) {
            let detail = "it is for another target";
            return self.acknowledge(vec![sequence], OutcomeResult::Filtered, detail);
        }
        let message = v1::WebhookEventsResponse { webhook_events: vec![event.into()] };
        let bytes = message.encoded_len();
        if bytes <= MAX_GO_MESSAGE_BYTES {
            self.waiting = Some(message);
            return;
        }
        let event = message.webhook_events.first();
        warn!(
            event.sequence = sequence,
            delivery.id = event.map(|event| event.event_id.as_str()),
            body.bytes = event.map(|event| event.body.len()),
            "an event was held back: an old client takes 4 MiB at most"
        );
        self.metrics.held_back.inc();
        let detail = format!(
            "held back: it is {bytes} bytes, and a client of the Go implementation takes {MAX_GO_MESSAGE_BYTES} at most; \
             replace the client by gitstafette-client and redeliver the event"
        );
        self.acknowledge(vec![sequence], OutcomeResult::Failed, &detail);
    }

    fn acknowledge(&mut self, sequences: Vec<u64>, result: OutcomeResult, detail: &str) {
        let outcome = v1::Outcome {
            target: TARGET.to_owned(),
            result: result.into(),
            attempts: 1,
            at: Some(timestamp(SystemTime::now().into())),
            detail: detail.to_owned(),
            ..v1::Outcome::default()
        };
        self.unconfirmed += sequences.len();
        let acknowledgements = sequences
            .into_iter()
            .map(|sequence| v1::Acknowledgement { sequence, outcomes: vec![outcome.clone()] })
            .collect();
        let request = Request::Acknowledgements(v1::Acknowledgements { acknowledgements });
        drop(self.requests.send(v1::SubscribeRequest { request: Some(request) })); // the session may have ended
    }

    /// At the end: acknowledges the last message if it is read, and waits until all acknowledgements are stored. The
    /// stream may have been ended while it was being handed over.
    async fn settle(&mut self, end: &End) {
        if !matches!(end, End::Gone)
            && let Some(unread) = &mut self.unread
            && unread.at <= Instant::now()
            && let Ok(Ok(())) = tokio::time::timeout(FAREWELL, unread.taken()).await
        {
            self.has_read();
        }
        let stored = async {
            while self.unconfirmed > 0 {
                match self.incoming.next().await {
                    Some(Ok(v1::SubscribeResponse { response: Some(Response::Receipt(receipt)) })) => {
                        self.unconfirmed = self.unconfirmed.saturating_sub(receipt.sequences.len());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                }
            }
        };
        drop(tokio::time::timeout(FAREWELL, stored).await);
    }
}

#[cfg(test)]
mod tests;
