//! `GET /health`: whether the client lives, whether its subscription stands, and how its deliveries go.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::probes;
use crate::state::ClientState;

/// How long one probe may take, from its connection to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The answer. Its status is 200 as long as the process lives: a server that is away is no reason to restart a client.
#[derive(Debug, Serialize)]
struct Health<'a> {
    status: &'static str,
    #[serde(flatten)]
    client: &'a ClientState,
}

/// Serves `GET /health` until `stop` is cancelled: one request a connection, each within a time-out.
pub async fn serve(listener: TcpListener, state: watch::Receiver<ClientState>, stop: CancellationToken) {
    probes::serve(listener, stop, |stream| {
        let answering = tokio::time::timeout(TIMEOUT, answer(stream, state.clone()));
        async { drop(answering.await) }
    })
    .await;
}

async fn answer(stream: TcpStream, state: watch::Receiver<ClientState>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &state.borrow());
        async { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).keep_alive(false);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a probe broke off");
    }
}

fn respond(request: &Request<Incoming>, state: &ClientState) -> Response<Full<Bytes>> {
    let health = Health { status: "ok", client: state };
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/health") => {
            (StatusCode::OK, serde_json::to_vec(&health).unwrap_or_default())
        }
        (_, "/health") => (StatusCode::METHOD_NOT_ALLOWED, Vec::new()),
        _ => (StatusCode::NOT_FOUND, Vec::new()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::TargetState;
    use gitstafette_core::event::Sequence;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn tells_the_state_and_stops_in_spite_of_a_peer_that_dawdles() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, receiver) = watch::channel(ClientState::default());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, receiver, stop.clone()));
        state.send_replace(ClientState {
            subscribed: true,
            received: Sequence::new(7),
            dead_letters: 1,
            targets: vec![TargetState::new("jenkins:8080")],
            ..ClientState::default()
        });
        let answer = ask(address, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let expected = concat!(
            r#"{"status":"ok","subscribed":true,"lastError":null,"head":0,"cursor":0,"received":7,"delivered":0,"deadLetters":1,"filtered":0,"#,
            r#""missed":0,"waiting":0,"deferred":0,"targets":[{"name":"jenkins:8080","failing":false,"#,
            r#""lastError":null,"lastOutcome":null,"lastOutcomeAt":null}]}"#
        );
        assert!(answer.ends_with(expected), "{answer}");
        assert!(ask(address, "GET /other HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
        let mut dawdling = TcpStream::connect(address).await.unwrap();
        dawdling.write_all(b"GET /hea").await.unwrap();
        stop.cancel();
        serving.await.unwrap();
    }
}
