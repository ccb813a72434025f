//! Another Gitstafette server: ours, or one of the Go implementation.
//!
//! Each try is a call of its own with one event. Nothing long-lived has to be kept up: a platform that cuts long requests,
//! or is asleep until it is asked, serves as well as any, and a large event holds up no small one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use gitstafette_core::event::Event;
use gitstafette_core::target::{Attempt, Target, Verdict};
use gitstafette_proto::convert::MAX_GO_MESSAGE_BYTES;
use gitstafette_proto::v1::{
    self, PublishRequest, PublishResponse, PublishResult, WebhookEventPushRequest, WebhookEventPushResponse,
};
use prost::Message;
use tokio::sync::watch;
use tokio_stream::iter;
use tonic::{Code, Status};

use crate::connect::{Calls, Connection, ServerAddress, is_reachable};

mod peer;

pub use peer::PeerLog;

/// The slowest line that a large event may go over, in bytes per second: a try may take that much longer. Otherwise one that
/// needs more than the time-out would be tried for ever, and its repository would stand still.
const SLOWEST: u64 = 64 << 10;

/// Why an event is refused that comes from a server older than hops. It has none in any later attempt either.
const WITHOUT_HOPS: &str =
    "the event carries no hops: upgrade the server that the client subscribes to, then redeliver the event";

/// Publishes each event to another server; delivered means that it is durable there.
///
/// Which wire the server speaks shows at the first call of each connection: one that does not know `Publish` is of the Go
/// implementation, and gets `WebhookEventPush`. When it is replaced, the next connection finds that out, at the latest with
/// its second event: the first may have been on its way to the old one.
pub struct ServerTarget {
    name: String,
    /// Told to a server of the Go implementation.
    client_id: String,
    address: ServerAddress,
    timeout: Duration,
    /// The connection that tries share, or the wait for it: one dials, all hear how it went.
    dialing: Mutex<Option<Dialing>>,
    /// Counts connections, so that a try drops no newer one than its own.
    dials: AtomicU64,
    /// The receiver's log, if account of it is kept.
    peer: Option<watch::Sender<PeerLog>>,
}

/// A connection under its number.
#[derive(Clone)]
struct Dialing {
    number: u64,
    link: Shared<BoxFuture<'static, Result<Arc<Link>, Status>>>,
}

/// A channel, and what is known of the server at its end.
struct Link {
    calls: Calls,
    /// How often the channel dialled: it does so by itself when the server has left.
    dialled: Arc<AtomicU64>,
    /// The dial at whose end a server of the Go implementation was; none is the zeroth.
    old_at: AtomicU64,
    /// Counts the connections that ended.
    ended: watch::Receiver<u64>,
}

impl Link {
    fn is_old(&self) -> bool {
        self.old_at.load(Ordering::Relaxed) == self.dialled.load(Ordering::Relaxed)
    }
}

impl ServerTarget {
    /// The server at `address`, under its host and port as the target's name. `client_id` says who publishes; a try may
    /// take `timeout`, and a large event longer.
    pub fn new(address: ServerAddress, client_id: String, timeout: Duration) -> Self {
        let name = format!("{}:{}", address.host, address.port);
        Self {
            name,
            client_id,
            address,
            timeout,
            dialing: Mutex::default(),
            dials: AtomicU64::default(),
            peer: None,
        }
    }

    fn dial(&self) -> Dialing {
        let mut dialing = self.dialing.lock().unwrap_or_else(PoisonError::into_inner);
        let dial = || {
            let address = self.address.clone();
            let link = async move {
                let Connection { calls, dialled, ended, .. } = address.connect().await?;
                Ok(Arc::new(Link { calls, dialled, old_at: AtomicU64::new(0), ended }))
            };
            Dialing { number: self.dials.fetch_add(1, Ordering::Relaxed), link: link.boxed().shared() }
        };
        dialing.get_or_insert_with(dial).clone()
    }

    /// The next try dials anew, unless another has already.
    fn hang_up(&self, number: u64) {
        let mut dialing = self.dialing.lock().unwrap_or_else(PoisonError::into_inner);
        if dialing.as_ref().is_some_and(|dialing| dialing.number == number) {
            *dialing = None;
        }
    }

    async fn publish(&self, link: &Link, event: &Event) -> Result<Attempt, Status> {
        if !link.is_old() {
            // Without hops it would be refused for good. Called with nothing, the server still shows which wire it speaks.
            let is_placed = event.webhook.facts.hops.last().is_some();
            let asked = self.known_run_id();
            let request =
                is_placed.then(|| PublishRequest { event: Some(event.into()), known_run_id: asked.clone() });
            match link.calls.clone().publish(iter(request)).await {
                Ok(_) if !is_placed => return Ok(refused(WITHOUT_HOPS)),
                Ok(answers) => {
                    let answer = answers.into_inner().message().await?;
                    let answer = answer.ok_or_else(|| Status::unavailable("there was no answer"))?;
                    self.take_account(&asked, &answer);
                    return Ok(published(answer));
                }
                Err(status) if status.code() == Code::Unimplemented => {}
                Err(status) => return Err(status),
            }
        }
        self.push(link, event).await
    }

    /// To a server of the Go implementation.
    async fn push(&self, link: &Link, event: &Event) -> Result<Attempt, Status> {
        let Some(repository) = event.webhook.facts.repository_id else {
            return Ok(refused("the server is of the Go implementation, which knows repositories only"));
        };
        let request = WebhookEventPushRequest {
            cliend_id: self.client_id.clone(),
            repository_id: repository.to_string(),
            webhook_event: Some(v1::WebhookEvent { sequence: 0, ..event.into() }),
        };
        if request.encoded_len() > MAX_GO_MESSAGE_BYTES {
            return Ok(refused("the server is of the Go implementation, which takes 4 MiB at most"));
        }
        let pushed = link.calls.clone().webhook_event_push(request).await?.into_inner();
        let dialled = link.dialled.load(Ordering::Relaxed);
        if link.old_at.swap(dialled, Ordering::Relaxed) != dialled {
            tracing::info!(target.name = self.name, "the server is of the Go implementation");
        }
        Ok(accepted(pushed))
    }
}

impl fmt::Debug for ServerTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTarget").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Target for ServerTarget {
    fn name(&self) -> &str {
        &self.name
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let dialing = self.dial();
        let patience = patience(self.timeout, event.webhook.size());
        let tried = tokio::time::timeout(patience, async {
            match dialing.link.clone().await {
                Ok(link) => self.publish(&link, event).await.map_err(|status| (verdict(&status), status)),
                Err(status) => Err((Verdict::Unreachable, status)),
            }
        });
        let timed_out = || {
            let status = Status::deadline_exceeded(format!("no answer in {} s", patience.as_secs()));
            Err((Verdict::Retry(None), status))
        };
        match tried.await.unwrap_or_else(|_| timed_out()) {
            Ok(attempt) => attempt,
            Err((verdict, status)) => {
                if verdict != Verdict::Final {
                    self.hang_up(dialing.number);
                }
                let detail = format!("{:?}: {}", status.code(), status.message());
                Attempt { verdict, code: None, detail }
            }
        }
    }

    async fn is_reachable(&self) -> bool {
        is_reachable(&self.address.host, self.address.port).await
    }
}

/// How long a try with an event of this size may take.
fn patience(timeout: Duration, bytes: u64) -> Duration {
    timeout.saturating_add(Duration::from_secs(bytes / SLOWEST))
}

fn published(answer: PublishResponse) -> Attempt {
    let verdict = match answer.result() {
        PublishResult::Stored | PublishResult::Repeat => Verdict::Delivered,
        PublishResult::Unwanted => Verdict::Unwanted,
        PublishResult::Refused => Verdict::Final,
        PublishResult::Unspecified | PublishResult::OtherRun => Verdict::Retry(None),
    };
    let detail = match answer.result() {
        PublishResult::Stored => format!("stored there as {}", answer.sequence),
        PublishResult::Repeat => format!("was there as {}", answer.sequence),
        PublishResult::OtherRun => {
            "the server was started since; whether its store was set back is found out first".to_owned()
        }
        _ => answer.detail,
    };
    Attempt { verdict, code: None, detail }
}

fn accepted(answer: WebhookEventPushResponse) -> Attempt {
    let WebhookEventPushResponse { response_code, response_description, accepted } = answer;
    let code = response_code.parse().ok();
    let verdict = match code {
        _ if accepted => Verdict::Delivered,
        Some(406) => Verdict::Unwanted,
        Some(400..500) => Verdict::Final,
        _ => Verdict::Retry(None),
    };
    let detail = if accepted { "accepted there".to_owned() } else { response_description };
    Attempt { verdict, code, detail }
}

fn refused(reason: &str) -> Attempt {
    Attempt { verdict: Verdict::Final, code: None, detail: reason.to_owned() }
}

/// What a call's error means for the event. Final is only what the same event would get again from a server that works. A
/// wrong token is no such thing: it is set right, and nothing may be lost until then.
fn verdict(status: &Status) -> Verdict {
    match status.code() {
        // The first is "too large". RESOURCE_EXHAUSTED is not final: gateways answer a quota with it, and what grpc-go does
        // not take is held back before the call.
        Code::OutOfRange | Code::InvalidArgument => Verdict::Final,
        _ => Verdict::Retry(None),
    }
}

#[cfg(test)]
mod tests;
