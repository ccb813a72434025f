use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::Parser;

use super::*;
use crate::cli::{Cli, ClientCommand};
use crate::config::KNOWN;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["gitstafette-client"].into_iter().chain(line.split_whitespace()))
}

fn access(line: &str, environment: &[(&str, &str)]) -> Result<Access, String> {
    let cli = parse(line).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Access::read(Settings::load(KNOWN, None, environment, &cli.flags), &cli.flags)
        .map_err(|error| error.to_string())
}

#[test]
fn the_server_is_named_before_the_command_or_after_it() {
    for line in [
        "--server relay.example --port 7 --insecure events list --repo octo/*",
        "events --port 7 list --server relay.example --insecure",
        "watchlist add octo/a octo/b --server http://relay.example:7",
    ] {
        assert_eq!(access(line, &[]).unwrap().server.url(), "http://relay.example:7", "{line}");
    }
    let by_environment =
        access("statistics", &[("GITSTAFETTE_SERVER", "[::1]:9"), ("GITSTAFETTE_TARGET", "x")]);
    assert_eq!(by_environment.unwrap().server.url(), "http://[::1]:9");
    assert_eq!(access("statistics --server relay.example --insecure", &[]).unwrap().remarks.len(), 1);
    let misspelt = access("statistics", &[("GITSTAFETTE_TOKNE", "x"), ("GITSTAFETTE_STORE", "x")]).unwrap();
    let expected =
        "the environment variable GITSTAFETTE_TOKNE is not a setting; did you mean GITSTAFETTE_TOKEN?";
    assert_eq!(misspelt.remarks, [expected]);
}

#[test]
fn flags_for_running_are_refused_before_a_command() {
    let problems = access("--repo octo/* --target http://x/ --server x events list", &[]).unwrap_err();
    let lines: Vec<_> = problems.lines().collect();
    assert_eq!(lines.len(), 2, "{problems}");
    assert!(
        lines[0].starts_with("repo: is a flag for running") && lines[1].starts_with("target: "),
        "{problems}"
    );
}

#[test]
fn wrong_usage() {
    for line in [
        "events",
        "events list --client home",
        "events list --limit 0",
        "events list --since noon",
        "events show",
        "events show 0",
        "events show 1 --json --body",
        "events redeliver 1 --dead-letters",
        "events redeliver --target a --delivery b",
        "events redeliver --dead-letters --to-client a",
        "relays",
        "relays list --repo octo/*",
        "watchlist add",
        "watchlist add octo",
        "events list --target-timeout 3s",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line} is accepted"));
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[tokio::test]
async fn what_would_redeliver_everything_is_wrong_usage() {
    let server = access("statistics", &[]).unwrap().server;
    for line in [
        "events redeliver",
        "events redeliver --repo octo/* --since 2h",
        "events redeliver --first 3",
        "events redeliver --first 3 --last 2",
    ] {
        let Some(ClientCommand::Operate(operation)) = parse(line).unwrap().command else { panic!("{line}") };
        let error = run(&operation, &server, &mut Console::standard()).await.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
    }
}

/// What was printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn json_steers_no_terminal_and_says_the_same() {
    let printed = Printed::default();
    let (output, remarks) = (Box::new(printed.clone()), Box::new(io::sink()));
    let mut console = Console { output, is_terminal: true, remarks, answers: None };
    let text = "a\u{1b}[2J\u{9b}2J\u{202e}\n ü";
    console.json(&text).unwrap();
    let line = String::from_utf8(printed.0.lock().unwrap().clone()).unwrap();
    assert_eq!(line, "\"a\\u001b[2J\\u009b2J\\u202e\\n ü\"\n");
    assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
}
