//! `cargo xtask lag`: what subscribers cost that stopped reading, compared with none of that kind in the same run.
//!
//! Each subscriber asks for one repository of many, over which the webhooks are spread evenly: all events to all
//! subscribers would be fifty million messages, which measures the machine and not the server.

mod ingest;
mod subscriber;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use crate::figures::{self, Figures};
use crate::process::{Interrupts, Processes};
use crate::relay::{Programs, Secrets, Server};
use crate::text;
use subscriber::Subscriber;

/// So many subscribers share a repository …
const SHARING: usize = 10;
/// … unless that would be more repositories than these.
const MOST_REPOSITORIES: usize = 100;
/// Files of a process that are not connections of subscribers.
const OTHER_FILES: usize = 100;
/// How many subscribe at once: the system's queue of connections that wait to be accepted is short.
const AT_ONCE: usize = 50;

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) subscribers: usize,
    pub(crate) events: usize,
}

impl Scale {
    fn repositories(self) -> usize {
        (self.subscribers / SHARING).clamp(1, MOST_REPOSITORIES)
    }

    /// How many events go out if all subscribers are awake.
    fn messages(self) -> usize {
        let repositories = self.repositories();
        let share = |number| ingest::share(self.events, repositories, number % repositories) as usize;
        (0..self.subscribers).map(share).sum()
    }

    /// Whether a subscriber that is asleep is to get far more than its window takes without it.
    fn holds(self) -> bool {
        self.events / self.repositories() * ingest::SIZE > 2 * subscriber::WINDOW as usize
    }

    /// As many subscribers as this process and the server may have connections.
    fn within(self, open_files: usize) -> Self {
        Self { subscribers: self.subscribers.min(open_files.saturating_sub(OTHER_FILES)), ..self }
    }
}

/// Measures. An error if a subscriber did not get all that it asked for.
pub(crate) async fn run(programs: &Programs, asked: Scale) -> anyhow::Result<()> {
    let open_files = open_files().context("no word of the limit of open files")?;
    let scale = asked.within(open_files);
    ensure!(scale.subscribers >= 2, "the limit of open files is too low: {open_files} (ulimit -n)");
    // Beside the programs: that is a disk, which the system's folder for temporary files often is not.
    let beside = programs.server.parent().context("the server is in no folder")?;
    let folder = tempfile::Builder::new().prefix("lag-").tempdir_in(beside)?;
    let number = |number: usize| text::thousands(number as f64);
    println!(
        "\n{} subscribers, {} webhooks of {} over {} connections",
        number(scale.subscribers),
        number(scale.events),
        text::bytes(ingest::SIZE),
        ingest::CONNECTIONS
    );
    if scale != asked {
        println!(
            "REDUCED from {} subscribers: a process may open {open_files} files here (ulimit -n)",
            number(asked.subscribers)
        );
    }
    println!(
        "Each subscriber asks for one of {} repositories, and so for {} events: {} messages if all are awake.",
        scale.repositories(),
        number(scale.events / scale.repositories()),
        number(scale.messages())
    );
    if !scale.holds() {
        println!("TOO FEW webhooks: nothing holds those asleep, all fits into their HTTP/2 windows.");
    }
    let lag = Lag { programs, folder: folder.path(), secrets: Secrets::random(), scale };
    let mut interrupts = Interrupts::catch()?;
    let mut processes = Processes::default();
    let measured = tokio::select! {
        measured = lag.all(&mut processes) => measured,
        () = interrupts.next() => Err(anyhow::anyhow!("interrupted")),
    };
    measured.and(processes.stop().await)
}

/// How many files a process may have open, as Linux says.
fn open_files() -> Option<usize> {
    soft_limit(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

fn soft_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(usize::MAX),
        number => number.parse().ok(),
    }
}

/// Who subscribes, and who of them reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    AllAwake,
    HalfAsleep,
    /// The awake ones of the half: what they cost without the others.
    HalfAbsent,
}

/// What was measured with one audience.
#[derive(Debug)]
struct Side {
    per_second: f64,
    peak: u64,
    end: u64,
}

struct Lag<'a> {
    programs: &'a Programs,
    folder: &'a Path,
    secrets: Secrets,
    scale: Scale,
}

impl Lag<'_> {
    async fn all(&self, processes: &mut Processes) -> anyhow::Result<()> {
        let figures = Figures::start();
        figures.heading("(a) all awake");
        let awake = self.side(&figures, Audience::AllAwake, processes).await?;
        figures.heading("(b) half awake, half asleep");
        let asleep = self.side(&figures, Audience::HalfAsleep, processes).await?;
        figures.heading("(c) the awake half alone");
        let alone = self.side(&figures, Audience::HalfAbsent, processes).await?;
        for (name, other) in [("(b) compared with (a)", &awake), ("(b) compared with (c)", &alone)] {
            figures.heading(name);
            let ratio = |label: &str, one: f64, other: f64| {
                figures.row(label, format!("{:.2}", one / other), "x", "");
            };
            ratio("webhooks accepted per second", asleep.per_second, other.per_second);
            ratio("memory of the server at most", asleep.peak as f64, other.peak as f64);
            ratio("memory of the server at the end", asleep.end as f64, other.end as f64);
        }
        Ok(())
    }

    /// A fresh server and its audience.
    async fn side(
        &self,
        figures: &Figures,
        audience: Audience,
        processes: &mut Processes,
    ) -> anyhow::Result<Side> {
        let folder = self.folder.join(format!("{audience:?}"));
        std::fs::create_dir_all(&folder)?;
        let server = Server::start(&self.programs.server, &folder, &self.secrets).await?;
        let id = server.process.id()?;
        processes.add(server.process);
        let side = tokio::select! {
            side = self.watch(figures, audience, id, server.http, server.grpc) => side?,
            error = processes.ended() => return Err(error),
        };
        std::mem::take(processes).stop().await?;
        std::fs::remove_dir_all(&folder)?;
        Ok(side)
    }

    async fn watch(
        &self,
        figures: &Figures,
        audience: Audience,
        id: u32,
        http: SocketAddr,
        grpc: SocketAddr,
    ) -> anyhow::Result<Side> {
        let memory = |field| {
            figures::memory(id, field)
                .context("no word of the server's memory, which only Linux tells, in /proc")
        };
        let mebibytes =
            |label: &str, bytes| figures.row(label, figures::mebibytes(bytes), "MiB", "memory (RSS)");
        let (awake, asleep) = self.subscribe(grpc, audience).await?;
        mebibytes("the server with all subscribed", memory("VmRSS")?);
        let (count, repositories) = (self.scale.events, self.scale.repositories());
        let ingest = ingest::run(http, &self.secrets.webhook, count, repositories);
        let (per_second, awake) = tokio::try_join!(ingest, Read::all(awake))?;
        figures.row("webhooks accepted", text::thousands(per_second), "/s", "");
        awake.show(figures, "until the awake ones had all");
        let (peak, end) = (memory("VmHWM")?, memory("VmRSS")?);
        mebibytes("the server at most", peak);
        mebibytes("the server at the end", end);
        if !asleep.is_empty() {
            Read::all(asleep).await?.show(figures, "woken up, until they had all, too");
            mebibytes("the server at most until then", memory("VmHWM")?);
        }
        Ok(Side { per_second, peak, end })
    }

    /// Who is awake, and who is asleep, each with the number of events that it is to get.
    async fn subscribe(
        &self,
        server: SocketAddr,
        audience: Audience,
    ) -> anyhow::Result<(Vec<(Subscriber, u64)>, Vec<(Subscriber, u64)>)> {
        let repositories = self.scale.repositories();
        let (mut awake, mut asleep) = (Vec::new(), Vec::new());
        let mut starting = JoinSet::new();
        let mut numbers = (0..self.scale.subscribers)
            .filter(|number| audience != Audience::HalfAbsent || !sleeps(*number, repositories));
        loop {
            while starting.len() < AT_ONCE
                && let Some(number) = numbers.next()
            {
                let token = self.secrets.token.clone();
                let repository = number % repositories;
                starting.spawn(async move {
                    Subscriber::start(server, &token, number, repository)
                        .await
                        .map(|started| (number, started))
                });
            }
            let Some(started) = starting.join_next().await else { return Ok((awake, asleep)) };
            let (number, subscriber) = started?.context("a subscriber could not start")?;
            let expected = ingest::share(self.scale.events, repositories, number % repositories);
            if audience == Audience::HalfAsleep && sleeps(number, repositories) {
                asleep.push((subscriber, expected));
            } else {
                awake.push((subscriber, expected));
            }
        }
    }
}

/// Whether a subscriber belongs to the half that may sleep. Each repository has both kinds.
fn sleeps(number: usize, repositories: usize) -> bool {
    !(number / repositories).is_multiple_of(2)
}

/// Subscribers that got all that they asked for. They stay connected.
struct Read {
    subscribers: Vec<Subscriber>,
    elapsed: Duration,
}

impl Read {
    /// Lets all of them read to the end.
    async fn all(subscribers: Vec<(Subscriber, u64)>) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut reading: JoinSet<_> =
            subscribers.into_iter().map(|(subscriber, expected)| subscriber.read_all(expected)).collect();
        let mut subscribers = Vec::new();
        while let Some(read) = reading.join_next().await {
            subscribers.push(read??);
        }
        Ok(Self { subscribers, elapsed: started.elapsed() })
    }

    fn show(&self, figures: &Figures, label: &str) {
        let remark =
            format!("{} subscribers, nothing missing", text::thousands(self.subscribers.len() as f64));
        figures.row(label, format!("{:.1}", self.elapsed.as_secs_f64()), "s", &remark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Scale = Scale { subscribers: 1_000, events: 50_000 };

    #[test]
    fn every_repository_has_sleepers_and_others() {
        for subscribers in [2, 20, 999, 1_000] {
            let repositories = Scale { subscribers, ..FULL }.repositories();
            for repository in 0..repositories {
                let mut sharing = (0..subscribers).filter(|number| number % repositories == repository);
                let asleep = sharing.clone().filter(|number| sleeps(*number, repositories)).count();
                assert!(asleep > 0 && sharing.any(|number| !sleeps(number, repositories)), "{subscribers}");
            }
        }
        assert_eq!((FULL.repositories(), FULL.messages()), (100, 500_000));
        assert!(FULL.holds() && !Scale { events: 5_000, ..FULL }.holds());
    }

    #[test]
    fn the_limit_of_open_files_is_kept() {
        let limits = "Limit   Soft Limit   Hard Limit   Units\nMax open files   1024   524288   files\n";
        assert_eq!(soft_limit(limits), Some(1_024));
        assert_eq!(soft_limit("Max open files   unlimited   unlimited   files"), Some(usize::MAX));
        assert_eq!(soft_limit("Max processes   1   1   processes"), None);
        assert_eq!(FULL.within(1_024).subscribers, 924);
        assert_eq!(FULL.within(usize::MAX), FULL);
    }
}
