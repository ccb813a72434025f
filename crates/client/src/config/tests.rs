use std::time::Duration;

use clap::Parser;

use super::*;
use crate::cli::Cli;

fn settings(arguments: &[&str], environment: &[(&str, &str)]) -> Settings {
    let cli = Cli::parse_from(["gitstafette-client"].iter().chain(arguments));
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::load(KNOWN, None, environment, &cli.flags)
}

fn config(arguments: &[&str]) -> Config {
    Config::read(settings(arguments, &[])).unwrap()
}

fn problems(arguments: &[&str]) -> String {
    Config::read(settings(arguments, &[])).unwrap_err().to_string()
}

#[test]
fn starts_with_nothing() {
    let config = config(&[]);
    assert_eq!(config.client.server.url(), "http://127.0.0.1:50051");
    assert!(config.client.subscription.client_id.as_str().starts_with("gitstafette-client-print"));
    assert_eq!(config.client.routes[0].target.name(), "print");
    assert_eq!(config.health_port, Some(HealthPort::IfFree(8080)));
    assert_eq!(config.remarks.len(), 2);
}

#[test]
fn every_flag_is_a_key_and_every_key_a_flag() {
    let keys: Vec<String> = DEFAULTS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = ").map(|(key, _)| key.to_owned()))
        .collect();
    let command = <Cli as clap::CommandFactory>::command();
    let mut flags: Vec<String> =
        command.get_arguments().filter_map(|flag| flag.get_long()).map(str::to_owned).collect();
    flags.retain(|flag| !["config", "help", "version"].contains(&flag.as_str()));
    assert!(keys.len() > 20, "the default file was read");
    for key in &keys {
        assert!(flags.contains(key), "no flag for {key}");
    }
    assert_eq!(keys.len(), flags.len(), "{flags:?}");
}

#[test]
fn the_go_implementations_flags() {
    let config = config(&[
        "--server=127.0.0.1",
        "--port=50051",
        "--repo=537845873",
        "--clientId=homelab",
        "--relayEnabled=true",
        "--relayHost=jenkins",
        "--relayPort=8080",
        "--relayPath=/github-webhook/",
        "--relayProtocol=http",
        "--healthCheckPort=9090",
        "--insecure",
    ]);
    assert_eq!(config.client.subscription.client_id.as_str(), "homelab");
    assert_eq!(config.client.routes[0].target.name(), "jenkins:8080");
    assert_eq!(config.health_port, Some(HealthPort::Wanted(9090)));
}

#[test]
fn addresses_choose_their_security() {
    let tls = |arguments: &[&str]| config(arguments).client.server.tls.is_some();
    assert!(!tls(&["--server", "localhost"]));
    assert!(!tls(&["--server", "::1"]));
    assert!(tls(&["--server", "relay.example"]));
    assert!(tls(&["--server", "https://127.0.0.1"]));
    assert!(!tls(&["--server", "relay.example", "--insecure"]));
    assert!(!tls(&["--server", "http://relay.example:80"]));
    assert!(tls(&["--server", "localhost", "--secure"]));
    assert_eq!(
        config(&["--server", "https://relay.example"]).client.server.url(),
        "https://relay.example:443"
    );
    let port = config(&["--server", "https://relay.example", "--port", "50051"]).client.server.url();
    assert_eq!(port, "https://relay.example:50051");
    assert_eq!(config(&["--server", "relay.example:443"]).client.server.url(), "https://relay.example:443");
    assert_eq!(config(&["--server", "http://[::1]:7"]).client.server.url(), "http://[::1]:7");
}

#[test]
fn targets() {
    let name = |arguments: &[&str]| config(arguments).client.routes[0].target.name().to_owned();
    assert_eq!(name(&["--target", "http://localhost:8080/github-webhook/"]), "localhost:8080");
    assert_eq!(name(&["--relay-enabled", "--relay-host", "argo"]), "argo");
    assert!(problems(&["--relay-host", "argo"]).contains("without --relay-enabled"));
    assert!(problems(&["--relay-enabled", "--target", "http://a/"]).contains("two targets"));
    assert!(problems(&["--relay-enabled", "--relay-protocol", "grpc"]).contains("neither http nor https"));
    assert!(problems(&["--target", "jenkins"]).contains("target: not a URL"));
}

#[test]
fn patience() {
    let policy = |arguments: &[&str]| config(arguments).client.routes[0].policy;
    assert_eq!(policy(&[]), DeliveryPolicy::default());
    let given =
        policy(&["--give-up-attempts=3", "--target-parallel=1", "--retry-most=5m", "--give-up-after=0"]);
    assert_eq!((given.give_up_attempts, given.parallel), (Some(3), 1));
    assert_eq!((given.backoff.most, given.give_up_after), (Duration::from_secs(300), Duration::ZERO));
}

#[test]
fn a_client_that_delivers_has_another_id_than_one_that_prints() {
    let delivering = config(&["--target", "http://a/"]);
    assert!(!delivering.client.subscription.client_id.as_str().contains("print"));
    assert!(delivering.remarks.iter().any(|remark| remark.contains("--client-id")));
    let named = config(&["--target", "http://a/", "--client-id", "a"]);
    assert!(!named.remarks.iter().any(|remark| remark.contains("--client-id")));
}

#[test]
fn the_default_file_is_valid_as_it_is() {
    let config = Config::read(Settings::from_toml(DEFAULTS, DEFAULTS)).unwrap();
    assert_eq!(config.client.routes[0].target.name(), "print");
}

#[test]
fn the_targets_port_is_left_to_it() {
    assert_eq!(config(&["--target", "http://127.0.0.1:8080/hook/"]).health_port, None);
    let other = config(&["--target", "http://127.0.0.1:808/:8080"]);
    assert_eq!(other.health_port, Some(HealthPort::IfFree(8080)), "only in the path");
    let asked = config(&["--target", "http://jenkins:8080/hook/", "--health-check-port", "8080"]);
    assert_eq!(asked.health_port, Some(HealthPort::Wanted(8080)));
}

#[test]
fn misspelt_variables_are_named() {
    let config =
        Config::read(settings(&[], &[("GITSTAFETTE_TOKENS", "x"), ("GITSTAFETTE_REPO", "octo/*")])).unwrap();
    let named: Vec<_> = config.remarks.iter().filter(|remark| remark.contains("is no setting")).collect();
    assert!(named.len() == 1 && named[0].contains("GITSTAFETTE_TOKENS"), "{named:?}");
}

#[test]
fn nothing_is_not_a_number() {
    for flag in [
        "target-timeout",
        "retry-first",
        "retry-most",
        "target-parallel",
        "max-unacknowledged-events",
        "max-unacknowledged-bytes",
    ] {
        let text = problems(&[&format!("--{flag}=0")]);
        assert!(text.lines().count() == 1 && text.starts_with(flag), "{text}");
    }
}

#[test]
fn mistakes_come_together() {
    let text = problems(&["--port", "x", "--start", "yesterday", "--repo", "octo", "--secure", "--insecure"]);
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn the_token_never_shows() {
    let settings = settings(&[], &[("OAUTH_TOKEN", "hunter2")]);
    let config = Config::read(settings).unwrap();
    assert!(config.client.server.token.as_ref().is_some_and(|token| token.matches(b"hunter2")));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn starts() {
    let start = |text: &str| config(&["--start", text]).client.subscription.start;
    assert_eq!(start("earliest"), Start::Cursor);
    assert_eq!(start("latest"), Start::Latest);
    assert_eq!(start("17"), Start::After(Sequence::new(17)));
}
