//! `WebhookEventPush`: a webhook that an old server relays. It is judged as one that came by HTTP, by the same code.
//!
//! The Go implementation's servers show no token when they push. So this method accepts a caller without a token if the
//! webhook's own signature is valid.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use gitstafette_core::classify::Hearsay;
use gitstafette_core::repository::RepositoryId;
use gitstafette_core::store::Appended;
use gitstafette_core::verify::{SignatureError, Unverified};
use gitstafette_proto::convert::from_go_headers;
use gitstafette_proto::v1;
use http::StatusCode;
use tonic::server::Grpc;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use crate::auth::{PUSH, Peer, Publisher};
use crate::ingest::{
    Accepted, Account, CarrierCodec, Counted, Ingest, PING_ANSWER, Problem, Refusal, Seen, Sender, Trust,
};
use crate::streaming;

/// The one method, at its path.
pub(crate) fn router(ingest: Arc<Ingest>) -> Router {
    Router::new().route(PUSH, post(push)).with_state(ingest)
}

/// What tonic's generated service does, with the body counted.
async fn push(
    State(ingest): State<Arc<Ingest>>,
    Extension(publisher): Extension<Publisher>,
    request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let peer = request.extensions().get::<Peer>();
    let address = peer.map(|peer| tracing::field::display(peer.address));
    let span = tracing::info_span!("push", client.address = address);
    let (limits, account) = (ingest.limits(), ingest.account(peer));
    let sender = match publisher {
        Publisher::WithoutToken => Sender::Unknown,
        _ => Sender::Known,
    };
    let request = request.map(|body| Counted::new(body, account.clone(), sender));
    let codec = CarrierCodec::new();
    let method = tower::service_fn(move |request: Request<v1::WebhookEventPushRequest>| {
        let (ingest, account) = (Arc::clone(&ingest), account.clone());
        take(ingest, publisher, request.into_inner(), account).instrument(span.clone())
    });
    let limit = usize::try_from(limits.message_bytes()).unwrap_or(usize::MAX);
    Grpc::new(codec).apply_max_message_size_config(Some(limit), None).unary(method, request).await
}

/// Takes a webhook, in a task of its own: a server that hangs up must not keep what is being stored from the log. The
/// account is held until it is stored or refused.
async fn take(
    ingest: Arc<Ingest>,
    publisher: Publisher,
    request: v1::WebhookEventPushRequest,
    account: Account,
) -> Result<Response<v1::WebhookEventPushResponse>, Status> {
    let taking = Arc::clone(&ingest).spawn(
        async move {
            let mut seen = Seen::default();
            let received = AssertUnwindSafe(receive(&ingest, publisher, request, account, &mut seen))
                .catch_unwind()
                .await;
            let received = received.unwrap_or(Err(Refusal::Internal));
            // A wrong signature was shown, and is answered like all that is wrong with a webhook.
            let is_unsigned = matches!(
                received,
                Err(Refusal::Signature(SignatureError::Header(_) | SignatureError::Malformed { .. }))
            );
            let concluded = ingest.conclude(received, &seen);
            match concluded {
                Err(problem) if is_unsigned && publisher == Publisher::WithoutToken => {
                    Err(unauthenticated(problem))
                }
                concluded => Ok(answer(concluded)),
            }
        }
        .in_current_span(),
    );
    taking.await.unwrap_or_else(|_| Err(Status::internal("the server failed while taking the webhook")))
}

async fn receive(
    ingest: &Ingest,
    publisher: Publisher,
    request: v1::WebhookEventPushRequest,
    account: Account,
    seen: &mut Seen,
) -> Result<Accepted, Refusal> {
    let event = request.webhook_event.unwrap_or_default();
    let headers = from_go_headers(event.headers)?;
    let is_believed = publisher == Publisher::Believed || !ingest.verifies();
    // A signature says nothing of what stands beside the webhook: by it alone nobody chooses the repository.
    let repository_id = request.repository_id.trim().parse().ok().map(RepositoryId).filter(|_| is_believed);
    let hearsay = Hearsay { delivery_id: event.event_id.parse().ok(), repository_id };
    let trust = if is_believed { Trust::Caller(hearsay) } else { Trust::Signature(hearsay) };
    let body = own_body(event.body);
    ingest.judge(Unverified { headers, body }, trust, account, seen).await
}

/// The body, without the rest of its message. A small body is copied, because a slice keeps the whole message in memory. A
/// large body is most of its message, and a copy would double it.
fn own_body(body: Bytes) -> Bytes {
    const LARGE_BYTES: usize = 1 << 20;
    if body.len() < LARGE_BYTES { Bytes::copy_from_slice(&body) } else { body }
}

/// Turns a refusal of a push for want of room into an answer, see [`answer`]. It may come from any layer.
pub(crate) async fn answer_refusals(request: http::Request<Body>, next: Next) -> http::Response<Body> {
    let is_push = request.uri().path() == PUSH;
    let response = next.run(request).await;
    if is_push { without_refusal(response) } else { response }
}

fn without_refusal(response: http::Response<Body>) -> http::Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    if !matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded) {
        return response;
    }
    let refused = Problem::new(StatusCode::SERVICE_UNAVAILABLE, status.message());
    let message = answer(Err(refused)).into_inner();
    let messages = stream::iter([Ok(message)]);
    streaming::respond(Ok(Response::new(messages)), Arc::default()).map(Body::new)
}

/// What POST /v1/github/ would have answered. Never an error, not even when the store cannot take it: a server of the Go
/// implementation whose push fails exits, with all that it has in memory.
fn answer(concluded: Result<Accepted, Problem>) -> Response<v1::WebhookEventPushResponse> {
    let (accepted, code, description) = match concluded {
        Ok(accepted) => (true, accepted.status(), description(accepted)),
        Err(problem) => (false, problem.status(), problem.into_detail()),
    };
    let response_code = code.as_str().to_owned();
    Response::new(v1::WebhookEventPushResponse { response_code, response_description: description, accepted })
}

fn description(accepted: Accepted) -> String {
    match accepted {
        Accepted::Appended(Appended::Stored { sequence, .. }) => format!("stored as {sequence}"),
        Accepted::Appended(Appended::Repeat { sequence }) => {
            format!("a repeat of {sequence}, which is not delivered yet")
        }
        Accepted::Ping => PING_ANSWER.to_owned(),
    }
}

fn unauthenticated(problem: Problem) -> Status {
    let reason = problem.into_detail();
    Status::unauthenticated(format!(
        "no bearer token, and the webhook's own signature does not hold: {reason}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::store::StoreError;

    #[test]
    fn a_refusal_for_want_of_room_is_an_answer() {
        let refused = without_refusal(Status::resource_exhausted("too many").into_http());
        assert!(Status::from_header_map(refused.headers()).is_none(), "the call succeeds");
        let denied = without_refusal(Status::unauthenticated("no token").into_http());
        assert_eq!(Status::from_header_map(denied.headers()).unwrap().code(), Code::Unauthenticated);
    }

    #[test]
    fn the_servers_own_faults_are_answers_too() {
        let code = |refusal: Refusal| answer(Err(refusal.into())).into_inner().response_code;
        assert_eq!(code(StoreError::Overloaded.into()), "503");
        assert_eq!(code(StoreError::Closed.into()), "503");
        assert_eq!(code(Refusal::Internal), "500");
    }
}
