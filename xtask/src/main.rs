//! The workspace's own tasks, run as `cargo xtask <task>`.
//!
//! This program builds and starts; what the demo, the bench and the rest do is in `play/`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::process::ExitCode;

use anyhow::bail;

mod cargo;
mod ci;
mod contract;
mod deny;
mod launch;

const USAGE: &str = "\
usage: cargo xtask <task>

tasks:
  ci                   all that a change must pass: format, contract, lints, documentation, a short chaos, tests
  contract             check with buf that proto/ follows its rules, and that programs of the Go implementation
                       and of the newest release still work; says so where there is no buf
  deny                 check licences, sources and advisories of the dependencies with cargo-deny; says what it
                       skips
  msrv                 check that the workspace builds with the oldest Rust that Cargo.toml promises
  demo                 a webhook's whole way, on this machine; stays up for webhooks of your own
  demo --once          the same, and ends; fails if a webhook did not arrive as it was sent
  chaos [--rounds N] [--shape single|ring|diamond] [--power-loss] [--clock-jumps]
                       kill -9 of servers and client under load, N times (100); fails if a webhook was lost,
                       changed or overtaken, or stored twice. A power loss takes back what was not synced
  faults               the tests of targets, networks and chains that fail, at the length faults have in life
  bench [--seconds N]  speed and memory, compared within one run; N seconds (10) for each load
  soak [--minutes N]   a steady load for N minutes (30): whether memory, disk and latency stay as they
                       are; fails if a webhook was lost or refused
  lag [--subscribers N] [--events N]
                       what subscribers cost that stopped reading: half of N (1000), while N webhooks
                       (50000) come in; fails if one got less than it asked for";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        ["ci"] => ci::run(),
        ["contract"] => contract::run(),
        ["deny"] => deny::run(),
        ["msrv"] => ci::msrv(),
        ["demo"] => launch::demo(&[]),
        ["demo", "--once"] => launch::demo(&["--once"]),
        ["chaos", options @ ..] => launch::chaos(options),
        ["faults"] => ci::faults(),
        ["soak"] => launch::soak(launch::MINUTES),
        ["soak", "--minutes", minutes] => launch::soak(minutes),
        ["lag", options @ ..] => launch::lag(options),
        ["bench"] => launch::bench(launch::SECONDS),
        ["bench", "--seconds", seconds] => launch::bench(seconds),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("no such task: {}\n\n{USAGE}", other.join(" ")),
    }
}
