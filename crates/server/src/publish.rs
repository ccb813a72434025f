//! The method `Publish`: events of other servers.

use std::sync::Arc;

use axum::Router;
use axum::routing::post;
use futures_util::{Stream, StreamExt};
use gitstafette_core::classify;
use gitstafette_core::event::Event;
use gitstafette_core::verify::{GitHubSignature, Unverified};
use gitstafette_proto::v1::gitstafette_server::GitstafetteServer;
use gitstafette_proto::v1::{PublishRequest, PublishResponse, PublishResult};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxStream;
use tonic::service::interceptor::InterceptedService;
use tower::ServiceExt;

use crate::auth::ClientAuth;
use crate::ingest::{Account, Counted, Ingest};
use crate::relay::{Intake, Taken};
use crate::service::Service;
use crate::subscribe::{malformed, status};

/// Where tonic puts the method.
const PATH: &str = "/gitstafette.v1.Gitstafette/Publish";

/// The one method, at its path, on `service`, which knows all: its messages are larger than any client's, and count as in
/// flight like the bodies of webhooks.
pub(crate) fn router(service: Arc<Service>, ingest: Arc<Ingest>, auth: ClientAuth) -> Router {
    let limit = ingest.limits().message_bytes();
    let service = GitstafetteServer::from_arc(service)
        .max_decoding_message_size(usize::try_from(limit).unwrap_or(usize::MAX));
    let service = InterceptedService::new(service, auth);
    let counted = move |request: http::Request<axum::body::Body>| {
        let (service, account) = (service.clone(), ingest.account(limit));
        async move {
            let mut request = request.map(|body| Body::new(Counted::new(body, account.clone())));
            request.extensions_mut().insert(account);
            let Ok(response) = service.oneshot(request).await;
            response
        }
    };
    Router::new().route(PATH, post(counted))
}

/// Serves publishers.
#[derive(Clone, Debug)]
pub(crate) struct Publications {
    pub(crate) intake: Arc<Intake>,
    /// Verifies every event where publishers show nothing by which they could be believed.
    pub(crate) signature: Option<GitHubSignature>,
    /// Where events are taken: they outlive the call.
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: CancellationToken,
}

impl Publications {
    /// Answers each request in its turn. The stream ends with the first that cannot be answered, and when the server goes
    /// down.
    /// What the requests take in memory stands on the account until they are answered.
    pub(crate) fn publish(
        &self,
        requests: impl Stream<Item = Result<PublishRequest, Status>> + Send + 'static,
        account: Account,
    ) -> BoxStream<PublishResponse> {
        let this = self.clone();
        let draining = self.draining.clone().cancelled_owned();
        let answers = requests.take_until(draining).then(move |request| {
            let (this, account) = (this.clone(), account.clone());
            async move {
                let request = request?;
                let bytes = request.encoded_len();
                let answered = this.answer(request).await;
                account.release(bytes);
                answered
            }
        });
        Box::pin(answers)
    }

    /// Takes one event, in a task of its own: a publisher that hangs up must not keep what is being stored from the log.
    async fn answer(self, request: PublishRequest) -> Result<PublishResponse, Status> {
        let event = request.event.ok_or_else(|| Status::invalid_argument("event: is missing"))?;
        let event = Event::try_from(event).map_err(|error| malformed(&error))?;
        if event.webhook.facts.hops.last().is_none() {
            return Err(Status::invalid_argument("hops: the server that publishes is the last"));
        }
        let event = match self.believe(event) {
            Ok(event) => event,
            Err(detail) => return Ok(answer(PublishResult::Refused, 0, detail)),
        };
        let intake = Arc::clone(&self.intake);
        let taking = self.tasks.spawn(async move { intake.take(event).await });
        let taken = taking.await.map_err(|_| Status::internal("the server failed while taking the event"))?;
        Ok(match taken.map_err(|error| status(&error))? {
            Taken::Stored(sequence) => answer(PublishResult::Stored, sequence.get(), String::new()),
            Taken::Repeat(sequence) => answer(PublishResult::Repeat, sequence.get(), String::new()),
            Taken::Unwanted(unwanted) => answer(PublishResult::Unwanted, 0, unwanted.to_string()),
            Taken::TooLarge { limit } => {
                let detail = format!("the body is larger than {limit} bytes, which --body-limit sets there");
                answer(PublishResult::Refused, 0, detail)
            }
        })
    }

    /// Believes a publisher, or the webhook's own signature; then what was read from the webhook is read again.
    fn believe(&self, mut event: Event) -> Result<Event, String> {
        let Some(signature) = &self.signature else { return Ok(event) };
        let hops = event.webhook.facts.hops;
        let received_at = event.webhook.facts.received_at;
        let unverified = Unverified { headers: event.webhook.headers, body: event.webhook.body };
        let verified = unverified
            .verify(signature)
            .map_err(|error| format!("{error}; where publishers show a token, none is looked at"))?;
        event.webhook = classify::github(verified, received_at).map_err(|error| error.to_string())?;
        event.webhook.facts.hops = hops;
        Ok(event)
    }
}

fn answer(result: PublishResult, sequence: u64, detail: String) -> PublishResponse {
    PublishResponse { result: result.into(), sequence, detail }
}
