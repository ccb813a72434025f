//! Builds what a task needs, in view of the reader, and goes on as the program that shows it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};

use crate::cargo::Programs;

const SERVER: &str = "gitstafette-server";
const CLIENT: &str = "gitstafette-client";
const PLAY: &str = "xtask-play";

/// How long each load of the bench lasts unless the reader says otherwise, in seconds.
pub(crate) const SECONDS: &str = "10";
/// How long a load may last: the store keeps 1 GiB, longer loads show nothing new.
const MOST_SECONDS: u64 = 300;
/// How many rounds chaos has unless the reader says otherwise.
const ROUNDS: &str = "100";
/// How many it may have: it keeps a hash of every webhook that is sent.
const MOST_ROUNDS: u64 = 10_000;
/// How long the soak lasts unless the reader says otherwise, in minutes.
pub(crate) const MINUTES: &str = "30";
/// How long it may last: a day.
const MOST_MINUTES: u64 = 1_440;
/// How many subscribers and events lag has unless the reader says otherwise.
pub(crate) const SUBSCRIBERS: &str = "1000";
pub(crate) const EVENTS: &str = "50000";
/// How many there may be: the server takes 4,096 connections, and keeps 1 GiB of events.
const MOST_SUBSCRIBERS: u64 = 4_000;
const MOST_EVENTS: u64 = 250_000;

/// `cargo xtask demo`.
pub(crate) fn demo(arguments: &[&str]) -> anyhow::Result<()> {
    let programs = build_for_checks()?;
    play(&programs, &programs, "demo", arguments)
}

/// `cargo xtask chaos`, with its options in any order.
pub(crate) fn chaos(options: &[&str]) -> anyhow::Result<()> {
    let (mut rounds, mut others) = (ROUNDS, Vec::new());
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--rounds" => rounds = options.next().context("--rounds needs a number")?,
            other => others.push(other),
        }
    }
    check("--rounds", rounds, 1, MOST_ROUNDS)?;
    let programs = build_for_checks()?;
    play(&programs, &programs, "chaos", &[&[rounds], &others[..]].concat())
}

/// `cargo xtask bench`.
pub(crate) fn bench(seconds: &str) -> anyhow::Result<()> {
    check("--seconds", seconds, 1, MOST_SECONDS)?;
    let (measuring, shipped) = build_for_release()?;
    play(&measuring, &shipped, "bench", &[seconds])
}

/// `cargo xtask soak`.
pub(crate) fn soak(minutes: &str) -> anyhow::Result<()> {
    check("--minutes", minutes, 1, MOST_MINUTES)?;
    let (measuring, shipped) = build_for_release()?;
    play(&measuring, &shipped, "soak", &[minutes])
}

/// `cargo xtask lag`, with its options in any order.
pub(crate) fn lag(options: &[&str]) -> anyhow::Result<()> {
    let (mut subscribers, mut events) = (SUBSCRIBERS, EVENTS);
    for option in options.chunks(2) {
        match *option {
            ["--subscribers", number] => subscribers = number,
            ["--events", number] => events = number,
            _ => bail!("the options of lag are --subscribers N and --events N"),
        }
    }
    check("--subscribers", subscribers, 2, MOST_SUBSCRIBERS)?;
    check("--events", events, 1, MOST_EVENTS)?;
    let (measuring, shipped) = build_for_release()?;
    play(&measuring, &shipped, "lag", &[subscribers, events])
}

/// A number that the reader gave, before anything is built for it.
fn check(option: &str, value: &str, least: u64, most: u64) -> anyhow::Result<()> {
    if !value.parse().is_ok_and(|value| (least..=most).contains(&value)) {
        bail!("{option} is a whole number from {least} to {most}, not {value:?}");
    }
    Ok(())
}

/// What `cargo xtask ci` builds, too: the whole workspace, and with the examples the features of dev-dependencies. So
/// nothing is built twice.
fn build_for_checks() -> anyhow::Result<Programs> {
    println!("Building gitstafette-server and gitstafette-client. The first time takes some minutes.\n");
    Programs::build(&["--workspace", "--bins", "--examples", "--locked"])
}

/// What measures, and the programs as they are shipped: together with xtask they would get the features that it needs.
fn build_for_release() -> anyhow::Result<(Programs, Programs)> {
    println!("Building all for release. The first time takes some minutes.\n");
    let shipped = Programs::build(&["--release", "--locked", "-p", SERVER, "-p", CLIENT])?;
    // What measures is built for release, too: else it would slow down what it measures.
    let measuring = Programs::build(&["--release", "--locked", "-p", "xtask", "--bin", PLAY])?;
    Ok((measuring, shipped))
}

/// Becomes the program that shows a task, so that signals and the exit code are its own.
fn play(playing: &Programs, shown: &Programs, task: &str, arguments: &[&str]) -> anyhow::Result<()> {
    // The shell raises the limit of open files as far as it may, for the many connections of lag.
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -S -n "$(ulimit -H -n)" 2>/dev/null; exec "$0" "$@""#])
        .arg(playing.find(PLAY)?);
    command.arg(task).args([shown.find(SERVER)?, shown.find(CLIENT)?]).args(arguments);
    Err(command.exec()).with_context(|| format!("{PLAY} did not start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_takes_is_bounded() {
        type Task = fn(&str) -> anyhow::Result<()>;
        let tasks: [(Task, &str); 4] = [
            (bench, "from 1 to 300"),
            (|number| chaos(&["--rounds", number]), "from 1 to 10000"),
            (soak, "from 1 to 1440"),
            (|number| lag(&["--subscribers", number]), "from 2 to 4000"),
        ];
        for (task, bounds) in tasks {
            for wrong in ["0", "10001", "-1", "1.5", "ten", ""] {
                let error = task(wrong).unwrap_err().to_string();
                assert!(error.contains(bounds), "{wrong:?}: {error}");
            }
        }
    }

    #[test]
    fn lag_knows_its_options() {
        for wrong in [&["--events"][..], &["--events", "0"], &["--rounds", "1"], &["10", "10"]] {
            assert!(lag(wrong).is_err(), "{wrong:?}");
        }
    }
}
