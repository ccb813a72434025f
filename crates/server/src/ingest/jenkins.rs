//! Jenkins' look at a hook's URL, which is no webhook.
//!
//! When somebody sets "Override Hook URL", Jenkins' GitHub plugin posts nothing to that URL, with the header
//! `X-Jenkins-Validation`, and takes every status but `200` for an error (`GitHubPluginConfig.doCheckHookUrl`). Then it looks
//! for its own header `X-Instance-Identity` in the answer and warns if it is missing. Only Jenkins itself has that one: the
//! warning stays, the error does not.

use axum::body::{Body, HttpBody};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use tracing::info;

const HEADER: &str = "x-jenkins-validation";

const ANSWER: &str = "This is Gitstafette, a webhook relay: what is sent to this URL is delivered to Jenkins. \
    Jenkins warns that the header X-Instance-Identity is missing; behind a relay that is expected.\n";

/// Whether this is Jenkins' look: with its header, and without a body. With a body it is a webhook as any other, whatever
/// it says of itself.
pub(super) fn is_probe(request: &Request<Body>) -> bool {
    let body = request.body();
    request.headers().contains_key(HEADER) && (body.is_end_stream() || body.size_hint().exact() == Some(0))
}

/// The answer that Jenkins wants.
pub(super) fn answer() -> Response {
    info!(target: crate::REFUSALS, status = 200u16, "Jenkins looked whether webhooks are taken here");
    ANSWER.into_response()
}
