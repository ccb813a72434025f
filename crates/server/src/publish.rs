//! The method `Publish`: events of other servers.
//!
//! It stands beside the generated service: its messages are larger than any client's, count as in flight like the bodies of
//! webhooks, and are looked at before they are decoded.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Router};
use futures_util::{Stream, StreamExt};
use gitstafette_core::event::{Event, Facts, Webhook};
use gitstafette_core::store::EventStore;
use gitstafette_core::verify::Unverified;
use gitstafette_proto::convert::runs;
use gitstafette_proto::v1::{PublishRequest, PublishResponse, PublishResult};
use tonic::codegen::BoxStream;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::{PUBLISH, Peer, Publisher};
use crate::ingest::{Account, CarrierCodec, Counted, Ingest, Sender};
use crate::relay::{Intake, Taken};
use crate::subscribe::{malformed, status};

/// Serves publishers.
#[derive(Clone, Debug)]
pub(crate) struct Publications {
    pub(crate) intake: Arc<Intake>,
    /// Judges what is not believed, and counts what is in flight.
    pub(crate) ingest: Arc<Ingest>,
}

/// An event that its publisher could not prove.
struct Disproved {
    /// What the publisher said of it.
    facts: Facts,
    /// Why it is not believed.
    detail: String,
}

/// The one method, at its path.
pub(crate) fn router(publications: Publications) -> Router {
    Router::new().route(PUBLISH, post(publish)).with_state(publications)
}

async fn publish(
    State(publications): State<Publications>,
    Extension(publisher): Extension<Publisher>,
    request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let ingest = &publications.ingest;
    let (limits, account) = (ingest.limits(), ingest.account(request.extensions().get::<Peer>()));
    let request = request.map(|body| Counted::new(body, account.clone(), Sender::Known));
    let codec = CarrierCodec::<PublishRequest, PublishResponse>::new();
    let method = tower::service_fn(move |request: Request<Streaming<PublishRequest>>| {
        let answers = publications.clone().answers(request.into_inner(), publisher, account.clone());
        async move { Ok::<_, Status>(Response::new(answers)) }
    });
    let limit = usize::try_from(limits.message_bytes()).unwrap_or(usize::MAX);
    Grpc::new(codec).apply_max_message_size_config(Some(limit), None).streaming(method, request).await
}

impl Publications {
    /// Answers each request in its turn. The stream ends with the first that cannot be answered, and when the server goes
    /// down. What a request takes in memory stands on the account until it is answered.
    fn answers(
        self,
        requests: impl Stream<Item = Result<PublishRequest, Status>> + Send + 'static,
        publisher: Publisher,
        account: Account,
    ) -> BoxStream<PublishResponse> {
        let draining = self.ingest.draining.clone().cancelled_owned();
        let answers = requests.take_until(draining).then(move |request| {
            let (this, account) = (self.clone(), account.clone());
            async move {
                let answered = this.answer(request?, publisher, account.clone()).await;
                account.settle();
                answered
            }
        });
        Box::pin(answers)
    }

    /// Takes one event, in a task of its own: a publisher that hangs up must not keep what is being stored from the log.
    /// The account is held until then.
    async fn answer(
        self,
        request: PublishRequest,
        publisher: Publisher,
        account: Account,
    ) -> Result<PublishResponse, Status> {
        let store = &*self.intake.store;
        let known_run_id = request.known_run_id;
        if !known_run_id.is_empty() && store.is_durable() && known_run_id != current_run_id(store) {
            return Ok(with_log(store, &known_run_id, answer(PublishResult::OtherRun, 0, String::new())));
        }
        let Some(event) = request.event else {
            return Ok(with_log(store, &known_run_id, PublishResponse::default()));
        };
        let event = Event::try_from(event).map_err(|error| malformed(&error))?;
        if event.webhook.facts.hops.last().is_none() {
            return Err(Status::invalid_argument("hops: the server that publishes is the last"));
        }
        // Without secrets there is nothing to verify.
        let publisher = if self.ingest.verifies() { publisher } else { Publisher::Believed };
        let event = if publisher == Publisher::Believed {
            event
        } else {
            match self.prove(event).await {
                Ok(event) => event,
                Err(refused) => {
                    self.intake.refuse(&refused.facts, &refused.detail);
                    let refused = answer(PublishResult::Refused, 0, refused.detail);
                    return Ok(with_log(store, &known_run_id, refused));
                }
            }
        };
        let intake = Arc::clone(&self.intake);
        let taking = self.ingest.spawn(async move {
            let taken = intake.take(event, publisher).await;
            drop(account);
            taken
        });
        let taken = taking.await.map_err(|_| Status::internal("the server failed while taking the event"))?;
        let answer = match taken.map_err(|error| status(&error))? {
            Taken::Stored(sequence) => answer(PublishResult::Stored, sequence.get(), String::new()),
            Taken::Repeat(sequence) => answer(PublishResult::Repeat, sequence.get(), String::new()),
            Taken::Unwanted(unwanted) => answer(PublishResult::Unwanted, 0, unwanted.to_string()),
            Taken::TooLarge { limit } => {
                let detail = format!("the body is larger than {limit} bytes, which --body-limit sets there");
                answer(PublishResult::Refused, 0, detail)
            }
            Taken::TooLargeToSend(error) => answer(PublishResult::Refused, 0, error.to_string()),
            Taken::Unreadable(error) => answer(PublishResult::Refused, 0, error.to_string()),
        };
        Ok(with_log(store, &known_run_id, answer))
    }

    /// Verifies the webhook's own signature.
    async fn prove(&self, mut event: Event) -> Result<Event, Box<Disproved>> {
        let webhook = event.webhook;
        let unverified = Unverified { headers: webhook.headers, body: webhook.body };
        match self.ingest.verify(unverified).await {
            Ok(verified) => {
                let Unverified { headers, body } = verified.into_inner();
                event.webhook = Webhook { facts: webhook.facts, headers, body };
                Ok(event)
            }
            Err(error) => {
                let detail = format!(
                    "{error}; what is published with a token of --publisher-token-file needs no signature"
                );
                Err(Box::new(Disproved { facts: webhook.facts, detail }))
            }
        }
    }
}

fn answer(result: PublishResult, sequence: u64, detail: String) -> PublishResponse {
    PublishResponse { result: result.into(), sequence, detail, ..PublishResponse::default() }
}

fn current_run_id(store: &dyn EventStore) -> String {
    store.history().current().map(|run| run.id.to_string()).unwrap_or_default()
}

/// The answer with this server's log. A store in memory promises nothing beyond the process: its publishers keep no account.
fn with_log(store: &dyn EventStore, known_run_id: &str, answer: PublishResponse) -> PublishResponse {
    if !store.is_durable() {
        return answer;
    }
    let is_known = known_run_id == current_run_id(store);
    PublishResponse {
        store_id: store.id().to_string(),
        runs: if is_known { Vec::new() } else { runs(store.history()) },
        head: store.head().borrow().get(),
        ..answer
    }
}
