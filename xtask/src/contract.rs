//! `cargo xtask contract`: checks that `proto/` follows the rules of `buf.yaml` and stays compatible.
//!
//! Programs that were built with an earlier contract must go on working: those of the Go implementation, and those of the
//! newest release. Between two releases the contract may change.

use std::fmt::{self, Display, Formatter};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::cargo;

/// The one version that is used: a newer one may know more rules, and a change that broke none would fail.
const VERSION: &str = "1.75.0";

/// The Go implementation's contract. It lies outside `proto/`, where everything is compiled and compared as one.
const GO: &str = "crates/proto/baseline/go-0.3";

/// The tags of releases.
const RELEASES: &str = "v[0-9]*";

/// Lint and two comparisons. Where buf is not to be had, a line says so and nothing fails; what buf complains of, does.
pub(crate) fn run() -> anyhow::Result<()> {
    let buf = match Buf::find() {
        Ok(buf) => buf,
        Err(reason) => {
            println!(
                "contract: skipped: {reason}; install Node, which has npx, or put buf {VERSION} on PATH"
            );
            return Ok(());
        }
    };
    println!("contract: {buf} lint");
    buf.run(&["lint"], Stdio::null()).context("proto/ breaks a rule of buf.yaml")?;
    println!("contract: {buf} breaking, against the Go implementation's contract");
    buf.run(&["breaking", "--against", GO], Stdio::null())
        .context("proto/ breaks the programs of the Go implementation")?;
    match newest_release() {
        Ok((name, tree)) => {
            println!("contract: {buf} breaking, against the release {name}");
            buf.run_with_archive(&tree).with_context(|| format!("proto/ breaks what the release {name} has"))
        }
        Err(reason) => {
            println!("contract: skipped: the comparison with the newest release: {reason}");
            Ok(())
        }
    }
}

#[derive(Clone, Copy)]
enum Buf {
    OnPath,
    ByNpx,
}

impl Buf {
    /// The way to the version that is wanted, or why there is none.
    fn find() -> Result<Self, String> {
        if Self::OnPath.version().is_ok_and(|version| version == VERSION) {
            return Ok(Self::OnPath);
        }
        let version = Self::ByNpx.version().map_err(|reason| format!("no buf {VERSION} by npx: {reason}"))?;
        if version == VERSION { Ok(Self::ByNpx) } else { Err(format!("npx has another buf, {version}")) }
    }

    fn command(self) -> Command {
        let mut command = match self {
            Self::OnPath => Command::new("buf"),
            Self::ByNpx => {
                let mut npx = Command::new("npx");
                npx.args(["--yes", "--prefer-offline", &format!("@bufbuild/buf@{VERSION}")]);
                // Without these, a machine without network waits for minutes to hear so.
                npx.envs([("npm_config_fetch_retries", "1"), ("npm_config_fetch_retry_mintimeout", "1000")]);
                npx.env("npm_config_fetch_timeout", "60000");
                npx
            }
        };
        command.current_dir(cargo::root());
        command
    }

    fn version(self) -> Result<String, String> {
        let mut command = self.command();
        command.arg("--version").stdin(Stdio::null());
        let answer = command.output().map_err(|error| error.to_string())?;
        if !answer.status.success() {
            return Err(reason(&answer.stderr));
        }
        Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned())
    }

    fn run(self, arguments: &[&str], input: Stdio) -> anyhow::Result<()> {
        let status = self.command().args(arguments).stdin(input).status().context("buf did not start")?;
        if !status.success() {
            bail!("buf {}: {status}", arguments.join(" "));
        }
        Ok(())
    }

    /// Compares with a tree of the repository. Git hands it over: buf would clone the repository, which it cannot where
    /// several work trees share one.
    fn run_with_archive(self, tree: &str) -> anyhow::Result<()> {
        let mut git = git();
        git.args(["archive", "--format=tar", tree]).stdout(Stdio::piped());
        let mut archive = git.spawn().context("git did not start")?;
        let input = archive.stdout.take().context("git's output is not there")?;
        let compared = self.run(&["breaking", "--against", "-#format=tar"], input.into());
        let status = archive.wait()?;
        // Git ends badly, too, when buf does not read to the end: what buf says comes first.
        compared?;
        if !status.success() {
            bail!("git archive {tree}: {status}");
        }
        Ok(())
    }
}

impl Display for Buf {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::OnPath => "buf",
            Self::ByNpx => "npx buf",
        })
    }
}

/// The tag of the newest release before the present commit, and its `proto/`. An error says why there is none.
fn newest_release() -> Result<(String, String), String> {
    let tag = answer(&["describe", "--tags", "--abbrev=0", "--match", RELEASES])?;
    let tree = answer(&["rev-parse", "--verify", "--quiet", &format!("{tag}:./proto")])?;
    Ok((tag, tree))
}

/// The one line that git answers with.
fn answer(arguments: &[&str]) -> Result<String, String> {
    let output = git().args(arguments).output().map_err(|error| format!("git: {error}"))?;
    if !output.status.success() {
        return Err(reason(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(cargo::root()).stdin(Stdio::null());
    git
}

/// The first line that is more than a warning.
fn reason(errors: &[u8]) -> String {
    let errors = String::from_utf8_lossy(errors);
    let mut lines = errors.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("npm warn"));
    lines.next().unwrap_or("it failed without a word").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_the_first_line_that_counts() {
        let said = b"npm warn Unknown user config\n\nnpm error code ENOTFOUND\nnpm error network\n";
        assert_eq!(reason(said), "npm error code ENOTFOUND");
        assert_eq!(reason(b""), "it failed without a word");
    }

    #[test]
    fn the_baseline_has_the_files_that_are_compared() {
        for file in ["gitstafette/v1/gitstafette.proto", "info/gitstafette_info.proto"] {
            for folder in ["proto", GO] {
                assert!(cargo::root().join(folder).join(file).is_file(), "{folder}/{file}");
            }
        }
    }
}
