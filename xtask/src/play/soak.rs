//! `cargo xtask soak`: a steady load for a long time, and whether memory, disk and latency stay as they are.
//!
//! Retention removes events all the time, as it does in production after some days. What is lost or refused is an
//! error; sizes and speeds are only told.

mod book;
mod load;
mod samples;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::figures::{self, Figures};
use crate::process::{Interrupts, Processes};
use crate::relay::{self, Ports, Programs, Secrets, Server};
use crate::target::Endpoint;
use crate::text::{self, Colours};
use book::{Book, Counts};
use load::Schedule;
use samples::Sample;

const PER_SECOND: u32 = 200;
const CONNECTIONS: usize = 16;
/// Between two samples.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many samples are in a minute.
const A_MINUTE: usize = 6;
/// The most events that the store keeps: full after less than a minute.
const RETAINED: u64 = 10_000;
/// How long none may arrive at the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs for so many minutes. An error if a webhook was lost or refused, or a program ended by itself.
pub(crate) async fn run(programs: &Programs, minutes: u32) -> anyhow::Result<()> {
    // Beside the programs: that is a disk, which the system's folder for temporary files often is not.
    let beside = programs.server.parent().context("the server is in no folder")?;
    let folder = tempfile::Builder::new().prefix("soak-").tempdir_in(beside)?;
    let mut interrupts = Interrupts::catch()?;
    let mut processes = Processes::default();
    let soaked = tokio::select! {
        soaked = soak(programs, folder.path(), &mut processes, minutes) => soaked,
        () = interrupts.next() => Err(anyhow::anyhow!("interrupted")),
    };
    soaked.and(processes.stop().await)
}

async fn soak(
    programs: &Programs,
    folder: &Path,
    processes: &mut Processes,
    minutes: u32,
) -> anyhow::Result<()> {
    let secrets = Secrets::random();
    let book = Arc::new(Book::default());
    let arrivals = Arc::clone(&book);
    let target = Endpoint::start(&secrets.webhook, move |arrival| arrivals.arrives(&arrival)).await?;
    let duration = Duration::from_secs(60) * minutes;
    let retained = retained(duration);
    let flags = ["--retention-count", &retained.to_string()];
    let server = Server::start_with(&programs.server, folder, &secrets, Ports::default(), &flags).await?;
    let client = relay::start_client(&programs.client, folder, &secrets, server.grpc, &target.url()).await?;
    let watched = Watched { server: server.process.id()?, client: client.id()?, store: folder.join("store") };
    processes.add(server.process);
    processes.add(client);
    println!(
        "\n{PER_SECOND} webhooks of {} a second for {minutes} min; the store keeps {} of them",
        text::bytes(load::SIZE),
        text::thousands(retained as f64)
    );
    println!("ms: from when a webhook was due to its arrival at the target\n");
    let schedule = Arc::new(Schedule::new(PER_SECOND, duration));
    let mut senders = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (schedule, book) = (Arc::clone(&schedule), Arc::clone(&book));
        senders.spawn(load::send(server.http, secrets.webhook.clone(), schedule, book));
    }
    let samples = tokio::select! {
        samples = watched.sample(&book, duration) => samples?,
        error = processes.ended() => return Err(error),
    };
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    all_delivered(&book).await;
    compare(&samples)?;
    book.read(verdict)
}

/// How many events the store keeps: full long before the samples that all later ones are compared with.
fn retained(duration: Duration) -> u64 {
    RETAINED.min(u64::from(PER_SECOND) * duration.as_secs() / 6)
}

/// How many samples there are before the end of the one that is the first to be compared: two minutes, or half of all.
fn reference(samples: usize) -> usize {
    (2 * A_MINUTE).min(samples / 2).max(1)
}

/// What is looked at.
struct Watched {
    server: u32,
    client: u32,
    store: PathBuf,
}

impl Watched {
    /// Takes samples, and prints a line each minute.
    async fn sample(&self, book: &Book, duration: Duration) -> anyhow::Result<Vec<Sample>> {
        let count = (duration.as_secs() / INTERVAL.as_secs()) as usize;
        let mut ticks = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
        let mut samples = Vec::new();
        for number in 1..=count {
            ticks.tick().await;
            let latencies = book.take_latencies();
            samples.push(Sample {
                server: resident(self.server)?,
                client: resident(self.client)?,
                store: figures::folder_size(&self.store)?,
                median: text::quantile(&latencies, 0.5).unwrap_or_default(),
                p99: text::quantile(&latencies, 0.99).unwrap_or_default(),
            });
            if number % A_MINUTE == 0
                && let Some(typical) = Sample::typical(&samples)
            {
                let counts = book.read(counts);
                println!("{:>4} min: {counts}; {}", number / A_MINUTE, typical.line());
            }
        }
        Ok(samples)
    }
}

fn resident(process: u32) -> anyhow::Result<u64> {
    figures::memory(process, "VmRSS")
        .context("no word of a process's memory, which only Linux tells, in /proc")
}

fn counts(counts: &Counts) -> String {
    format!(
        "{} accepted, {} delivered, {} refused",
        text::thousands(counts.accepted as f64),
        text::thousands(counts.delivered as f64),
        counts.refused
    )
}

/// Waits until nothing is on its way, or nothing comes any more.
async fn all_delivered(book: &Book) {
    loop {
        let before = book.read(|counts| counts.delivered);
        let come = book.wait(|counts| counts.on_their_way() == 0 || counts.delivered > before);
        // What does not come in time is lost: the verdict says so.
        if tokio::time::timeout(PATIENCE, come).await.is_err() || book.read(Counts::on_their_way) == 0 {
            return;
        }
    }
}

/// The table at the end.
fn compare(samples: &[Sample]) -> anyhow::Result<()> {
    let at = reference(samples.len());
    let before = Sample::typical(&samples[..at]).context("there are no samples")?;
    let now = Sample::typical(samples).context("there are no samples")?;
    let since = format!("after {} s", at as u64 * INTERVAL.as_secs());
    let figures = Figures::start();
    figures.heading("at the end, compared with an earlier time (medians of the minute before)");
    let sizes = [
        ("memory of the server (RSS)", now.server, before.server),
        ("memory of the client (RSS)", now.client, before.client),
        ("the store's folder", now.store, before.store),
    ];
    for (label, now, before) in sizes {
        let ratio = now as f64 / before as f64;
        let remark = format!("{ratio:.2} x {} {since}", figures::mebibytes(before));
        figures.row(label, figures::mebibytes(now), "MiB", &remark);
    }
    for (label, now, before) in
        [("latency, median", now.median, before.median), ("latency, 99th percentile", now.p99, before.p99)]
    {
        let remark = figures::times(now, before, &format!("{} {since}", text::millis(before)));
        figures.row(label, text::millis(now), "ms", &remark);
    }
    let grown = now.grown_since(&before);
    let colours = Colours::detect();
    if grown.is_empty() {
        println!("\n{}", colours.good("flat: neither memory nor disk grew"));
    } else {
        println!("\n{}", colours.bad(&format!("not flat: {} grew", grown.join(", "))));
    }
    Ok(())
}

fn verdict(counts: &Counts) -> anyhow::Result<()> {
    let lost = counts.on_their_way();
    let summary = format!("{}; {lost} lost, {} repeats", self::counts(counts), counts.repeats);
    match &counts.problem {
        None if lost == 0 => {
            println!("{summary}");
            Ok(())
        }
        None => bail!("{summary}"),
        Some(problem) => bail!("{summary}: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_full_before_the_samples_that_are_compared() {
        for minutes in [1, 2, 3, 4, 30, 240_u32] {
            let duration = Duration::from_secs(60) * minutes;
            let samples = (duration.as_secs() / INTERVAL.as_secs()) as usize;
            let full = retained(duration) / u64::from(PER_SECOND);
            let at = reference(samples) as u64 * INTERVAL.as_secs();
            assert!(full * 2 <= at, "{minutes} min: full after {full} s, compared at {at} s");
        }
        assert_eq!((retained(Duration::from_secs(1_800)), reference(180)), (RETAINED, 12));
    }

    #[test]
    fn what_is_lost_or_refused_is_an_error() {
        let book = Book::default();
        assert!(book.read(verdict).is_ok());
        book.refuses(1, "503".into());
        let error = book.read(verdict).unwrap_err().to_string();
        assert!(error.ends_with("1 refused; 0 lost, 0 repeats: 503"), "{error}");
    }

    #[tokio::test]
    async fn nothing_on_its_way_is_not_waited_for() {
        let book = Book::default();
        all_delivered(&book).await;
        book.sends(1, std::time::Instant::now());
        assert!(book.read(verdict).unwrap_err().to_string().contains("1 lost"));
    }
}
