//! `cargo xtask bench`: speed and memory of the release builds, each figure beside one that was measured in the same
//! run on the same machine. Nothing here passes or fails.
//!
//! Load generator, target and bare server are release builds, too, and share the machine with what they measure.

pub(crate) mod bare;
mod chain;
mod disk;
mod load;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use gitstafette_core::testing::{Format, Hook, Request, SAMPLES};
use hyper::StatusCode;

use crate::delivery;
use crate::figures::{self, Figures};
use crate::http::Connection;
use crate::process::{Interrupts, Process};
use crate::relay::{self, Programs, Secrets, Server};
use crate::target::Target;
use crate::text;
use disk::FsyncRate;
use load::Load;

/// Webhooks for the latency: some to warm up, and those that count.
const WARM_UP: usize = 20;
const MEASURED: usize = 200;
/// How long a subscriber that lags is watched when the load is over.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Starts of the server, of which the median counts.
const STARTS: usize = 5;

/// Measures; each load lasts `duration`.
pub(crate) async fn run(programs: Programs, duration: Duration) -> anyhow::Result<()> {
    // Beside the programs: that is a disk, which the system's folder for temporary files often is not.
    let beside = programs.server.parent().context("the server is in no folder")?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(beside)?;
    let sample = SAMPLES.iter().find(|sample| sample.name == "push").context("there is no sample push")?;
    let secrets = Secrets::random();
    let hook = Hook { id: 1, format: Format::Json, secret: Some(secrets.webhook.clone()) };
    let webhook = hook.deliver(sample, "");
    let bench = Bench { duration, programs, folder: folder.path().to_owned(), secrets, webhook };
    let mut interrupts = Interrupts::catch()?;
    // Programs that run when this is dropped are killed.
    tokio::select! {
        measured = bench.all() => measured,
        () = interrupts.next() => bail!("interrupted"),
    }
}

struct Bench {
    duration: Duration,
    programs: Programs,
    folder: PathBuf,
    secrets: Secrets,
    /// What is sent, each time under another delivery id.
    webhook: Request,
}

impl Bench {
    async fn all(&self) -> anyhow::Result<()> {
        let size = text::bytes(self.webhook.body.len());
        let figures = Figures::start();
        figures.heading("the disk");
        let fsync = FsyncRate::measure(&self.folder).await?;
        figures.row("4 KiB appended and synced", text::thousands(fsync.per_second), "/s", &fsync.each());

        figures.heading(&format!("one webhook of {size} on an idle system, from sending to the target"));
        self.latency(&figures, &fsync).await?;

        figures.heading(&format!("webhooks of {size} answered 201, over {} connections", load::CONNECTIONS));
        let bare = self.load_bare().await?;
        figures.row("a bare hyper server that checks the HMAC", bare.rate(), "/s", &bare.remark());
        let alone = self.load_server(&figures, &bare, &fsync).await?;
        let memory = self.load_with_subscriber(&figures, &bare, &fsync).await?;

        figures.heading("memory of the server with the subscriber (RSS)");
        memory.show(&figures);

        self.chains(&figures).await?;

        figures.heading("size of the programs");
        for program in [&self.programs.server, &self.programs.client] {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            figures.row(&name, figures::mebibytes(std::fs::metadata(program)?.len()), "MiB", "");
        }

        figures.heading("start of the server, until it listens");
        let empty = self.start_up(&self.folder.join("empty")).await?;
        figures.row("with an empty store", text::millis(empty), "ms", &format!("median of {STARTS}"));
        let folder = self.folder.join("alone");
        let full = self.start_up(&folder).await?;
        let stored = figures::mebibytes(figures::folder_size(&folder.join("store"))?);
        let label = format!("with {} webhooks in {stored} MiB", text::thousands(alone.accepted as f64));
        figures.row(&label, text::millis(full), "ms", &figures::times(full, empty, "an empty store"));
        Ok(())
    }

    async fn server(&self, folder: &Path) -> anyhow::Result<Server> {
        std::fs::create_dir_all(folder)?;
        Server::start(&self.programs.server, folder, &self.secrets).await
    }

    async fn client(&self, folder: &Path, server: SocketAddr, target: &Target) -> anyhow::Result<Process> {
        relay::start_client(&self.programs.client, folder, &self.secrets, server, &target.url()).await
    }

    async fn latency(&self, figures: &Figures, fsync: &FsyncRate) -> anyhow::Result<()> {
        let folder = self.folder.join("latency");
        let server = self.server(&folder).await?;
        let mut target = Target::start(&self.secrets.webhook).await?;
        let client = self.client(&folder, server.grpc, &target).await?;
        let latencies = self.one_by_one(server.http, &mut target).await?;
        for (label, share) in [("median", 0.5), ("99th percentile", 0.99)] {
            let latency = text::quantile(&latencies, share).unwrap_or_default();
            let remark = figures::times(latency, fsync.median, "one fsync");
            figures.row(
                &format!("{label} of {MEASURED}, one after another"),
                text::millis(latency),
                "ms",
                &remark,
            );
        }
        client.stop().await?;
        server.process.stop().await
    }

    /// How long each webhook takes to the target, sent when the one before it is there.
    async fn one_by_one(&self, server: SocketAddr, target: &mut Target) -> anyhow::Result<Vec<Duration>> {
        let mut connection = Connection::open(server).await?;
        let mut latencies = Vec::new();
        for number in 0..WARM_UP + MEASURED {
            let request = load::renewed(&self.webhook, &delivery::new_delivery_id());
            let delivery = delivery::deliver(&mut connection, target, &request).await?;
            let (_, latency) =
                delivery.arrival.with_context(|| format!("no webhook arrived: {}", delivery.answer))?;
            if number >= WARM_UP {
                latencies.push(latency);
            }
        }
        Ok(latencies)
    }

    async fn load(&self, address: SocketAddr) -> anyhow::Result<Load> {
        Load::run(address, std::slice::from_ref(&self.webhook), self.duration).await
    }

    async fn load_bare(&self) -> anyhow::Result<Load> {
        let (process, address) = bare::start(&self.folder, &self.secrets.webhook).await?;
        let load = self.load(address).await?;
        process.kill().await?;
        Ok(load)
    }

    async fn load_server(&self, figures: &Figures, bare: &Load, fsync: &FsyncRate) -> anyhow::Result<Load> {
        let server = self.server(&self.folder.join("alone")).await?;
        let load = self.load(server.http).await?;
        figures.row("gitstafette-server", load.rate(), "/s", &load.compared(bare, fsync));
        server.process.stop().await?;
        Ok(load)
    }

    /// The same with a subscriber: sender, server, client and target share the machine.
    async fn load_with_subscriber(
        &self,
        figures: &Figures,
        bare: &Load,
        fsync: &FsyncRate,
    ) -> anyhow::Result<Memory> {
        let folder = self.folder.join("subscribed");
        let server = self.server(&folder).await?;
        let id = server.process.id()?;
        let idle = figures::memory(id, "VmRSS");
        let mut target = Target::start(&self.secrets.webhook).await?;
        let client = self.client(&folder, server.grpc, &target).await?;
        let started = Instant::now();
        let mut delivered = 0_u64;
        let load = {
            let mut load = std::pin::pin!(self.load(server.http));
            loop {
                tokio::select! {
                    load = &mut load => break load?,
                    Some(_) = target.arrivals.recv() => delivered += 1,
                }
            }
        };
        let per_second = delivered as f64 / started.elapsed().as_secs_f64();
        let memory = Memory { idle, peak: figures::memory(id, "VmHWM"), end: figures::memory(id, "VmRSS") };
        figures.row("gitstafette-server with a subscriber", load.rate(), "/s", &load.compared(bare, fsync));
        let remark = format!("{:.2} of those accepted; one at a time", per_second / load.per_second());
        figures.row("  and delivered to its target meanwhile", text::thousands(per_second), "/s", &remark);
        let left = load.accepted.saturating_sub(delivered);
        let (caught_up, elapsed) = catch_up(&mut target, left).await;
        let per_second = caught_up as f64 / elapsed.as_secs_f64();
        figures.row("  and afterwards, without load", text::thousands(per_second), "/s", "");
        client.stop().await?;
        server.process.stop().await?;
        Ok(memory)
    }

    async fn start_up(&self, folder: &Path) -> anyhow::Result<Duration> {
        let mut durations = Vec::new();
        for _ in 0..STARTS {
            let started = Instant::now();
            let server = self.server(folder).await?;
            durations.push(started.elapsed());
            server.process.stop().await?;
        }
        text::quantile(&durations, 0.5).context("the server was not started")
    }
}

/// Counts what arrives until `left` webhooks did, or the time is up.
async fn catch_up(target: &mut Target, left: u64) -> (u64, Duration) {
    let started = Instant::now();
    let mut arrived = 0;
    let all = async {
        while arrived < left && target.arrivals.recv().await.is_some() {
            arrived += 1;
        }
    };
    // What has not come by then is not waited for: it is the rate that is wanted.
    drop(tokio::time::timeout(CATCH_UP, all).await);
    (arrived, started.elapsed())
}

/// Resident memory, in bytes; `None` where the system does not tell.
struct Memory {
    idle: Option<u64>,
    peak: Option<u64>,
    end: Option<u64>,
}

impl Memory {
    fn show(&self, figures: &Figures) {
        let (Some(idle), Some(peak), Some(end)) = (self.idle, self.peak, self.end) else {
            figures.row("skipped: only Linux tells, in /proc", String::new(), "", "");
            return;
        };
        figures.row("after its start", figures::mebibytes(idle), "MiB", "");
        figures.row("at most, under load", figures::mebibytes(peak), "MiB", "");
        figures.row("at the load's end", figures::mebibytes(end), "MiB", "");
    }
}

/// Whether an answer says that a webhook was stored.
fn accepted(answer: &(StatusCode, Bytes)) -> bool {
    answer.0 == StatusCode::CREATED
}
