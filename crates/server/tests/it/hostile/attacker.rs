//! Raw connections of an attacker.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use gitstafette_client::open_files;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{TOKEN, soon};

/// The bytes of a response that the server may send before the attacker reads. The attacker never reads.
const UNREAD_WINDOW: u32 = 1 << 10;

/// The connections that this process and the server can have open at once, at most so many.
pub fn connections(wanted: usize) -> usize {
    open_files::raise_limit();
    let files = open_files::limit().and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let possible = wanted.min(files.saturating_sub(200));
    if possible < wanted {
        println!("SKIPPED: {wanted} connections, because the limit of open files allows {possible}");
    }
    possible
}

/// An HTTP/2 connection. Responses are not read.
pub struct Connection {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
}

/// A call that was begun. It is cancelled when this is dropped.
pub struct Call {
    pub response: ResponseFuture,
    pub request: SendStream<Bytes>,
}

impl Connection {
    /// Opens a connection. `None` if the server refuses it.
    pub async fn open(address: SocketAddr) -> Option<Self> {
        Self::with_window(address, UNREAD_WINDOW).await
    }

    /// Likewise. The server may send so many bytes on each stream before they are read.
    pub async fn with_window(address: SocketAddr, bytes: u32) -> Option<Self> {
        let socket = TcpSocket::new_v4().ok()?;
        // Not the address of the webhooks. Where loopback has only one address, the attacker shares it.
        if socket.bind("127.0.0.2:0".parse().unwrap()).is_err() {
            println!("SKIPPED: an address of its own for the attacker");
        }
        let tcp = socket.connect(address).await.ok()?;
        tcp.set_nodelay(true).ok()?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(bytes).max_concurrent_streams(0).enable_push(false);
        let (requests, connection) = builder.handshake(tcp).await.ok()?;
        Some(Self { requests, driver: tokio::spawn(connection) })
    }

    /// Begins a gRPC call with these first bytes. `None` if the connection has ended or takes no more streams.
    pub async fn call(&mut self, path: &str, token: Option<&str>, first: Bytes) -> Option<Call> {
        let mut request = Request::post(format!("http://server{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut call = self.begin(request.body(()).unwrap()).await?;
        call.request.send_data(first, false).ok()?;
        Some(call)
    }

    /// Begins a webhook with a body of so many bytes, of which none is sent. Its signature looks like one.
    pub async fn announce_webhook(&mut self, bytes: usize) -> Option<Call> {
        let request = Request::post("http://server/v1/github/")
            .header("content-type", "application/json")
            .header("x-github-event", "push")
            .header("x-github-delivery", "announced")
            .header("x-hub-signature-256", format!("sha256={}", "0".repeat(64)))
            .header("content-length", bytes);
        self.begin(request.body(()).unwrap()).await
    }

    async fn begin(&mut self, request: Request<()>) -> Option<Call> {
        let ready = std::future::poll_fn(|context| self.requests.poll_ready(context));
        soon(ready).await.ok()?;
        let (response, request) = self.requests.send_request(request, false).ok()?;
        Some(Call { response, request })
    }

    /// Begins a call of a client with a valid token.
    pub async fn client_call(&mut self, path: &str, first: Bytes) -> Option<Call> {
        self.call(path, Some(TOKEN), first).await
    }

    pub fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Call {
    /// The status of a gRPC call that has ended.
    pub async fn status(self) -> Option<String> {
        let response = soon(self.response).await.ok()?;
        assert_eq!(response.status(), StatusCode::OK);
        if let Some(status) = response.headers().get("grpc-status") {
            return Some(status.to_str().unwrap().to_owned());
        }
        let trailers = read_to_end(response.into_body()).await.ok()??;
        Some(trailers["grpc-status"].to_str().unwrap().to_owned())
    }

    /// Sends as much as the server takes, until it takes no more or ends the call.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), Option<Reason>> {
        while !bytes.is_empty() {
            self.request.reserve_capacity(bytes.len());
            let granted = std::future::poll_fn(|context| self.request.poll_capacity(context)).await;
            match granted {
                Some(Ok(granted)) => {
                    let part = bytes.split_to(granted.min(bytes.len()));
                    self.request.send_data(part, false).map_err(|error| error.reason())?;
                }
                Some(Err(error)) => return Err(error.reason()),
                None => return Err(None),
            }
        }
        Ok(())
    }
}

async fn read_to_end(mut body: RecvStream) -> Result<Option<HeaderMap>, h2::Error> {
    while let Some(data) = soon(body.data()).await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    soon(body.trailers()).await
}

/// A message with its prefix (gRPC over HTTP/2, "Length-Prefixed-Message").
pub fn message(message: &impl Message) -> Bytes {
    raw_message(&message.encode_to_vec())
}

/// Likewise, of bytes that need not be a message.
pub fn raw_message(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + bytes.len());
    framed.put_slice(&prefix(bytes.len()));
    framed.put_slice(bytes);
    framed.freeze()
}

/// The prefix of a message of so many bytes.
pub fn prefix(bytes: usize) -> [u8; 5] {
    let mut prefix = [0; 5];
    prefix[1..].copy_from_slice(&u32::try_from(bytes).unwrap().to_be_bytes());
    prefix
}

/// A webhook that announces a body of so many bytes and sends only a part of it. Its signature looks like one.
pub async fn stalled_webhook(address: SocketAddr, announced: usize, sent: usize) -> Option<TcpStream> {
    let mut tcp = TcpStream::connect(address).await.ok()?;
    let head = format!(
        "POST /v1/github/ HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
         X-GitHub-Delivery: stalled\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: {announced}\r\n\r\n",
        "0".repeat(64)
    );
    tcp.write_all(head.as_bytes()).await.ok()?;
    let part = vec![b' '; 64 << 10];
    let mut left = sent;
    while left > 0 {
        let length = left.min(part.len());
        tcp.write_all(&part[..length]).await.ok()?;
        left -= length;
    }
    Some(tcp)
}
