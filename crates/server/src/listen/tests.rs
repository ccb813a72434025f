//! Peers that misbehave, over real sockets and by hand. A test waits for the end of a connection, not for a duration. A
//! timeout is short where it must strike, and so long that it never strikes where a slow machine must not matter.

use std::io;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);
/// Timeouts that never strike.
const NEVER: Timeouts = Timeouts { head: LONG, stalled: LONG, idle: LONG, close: LONG };

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
/// RFC 9113: the preface (§3.4) and an empty SETTINGS frame (§6.5).
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The same with SETTINGS_INITIAL_WINDOW_SIZE 0: nothing of a body may be sent.
const HELLO_WITHOUT_WINDOW: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
/// HEADERS of stream 1, complete, without a body: GET http / from the static table of RFC 7541, authority x.
const GET_2: &[u8] = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x";

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not come")
}

/// A listener in this process.
struct Served {
    address: SocketAddr,
    tasks: TaskTracker,
    ending: Ending,
}

impl Served {
    async fn start(router: Router, timeouts: Timeouts) -> Self {
        Self::limited(100, router, timeouts).await
    }

    async fn limited(connections: usize, router: Router, timeouts: Timeouts) -> Self {
        let address = Address { ip: Some(Ipv4Addr::LOCALHOST.into()), port: 0 };
        let tcp = address.bind().await.unwrap();
        let served =
            Self { address: tcp.local_addr().unwrap(), tasks: TaskTracker::new(), ending: Ending::default() };
        let limit = Arc::new(ConnectionLimit::new(connections));
        let listener =
            Listener { tcp, security: Security::Plain, router, limit, max_streams: MAX_CALLS, timeouts };
        tokio::spawn(listener.serve(served.tasks.clone(), served.ending.clone()));
        served
    }

    /// A listener that answers everything with this body.
    async fn answering(body: &'static [u8], timeouts: Timeouts) -> Self {
        Self::start(Router::new().fallback(async move || Bytes::from_static(body)), timeouts).await
    }

    /// Opens connections one by one until `count` have ended because their first head did not come in time.
    async fn head_timeouts(&self, count: usize) {
        for _ in 0..count {
            assert_eq!(until_the_end(&mut self.send(b"").await).await, "");
        }
    }

    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// Waits until no connection is left.
    async fn is_empty(&self) {
        self.tasks.close();
        soon(self.tasks.wait()).await;
    }
}

/// What comes until the end; a reset is one.
async fn until_the_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    drop(soon(stream.read_to_end(&mut bytes)).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One response that has a length, with its head.
async fn response(stream: &mut TcpStream, body: &str) -> String {
    let mut read = String::new();
    while !(read.contains("\r\n\r\n") && read.ends_with(body)) {
        read.push(soon(stream.read_u8()).await.expect(&read).into());
    }
    read.to_ascii_lowercase()
}

async fn frame(stream: &mut TcpStream) -> io::Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], head[4], payload))
}

/// Reads frames to the end and acknowledges what is to be acknowledged, as a peer in good order does. Returns the types
/// of the frames that came.
async fn be_polite(stream: &mut TcpStream) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Ok((kind, flags, payload)) = soon(frame(stream)).await {
        kinds.push(kind);
        if matches!(kind, SETTINGS | PING) && flags & ACK == 0 {
            let payload = if kind == PING { payload } else { Vec::new() };
            let head = [0, 0, payload.len() as u8, kind, ACK, 0, 0, 0, 0];
            drop(stream.write_all(&[&head[..], &payload].concat()).await);
        }
    }
    kinds
}

#[tokio::test]
async fn a_peer_that_asks_nothing_is_left() {
    let served = Served::answering(b"answer", Timeouts { head: SHORT, ..NEVER }).await;
    for start in ["", "G", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n"] {
        let mut stream = served.send(start.as_bytes()).await;
        assert!(!until_the_end(&mut stream).await.contains("200 OK"), "{start:?}");
    }
    let mut stream = served.send(HELLO).await;
    be_polite(&mut stream).await;
    let mut silent = served.send(HELLO).await;
    until_the_end(&mut silent).await;
    served.is_empty().await;
}

#[tokio::test]
async fn a_connection_is_kept_between_requests_longer_than_a_head_may_take() {
    let served = Served::answering(b"answer", Timeouts { head: SHORT, ..NEVER }).await;
    let mut stream = served.send(GET).await;
    for _ in 0..2 {
        let answer = response(&mut stream, "answer").await;
        assert!(!answer.contains("connection: close"), "{answer}");
        served.head_timeouts(2).await;
        stream.write_all(GET).await.unwrap();
    }
    response(&mut stream, "answer").await;
}

#[tokio::test]
async fn a_head_that_begins_between_requests_must_be_complete_in_time() {
    let served = Served::answering(b"answer", Timeouts { head: SHORT, ..NEVER }).await;
    let mut stream = served.send(GET).await;
    response(&mut stream, "answer").await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(until_the_end(&mut stream).await, "");
    served.is_empty().await;
}

#[tokio::test]
async fn the_longest_idle_connections_end_when_places_are_scarce() {
    let answer = Router::new().fallback(async || "answer");
    let served = Served::limited(10, answer, NEVER).await;
    let mut idle = Vec::new();
    for number in 0..8 {
        let mut stream = served.send(GET).await;
        let answer = response(&mut stream, "answer").await;
        assert!(!answer.contains("connection: close"), "{number}: {answer}");
        idle.push(stream);
    }
    // The ninth takes the place of the first.
    response(&mut served.send(GET).await, "answer").await;
    assert_eq!(until_the_end(&mut idle[0]).await, "");
    for stream in &mut idle[1..] {
        stream.write_all(GET).await.unwrap();
        response(stream, "answer").await;
    }
    // Peers that ask nothing end first, and leave enough places for those that ask.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(served.send(b"").await);
    }
    response(&mut served.send(GET).await, "answer").await;
    for stream in &mut silent[..10] {
        assert_eq!(until_the_end(stream).await, "");
    }
    idle[1].write_all(GET).await.unwrap();
    response(&mut idle[1], "answer").await;
}

#[tokio::test]
async fn idle_http2_connections_end_when_places_are_scarce_whatever_they_answer() {
    let answer = Router::new().fallback(async || "answer");
    let served = Served::limited(2, answer, NEVER).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut stream = served.send(&[HELLO, GET_2].concat()).await;
        while !matches!(soon(frame(&mut stream)).await.unwrap(), (HEADERS, ..)) {}
        idle.push(stream);
    }
    response(&mut served.send(GET).await, "answer").await;
}

/// Answers with a stream that never ends. On the path `/kept` its caller is authenticated.
fn endless_answers() -> Router {
    Router::new().fallback(async |request: Request<Body>| {
        if request.uri().path() == "/kept" {
            request.extensions().get::<Caller>().unwrap().keeps_connection();
        }
        let begin = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"begin"))]);
        Body::from_stream(futures_util::StreamExt::chain(begin, stream::pending()))
    })
}

#[tokio::test]
async fn streams_that_are_not_authenticated_do_not_keep_their_connections() {
    const KEPT: &[u8] = b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n";
    let served = Served::limited(40, endless_answers(), NEVER).await;
    let begun = async |bytes: &[u8]| {
        let mut stream = served.send(bytes).await;
        let mut read = String::new();
        while !read.contains("begin") {
            read.push(soon(stream.read_u8()).await.expect("it ended").into());
        }
        stream
    };
    let mut kept = begun(KEPT).await;
    let over_http2 = [HELLO, GET_2].concat();
    let mut held = Vec::new();
    for number in 0..31 {
        held.push(begun(if number % 2 == 0 { GET } else { &over_http2 }).await);
    }
    tokio::time::sleep(Duration::from_millis(1100)).await; // a request has a moment to show its token
    let mut all_kept = Vec::new();
    for _ in 0..31 {
        all_kept.push(begun(KEPT).await);
    }
    for stream in &mut held {
        until_the_end(stream).await;
    }
    // One address has 32 places. None of its connections may end now.
    assert_eq!(until_the_end(&mut served.send(KEPT).await).await, "");
    for stream in [&mut kept].into_iter().chain(&mut all_kept) {
        assert!(stream.read_u8().now_or_never().is_none_or(|read| read.is_ok()), "it is kept");
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_are_few_and_the_others_have_no_body() {
    let served = Served::limited(2, Router::new().fallback(async || "answer"), NEVER).await;
    let mut requests = HELLO_WITHOUT_WINDOW.to_vec();
    for number in 0..10 {
        let mut request = GET_2.to_vec();
        request[8] = 2 * number + 1;
        requests.extend(request);
    }
    let mut stream = served.send(&requests).await;
    let (mut heads, mut without_body) = (0, 0);
    while heads < 10 {
        let (kind, flags, _) = soon(frame(&mut stream)).await.unwrap();
        if kind == HEADERS {
            heads += 1;
            without_body += usize::from(flags & END_STREAM != 0);
        }
    }
    assert_eq!(without_body, 2);
}

#[tokio::test]
async fn an_answer_announces_the_end_of_its_connection_when_places_are_scarce() {
    let answer = Router::new().fallback(async || "answer");
    let served = Served::limited(1, answer, NEVER).await;
    let answer = until_the_end(&mut served.send(GET).await).await;
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    served.is_empty().await;
}

#[tokio::test]
async fn a_peer_that_asked_once_is_left_over_http1() {
    let served = Served::answering(b"answer", Timeouts { idle: SHORT, ..NEVER }).await;
    let mut stream = served.send(GET).await;
    assert!(until_the_end(&mut stream).await.ends_with("answer"));
    served.is_empty().await;
}

#[tokio::test]
async fn a_peer_that_asked_once_and_answers_pings_is_left_over_http2() {
    let served = Served::answering(b"answer", Timeouts { idle: SHORT, ..NEVER }).await;
    let mut stream = served.send(&[HELLO, GET_2].concat()).await;
    let kinds = be_polite(&mut stream).await;
    assert!(kinds.contains(&HEADERS) && kinds.contains(&PING), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&GO_AWAY), "{kinds:?}");
    served.is_empty().await;
}

#[tokio::test]
async fn a_peer_that_does_not_react_to_go_away_is_dropped() {
    let timeouts = Timeouts { idle: SHORT, close: SHORT, ..NEVER };
    let served = Served::answering(b"answer", timeouts).await;
    let _held = served.send(&[HELLO, GET_2].concat()).await;
    served.is_empty().await;
}

#[tokio::test]
async fn a_peer_that_never_reads_is_dropped() {
    /// More than the system's buffers take.
    static LARGE: [u8; 32 << 20] = [0; 32 << 20];
    let timeouts = Timeouts { stalled: SHORT, close: SHORT, ..NEVER };
    let served = Served::answering(&LARGE, timeouts).await;
    let _held = [
        served.send(GET).await,
        served.send(&GET.repeat(100)).await,
        served.send(&[HELLO, GET_2].concat()).await,
    ];
    served.is_empty().await;
}

#[tokio::test]
async fn a_peer_that_gives_no_window_is_left() {
    let timeouts = Timeouts { stalled: SHORT, close: SHORT, ..NEVER };
    let served = Served::answering(b"answer", timeouts).await;
    let mut stream = served.send(&[HELLO_WITHOUT_WINDOW, GET_2].concat()).await;
    let kinds = be_polite(&mut stream).await;
    assert!(kinds.contains(&HEADERS) && kinds.contains(&GO_AWAY), "{kinds:?}");
    served.is_empty().await;
}

#[tokio::test]
async fn a_response_that_waits_for_this_server_is_not_cut_off() {
    let (parts, receiver) = mpsc::channel::<io::Result<&'static str>>(1);
    let body = stream::unfold(receiver, async |mut parts| Some((parts.recv().await?, parts)));
    let first = Arc::new(Mutex::new(Some(Body::from_stream(body))));
    // The first request gets the stream, the others an empty answer.
    let answer = async move || first.lock().unwrap().take().unwrap_or_default();
    let timeouts = Timeouts { stalled: SHORT, idle: SHORT, close: SHORT, ..NEVER };
    let served = Served::start(Router::new().fallback(answer), timeouts).await;
    let mut stream = served.send(GET).await;
    parts.send(Ok("first")).await.unwrap();
    let mut read = String::new();
    while !read.contains("first") {
        read.push(soon(stream.read_u8()).await.unwrap().into());
    }
    // Others come and are left: at least three times the patience goes by.
    for _ in 0..3 {
        until_the_end(&mut served.send(GET).await).await;
    }
    parts.send(Ok("second")).await.unwrap();
    drop(parts);
    assert!(until_the_end(&mut stream).await.contains("second"));
    served.is_empty().await;
}

#[tokio::test]
async fn stopping_lets_requests_end_and_cutting_does_not() {
    let (began, mut beginnings) = mpsc::channel(2);
    let answer = async move || {
        began.send(()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let served = Served::start(Router::new().fallback(answer), NEVER).await;
    let mut first = served.send(GET).await;
    let mut second = served.send(&[HELLO, GET_2].concat()).await;
    let mut silent = served.send(b"").await;
    soon(beginnings.recv()).await;
    soon(beginnings.recv()).await;
    served.ending.stop.cancel();
    assert_eq!(until_the_end(&mut silent).await, "");
    assert!(!served.tasks.is_empty());
    served.ending.cut.cancel();
    assert_eq!(until_the_end(&mut first).await, "");
    be_polite(&mut second).await;
    served.is_empty().await;
    assert_eq!(soon(beginnings.recv()).await, None, "the handlers are gone, too");
}
