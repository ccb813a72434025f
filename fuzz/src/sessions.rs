//! Sessions of `Subscribe` and `Publish` with a server that keeps its events in memory.
//!
//! An input is a list of steps. Each step is a byte that names an action, and some bytes that it uses: valid messages, messages
//! with odd values, bytes that are no message, and streams that open, read, stall and end in any order. Bytes that are
//! missing are zero.
//!
//! Whatever comes, the server does not panic, and no call ends with UNKNOWN, or with INTERNAL except for
//! frames that break the protocol. A subscriber gets only events that were
//! published, and receipts only for what it acknowledged. No cursor passes the head. The server ends in order, whatever the
//! streams left behind.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use gitstafette_core::store::{EventStore, MemoryStore};
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::subscription::Start;
use gitstafette_proto::v1::{
    Acknowledgement, Acknowledgements, Address, Deferral, Event, FirstAttempt, FirstAttempts, HeaderField,
    Hop, Latest, Outcome, PublishRequest, Recall, RedeliverEventsRequest, RemoveSubscriptionRequest,
    SubscribeRequest, SubscribeResponse, Subscription,
};
use gitstafette_server::Server;
use gitstafette_server::config::Config;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::assert_one_line;

/// The settings of the server: bounds that a few steps can reach.
const SETTINGS: &str = r#"
repositories = ["*"]
webhook-hmac = "secret"
client-token = ["first", "second"]
admin-token = "operator"
publisher-token = "publisher"
bind = "127.0.0.1"
port = 0
grpc-port = 0
grpc-health-port = 0
retention-count = 50
body-limit = "64KiB"
inflight-limit = "1MiB"
outgoing-limit = "128KiB"
max-client-ids = 6
max-unacknowledged-events = 16
"#;
/// How long a step waits for answers that may not come.
const WAIT: Duration = Duration::from_millis(2);
/// How long a step waits for an answer that must come.
const LONGEST: Duration = Duration::from_secs(20);
const SERVICE: &str = "/gitstafette.v1.Gitstafette/";
/// The steps of one input at most.
const STEPS: usize = 40;

/// Reads values from the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// A small number, or one near a limit of its type.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => i64::MAX as u64,
            253 => u64::from(u32::MAX),
            252 => i64::MAX as u64 - 1,
            small => u64::from(small),
        }
    }

    fn numbers(&mut self) -> Vec<u64> {
        let count = self.byte() % 40;
        (0..count).map(|_| self.number()).collect()
    }

    fn client_id(&mut self) -> String {
        match self.byte() {
            number @ 0..=200 => format!("client-{}", number % 8),
            201..=220 => format!("relay.push.{}", self.text()),
            _ => self.text(),
        }
    }

    fn token(&mut self) -> Option<&'static str> {
        let tokens =
            [Some("first"), Some("second"), Some("operator"), Some("publisher"), Some("wrong"), None];
        tokens[usize::from(self.byte()) % 12 % tokens.len()]
    }

    fn timestamp(&mut self) -> prost_types::Timestamp {
        let seconds = self.number().cast_signed();
        let nanos = i32::from(self.byte()) * 8_000_000;
        prost_types::Timestamp { seconds: if self.byte() == 1 { -seconds } else { seconds }, nanos }
    }

    fn duration(&mut self) -> prost_types::Duration {
        prost_types::Duration { seconds: self.number().cast_signed(), nanos: i32::from(self.byte()) }
    }
}

/// One call.
struct Call {
    request: SendStream<Bytes>,
    answer: Answer,
    unread: BytesMut,
    /// The sequences that were acknowledged on this stream.
    acknowledged: BTreeSet<u64>,
}

enum Answer {
    Waiting(ResponseFuture),
    Open(RecvStream),
    Ended,
}

impl Call {
    fn send(&mut self, bytes: Bytes) {
        // A stream that has ended takes no more: that is an odd sequence, too.
        drop(self.request.send_data(bytes, false));
    }

    /// The next message, within a time. `None` if none has come, or if the call has ended.
    async fn next(&mut self, within: Duration) -> Option<Bytes> {
        tokio::time::timeout(within, self.next_message()).await.ok()?
    }

    async fn next_message(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.whole_message() {
                return Some(message);
            }
            match &mut self.answer {
                Answer::Ended => return None,
                Answer::Waiting(response) => match response.await {
                    Ok(response) => {
                        assert_status(response.headers());
                        self.answer = Answer::Open(response.into_body());
                    }
                    Err(_) => self.answer = Answer::Ended,
                },
                Answer::Open(body) => match body.data().await {
                    Some(Ok(data)) => {
                        drop(body.flow_control().release_capacity(data.len()));
                        self.unread.put(data);
                    }
                    Some(Err(_)) => self.answer = Answer::Ended,
                    None => {
                        if let Ok(Some(trailers)) = body.trailers().await {
                            assert_status(&trailers);
                        }
                        self.answer = Answer::Ended;
                    }
                },
            }
        }
    }

    fn whole_message(&mut self) -> Option<Bytes> {
        let length = u32::from_be_bytes(self.unread.get(1..5)?.try_into().ok()?) as usize;
        (self.unread.len() >= 5 + length).then(|| self.unread.split_to(5 + length).split_off(5).freeze())
    }
}

/// Checks the status of a call that has ended. The codes are those of gRPC's documentation, "Status codes".
fn assert_status(headers: &HeaderMap) {
    const UNKNOWN: &str = "2";
    const INTERNAL: &str = "13";
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (code, message) = (text("grpc-status"), text("grpc-message"));
    // tonic answers so to a frame that breaks the protocol, before the server sees a message.
    let is_framing = message.starts_with("protocol%20error");
    assert!(code != UNKNOWN && (code != INTERNAL || is_framing), "status {code}: {message}");
    assert_one_line(message);
}

fn framed(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + bytes.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).expect("an input is small"));
    framed.put_slice(bytes);
    framed.freeze()
}

/// What one input does.
struct Run<'a> {
    input: Input<'a>,
    requests: SendRequest<Bytes>,
    subscriptions: Vec<Call>,
    publication: Option<Call>,
    /// The sequences that some stream was sent, for acknowledgements that mean something.
    sent: Vec<u64>,
    /// How many events the streams were sent.
    events: usize,
}

impl Run<'_> {
    async fn step(&mut self) {
        match self.input.byte() % 16 {
            0 | 1 => self.subscribe().await,
            2..=4 => self.publish().await,
            5 => self.acknowledge(),
            6 => self.say_odd(),
            7 => self.say_raw(),
            8..=10 => self.read().await,
            11 => self.end_stream(),
            12 => self.publish_raw().await,
            13 => self.redeliver().await,
            14 => self.remove().await,
            _ => tokio::task::yield_now().await,
        }
    }

    async fn call(&mut self, method: &str, token: Option<&str>, first: Bytes) -> Option<Call> {
        let mut request = Request::post(format!("http://server{SERVICE}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        std::future::poll_fn(|context| self.requests.poll_ready(context)).await.ok()?;
        let request = request.body(()).expect("the parts are valid");
        let (response, stream) = self.requests.send_request(request, false).ok()?;
        let mut call = Call {
            request: stream,
            answer: Answer::Waiting(response),
            unread: BytesMut::new(),
            acknowledged: BTreeSet::new(),
        };
        call.send(first);
        Some(call)
    }

    async fn subscribe(&mut self) {
        let token = self.input.token();
        let client_id = self.input.client_id();
        let mut subscription = Subscription { client_id, ..Subscription::default() };
        if self.input.byte() > 200 {
            self.odd_subscription(&mut subscription);
        }
        let request = SubscribeRequest { request: Some(Wire::Subscription(subscription)) };
        let Some(call) = self.call("Subscribe", token, framed(&request.encode_to_vec())).await else {
            return;
        };
        self.subscriptions.push(call);
        if self.subscriptions.len() > 6 {
            self.subscriptions.remove(0);
        }
    }

    fn odd_subscription(&mut self, subscription: &mut Subscription) {
        let input = &mut self.input;
        subscription.start = match input.byte() % 4 {
            0 => None,
            1 => Some(Start::AfterSequence(input.number())),
            2 => Some(Start::ReceivedSince(input.timestamp())),
            _ => Some(Start::Latest(Latest {})),
        };
        subscription.repositories = (0..input.byte() % 3).map(|_| input.text()).collect();
        subscription.events = (0..input.byte() % 3).map(|_| input.text()).collect();
        subscription.max_unacknowledged_events = u32::try_from(input.number()).unwrap_or(u32::MAX);
        subscription.max_unacknowledged_bytes = input.number();
        subscription.keep_cursor = input.byte() % 2 == 0;
        subscription.deferred = input.numbers();
        subscription.store_id = input.text();
        subscription.run_id = input.text();
        subscription.seen_sequence = (input.byte() % 2 == 0).then(|| input.number());
        subscription.resume_at_seen = input.byte() % 2 == 0;
    }

    fn stream(&mut self) -> Option<&mut Call> {
        let index = usize::from(self.input.byte());
        let count = self.subscriptions.len().max(1);
        self.subscriptions.get_mut(index % count)
    }

    fn say(&mut self, request: Wire) {
        let bytes = framed(&SubscribeRequest { request: Some(request) }.encode_to_vec());
        if let Some(stream) = self.stream() {
            stream.send(bytes);
        }
    }

    /// Acknowledges events that were sent, and perhaps one that was not.
    fn acknowledge(&mut self) {
        let count = usize::from(self.input.byte() % 8);
        let mut sequences: Vec<_> = self.sent.iter().rev().take(count).copied().collect();
        if self.input.byte() > 200 {
            sequences.push(self.input.number());
        }
        let outcomes = self.input.byte() % 40;
        let acknowledgements = sequences
            .iter()
            .map(|sequence| Acknowledgement {
                sequence: *sequence,
                outcomes: (0..=outcomes).map(|number| outcome(&mut self.input, number)).collect(),
            })
            .collect();
        let request = Wire::Acknowledgements(Acknowledgements { acknowledgements });
        let bytes = framed(&SubscribeRequest { request: Some(request) }.encode_to_vec());
        if let Some(stream) = self.stream() {
            stream.acknowledged.extend(sequences);
            stream.send(bytes);
        }
    }

    fn say_odd(&mut self) {
        let sequences = self.input.numbers();
        let request = match self.input.byte() % 4 {
            0 => Wire::Deferral(Deferral { sequences: [sequences, self.sent.clone()].concat() }),
            1 => Wire::Recall(Recall { sequences: [sequences, self.sent.clone()].concat() }),
            2 => {
                let one = |sequence| FirstAttempt {
                    sequence,
                    target: self.input.text(),
                    age: Some(self.input.duration()),
                };
                Wire::FirstAttempts(FirstAttempts {
                    first_attempts: sequences.into_iter().map(one).collect(),
                })
            }
            _ => {
                let mut subscription = Subscription::default();
                self.odd_subscription(&mut subscription);
                Wire::Subscription(subscription)
            }
        };
        self.say(request);
    }

    fn say_raw(&mut self) {
        let bytes = self.input.bytes();
        // With a prefix it is one message, without one it may be the half of one, or of several.
        let bytes = if self.input.byte() % 4 == 0 { bytes.into() } else { framed(&bytes) };
        if let Some(stream) = self.stream() {
            stream.send(bytes);
        }
    }

    async fn read(&mut self) {
        let Some(stream) = self.stream() else { return };
        let mut sent = Vec::new();
        while let Some(message) = stream.next(WAIT).await {
            let response = SubscribeResponse::decode(message).expect("the server encodes its messages");
            match response.response.expect("a response has content") {
                Response::Event(event) => {
                    assert_eq!(
                        event.body,
                        body(&event.delivery_id),
                        "the body is the one that was published"
                    );
                    sent.push(event.sequence);
                }
                Response::Receipt(receipt) => {
                    for sequence in receipt.sequences {
                        assert!(stream.acknowledged.contains(&sequence), "a receipt for {sequence}");
                    }
                }
                Response::Heartbeat(heartbeat) => assert!(heartbeat.cursor <= heartbeat.head),
                Response::Started(started) => assert!(started.cursor <= started.head),
                Response::Missed(missed) => assert!(missed.first <= missed.last),
                Response::GoAway(_) => {}
            }
        }
        self.events += sent.len();
        self.sent.extend(sent);
        let surplus = self.sent.len().saturating_sub(64);
        self.sent.drain(..surplus);
    }

    fn end_stream(&mut self) {
        if self.subscriptions.is_empty() {
            return;
        }
        let index = usize::from(self.input.byte()) % self.subscriptions.len();
        if self.input.byte() % 2 == 0 {
            // Only the half of the client: it goes on reading.
            drop(self.subscriptions[index].request.send_data(Bytes::new(), true));
        } else {
            self.subscriptions.swap_remove(index);
        }
    }

    async fn publish(&mut self) {
        let number = self.input.byte();
        let delivery_id = format!("delivery-{number}");
        let mut event = Event {
            sequence: u64::from(number) + 1,
            source: "github".to_owned(),
            body: body(&delivery_id),
            delivery_id,
            event: "push".to_owned(),
            repository_name: Some("octo/hello".to_owned()),
            hops: vec![hop(1)],
            ..Event::default()
        };
        event.headers = [
            ("X-GitHub-Delivery", event.delivery_id.as_str()),
            ("X-GitHub-Event", "push"),
            ("Content-Type", "application/json"),
        ]
        .map(|(name, value)| HeaderField {
            name: name.to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        })
        .to_vec();
        if self.input.byte() > 180 {
            self.odd_event(&mut event);
        }
        let request = PublishRequest { event: Some(event), ..PublishRequest::default() };
        self.send_publication(framed(&request.encode_to_vec())).await;
    }

    fn odd_event(&mut self, event: &mut Event) {
        let input = &mut self.input;
        event.hook_id = input.text();
        event.event = input.text();
        event.action = Some(input.text());
        event.repository_id = Some(input.number());
        event.repository_name = Some(input.text());
        event.received_at = Some(input.timestamp());
        event.redelivery = input.byte() % 2 == 0;
        event.hops = (0..input.byte() % 40).map(hop).collect();
        event.headers.extend(
            (0..input.byte() % 8).map(|_| HeaderField { name: input.text(), value: input.bytes().into() }),
        );
        event.address = Some(Address { client_id: Some(input.client_id()), ..Address::default() })
            .filter(|_| input.byte() > 128);
    }

    async fn publish_raw(&mut self) {
        let bytes = self.input.bytes();
        let bytes = if self.input.byte() % 4 == 0 { bytes.into() } else { framed(&bytes) };
        self.send_publication(bytes).await;
    }

    async fn send_publication(&mut self, bytes: Bytes) {
        match &mut self.publication {
            Some(call) => call.send(bytes),
            None => {
                let token = if self.input.byte() > 230 { self.input.token() } else { Some("publisher") };
                self.publication = self.call("Publish", token, bytes).await;
            }
        }
        if let Some(call) = &mut self.publication
            && call.next(WAIT).await.is_none()
            && matches!(call.answer, Answer::Ended)
        {
            self.publication = None;
        }
    }

    async fn redeliver(&mut self) {
        let client_id = Some(self.input.client_id()).filter(|_| self.input.byte() % 2 == 0);
        let request = RedeliverEventsRequest {
            address: Some(Address { client_id, ..Address::default() }),
            ..RedeliverEventsRequest::default()
        };
        self.ask("RedeliverEvents", &request).await;
    }

    async fn remove(&mut self) {
        let request = RemoveSubscriptionRequest { client_id: self.input.client_id() };
        self.ask("RemoveSubscription", &request).await;
    }

    /// Makes an operator's call and waits for its end.
    async fn ask(&mut self, method: &str, request: &impl Message) {
        let Some(mut call) = self.call(method, Some("operator"), framed(&request.encode_to_vec())).await
        else {
            return;
        };
        drop(call.request.send_data(Bytes::new(), true));
        let end = async { while call.next_message().await.is_some() {} };
        tokio::time::timeout(LONGEST, end).await.expect("an operator's call ends");
    }
}

fn outcome(input: &mut Input<'_>, number: u8) -> Outcome {
    if number > 2 {
        return Outcome { target: format!("target-{number}"), result: 1, ..Outcome::default() };
    }
    Outcome {
        target: input.text(),
        result: i32::from(input.byte() % 5),
        code: u32::from(input.byte()),
        attempts: u32::from(input.byte()),
        duration: Some(input.duration()),
        at: Some(input.timestamp()),
        detail: input.text(),
    }
}

fn hop(number: u8) -> Hop {
    Hop { store_id: format!("{number:016x}"), sequence: u64::from(number), ..Hop::default() }
}

/// The body of a webhook with this delivery id.
fn body(delivery_id: &str) -> Bytes {
    let padding = " ".repeat(delivery_id.len() * 100);
    format!(r#"{{"repository":{{"id":7,"full_name":"octo/hello"}},"text":{delivery_id:?}}}{padding}"#).into()
}

/// Runs one input against a server of its own. Returns how many events the streams were sent.
pub fn run(data: &[u8]) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // A fuzzer's program does not ignore SIGPIPE as Rust's programs do.
        drop(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::pipe()));
        serve(data).await
    })
}

async fn serve(data: &[u8]) -> usize {
    let config = Config::from_toml(SETTINGS).expect("the settings are valid");
    let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new(config.store_options));
    let server = Server::bind(config.server, Arc::clone(&store)).await.expect("loopback has free ports");
    let (address, stop) = (server.local_addrs().grpc, CancellationToken::new());
    let running = tokio::spawn(server.run(stop.clone()));
    let sent = attack(data, address).await;
    let head = *store.head().borrow();
    for (client, cursor) in store.cursors().await.expect("the store works") {
        assert!(cursor <= head, "{client} is at {cursor}, beyond {head}");
    }
    stop.cancel();
    let ended = tokio::time::timeout(LONGEST, running).await.expect("the server drains");
    ended.expect("the server does not panic").expect("nothing keeps the server from its end");
    sent
}

async fn attack(data: &[u8], address: SocketAddr) -> usize {
    let tcp = TcpStream::connect(address).await.expect("the server listens");
    let (requests, connection) = h2::client::handshake(tcp).await.expect("the server speaks HTTP/2");
    let driver = tokio::spawn(connection);
    let mut run = Run {
        input: Input(data),
        requests,
        subscriptions: Vec::new(),
        publication: None,
        sent: Vec::new(),
        events: 0,
    };
    for _ in 0..STEPS {
        if run.input.is_empty() {
            break;
        }
        run.step().await;
    }
    let sent = run.events;
    drop(run);
    driver.abort();
    sent
}
