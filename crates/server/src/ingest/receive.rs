//! One webhook, from its request to the answer. What another server hands on is judged by the same steps.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use gitstafette_core::classify::{self, Envelope, Hearsay};
use gitstafette_core::event::{Facts, Timestamp, Webhook};
use gitstafette_core::headers::{Headers, is_hop_by_hop};
use gitstafette_core::store::Appended;
use gitstafette_core::verify::{INLINE_BYTES, Unverified, Verified};
use gitstafette_proto::convert::check_size;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use super::problem::{Problem, Refusal};
use super::{Ingest, jenkins};
use crate::auth::Peer;
use crate::listen::Caller;

/// What is known of a webhook while it is being received, for the log.
#[derive(Debug)]
pub(crate) struct Seen {
    started: Instant,
    envelope: Option<Envelope>,
    facts: Option<Facts>,
    bytes: usize,
}

/// How far a webhook is believed, and what is known beside it.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// It comes from where anybody may send: its signature must hold, if the server has secrets, and it must be whole.
    Sender,
    /// It comes through another server, which cannot be believed: the same, and what it lacks is taken from there.
    Signature(Hearsay),
    /// It comes through another server that has shown who it is, and took it in itself: its signature is not looked at.
    Caller(Hearsay),
}

/// What a webhook became that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// The store has it.
    Appended(Appended),
    /// A `ping` that names no account, as GitHub Apps send it when their webhook is set up. It is not stored: it belongs
    /// to no repository, and only its sender waits for an answer.
    Ping,
}

/// What a `ping` that is not stored is answered.
pub(crate) const PING_ANSWER: &str =
    "ping received; it names no repository and no account, so it is not stored or forwarded";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stored<'a> {
    sequence: u64,
    delivery_id: &'a str,
}

/// `POST /v1/github/`. It is taken in a task of its own: a sender that hangs up drops this handler, but must not keep
/// what is being stored from the log.
pub(super) async fn github(State(ingest): State<Arc<Ingest>>, request: Request<Body>) -> Response {
    if jenkins::is_probe(&request) {
        return jenkins::answer();
    }
    let taking = ingest.tasks.spawn(Arc::clone(&ingest).take(request));
    taking.await.unwrap_or_else(|_| Problem::from(Refusal::Internal).into_response())
}

impl Ingest {
    /// Takes one webhook, logs what became of it, and answers.
    async fn take(self: Arc<Self>, request: Request<Body>) -> Response {
        let mut seen = Seen::default();
        let received = AssertUnwindSafe(self.receive(request, &mut seen)).catch_unwind().await;
        match self.conclude(received.unwrap_or(Err(Refusal::Internal)), &seen) {
            Ok(accepted) => answer(accepted, &seen),
            Err(problem) => problem.into_response(),
        }
    }

    /// Logs and counts what became of a webhook.
    pub(crate) fn conclude(
        &self,
        received: Result<Accepted, Refusal>,
        seen: &Seen,
    ) -> Result<Accepted, Problem> {
        let (status, concluded) = match received {
            Ok(accepted) => {
                seen.log_accepted(accepted);
                (accepted.status(), Ok(accepted))
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                let problem = Problem::from(refusal);
                seen.log_refused(problem.status(), &reason);
                (problem.status(), Err(problem))
            }
        };
        self.metrics.webhooks.with_label_values(&[status.as_str()]).inc();
        self.metrics.webhook_duration.observe(seen.started.elapsed().as_secs_f64());
        if status == StatusCode::CREATED {
            self.metrics.webhook_bytes.inc_by(seen.bytes as u64);
        }
        concluded
    }

    /// Receives one webhook: precheck, body, and what [`judge`](Self::judge) does.
    async fn receive(&self, request: Request<Body>, seen: &mut Seen) -> Result<Accepted, Refusal> {
        let (parts, body) = request.into_parts();
        let fields = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let headers = end_to_end(fields);
        if let Err(refusal) = self.precheck(&headers, seen) {
            self.bodies.refuse(&parts.headers, body);
            return Err(refusal);
        }
        let caller = parts.extensions.get::<Caller>();
        caller.inspect(|caller| caller.sends_webhook());
        let connection = parts.extensions.get::<Peer>().map(|peer| peer.address);
        let body = self.bodies.read(&parts.headers, body, connection, seen.started).await?;
        caller.inspect(|caller| caller.keeps_connection());
        let request = Unverified { headers, body: body.bytes };
        let judged = self.judge(request, Trust::Sender, body.reservation, seen).await;
        if judged.is_err() {
            caller.inspect(|caller| caller.sends_webhook());
        }
        judged
    }

    /// What can be said before the body has come.
    fn precheck(&self, headers: &Headers, seen: &mut Seen) -> Result<(), Refusal> {
        seen.envelope = Some(Envelope::read(headers)?);
        if let Some(signature) = &self.signature {
            signature.precheck(headers)?;
        }
        Ok(())
    }

    /// Judges one webhook, whichever way it came, and stores it: signature, what it is, watchlist, store. In this order:
    /// nothing is read from a body before its signature holds, and what is refused leaves no trace in the store. `memory`
    /// is what the webhook uses; it is dropped when the store needs it no longer.
    pub(crate) async fn judge(
        &self,
        request: Unverified,
        trust: Trust,
        memory: impl Send + 'static,
        seen: &mut Seen,
    ) -> Result<Accepted, Refusal> {
        seen.bytes = request.body.len();
        let limit = self.bodies.limits().body_bytes;
        if request.body.len() as u64 > limit {
            return Err(Refusal::TooLarge { limit });
        }
        let mut claims = Hearsay::default();
        if let Trust::Signature(hearsay) | Trust::Caller(hearsay) = &trust {
            seen.envelope = Some(Envelope::read_relayed(&request.headers, hearsay)?);
            claims = hearsay.clone();
        }
        let webhook = self.understand(request, trust, SystemTime::now().into()).await?;
        let facts = &*seen.facts.insert(webhook.facts.clone());
        log_contradictions(&claims, facts);
        let is_of_nobody =
            facts.repository_name.is_none() && facts.repository_id.is_none() && facts.owner.is_none();
        if is_of_nobody && &*facts.event_type.name == "ping" {
            return Ok(Accepted::Ping);
        }
        let watchlist = self.watchlist.current();
        if !watchlist.admits(facts.repository_id, facts.repository_name.as_ref(), facts.owner.as_deref()) {
            return Err(if is_of_nobody {
                Refusal::OfNobody
            } else {
                Refusal::NotWatched(facts.repository_label().into_owned())
            });
        }
        check_size(&webhook)?;
        self.append(webhook, memory, seen.started).await.map(Accepted::Appended)
    }

    /// Stores a webhook within the time of its request. If that is over, the store goes on, and so does its memory.
    async fn append(
        &self,
        webhook: Webhook,
        memory: impl Send + 'static,
        started: Instant,
    ) -> Result<Appended, Refusal> {
        let delivery_id = webhook.facts.delivery_id.clone();
        let store = Arc::clone(&self.store);
        let mut appending = Box::pin(async move {
            let appended = store.append(webhook).await;
            drop(memory);
            appended
        });
        let limits = self.limits();
        if let Ok(appended) = timeout(limits.time_left(started), appending.as_mut()).await {
            return Ok(appended?);
        }
        self.tasks.spawn(async move {
            match appending.await {
                Ok(appended) => info!(
                    event.sequence = appended.sequence().get(),
                    delivery.id = %delivery_id,
                    duration_ms = millis(started),
                    "webhook stored after its sender got 503"
                ),
                Err(error) => warn!(delivery.id = %delivery_id, %error, "webhook not stored"),
            }
        });
        Err(Refusal::Uncommitted(limits.request_timeout))
    }

    /// Verifies a webhook, unless the caller is trusted, and reads what it is.
    async fn understand(
        &self,
        request: Unverified,
        trust: Trust,
        received_at: Timestamp,
    ) -> Result<Webhook, Refusal> {
        let size = request.body.len();
        let signature = self.signature.clone();
        self.check(size, move || {
            let verified = match (signature, &trust) {
                (Some(signature), Trust::Sender | Trust::Signature(_)) => request.verify(&signature)?,
                (None, _) | (_, Trust::Caller(_)) => request.waive(),
            };
            Ok(match trust {
                Trust::Sender => classify::github(verified, received_at)?,
                Trust::Signature(hearsay) | Trust::Caller(hearsay) => {
                    classify::relayed(verified, &hearsay, received_at)?
                }
            })
        })
        .await
    }

    /// Verifies the signature of a webhook that another server publishes, if the server has secrets.
    pub(crate) async fn verify(&self, request: Unverified) -> Result<Verified, Refusal> {
        let size = request.body.len();
        let signature = self.signature.clone();
        self.check(size, move || match signature {
            Some(signature) => Ok(request.verify(&signature)?),
            None => Ok(request.waive()),
        })
        .await
    }

    /// Runs what takes long for a large body on a thread of its own, one at a time.
    async fn check<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        if size <= INLINE_BYTES {
            return work();
        }
        let turn = self.bodies.check_turn().await.map_err(|_| Refusal::Internal)?;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::Internal)?
    }
}

/// Logs what a server that pushes says of a webhook that the webhook itself does not say.
fn log_contradictions(claims: &Hearsay, facts: &Facts) {
    let other_delivery = claims.delivery_id.as_ref().filter(|id| **id != facts.delivery_id);
    let other_repository = claims.repository_id.filter(|id| Some(*id) != facts.repository_id);
    if other_delivery.is_some() || other_repository.is_some() {
        warn!(
            delivery.id = %facts.delivery_id,
            repository.name = %facts.repository_label(),
            claimed.delivery.id = other_delivery.map(|id| id.as_str()),
            claimed.repository.id = other_repository.map(|id| id.0),
            "the peer's metadata contradicts the webhook, using the webhook's"
        );
    }
}

/// The header fields that are stored, of those with names in lower case: all but those of this connection (RFC 9110 §7.6.1),
/// also the ones that `Connection` names, and those that HTTP cannot carry on to a target.
pub(crate) fn end_to_end<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Headers {
    let fields: Vec<_> = fields.collect();
    let named: Vec<String> = fields
        .iter()
        .filter(|(name, _)| *name == header::CONNECTION.as_str())
        .filter_map(|(_, value)| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let is_valid = |name: &str, value: &[u8]| {
        HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_bytes(value).is_ok()
    };
    fields
        .into_iter()
        .filter(|(name, value)| {
            !is_hop_by_hop(name) && !named.iter().any(|other| other == name) && is_valid(name, value)
        })
        .map(|(name, value)| (name, value.to_vec()))
        .collect()
}

impl Accepted {
    /// The status of the answer.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Appended(Appended::Stored { .. }) => StatusCode::CREATED,
            Self::Appended(Appended::Repeat { .. }) => StatusCode::NO_CONTENT,
            Self::Ping => StatusCode::OK,
        }
    }
}

fn answer(accepted: Accepted, seen: &Seen) -> Response {
    let status = accepted.status();
    match accepted {
        Accepted::Appended(Appended::Stored { sequence, .. }) => {
            let delivery_id = seen.facts.as_ref().map_or("", |facts| facts.delivery_id.as_str());
            (status, Json(Stored { sequence: sequence.get(), delivery_id })).into_response()
        }
        Accepted::Appended(Appended::Repeat { .. }) => status.into_response(),
        Accepted::Ping => (status, PING_ANSWER).into_response(),
    }
}

impl Default for Seen {
    /// Of a webhook that begins to come now.
    fn default() -> Self {
        Self { started: Instant::now(), envelope: None, facts: None, bytes: 0 }
    }
}

impl Seen {
    /// The one line of an accepted webhook.
    fn log_accepted(&self, accepted: Accepted) {
        let Some(facts) = &self.facts else { return };
        let (sequence, what) = match accepted {
            Accepted::Appended(Appended::Stored { sequence, redelivery: false }) => {
                (Some(sequence.get()), "webhook stored")
            }
            Accepted::Appended(Appended::Stored { sequence, redelivery: true }) => {
                (Some(sequence.get()), "webhook stored: a redelivery")
            }
            Accepted::Appended(Appended::Repeat { sequence }) => {
                (Some(sequence.get()), "webhook is a repeat")
            }
            Accepted::Ping => (None, "ping answered and not stored: it names no account"),
        };
        info!(
            event.sequence = sequence,
            delivery.id = %facts.delivery_id,
            event.type = %facts.event_type,
            repository.name = %facts.repository_label(),
            body.bytes = self.bytes,
            status = accepted.status().as_u16(),
            duration_ms = millis(self.started),
            "{what}"
        );
    }

    /// The one line of a refused webhook. What came from outside is quoted: it may hold anything. A flood of webhooks whose
    /// signature does not hold suppresses no line about the others.
    fn log_refused(&self, status: StatusCode, reason: &str) {
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    target: crate::REFUSALS,
                    {
                        delivery.id = self.envelope.as_ref().map(|envelope| envelope.delivery_id.as_str()),
                        event.type = self.envelope.as_ref().map(|envelope| &*envelope.event),
                        repository.name = self.facts.as_ref().map(|facts| facts.repository_label().into_owned()),
                        body.bytes = self.bytes,
                        status = status.as_u16(),
                        duration_ms = millis(self.started),
                        reason
                    },
                    "webhook refused"
                )
            };
        }
        match (status.is_server_error(), &self.facts) {
            (true, _) => line!(error),
            // Two places in the code: the rate of each is bounded for itself.
            (false, Some(_)) => line!(warn),
            (false, None) => line!(warn),
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
