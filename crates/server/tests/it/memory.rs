//! What the server's process takes, measured from outside: bounded by its settings, not by who subscribes or what comes.

use std::path::Path;
use std::time::Duration;

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{EventStore, Options, SqliteStore};
use gitstafette_core::testing;
use gitstafette_proto::MAX_MESSAGE_BYTES;
use gitstafette_proto::v1::gitstafette_client::GitstafetteClient;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use gitstafette_proto::v1::subscribe_response::Response;
use gitstafette_proto::v1::{SubscribeRequest, SubscribeResponse, Subscription};
use http::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::programs::Program;
use crate::support::{Sender, TOKEN, TestClient, TestTarget, options, payload, soon};

/// What the largest webhook may make of a server on a small machine.
pub const MOST: u64 = 100 << 20;

/// What a process has resident (`VmRSS`), or had at most (`VmHWM`), in bytes (proc_pid_status(5)); `None` where the
/// system does not tell.
pub fn resident(program: &Program, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10)
}

/// Whether it never had more resident than this.
pub fn is_bounded(program: &Program, most: u64) {
    match resident(program, "VmHWM") {
        None => println!("SKIPPED: this system does not tell the memory of a process"),
        Some(peak) => {
            println!("peak: {} KiB", peak >> 10);
            assert!(peak < most, "{} KiB", peak >> 10);
        }
    }
}

#[tokio::test]
async fn a_webhook_of_24_mib_passes_in_less_than_100() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), &["--request-timeout", "10m"]).await;
    program.ignore_log();
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(program.grpc, target.target()));
    let sender = Sender::to(program.http.clone());
    let text = format!("{}{}", payload("large"), " ".repeat((24 << 20) - 100));
    for number in 1..=3 {
        let answer = sender.send("push", &format!("delivery-{number}"), &text).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(target.next().await.body.len(), text.len());
    }
    is_bounded(&program, MOST);
    client.stop().await;
}

/// A subscriber by hand, which acknowledges nothing.
struct Raw {
    _requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
}

async fn subscribe(program: &Program, client_id: String) -> Raw {
    subscribe_with_window(program, client_id, 64 << 10).await
}

/// The same with HTTP/2 windows of so many bytes.
async fn subscribe_with_window(program: &Program, client_id: String, window: u32) -> Raw {
    let endpoint = Channel::from_shared(format!("http://{}", program.grpc)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(window).initial_connection_window_size(window);
    let channel = endpoint.connect().await.unwrap();
    let (requests, receiver) = mpsc::channel(1);
    let subscription = Subscription { client_id, ..Subscription::default() };
    requests.send(SubscribeRequest { request: Some(Wire::Subscription(subscription)) }).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    let mut calls = GitstafetteClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let responses = soon(calls.subscribe(request)).await.unwrap().into_inner();
    Raw { _requests: requests, responses }
}

impl Raw {
    /// Reads events up to this one.
    async fn read_to(mut self, last: u64) {
        while let Some(SubscribeResponse { response }) = soon(self.responses.message()).await.unwrap() {
            if matches!(response, Some(Response::Event(event)) if event.sequence == last) {
                return;
            }
        }
        panic!("the stream ended");
    }
}

pub async fn fill(folder: &Path, sizes: &[usize]) {
    let store = SqliteStore::open(folder, Options::default()).unwrap();
    for (number, size) in sizes.iter().enumerate() {
        store.append(testing::webhook(number as u64, "octo-harbor/lighthouse", *size)).await.unwrap();
    }
    assert_eq!(*store.head().borrow(), Sequence::new(sizes.len() as u64));
    store.close().await;
}

#[tokio::test]
async fn a_hundred_clients_that_catch_up_do_not_grow_the_server() {
    let folder = tempfile::tempdir().unwrap();
    // Small ones, medium ones, and two that are large.
    let mut sizes = vec![2_000; 300];
    sizes.extend([100_000; 30]);
    sizes.extend([8 << 20; 2]);
    fill(folder.path(), &sizes).await;
    let mut program = Program::start(folder.path(), &[]).await;
    program.ignore_log();
    let mut asleep = Vec::new();
    for number in 0..80 {
        asleep.push(subscribe(&program, format!("asleep-{number}")).await);
    }
    let mut awake = JoinSet::new();
    for number in 0..20 {
        awake.spawn(subscribe(&program, format!("awake-{number}")).await.read_to(sizes.len() as u64));
    }
    while let Some(read) = awake.join_next().await {
        read.unwrap();
    }
    // What is on its way (32 MiB), once as it was read and once as it is sent; a hundred connections; and the rest.
    is_bounded(&program, MOST + (50 << 20));
    // Those who slept get everything when they wake.
    for sleeper in asleep.into_iter().take(5) {
        sleeper.read_to(sizes.len() as u64).await;
    }
    is_bounded(&program, MOST + (50 << 20));
}

#[tokio::test]
async fn a_flood_waits_for_memory_and_leaves_none_behind() {
    let folder = tempfile::tempdir().unwrap();
    let limits = ["--inflight-limit", "26MiB", "--request-timeout", "10m"];
    let mut program = Program::start(folder.path(), &limits).await;
    program.ignore_log();
    let mut target = TestTarget::start().await;
    let client = TestClient::start(options(program.grpc, target.target()));
    let idle = resident(&program, "VmRSS");
    let mut senders = JoinSet::new();
    for sender in 0..24 {
        let url = program.http.clone();
        senders.spawn(async move {
            let http = Sender::to(url);
            for number in 0..2 {
                let text = format!("{}{}", payload("flood"), " ".repeat(5 << 20));
                let answer = http.send("push", &format!("{sender}-{number}"), &text).await;
                assert_eq!(answer.status(), StatusCode::CREATED);
            }
        });
    }
    for _ in 0..48 {
        target.next().await;
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
    is_bounded(&program, MOST);
    client.stop().await;
    let Some(idle) = idle else { return };
    let returned = async {
        loop {
            let after = resident(&program, "VmRSS").unwrap();
            if after < idle + (16 << 20) {
                return after;
            }
            // The last events leave the stream a little after the client; from outside there is nothing to wait on.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    println!("idle: {} KiB, afterwards: {} KiB", idle >> 10, soon(returned).await >> 10);
}
#[tokio::test]
async fn subscribers_that_do_not_read_take_no_more_than_the_outgoing_limit() {
    const EVENT: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), &[EVENT; 40]).await;
    let more = ["--outgoing-limit", "16MiB", "--heartbeat-interval", "1s"];
    let mut program = Program::start(folder.path(), &more).await;
    program.ignore_log();
    let Some(before) = resident(&program, "VmHWM") else {
        return println!("SKIPPED: no memory of a process here");
    };
    let mut asleep = Vec::new();
    for number in 0..50 {
        // Their windows take one event and a half: what is behind that waits in the server.
        asleep.push(subscribe_with_window(&program, format!("asleep-{number}"), 3 * EVENT as u32 / 2).await);
    }
    // One that reads gets its turn when those that do not read are cut off.
    subscribe(&program, "awake".into()).await.read_to(40).await;
    println!("{} KiB before", before >> 10);
    // The limit, a copy of an event for each processor and reader, and what fifty connections take.
    is_bounded(&program, before + (16 << 20) + (20 << 20));
}
