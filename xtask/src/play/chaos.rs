//! `cargo xtask chaos`: kill -9 of a server, of the client or of all, again and again under load. Every webhook that was
//! accepted must arrive, as it was sent and in order. Servers can stand in a ring or a diamond, lose what they have not
//! synced, and have clocks that jump.
//!
//! Senders and target run here and are never killed: they know which webhooks were accepted and which arrived.

mod cluster;
mod faults;
mod ledger;
mod sender;
mod stores;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::figures::{self, Figures};
use crate::process::Interrupts;
use crate::relay::{Programs, Secrets};
use crate::target::Endpoint;
use crate::text::{self, Colours};
use cluster::{Cluster, Shape, Victim};
use faults::{Faults, Library};
use ledger::{Ledger, Origin, State};
use sender::Sender;

/// The repository of each sender: eight have one of their own, four share one.
const SENDERS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9];
/// How long all runs until the next kill, in milliseconds.
const QUIET: std::ops::Range<u64> = 20..800;
/// After one kill of so many the next does not wait until all works again …
const HASTY: u8 = 4;
/// … but strikes this soon, in milliseconds: a start is cut short, too.
const HASTE: std::ops::Range<u64> = 0..100;
/// How long it may take until a webhook arrives that was sent after a start, and how long none may arrive at the end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the servers run at the end before their stores are looked at again, in seconds. A relay begins each run with
/// some repeats, so short runs alone would not bring it to the end.
const RELAY_SECONDS: [u64; 5] = [2, 4, 8, 16, 32];
/// A line is printed after so many rounds.
const LINE: u32 = 10;

/// What a chaos run does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    rounds: u32,
    shape: Shape,
    faults: Faults,
}

impl Plan {
    /// Reads the number of rounds and the options `--shape S`, `--power-loss`, `--clock-jumps` and `--lying-disk`.
    pub(crate) fn parse(rounds: &str, options: &[&str]) -> anyhow::Result<Self> {
        let mut plan = Self { rounds: rounds.parse()?, shape: Shape::Single, faults: Faults::default() };
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match *option {
                "--shape" => {
                    plan.shape = options.next().context("--shape needs single, ring or diamond")?.parse()?;
                }
                "--power-loss" => plan.faults.power_loss = true,
                "--clock-jumps" => plan.faults.clock_jumps = true,
                "--lying-disk" => (plan.faults.power_loss, plan.faults.lying_disk) = (true, true),
                other => bail!("chaos has no option {other}"),
            }
        }
        Ok(plan)
    }
}

/// Kills `rounds` times. An error if the server's word was broken, or a program ended by itself.
pub(crate) async fn run(programs: &Programs, mut plan: Plan) -> anyhow::Result<()> {
    if (plan.faults.power_loss || plan.faults.clock_jumps) && !Library::is_supported() {
        println!("SKIPPED: power loss and clock jumps need Linux with glibc on a 64-bit machine");
        plan.faults = Faults::default();
    }
    // Beside the programs: that is a disk, which the system's folder for temporary files often is not.
    let beside = programs.server.parent().context("the server is in no folder")?;
    let folder = tempfile::Builder::new().prefix("chaos-").tempdir_in(beside)?;
    let secrets = Secrets::random();
    let mut cluster = Cluster::new(programs, folder.path(), &secrets, plan.shape, plan.faults)?;
    let ledger = Arc::new(Ledger::new(&origins(plan.shape)));
    let mut interrupts = Interrupts::catch()?;
    let played = tokio::select! {
        played = play(&mut cluster, &ledger, &secrets, plan) => played,
        () = interrupts.next() => {
            cluster.kill(Victim::All).await?;
            bail!("interrupted");
        }
    };
    let stopped = cluster.stop().await;
    let result = match played.and(stopped) {
        Ok(()) => all_stored(&mut cluster, &ledger).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        println!("\nLogs and stores are kept in {}", folder.keep().display());
        return Err(error);
    }
    let accepted = ledger.read(|state| text::thousands(state.accepted as f64));
    let summary = format!("All {accepted} accepted webhooks arrived as they were sent, and in order");
    println!("\n{}", Colours::detect().good(&summary));
    Ok(())
}

/// Where the webhooks of each sender come from.
fn origins(shape: Shape) -> Vec<Origin> {
    let origins = SENDERS.iter().enumerate();
    origins.map(|(sender, &repository)| Origin { server: shape.entry(sender), repository }).collect()
}

async fn play(
    cluster: &mut Cluster<'_>,
    ledger: &Arc<Ledger>,
    secrets: &Secrets,
    plan: Plan,
) -> anyhow::Result<()> {
    let Plan { rounds, shape, .. } = plan;
    let book = Arc::clone(ledger);
    let target = Endpoint::start(&secrets.webhook, move |arrival| book.arrives(&arrival)).await?;
    let url = target.url();
    cluster.start(&url).await?;
    println!(
        "\n{} senders, {} servers, {rounds} rounds of kill -9 under their load\n",
        SENDERS.len(),
        shape.servers()
    );
    let (stop, stopped) = watch::channel(false);
    let mut senders = JoinSet::new();
    for (number, repository) in SENDERS.into_iter().enumerate() {
        let (secret, ledger) = (secrets.webhook.clone(), Arc::clone(ledger));
        let sender = Sender {
            number,
            repository,
            server: cluster.entry(number),
            secret,
            ledger,
            stop: stopped.clone(),
        };
        senders.spawn(sender.run());
    }
    let mut tally = Tally::default();
    for round in 1..=rounds {
        tokio::select! {
            struck = tally.strike(cluster, shape, &url, ledger) => struck.with_context(|| format!("round {round}"))?,
            Some(ended) = senders.join_next() => ended?.context("a sender failed")?,
        }
        if let Some(problems) = ledger.read(State::problems) {
            bail!("round {round}: {problems}");
        }
        if round % LINE == 0 || round == rounds {
            println!("{}", ledger.read(|state| tally.line(round, state)));
        }
    }
    stop.send_replace(true);
    while let Some(ended) = senders.join_next().await {
        ended?.context("a sender failed")?;
    }
    all_arrived(ledger).await;
    let sizes =
        cluster.stores().iter().map(|store| figures::folder_size(store)).collect::<Result<Vec<_>, _>>();
    tally.report(ledger, sizes?.iter().sum(), cluster.unsynced_writes);
    if plan.faults.power_loss && cluster.unsynced_writes == 0 {
        bail!("no write was unsynced when the power was cut: the test shows nothing");
    }
    match ledger.read(State::verdict) {
        Some(problems) => bail!("{problems}"),
        None => Ok(()),
    }
}

/// Waits until nothing is missing, or nothing comes any more.
async fn all_arrived(ledger: &Ledger) {
    loop {
        let before = ledger.read(|state| state.arrived);
        let come = ledger.wait(|state| state.missing() == 0 || state.arrived > before);
        // What does not come in time is missing for good: the verdict says so.
        if tokio::time::timeout(PATIENCE, come).await.is_err() || ledger.read(State::missing) == 0 {
            return;
        }
    }
}

/// Waits until each store has every accepted webhook. When the client has them all, a relay may still be behind: the
/// servers then run again for a while.
async fn all_stored(cluster: &mut Cluster<'_>, ledger: &Ledger) -> anyhow::Result<()> {
    let accepted = ledger.read(State::accepted_ids);
    let mut lack = stores::missing(&cluster.stores(), &accepted).await?;
    for seconds in RELAY_SECONDS {
        if lack.is_none() {
            break;
        }
        cluster.start_servers().await?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        cluster.stop().await?;
        lack = stores::missing(&cluster.stores(), &accepted).await?;
    }
    lack.map_or(Ok(()), |lack| bail!("{lack}"))
}

/// What the rounds were.
#[derive(Debug, Default)]
struct Tally {
    servers: u32,
    clients: u32,
    all: u32,
    recoveries: Vec<Duration>,
    /// Whether the last kill was one that the next does not wait for.
    hasty: bool,
}

impl Tally {
    /// One round: a while of quiet, a kill, a start, and mostly the wait until all works again.
    async fn strike(
        &mut self,
        cluster: &mut Cluster<'_>,
        shape: Shape,
        target: &str,
        ledger: &Ledger,
    ) -> anyhow::Result<()> {
        let quiet = if self.hasty { HASTE } else { QUIET };
        tokio::time::sleep(Duration::from_millis(fastrand::u64(quiet))).await;
        let victim = Victim::random(shape);
        match victim {
            Victim::Server(_) => self.servers += 1,
            Victim::Client => self.clients += 1,
            Victim::All => self.all += 1,
        }
        cluster.jump_clock()?;
        cluster.kill(victim).await?;
        let started = Instant::now();
        ledger.write(State::started);
        cluster.start(target).await?;
        self.hasty = fastrand::u8(..HASTY) == 0;
        if self.hasty {
            return Ok(());
        }
        let recovered = ledger.wait(|state| state.recovery(started).is_some());
        tokio::time::timeout(PATIENCE, recovered).await.with_context(|| {
            let seconds = PATIENCE.as_secs();
            format!("{victim:?} started anew, and nothing that was sent then arrived within {seconds} s")
        })?;
        self.recoveries.extend(ledger.read(|state| state.recovery(started)));
        Ok(())
    }

    fn line(&self, round: u32, state: &State) -> String {
        let number = |number: u64| text::thousands(number as f64);
        format!(
            "round {round:>4}: {:>7} accepted, {:>7} arrived, {:>5} repeats, slowest recovery {} ms",
            number(state.accepted),
            number(state.arrived),
            number(state.repeats),
            self.slowest()
        )
    }

    fn slowest(&self) -> String {
        text::quantile(&self.recoveries, 1.0).map_or_else(|| "-".to_owned(), text::millis)
    }

    fn report(&self, ledger: &Ledger, stored: u64, unsynced_writes: u64) {
        let figures = Figures::start();
        figures.heading("kills");
        figures.row("of a server", self.servers, "", "");
        figures.row("of the client", self.clients, "", "");
        figures.row("of all", self.all, "", "");
        figures.row("unsynced writes taken back", unsynced_writes, "", "with --power-loss");
        figures.heading("webhooks");
        ledger.read(|state| {
            let row = |label: &str, number: u64, remark: &str| {
                figures.row(label, text::thousands(number as f64), "", remark);
            };
            row("accepted", state.accepted, "answered with 201 or 204");
            row("tries without an answer", state.unanswered, "each tried again under the same delivery id");
            row("tries put off", state.put_off, "429 or 503, tried again");
            row("arrivals at the target", state.arrived + state.repeats, "");
            row("  repeats among them", state.repeats, "as at least once allows");
        });
        figures.heading("recovery: from the start to the arrival of a webhook that was sent after it");
        let median = text::quantile(&self.recoveries, 0.5).map_or_else(|| "-".to_owned(), text::millis);
        let remark = format!("of {}; the next kill came sooner after the others", self.recoveries.len());
        figures.row("median", median, "ms", &remark);
        figures.row("slowest", self.slowest(), "ms", "");
        figures.heading("the stores");
        figures.row("size at the end", figures::mebibytes(stored), "MiB", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_sums_up_the_rounds() {
        let tally = Tally { recoveries: vec![Duration::from_millis(412); 2], ..Tally::default() };
        let line = tally.line(10, &State::default());
        assert!(line.starts_with("round   10:") && line.ends_with("recovery 412 ms"), "{line}");
        assert!(Tally::default().line(1, &State::default()).ends_with("recovery - ms"));
    }

    #[tokio::test]
    async fn nothing_missing_is_not_waited_for() {
        all_arrived(&Ledger::new(&origins(Shape::Ring))).await;
    }

    #[test]
    fn a_plan_is_read_from_options() {
        let plan = Plan::parse("7", &["--shape", "ring", "--power-loss"]).unwrap();
        assert_eq!((plan.rounds, plan.shape), (7, Shape::Ring));
        assert!(plan.faults.power_loss && !plan.faults.clock_jumps && !plan.faults.lying_disk);
        for wrong in [&["--shape"][..], &["--shape", "square"], &["--power"]] {
            assert!(Plan::parse("7", wrong).is_err(), "{wrong:?}");
        }
    }
}
