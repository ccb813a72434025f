//! One stream: subscribe, receive, hand to lanes, acknowledge; until it ends.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use gitstafette_core::event::{Event, Sequence};
use gitstafette_proto::convert::{Seen, Subscription, from_duration, history};
use gitstafette_proto::v1;
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{GoAwayReason, MissedKind, Started, SubscribeRequest, SubscribeResponse};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{debug, error, info};

use crate::deliveries::Deliveries;
use crate::feed::{Line, Opened, Received, Responses};

/// How long the server's first message may take, before its heartbeat interval is known.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How many messages may wait for the connection.
const REQUESTS: usize = 4;
/// What a server may ask for as the interval of its heartbeats.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
/// How late a heartbeat may be at least: a line may stall for a moment.
const SHORTEST_GRACE: Duration = Duration::from_millis(250);
/// Fewer bytes than these within one and a half heartbeat intervals are no event on its way: a proxy answers for a dead server
/// with HTTP/2 PINGs, of 17 bytes each.
const SIGN_OF_LIFE: u64 = 4096;
/// How long stopping may take: the attempts under way, their acknowledgements, the receipts.
pub(crate) const FAREWELL: Duration = Duration::from_secs(5);

/// Why a stream ended.
#[derive(Debug)]
pub(crate) enum End {
    /// We were asked to stop.
    Stopped,
    /// It lived as long as we let one live.
    WindowOver,
    /// The server said so beforehand.
    GoAway(GoAwayReason, String),
    /// The server has another store than the subscription was made for: it was told of events that are others now.
    OtherStore,
    /// It broke, or the server refused.
    Broken(Status),
}

/// What is asked for on a stream.
#[derive(Debug)]
pub(crate) struct Order {
    /// What the server is asked for.
    pub(crate) subscription: Subscription,
    /// How long the stream is to live once it was opened; `None` is for ever.
    pub(crate) window: Option<Duration>,
}

/// What happens on a stream that says how well it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The subscription stands.
    Started,
    /// An event came that was not known, or a receipt.
    Progress,
}

/// Runs one stream on a connection until it ends.
pub(crate) async fn run(
    mut line: Line,
    Order { subscription, window }: Order,
    deliveries: &mut Deliveries,
    stop: &CancellationToken,
    mut notify: impl FnMut(Notice) + Send,
) -> End {
    let (sender, receiver) = mpsc::channel(REQUESTS);
    let deferred = deliveries.resume();
    let has_deferred = !deferred.is_empty();
    let subscription = Subscription { deferred, seen: deliveries.seen(), ..subscription };
    let first = SubscribeRequest { request: Some(Request::Subscription(subscription.into())) };
    if sender.try_send(first).is_err() {
        return End::Broken(Status::internal("the first message does not fit its empty channel"));
    }
    // From here: a platform that cuts long requests counts from here, too.
    let begin = Instant::now();
    let opened = tokio::time::timeout(START_TIMEOUT, line.subscribe(requests(receiver), window));
    let Opened { responses, window } = match deliveries.during(stop.run_until_cancelled(opened)).await {
        None => return End::Stopped,
        Some(Err(_)) => return End::Broken(silent(START_TIMEOUT)),
        Some(Ok(Err(status))) => return End::Broken(status),
        Some(Ok(Ok(opened))) => opened,
    };
    let mut session = Session {
        responses,
        sender: Some(sender),
        deliveries,
        has_started: false,
        has_deferred,
        has_missed: false,
        patience: START_TIMEOUT,
        window_ends: window.and_then(|window| begin.checked_add(window)),
        received: line.received(),
    };
    match session.stream(stop, &mut notify).await {
        End::Stopped => {
            session.farewell().await;
            End::Stopped
        }
        end => end,
    }
}

struct Session<'a> {
    responses: Responses,
    /// `None` once the client's half of the stream is broken.
    sender: Option<mpsc::Sender<SubscribeRequest>>,
    deliveries: &'a mut Deliveries,
    /// Whether the server has said which store it has. Before that, it is told nothing of events.
    has_started: bool,
    /// Whether the subscription named deferred events.
    has_deferred: bool,
    /// Whether it was said that something was missed.
    has_missed: bool,
    /// How long the server may be silent: one and a half heartbeat intervals.
    patience: Duration,
    /// When this stream is to end, if it is to.
    window_ends: Option<Instant>,
    /// How many bytes have come in on the connection.
    received: Received,
}

impl Session<'_> {
    async fn stream(&mut self, stop: &CancellationToken, notify: &mut (impl FnMut(Notice) + Send)) -> End {
        let mut heard = (Instant::now(), self.received.bytes());
        loop {
            let deadline = heard.0 + self.patience;
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                message = self.responses.next() => {
                    heard = (Instant::now(), self.received.bytes());
                    match message {
                        Some(Ok(SubscribeResponse { response: Some(response) })) => {
                            if let Err(end) = self.receive(response, notify) {
                                return end;
                            }
                        }
                        Some(Ok(SubscribeResponse { response: None })) => {} // from a newer server: not for us
                        None => return End::Broken(Status::unavailable("the server ended the stream")),
                        Some(Err(status)) => return End::Broken(status),
                    }
                }
                () = until(self.window_ends), if self.has_started => return End::WindowOver,
                () = self.deliveries.progress() => {}
                permit = reserve(self.sender.clone()), if self.has_started && self.deliveries.has_news() => {
                    match permit {
                        Some(permit) => self.tell(permit),
                        // The stream is broken; its error comes by the other half.
                        None => self.sender = None,
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    let received = self.received.bytes();
                    if received - heard.1 < SIGN_OF_LIFE {
                        return End::Broken(silent(self.patience));
                    }
                    heard = (Instant::now(), received);
                }
            }
        }
    }

    /// Takes one message in; `Err` ends the stream.
    fn receive(&mut self, response: Response, notify: &mut (impl FnMut(Notice) + Send)) -> Result<(), End> {
        match response {
            Response::Started(started) => {
                self.start(&started)?;
                notify(Notice::Started);
            }
            Response::Event(event) => {
                if self.receive_event(event) {
                    notify(Notice::Progress);
                }
            }
            Response::Heartbeat(heartbeat) => {
                self.deliveries.cursor_at(Sequence::new(heartbeat.cursor));
                self.deliveries.head_at(Sequence::new(heartbeat.head));
            }
            Response::Receipt(receipt) => {
                self.deliveries.confirmed(receipt.sequences);
                notify(Notice::Progress);
            }
            Response::Missed(missed) => {
                // What was put down is found missing one by one: a line for each would flood the log.
                let is_damage = missed.kind() == MissedKind::Damaged;
                if is_damage || missed.first < missed.last || !std::mem::replace(&mut self.has_missed, true) {
                    let reason = if is_damage { missed.reason.as_str() } else { "retention removed them" };
                    error!(missed.first, missed.last, reason, "the server cannot send these events any more");
                }
                self.deliveries.missed(Sequence::new(missed.first), Sequence::new(missed.last));
            }
            Response::GoAway(go_away) => return Err(End::GoAway(go_away.reason(), go_away.message)),
        }
        Ok(())
    }

    /// Takes one event in; `true` if it is new. One that cannot be decoded becomes a dead letter: the server would send it
    /// again on every stream.
    fn receive_event(&mut self, mut event: v1::Event) -> bool {
        let first_attempts = std::mem::take(&mut event.first_attempts).into_iter();
        // One that cannot be read begins to count anew.
        let first_attempts: Vec<_> = first_attempts.filter_map(|one| one.try_into().ok()).collect();
        let sequence = Sequence::new(event.sequence);
        match Event::try_from(event) {
            Ok(event) => {
                debug!(event.sequence = sequence.get(), delivery.id = %event.webhook.facts.delivery_id, "received");
                self.deliveries.accept(&Arc::new(event), &first_attempts)
            }
            Err(error) if sequence == Sequence::ZERO => {
                error!(reason = %error, "the server sent an event that cannot be decoded");
                false
            }
            Err(error) => self.deliveries.reject(sequence, &error.to_string()),
        }
    }

    fn start(&mut self, started: &Started) -> Result<(), End> {
        let interval = from_duration(started.heartbeat_interval.unwrap_or_default());
        let interval = interval.clamp(*HEARTBEATS.start(), *HEARTBEATS.end());
        self.patience = interval + (interval / 2).max(SHORTEST_GRACE);
        let log = Seen {
            store: started.store_id.clone(),
            history: history(&started.runs),
            sequence: Sequence::new(started.head),
        };
        let cursor = Sequence::new(started.cursor);
        let common = started.common_sequence.map(Sequence::new);
        if !self.deliveries.belong_to(&log, cursor, common) && self.has_deferred {
            return Err(End::OtherStore);
        }
        let Started { max_unacknowledged_events, max_unacknowledged_bytes, .. } = *started;
        self.deliveries.granted(max_unacknowledged_events, max_unacknowledged_bytes);
        self.deliveries.cursor_at(cursor);
        self.deliveries.head_at(Sequence::new(started.head));
        self.has_started = true;
        info!(server.name = started.server_name, cursor = started.cursor, head = started.head, "subscribed");
        Ok(())
    }

    fn tell(&mut self, permit: mpsc::OwnedPermit<SubscribeRequest>) {
        if let Some(request) = self.deliveries.next_news() {
            drop(permit.send(SubscribeRequest { request: Some(request) }));
        }
    }

    /// Waits for the attempts under way. Acknowledges each event as soon as it is finished, so that a slow target delays no
    /// other acknowledgement, and waits for the receipts.
    async fn farewell(&mut self) {
        let deadline = self.deliveries.begin_stop();
        let ended = async {
            while !self.deliveries.has_stopped() || self.awaits_receipts() {
                tokio::select! {
                    () = self.deliveries.progress() => {}
                    permit = reserve(self.sender.clone()), if self.has_started && self.deliveries.has_news() => {
                        match permit {
                            Some(permit) => self.tell(permit),
                            None => self.sender = None,
                        }
                    }
                    message = self.responses.next() => match message {
                        Some(Ok(SubscribeResponse { response: Some(Response::Receipt(receipt)) })) => {
                            self.deliveries.confirmed(receipt.sequences);
                        }
                        Some(Ok(_)) => {}
                        None | Some(Err(_)) => return,
                    },
                }
            }
        };
        // The server sends every event again that is not confirmed in time: that is what at least once means.
        drop(tokio::time::timeout_at(deadline, ended).await);
    }

    /// Whether acknowledgements are on their way to a server that will confirm them.
    fn awaits_receipts(&self) -> bool {
        self.has_started && self.deliveries.unconfirmed() > 0
    }
}

/// The client's half of the stream: ends when the sender is dropped.
fn requests(mut receiver: mpsc::Receiver<SubscribeRequest>) -> impl Stream<Item = SubscribeRequest> {
    futures_util::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// Room for one message; `None` if the stream is broken. Waits for ever on a half that is closed.
async fn reserve(
    sender: Option<mpsc::Sender<SubscribeRequest>>,
) -> Option<mpsc::OwnedPermit<SubscribeRequest>> {
    match sender {
        Some(sender) => sender.reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}

/// Waits until then, or for ever.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn silent(patience: Duration) -> Status {
    Status::new(Code::Unavailable, format!("nothing was heard for {} s", patience.as_secs()))
}

#[cfg(test)]
mod tests;
