//! The server that is attacked, and what must hold meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gitstafette_core::testing::Format;
use http::StatusCode;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::memory::{MOST, resident};
use crate::programs::Program;
use crate::support::{SECRET, Sender, TOKEN, hook, http_client, payload};

/// Attacks run one after the other: together they would attack the machine and not the server.
static TURN: Mutex<()> = Mutex::const_new(());

/// How much more than at the start the process may have when an attack is over, in bytes. The server has freed what it used by
/// then. But glibc returns small pieces only from the end of its heap, and the webhooks that arrived meanwhile lie behind them.
const LEFT_BEHIND: u64 = 48 << 20;
/// The time in which the server gives it back.
const RETURNED: Duration = Duration::from_secs(30);
/// The time in which nine of ten webhooks are answered.
const USUAL: Duration = Duration::from_secs(1);
/// The time in which every webhook is answered. GitHub gives up after 10 s.
const LONGEST: Duration = Duration::from_secs(5);
/// The size of the webhooks that arrive meanwhile, in bytes.
const WEBHOOK_BYTES: usize = 20_000;

/// A server process under attack.
pub struct Attacked {
    pub program: Program,
    webhooks: Webhooks,
    memory_before: Option<u64>,
    _folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Attacked {
    /// Starts a server with the default limits and these flags. From then on webhooks arrive.
    pub async fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), flags).await
    }

    /// Likewise, with a store that is filled already.
    pub async fn start_in(folder: TempDir, flags: &[&str]) -> Self {
        let turn = TURN.lock().await;
        let program = Program::start(folder.path(), flags).await;
        Self::begin(turn, folder, program).await
    }

    /// Likewise, with one port for webhooks and gRPC.
    pub async fn start_on_one_port() -> Self {
        let turn = TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let port = free_port().to_string();
        let store = folder.path().to_str().unwrap();
        let flags = [
            ["--store", store],
            ["--repositories", "octo-harbor/*"],
            ["--bind", "127.0.0.1"],
            ["--port", &port],
            ["--grpc-port", &port],
            ["--grpc-health-port", "0"],
            ["--log-format", "json"],
        ];
        let secrets = [("GITSTAFETTE_WEBHOOK_HMAC", SECRET), ("OAUTH_TOKEN", TOKEN)];
        let program = Program::run(flags.as_flattened(), &secrets).await;
        Self::begin(turn, folder, program).await
    }

    async fn begin(turn: MutexGuard<'static, ()>, folder: TempDir, mut program: Program) -> Self {
        program.ignore_log();
        // The first webhooks warm up the server.
        for number in 0..20 {
            let sender = Sender::to(program.http.clone());
            let answer = sender.send("push", &format!("first-{number}"), &padded(WEBHOOK_BYTES)).await;
            assert_eq!(answer.status(), StatusCode::CREATED);
        }
        let memory_before = resident(&program, "VmRSS");
        let webhooks = Webhooks::begin(program.http.clone());
        Self { program, webhooks, memory_before, _folder: folder, _turn: turn }
    }

    /// The address of the listener for webhooks.
    pub fn http(&self) -> SocketAddr {
        let address = self.program.http.split('/').nth(2).unwrap();
        address.parse().unwrap()
    }

    /// The address of the listener for gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.program.grpc
    }

    /// Lets the present state of the attack last, while webhooks arrive.
    pub async fn hold(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Checks the webhooks and the memory. The attack must be over.
    pub async fn end(self) {
        let Some(before) = self.memory_before else {
            println!("SKIPPED: this system does not tell the memory of a process");
            return self.webhooks.end().await.check();
        };
        let peak = resident(&self.program, "VmHWM").unwrap();
        let most = before + LEFT_BEHIND;
        let begin = Instant::now();
        let mut after = resident(&self.program, "VmRSS").unwrap();
        while after > most && begin.elapsed() < RETURNED {
            // From outside there is nothing to wait on.
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = resident(&self.program, "VmRSS").unwrap();
        }
        self.webhooks.end().await.check();
        println!(
            "memory: {} KiB before, {} KiB at most, {} KiB after",
            before >> 10,
            peak >> 10,
            after >> 10
        );
        assert!(peak < MOST, "the server used {} KiB", peak >> 10);
        assert!(after <= most, "the server keeps {} KiB, before it had {} KiB", after >> 10, before >> 10);
        self.program.stop().await;
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn padded(bytes: usize) -> String {
    let text = payload("webhook");
    format!("{text}{}", " ".repeat(bytes.saturating_sub(text.len())))
}

/// Webhooks that arrive one after the other, on a thread of their own: the attacker keeps the test's runtime busy.
struct Webhooks {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Answers>,
}

/// How the webhooks were answered.
#[derive(Default)]
struct Answers {
    times: Vec<Duration>,
    refused: Vec<String>,
}

impl Webhooks {
    fn begin(url: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(send_webhooks(&url, &stopped))
        });
        Self { stop, thread }
    }

    async fn end(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| self.thread.join().unwrap()).await.unwrap()
    }
}

async fn send_webhooks(url: &str, stop: &AtomicBool) -> Answers {
    let (kept, hook) = (http_client(), hook(Format::Json));
    let mut answers = Answers::default();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let request = hook.request("push", &format!("webhook-{number}"), &padded(WEBHOOK_BYTES));
        // Forges open a connection for each webhook, proxies keep theirs.
        let http = if number % 2 == 0 { kept.clone() } else { http_client() };
        let mut builder = http.post(url).body(request.body.clone());
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let begin = Instant::now();
        match tokio::time::timeout(LONGEST, builder.send()).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::CREATED => {}
            Ok(Ok(answer)) => answers.refused.push(answer.status().to_string()),
            Ok(Err(error)) => answers.refused.push(format!("{error:?}")),
            Err(_) => answers.refused.push("no answer".to_owned()),
        }
        answers.times.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    answers
}

impl Answers {
    fn check(self) {
        let Self { mut times, refused } = self;
        times.sort_unstable();
        let usual = times[times.len() * 9 / 10];
        println!(
            "webhooks: {} sent, nine of ten within {usual:?}, the slowest {:?}",
            times.len(),
            times[times.len() - 1]
        );
        assert!(refused.is_empty(), "{} of {} were refused: {:?}", refused.len(), times.len(), &refused[..1]);
        assert!(usual < USUAL, "nine of ten webhooks were answered within {usual:?}");
        assert!(times.len() >= 10, "only {} webhooks were sent", times.len());
    }
}
