//! Receiving from a server of the Go implementation, which does not know `Subscribe`.
//!
//! Which implementation answers shows at each new connection: `Subscribe` is UNIMPLEMENTED there. Then the client fetches, one
//! stream per repository, and what it gets becomes the messages that it knows: the rest of the client sees a server that
//! stores every acknowledgement at once. That server's part is played by the [`Keep`], since the real one sends each webhook
//! once and is told nothing.
//!
//! - A fetch stream is read to its end, which the server sets: what it has sent when a stream is cut is lost. So the client's
//!   own window does not end it, and when one repository's stream ends or fails, those of the others go on. The next begin
//!   on a new connection, which finds out anew who answers.
//! - The server's empty lists, every five seconds, are passed on as heartbeats. While the keep is full nothing is read, and
//!   the heartbeats are made here.
//! - A webhook that cannot be read is logged and counted as missed. It is gone: the server does not send it twice.
//! - When our implementation answers and something is still kept, that is delivered first, on a stream without a server. The
//!   new server stores what comes meanwhile.
//!
//! One message holds all that the server had, and one that is too large to be received would be lost as a whole. So
//! the largest is the one of our own wire (`MAX_MESSAGE_BYTES`), not grpc-go's 4 MiB.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::stream::{BoxStream, SelectAll, unfold};
use futures_util::{Stream, StreamExt};
use gitstafette_core::event::{Event, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::repository::{RepositoryId, RepositoryPattern};
use gitstafette_proto::convert::{Subscription, duration, from_go_event};
use gitstafette_proto::v1;
use gitstafette_proto::v1::subscribe_request::Request;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{
    GoAway, GoAwayReason, Heartbeat, Missed, MissedKind, Receipt, Started, SubscribeRequest,
    SubscribeResponse,
};
use tokio::time::Instant;
use tokio_stream::once;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::Opened;
use super::fetch::{Fetched, What, fetched};
use super::keep::Keep;
use crate::connect::Calls;
use crate::window::Load;

/// How long a stream lives if nothing else is set: the default of the Go implementation's own client (`streamWindow`).
const WINDOW: Duration = Duration::from_secs(180);
/// How often something is heard, at least: as from our own server. The other's lists come every five seconds.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The client's half of a stream.
pub(super) type Requests = BoxStream<'static, SubscribeRequest>;

/// A server that may be of either implementation.
#[derive(Debug)]
pub(super) struct EitherServer<'a> {
    pub(super) calls: Calls,
    /// Its name in logs.
    pub(super) name: &'a str,
    pub(super) keep: &'a Keep,
}

impl EitherServer<'_> {
    /// Opens a stream, in the way that the server knows.
    ///
    /// # Errors
    /// The server's refusal. FAILED_PRECONDITION if it cannot give what is asked for.
    pub(super) async fn subscribe(
        self,
        mut requests: Requests,
        window: Option<Duration>,
    ) -> Result<Opened, Status> {
        let Some(SubscribeRequest { request: Some(Request::Subscription(asked)) }) = requests.next().await
        else {
            return Err(Status::internal("the first message is no subscription"));
        };
        let kept = self.keep.lock().len();
        let mut first = asked.clone();
        if kept > 0 {
            first.deferred.clear(); // these are numbers of the keep, which mean others to a server of ours
        }
        let later = Later::new(requests);
        let first = SubscribeRequest { request: Some(Request::Subscription(first)) };
        let answer = self.calls.clone().subscribe(once(first).chain(later.clone())).await;
        match answer {
            Ok(answer) if kept == 0 => {
                let mut kept = self.keep.lock();
                (kept.is_trusted, kept.was_explained) = (false, false);
                Ok(Opened { responses: answer.into_inner().boxed(), window })
            }
            Ok(answer) => {
                drop(answer);
                info!(
                    server = self.name,
                    events = kept,
                    "the server of the Go implementation was replaced; what came from it is delivered first"
                );
                let fetching = Fetching::new(self.keep.clone(), asked, later.back())?;
                Ok(fetching.opened())
            }
            Err(status) if status.code() == Code::Unimplemented => {
                self.fetch(asked, later.back(), window.unwrap_or(WINDOW), status).await
            }
            Err(status) => Err(status),
        }
    }

    /// Opens a stream of an old server, which answered `Subscribe` with `unknown`.
    async fn fetch(
        self,
        asked: v1::Subscription,
        requests: Requests,
        window: Duration,
        unknown: Status,
    ) -> Result<Opened, Status> {
        let repositories = repositories(&asked, &unknown)?;
        let client_id = asked.client_id.clone();
        let of_another_store = !asked.deferred.is_empty() && self.keep.lock().is_empty();
        let mut fetching = Fetching::new(self.keep.clone(), asked, requests)?;
        if of_another_store {
            // The session will leave this stream at its first message, and must not leave events behind on it.
            return Ok(fetching.opened());
        }
        for repository in repositories {
            let request = v1::WebhookEventsRequest {
                client_id: client_id.clone(),
                repository_id: repository.to_string(),
                last_received_event_id: 0,
                duration_secs: u32::try_from(window.as_secs().max(1)).unwrap_or(u32::MAX),
            };
            fetching.add(fetched(self.calls.clone(), repository, request));
        }
        fetching.begin().await.map_err(|status| match status.code() {
            Code::Unimplemented => unknown, // it is no server of either
            _ => status,
        })?;
        if !std::mem::replace(&mut self.keep.lock().was_explained, true) {
            info!(
                server = self.name,
                "the server is of the Go implementation: it sends each webhook once and hears of no delivery, so what has come \
                 and is not delivered when this process ends is lost"
            );
        }
        Ok(fetching.opened())
    }
}

/// The repositories that are asked for, by their numbers.
fn repositories(asked: &v1::Subscription, unknown: &Status) -> Result<HashSet<RepositoryId>, Status> {
    let number = |pattern: &String| match pattern.parse() {
        Ok(RepositoryPattern::Id(id)) => Some(id),
        _ => None,
    };
    let numbers: Option<HashSet<_>> = asked.repositories.iter().map(number).collect();
    numbers.filter(|numbers| !numbers.is_empty()).ok_or_else(|| {
        Status::failed_precondition(format!(
            "the server does not know Subscribe ({}), so it is of the Go implementation, which knows repositories by their number \
             only: name each by it, as --repo 537845873 (in a file: repo = [\"537845873\"])",
            unknown.message()
        ))
    })
}

/// The client's half of a stream, which can be taken back from a call that failed.
#[derive(Clone)]
struct Later(Arc<Mutex<Option<Requests>>>);

impl Later {
    fn new(requests: Requests) -> Self {
        Self(Arc::new(Mutex::new(Some(requests))))
    }

    /// Takes it back: for the call it has ended.
    fn back(&self) -> Requests {
        let requests = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        requests.unwrap_or_else(|| futures_util::stream::empty().boxed())
    }
}

impl Stream for Later {
    type Item = SubscribeRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SubscribeRequest>> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(requests) => requests.as_mut().poll_next(context),
            None => Poll::Ready(None),
        }
    }
}

/// What the client is to be told next.
#[derive(Debug)]
enum Word {
    /// This event, if it is still kept.
    Event(Sequence),
    Heartbeat,
    Other(Box<Response>),
}

impl From<Response> for Word {
    fn from(response: Response) -> Self {
        Self::Other(Box::new(response))
    }
}

/// Fetch streams as one stream of ours. Without any it brings what is kept, and ends when that is done.
struct Fetching {
    keep: Keep,
    /// How much may be kept.
    window: Load,
    /// The kinds of events that are wanted.
    wanted: Filter,
    fetches: SelectAll<BoxStream<'static, Fetched>>,
    /// Those that have not ended.
    running: usize,
    /// Whether one has ended as it was to.
    has_ended_well: bool,
    /// Why another has not.
    failure: Option<Status>,
    has_heard: bool,
    is_over: bool,
    requests: Requests,
    has_requests: bool,
    words: VecDeque<Word>,
    /// When a heartbeat is due.
    beat: Instant,
}

impl Fetching {
    fn new(keep: Keep, asked: v1::Subscription, requests: Requests) -> Result<Self, Status> {
        let subscription =
            Subscription::try_from(asked).map_err(|error| Status::internal(error.to_string()))?;
        let window = Load::asked_for(&subscription);
        let deferred: HashSet<Sequence> = subscription.deferred.into_iter().collect();
        let words = {
            let kept = keep.lock();
            let started = Started {
                store_id: kept.store.clone(),
                server_name: "Go implementation".to_owned(),
                cursor: kept.cursor().get(),
                head: kept.newest().get(),
                heartbeat_interval: Some(duration(HEARTBEAT)),
                max_unacknowledged_events: u32::try_from(window.events).unwrap_or(u32::MAX),
                max_unacknowledged_bytes: window.bytes,
                ..Started::default()
            };
            let here = kept.sequences().filter(|sequence| !deferred.contains(sequence));
            std::iter::once(Word::from(Response::Started(started))).chain(here.map(Word::Event)).collect()
        };
        Ok(Self {
            keep,
            window,
            wanted: Filter { repositories: Vec::new(), events: subscription.filter.events },
            fetches: SelectAll::new(),
            running: 0,
            has_ended_well: false,
            failure: None,
            has_heard: false,
            is_over: false,
            requests,
            has_requests: true,
            words,
            beat: Instant::now() + HEARTBEAT,
        })
    }

    fn add(&mut self, fetch: BoxStream<'static, Fetched>) {
        self.fetches.push(fetch);
        self.running += 1;
    }

    /// Waits for a first message, so that a refusal is one. After a stream that was good, and with events to deliver, there
    /// is no waiting: a message comes only every five seconds.
    async fn begin(&mut self) -> Result<(), Status> {
        let is_sure = {
            let kept = self.keep.lock();
            kept.is_trusted || !kept.is_empty()
        };
        while !is_sure && !self.has_heard && !self.is_over {
            let fetched = self.fetches.next().await;
            self.take(fetched);
        }
        match self.failure.take_if(|_| self.is_over) {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }

    fn opened(self) -> Opened {
        let responses = unfold(self, |mut fetching| async {
            let response = fetching.next().await?;
            Some((response, fetching))
        });
        // Its end comes from the server; see above.
        Opened { responses: responses.boxed(), window: None }
    }

    /// The next message for the client.
    async fn next(&mut self) -> Option<Result<SubscribeResponse, Status>> {
        loop {
            while let Some(word) = self.words.pop_front() {
                if let Some(response) = self.spell_out(word) {
                    self.beat = Instant::now() + HEARTBEAT;
                    return Some(Ok(SubscribeResponse { response: Some(response) }));
                }
            }
            if self.is_over {
                return self.failure.take().map(Err);
            }
            let (is_done, is_full) = {
                let kept = self.keep.lock();
                (kept.is_empty() && self.running == 0, kept.fills(self.window))
            };
            if is_done {
                self.go_away();
                continue;
            }
            let reads = self.running > 0 && !is_full;
            tokio::select! {
                biased; // what the client says makes room
                request = self.requests.next(), if self.has_requests => match request {
                    Some(SubscribeRequest { request }) => self.hear(request),
                    None => self.has_requests = false,
                },
                fetched = self.fetches.next(), if reads => self.take(fetched),
                () = tokio::time::sleep_until(self.beat), if !reads => self.words.push_back(Word::Heartbeat),
            }
        }
    }

    fn spell_out(&self, word: Word) -> Option<Response> {
        let kept = self.keep.lock();
        match word {
            Word::Event(sequence) => kept.event(sequence).map(|event: &Event| Response::Event(event.into())),
            Word::Heartbeat => Some(Response::Heartbeat(Heartbeat {
                head: kept.newest().get(),
                cursor: kept.cursor().get(),
            })),
            Word::Other(response) => Some(*response),
        }
    }

    /// Takes in what the client says.
    fn hear(&mut self, request: Option<Request>) {
        let mut kept = self.keep.lock();
        match request {
            Some(Request::Acknowledgements(message)) => {
                let sequences: Vec<_> = message.acknowledgements.iter().map(|one| one.sequence).collect();
                for sequence in &sequences {
                    kept.done(Sequence::new(*sequence));
                }
                self.words.push_back(Response::Receipt(Receipt { sequences }).into());
            }
            Some(Request::Recall(recall)) => {
                self.words.extend(recall.sequences.into_iter().map(Sequence::new).map(Word::Event));
            }
            // What the client puts down stays here. The server of the Go implementation keeps no first attempts.
            Some(Request::Deferral(_) | Request::FirstAttempts(_) | Request::Subscription(_)) | None => {}
        }
    }

    /// Takes in what the server sends.
    fn take(&mut self, fetched: Option<Fetched>) {
        let Some(Fetched { repository, what }) = fetched else { return self.conclude() };
        match what {
            What::Events(events) => {
                self.has_heard = true;
                self.keep.lock().is_trusted = true;
                for event in events {
                    self.take_event(repository, event);
                }
                self.words.push_back(Word::Heartbeat);
            }
            What::End(end) => {
                self.running -= 1;
                match end {
                    Ok(()) => self.has_ended_well = true,
                    Err(status) => self.fail(repository, &status),
                }
            }
        }
        if self.running == 0 {
            self.conclude();
        }
    }

    fn take_event(&mut self, repository: RepositoryId, event: v1::WebhookEvent) {
        let (event_id, bytes) = (event.event_id.chars().take(80).collect::<String>(), event.body.len());
        let mut kept = self.keep.lock();
        match from_go_event(event, repository, SystemTime::now().into()) {
            Ok(webhook) if !self.wanted.matches(&webhook.facts) => {}
            Ok(webhook) => match kept.put(repository, webhook) {
                Some(sequence) => self.words.push_back(Word::Event(sequence)),
                None => debug!(delivery.id = event_id, "it is here already, and not delivered yet"),
            },
            Err(error) => {
                warn!(
                    delivery.id = ?event_id,
                    repository.name = %repository,
                    body.bytes = bytes,
                    reason = %error,
                    "a webhook that cannot be read is lost"
                );
                let sequence = kept.number().get();
                let (reason, kind) = (error.to_string(), MissedKind::Damaged.into());
                let missed = Missed { first: sequence, last: sequence, reason, kind };
                self.words.push_back(Response::Missed(missed).into());
            }
        }
    }

    /// A repository's stream has failed.
    fn fail(&mut self, repository: RepositoryId, status: &Status) {
        let hint = match status.code() {
            // As which plain errors of Go come.
            Code::Unknown => "; is it on the server's list (--repositories)?",
            _ => "",
        };
        let message = format!("repository {repository}: {}{hint}", status.message());
        if self.running > 0 || self.has_ended_well {
            warn!(status = ?status.code(), reason = message, "no webhooks of this repository until the next stream");
        }
        self.failure = Some(Status::new(status.code(), message));
    }

    /// The fetch streams have ended.
    fn conclude(&mut self) {
        if self.has_ended_well {
            self.go_away();
        } else {
            self.keep.lock().is_trusted = false;
            self.is_over = true;
        }
    }

    /// Asks the client to open the next stream.
    fn go_away(&mut self) {
        self.failure = None;
        self.is_over = true;
        let go_away = GoAway { reason: GoAwayReason::Window.into(), message: String::new() };
        self.words.push_back(Response::GoAway(go_away).into());
    }
}
