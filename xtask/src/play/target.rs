//! The target at the end of the way: an HTTP server that does what Jenkins or Argo CD do first, which is to check the
//! forge's signature, and tells what arrived.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use gitstafette_core::headers::Headers;
use gitstafette_core::secret::Secret;
use gitstafette_core::verify::{GitHubSignature, SignatureError};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc;

use crate::http;

/// Where webhooks are taken.
pub(crate) const PATH: &str = "/github-webhook/";

/// One request as it arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
    pub(crate) signature: Result<(), SignatureError>,
    /// When its last byte was there.
    pub(crate) at: Instant,
}

impl Arrival {
    /// The text of a header that is there once.
    pub(crate) fn header(&self, name: &'static str) -> &str {
        self.headers.single(name).unwrap_or("")
    }

    /// The sender's id of the webhook.
    pub(crate) fn delivery_id(&self) -> &str {
        self.header("x-github-delivery")
    }
}

/// A running target that hands over what arrives before it answers. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    _server: http::Server,
}

impl Endpoint {
    /// Starts one on a free port of loopback, which expects signatures under this secret.
    pub(crate) async fn start<F>(secret: &Secret, hand_over: F) -> anyhow::Result<Self>
    where
        F: Fn(Arrival) + Clone + Send + 'static,
    {
        let signature = GitHubSignature::new(vec![secret.clone()]);
        let server =
            http::Server::start(move |request| take(request, signature.clone(), hand_over.clone())).await?;
        Ok(Self { address: server.address, _server: server })
    }

    /// The URL for a client's `--target`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }
}

/// A running target that keeps what arrives until it is looked at.
#[derive(Debug)]
pub(crate) struct Target {
    endpoint: Endpoint,
    pub(crate) arrivals: mpsc::UnboundedReceiver<Arrival>,
}

impl Target {
    /// Starts one on a free port of loopback, which expects signatures under this secret.
    pub(crate) async fn start(secret: &Secret) -> anyhow::Result<Self> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        // Nobody listens any more when all is over.
        let endpoint = Endpoint::start(secret, move |arrival| drop(sender.send(arrival))).await?;
        Ok(Self { endpoint, arrivals })
    }

    /// The URL for a client's `--target`.
    pub(crate) fn url(&self) -> String {
        self.endpoint.url()
    }
}

async fn take(
    request: Request<Incoming>,
    signature: GitHubSignature,
    hand_over: impl Fn(Arrival),
) -> hyper::Result<Response<Full<Bytes>>> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        return Ok(http::answer(StatusCode::NOT_FOUND, ""));
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let at = Instant::now();
    let headers: Headers =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())).collect();
    let signature = signature.check(&headers, &body);
    let status = if signature.is_ok() { StatusCode::OK } else { StatusCode::FORBIDDEN };
    hand_over(Arrival { headers, body, signature, at });
    Ok(http::answer(status, ""))
}
