//! Builds what the demo and the bench need, in view of the reader, and goes on as the program that shows them.

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

/// `cargo xtask demo`.
pub(crate) fn demo(arguments: &[&str]) -> anyhow::Result<()> {
    println!("Building gitstafette-server and gitstafette-client. The first time takes some minutes.\n");
    // What `cargo xtask ci` builds, too: the whole workspace, and with the examples the features of dev-dependencies.
    // So nothing is built twice.
    let programs = Programs::build(&["--workspace", "--bins", "--examples", "--locked"])?;
    play(&programs, &programs, "demo", arguments)
}

/// `cargo xtask bench`.
pub(crate) fn bench(seconds: &str) -> anyhow::Result<()> {
    if !seconds.parse().is_ok_and(|seconds| (1..=MOST_SECONDS).contains(&seconds)) {
        bail!("--seconds is a whole number from 1 to {MOST_SECONDS}, not {seconds:?}");
    }
    println!("Building all for release. The first time takes some minutes.\n");
    // The programs as they are shipped: together with xtask they would get the features that it needs, too.
    let shipped = Programs::build(&["--release", "--locked", "-p", SERVER, "-p", CLIENT])?;
    // What measures is built for release, too: else it would slow down what it measures.
    let measuring = Programs::build(&["--release", "--locked", "-p", "xtask", "--bin", PLAY])?;
    play(&measuring, &shipped, "bench", &[seconds])
}

/// Becomes the program that shows a task, so that signals and the exit code are its own.
fn play(playing: &Programs, shown: &Programs, task: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(playing.find(PLAY)?);
    command.arg(task).args([shown.find(SERVER)?, shown.find(CLIENT)?]).args(arguments);
    Err(command.exec()).with_context(|| format!("{PLAY} did not start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_lasts_a_bounded_time() {
        for wrong in ["0", "301", "-1", "1.5", "ten", ""] {
            let error = bench(wrong).unwrap_err().to_string();
            assert!(error.contains("from 1 to 300"), "{wrong:?}: {error}");
        }
    }
}
