//! `WebhookEventPush`: a webhook that an old server relays. It is judged as one that came by HTTP, by the same code.
//!
//! The Go implementation's servers show no token when they push. So this method stands beside the authenticated service,
//! and believes a caller without a token if the webhook's own signature holds.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::post;
use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use gitstafette_core::classify::Hearsay;
use gitstafette_core::repository::RepositoryId;
use gitstafette_core::store::Appended;
use gitstafette_core::verify::{SignatureError, Unverified};
use gitstafette_proto::convert::from_go_headers;
use gitstafette_proto::v1;
use http::header;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstEncoder;
use tracing::{Instrument, warn};

use crate::auth::{AuthError, Peer};
use crate::ingest::{Account, Counted, Ingest, Problem, Refusal, Seen, Trust, status};

/// Where tonic puts the method.
const PATH: &str = "/gitstafette.v1.Gitstafette/WebhookEventPush";
/// How many header fields a message may have. On the wire an empty one takes 2 bytes, in memory 48: a message of 26 MiB
/// could become one of 600 MiB. hyper takes 100 with a request; the Go implementation sends three empty ones with each.
const MAX_HEADERS: usize = 1000;

/// Who pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// It has shown what is asked of clients.
    Authenticated,
    /// It has shown no token, though one is asked for: the webhook's signature must hold.
    WithoutToken,
    /// Nothing is asked for: the webhook's signature must hold, if the server has secrets.
    Anybody,
}

/// The one method, at its path.
pub(crate) fn router(ingest: Arc<Ingest>) -> Router {
    Router::new().route(PATH, post(push)).with_state(ingest)
}

/// What tonic's generated service does, without authentication before it and with the body counted.
async fn push(
    State(ingest): State<Arc<Ingest>>,
    request: http::Request<Body>,
) -> http::Response<tonic::body::Body> {
    let peer = request.extensions().get::<Peer>().cloned();
    let address = peer.as_ref().map(|peer| tracing::field::display(peer.address));
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let caller = match caller(&ingest, authorization, peer.as_ref()) {
        Ok(caller) => caller,
        Err(error) => {
            warn!(client.address = address, reason = %error, "a server that pushes was refused");
            return Status::from(error).into_http();
        }
    };
    let span = tracing::info_span!("push", client.address = address);
    let limits = ingest.limits();
    let limit = limits.message_bytes();
    let account = ingest.account(limit);
    let request = request.map(|body| Counted::new(body, account.clone()).within(limits.request_timeout));
    let method = tower::service_fn(move |request: Request<v1::WebhookEventPushRequest>| {
        let (ingest, account) = (Arc::clone(&ingest), account.clone());
        take(ingest, caller, request.into_inner(), account).instrument(span.clone())
    });
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Grpc::new(PushCodec).apply_max_message_size_config(Some(limit), None).unary(method, request).await
}

fn caller(ingest: &Ingest, authorization: Option<&[u8]>, peer: Option<&Peer>) -> Result<Caller, AuthError> {
    let auth = &ingest.auth;
    let known = auth.check(authorization, peer.map(|peer| peer.certificate));
    match known.and_then(|()| auth.check_publisher(authorization)) {
        Ok(()) if auth.asks_publishers() => Ok(Caller::Authenticated),
        Ok(()) => Ok(Caller::Anybody),
        Err(AuthError::Missing) if ingest.verifies() => Ok(Caller::WithoutToken),
        Err(error) => Err(error),
    }
}

/// Takes a webhook, in a task of its own: a server that hangs up must not keep what is being stored from the log. The
/// account is held until it is stored.
async fn take(
    ingest: Arc<Ingest>,
    caller: Caller,
    request: v1::WebhookEventPushRequest,
    account: Account,
) -> Result<Response<v1::WebhookEventPushResponse>, Status> {
    let taking = Arc::clone(&ingest).spawn(
        async move {
            let mut seen = Seen::default();
            let received =
                AssertUnwindSafe(receive(&ingest, caller, request, &mut seen)).catch_unwind().await;
            let received = received.unwrap_or(Err(Refusal::Internal));
            // A wrong signature was shown, and is answered like all that is wrong with a webhook.
            let is_unsigned = matches!(
                received,
                Err(Refusal::Signature(SignatureError::Header(_) | SignatureError::Malformed { .. }))
            );
            let concluded = ingest.conclude(received, &seen);
            drop(account);
            match concluded {
                Err(problem) if is_unsigned && caller == Caller::WithoutToken => {
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
    caller: Caller,
    request: v1::WebhookEventPushRequest,
    seen: &mut Seen,
) -> Result<Appended, Refusal> {
    let event = request.webhook_event.unwrap_or_default();
    let headers = from_go_headers(event.headers)?;
    let hearsay = Hearsay {
        delivery_id: event.event_id.parse().ok(),
        repository_id: request.repository_id.trim().parse().ok().map(RepositoryId),
    };
    let trust = match caller {
        Caller::Authenticated => Trust::Caller(hearsay),
        Caller::WithoutToken | Caller::Anybody => Trust::Signature(hearsay),
    };
    // Copied: a slice of the message would keep all of that alive.
    let body = Bytes::copy_from_slice(&event.body);
    drop(event.body);
    ingest.judge(Unverified { headers, body }, trust, seen).await
}

/// What POST /v1/github/ would have answered. Never an error, not even when the store cannot take it: a server of the Go
/// implementation whose push fails exits, with all that it has in memory.
fn answer(concluded: Result<Appended, Problem>) -> Response<v1::WebhookEventPushResponse> {
    let (accepted, code, description) = match concluded {
        Ok(appended) => (true, status(appended), description(appended)),
        Err(problem) => (false, problem.status(), problem.into_detail()),
    };
    let response_code = code.as_str().to_owned();
    Response::new(v1::WebhookEventPushResponse { response_code, response_description: description, accepted })
}

fn description(appended: Appended) -> String {
    let sequence = appended.sequence();
    match appended {
        Appended::Stored { .. } => format!("stored as {sequence}"),
        Appended::Repeat { .. } => format!("a repeat of {sequence}, which is not delivered yet"),
    }
}

fn unauthenticated(problem: Problem) -> Status {
    let reason = problem.into_detail();
    Status::unauthenticated(format!(
        "no bearer token, and the webhook's own signature does not hold: {reason}"
    ))
}

/// Prost's codec, with a look at what a message would become before it is decoded.
struct PushCodec;

struct PushDecoder;

impl Codec for PushCodec {
    type Encode = v1::WebhookEventPushResponse;
    type Decode = v1::WebhookEventPushRequest;
    type Encoder = ProstEncoder<Self::Encode>;
    type Decoder = PushDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> PushDecoder {
        PushDecoder
    }
}

impl Decoder for PushDecoder {
    type Item = v1::WebhookEventPushRequest;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let malformed = || Status::invalid_argument("the message is not a WebhookEventPushRequest");
        let headers = headers_in(message.chunk()).ok_or_else(malformed)?;
        if headers > MAX_HEADERS {
            return Err(Status::invalid_argument(format!("more than {MAX_HEADERS} header fields")));
        }
        Self::Item::decode(message).map(Some).map_err(|_| malformed())
    }
}

/// How many header fields an encoded push has; `None` if it cannot be read. The numbers are those of
/// `WebhookEventPushRequest.webhook_event` and `WebhookEvent.headers`.
fn headers_in(message: &[u8]) -> Option<usize> {
    let mut headers = 0;
    each_field(message, 3, |event| {
        each_field(event, 3, |_| {
            headers += 1;
            Some(())
        })
    })?;
    Some(headers)
}

/// Visits every field of this number that has a length (Protocol Buffers' documentation, "Encoding").
fn each_field(mut message: &[u8], number: u32, mut visit: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
    while message.has_remaining() {
        let (found, wire_type) = decode_key(&mut message).ok()?;
        if found != number || wire_type != WireType::LengthDelimited {
            skip_field(wire_type, found, &mut message, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
        let (field, rest) = message.split_at_checked(length)?;
        visit(field)?;
        message = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::store::StoreError;

    #[test]
    fn the_servers_own_faults_are_answers_too() {
        let code = |refusal: Refusal| answer(Err(refusal.into())).into_inner().response_code;
        assert_eq!(code(StoreError::Overloaded.into()), "503");
        assert_eq!(code(StoreError::Closed.into()), "503");
        assert_eq!(code(Refusal::Internal), "500");
    }

    fn three_headers() -> v1::WebhookEventPushRequest {
        let event = v1::WebhookEvent {
            event_id: "delivery-1".to_owned(),
            body: Bytes::from_static(b"{}"),
            headers: vec![v1::Header::default(); 3],
            sequence: 7,
        };
        v1::WebhookEventPushRequest {
            cliend_id: "myself".to_owned(),
            repository_id: "537845873".to_owned(),
            webhook_event: Some(event),
        }
    }

    #[test]
    fn headers_are_counted_before_they_are_decoded() {
        let push = three_headers();
        let once = push.encode_to_vec();
        assert_eq!(headers_in(&once), Some(3));
        assert_eq!(headers_in(&once.repeat(2)), Some(6), "a message that comes twice is merged");
        assert_eq!(headers_in(&[]), Some(0));
        for cut in 1..once.len() {
            let readable = v1::WebhookEventPushRequest::decode(&once[..cut]).is_ok();
            assert_eq!(headers_in(&once[..cut]).is_some(), readable, "{cut}");
        }
    }

    #[test]
    fn no_bytes_become_more_headers_than_were_counted() {
        let mut random = fastrand::Rng::with_seed(7);
        let whole = three_headers().encode_to_vec();
        let mut readable = 0;
        for _ in 0..50_000 {
            let mut message = whole.repeat(random.usize(1..3));
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..message.len());
                message[at] = random.u8(..);
            }
            if let Ok(push) = v1::WebhookEventPushRequest::decode(&*message) {
                let headers = push.webhook_event.map_or(0, |event| event.headers.len());
                assert_eq!(headers_in(&message), Some(headers), "{message:?}");
                readable += 1;
            }
        }
        assert!(readable > 1000, "{readable}");
    }
}
