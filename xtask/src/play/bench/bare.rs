//! The least that a webhook server can do: read the body, check its HMAC, answer. It stores nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use gitstafette_core::headers::Headers;
use gitstafette_core::secret::Secret;
use gitstafette_core::verify::GitHubSignature;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::json;

use crate::process::Process;
use crate::{http, relay};

/// The environment variable that holds the secret.
const SECRET: &str = "XTASK_BENCH_SECRET";

/// Starts it in a process of its own, as the server is.
pub(crate) async fn start(folder: &Path, secret: &Secret) -> anyhow::Result<(Process, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bare-server").env(SECRET, relay::text(secret));
    let mut process = Process::start("bare-server", command, folder)?;
    let address = process.line("listening", |line| relay::address(line, "http.address")).await?;
    process.ignore_log();
    Ok((process, address))
}

/// Serves until it is killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let secret = std::env::var(SECRET).context(SECRET)?;
    let signature = GitHubSignature::new(vec![Secret::new(secret)]);
    let server = http::Server::start(move |request| answer(request, signature.clone())).await?;
    eprintln!("{}", json!({ "http.address": server.address.to_string() }));
    std::future::pending().await
}

async fn answer(
    request: Request<Incoming>,
    signature: GitHubSignature,
) -> hyper::Result<hyper::Response<http_body_util::Full<bytes::Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let headers: Headers =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())).collect();
    Ok(match signature.check(&headers, &body) {
        Ok(()) => http::answer(StatusCode::CREATED, "{}"),
        Err(error) => http::answer(StatusCode::UNAUTHORIZED, error.to_string()),
    })
}
