//! HTTP/1.1, both sides, in plain text on loopback.

use std::convert::Infallible;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// A running server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepting: AbortHandle,
}

impl Server {
    /// Serves on a free port of loopback.
    pub(crate) async fn start<F, A, E>(handler: F) -> anyhow::Result<Self>
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Result<Response<Full<Bytes>>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listening on loopback")?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, handler)).abort_handle();
        Ok(Self { address, accepting })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<F, A, E>(listener: TcpListener, handler: F) -> Infallible
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Result<Response<Full<Bytes>>, E>> + Send + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
    // Owned here: they end with the task that accepts.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        // A connection that could not be accepted shows at the side that opened it.
        let Ok((stream, _)) = accepted else { continue };
        let handler = handler.clone();
        connections.spawn(async move {
            drop(stream.set_nodelay(true));
            // A connection that breaks shows at the other side, too.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(handler)).await);
        });
    }
}

/// An answer with a text.
pub(crate) fn answer(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

/// A connection that is kept, for one request after another.
#[derive(Debug)]
pub(crate) struct Connection {
    host: String,
    requests: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        // A broken connection shows at its requests.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { host: address.to_string(), requests, driver })
    }

    /// Posts a body and waits for the whole answer.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        headers: impl IntoIterator<Item = (&'static str, &str)>,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::post(path).header(HOST, &self.host);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        self.requests.ready().await?;
        let response = self.requests.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_connection_carries_many_requests() {
        let server = Server::start(|request: Request<Incoming>| async move {
            let name = request.headers()["x-name"].clone();
            let body = request.into_body().collect().await?.to_bytes();
            let text = [name.as_bytes(), b" ", &body].concat();
            Ok::<_, hyper::Error>(answer(StatusCode::CREATED, text))
        })
        .await
        .unwrap();
        let mut connection = Connection::open(server.address).await.unwrap();
        for body in ["one", "two"] {
            let answer = connection.post("/", [("X-Name", "n")], Bytes::from(body)).await.unwrap();
            assert_eq!(answer, (StatusCode::CREATED, Bytes::from(format!("n {body}"))));
        }
    }
}
