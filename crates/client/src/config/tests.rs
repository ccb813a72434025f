use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::{DeliveryPolicy, arguments};

fn settings(arguments: &[&str], environment: &[(&str, &str)]) -> Settings {
    let cli = Cli::parse_from(typed(arguments));
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::load(KNOWN, None, environment, &cli.flags)
}

/// A command line as `main` hands it to clap.
fn typed(arguments: &[&str]) -> Vec<OsString> {
    arguments::normalised(["gitstafette-client"].iter().chain(arguments).map(OsString::from))
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

/// Every flag of the Go implementation's client.
const GO_FLAGS: [&str; 21] = [
    "name=laptop",
    "port=50051",
    "server=relay.example",
    "insecure=true",
    "secure=false",
    "repo=537845873",
    "infoPort=50052",
    "relayEnabled",
    "relayHost=jenkins",
    "relayPath=/github-webhook/",
    "relayHealthCheckPath=/login",
    "relayPort=8080",
    "relayProtocol=http",
    "relayInsecure=T",
    "caFileLocation=",
    "certFileLocation=",
    "certKeyFileLocation=",
    "clientId=homelab",
    "streamWindow=180",
    "healthCheckPort=9090",
    "webhookHMAC=hunter2",
];

#[test]
fn the_go_implementations_flags() {
    for dashes in ["-", "--"] {
        let flags: Vec<String> = GO_FLAGS.iter().map(|flag| format!("{dashes}{flag}")).collect();
        let config = config(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let Config { client, identity, .. } = &config;
        assert_eq!(client.server.url(), "http://relay.example:50051");
        assert_eq!(client.subscription.client_id.as_str(), "homelab");
        assert_eq!(client.routes[0].target.name(), "jenkins:8080");
        assert!(format!("{:?}", client.routes[0].target).starts_with("VerifiedTarget"));
        assert_eq!(client.stream_window, Some(Duration::from_secs(180)));
        assert_eq!((config.health_port, config.info_port), (Some(HealthPort::Wanted(9090)), Some(50052)));
        assert_eq!((identity.name.as_str(), identity.repositories.as_str()), ("laptop", "537845873"));
        assert_eq!(identity.target, Some(("http", "jenkins".to_owned(), 8080)));
        assert_eq!(identity.health_port, Some(9090));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

#[test]
fn a_value_may_stand_apart_and_switches_are_spelt_as_in_go() {
    let apart = config(&["-relayEnabled", "-relayHost", "jenkins", "--relayPort", "8080"]);
    assert_eq!(apart.client.routes[0].target.name(), "jenkins:8080");
    for spelling in ["1", "t", "T", "true", "True", "TRUE"] {
        let enabled = config(&[&format!("-relayEnabled={spelling}"), "-relayHost=jenkins"]);
        assert_eq!(enabled.client.routes[0].target.name(), "jenkins");
    }
    for spelling in ["0", "f", "F", "false", "False", "FALSE"] {
        // That nothing is relayed was said: what it would be is left for another time.
        let given = [&format!("-relayEnabled={spelling}"), "-relayHost=jenkins", "-relayProtocol=grpc"];
        assert_eq!(config(&given).client.routes[0].target.name(), "print");
    }
    assert!(problems(&["-relayEnabled=yes"]).contains("is neither true nor false"));
}

#[test]
fn flags_that_are_nearly_right_are_suggested() {
    let near = [
        ("--relayHosst", "--relayHost"),
        ("-relayHosst=x", "--relayHost"),
        ("--relayhost", "--relay-host"),
        ("-clientld", "--clientId"),
        ("-infoPrt", "--infoPort"),
        ("--webhook-hmca", "--webhook-hmac"),
        ("-healthCheckPorts", "--healthCheckPort"),
    ];
    for (wrong, right) in near {
        let error = Cli::try_parse_from(typed(&[wrong])).err().unwrap().to_string();
        assert!(error.contains(&format!("a similar argument exists: '{right}'")), "{wrong}: {error}");
    }
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
    assert_eq!(name(&["--relay-enabled", "--relay-protocol=grpc", "--relay-port=50051"]), "127.0.0.1:50051");
    assert!(problems(&["--relay-enabled", "--relay-protocol", "smtp"]).contains("relay-protocol"));
    assert!(problems(&["--target", "jenkins"]).contains("target: not a URL"));
}

#[test]
fn looking_at_the_target() {
    let path = "--relay-health-check-path=/login";
    config(&[path, "--target=http://jenkins:8080/github-webhook/"]);
    config(&[path, "--relay-enabled"]);
    config(&[path, "--relay-enabled=false"]);
    assert!(problems(&[path]).contains("without a target to look at"));
}

#[test]
fn certificates_of_targets_are_checked_whatever_is_asked() {
    let remark = |arguments: &[&str]| {
        config(arguments).remarks.iter().any(|remark| remark.contains("--ca-file-location"))
    };
    let https = ["--relay-enabled", "--relay-protocol=https", "--relay-port=443"];
    assert!(!remark(&https));
    assert!(remark(&[&https[..], &["--relay-insecure"]].concat()));
    assert!(!remark(&[&https[..], &["--relay-insecure=false"]].concat()));
    assert!(!remark(&["--relay-enabled", "--relay-insecure"]), "http has none");
}

#[test]
fn windows() {
    let window = |text: &str| config(&["--stream-window", text]).client.stream_window;
    assert_eq!(config(&[]).client.stream_window, None);
    assert_eq!((window("0"), window("5m")), (None, Some(Duration::from_secs(300))));
    assert!(problems(&["--stream-window=10ms"]).contains("less than 1s"));
}

#[test]
fn the_clients_own_check() {
    let debug = |arguments: &[&str]| format!("{:?}", config(arguments).client.routes[0].target);
    assert!(!debug(&[]).contains("Verified"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter3\n").unwrap();
    let file = format!("--webhook-hmac-file={}", file.path().display());
    let both = debug(&["--webhook-hmac=hunter2", &file, "--target=http://a/"]);
    assert!(both.starts_with("VerifiedTarget") && !both.contains("hunter"), "{both}");
    assert_eq!(both.matches("***").count(), 2, "{both}");
}

#[test]
fn the_info_port() {
    let port = |arguments: &[&str]| config(arguments).info_port;
    assert_eq!(
        (port(&[]), port(&["--info-port=0"]), port(&["--info-port=50052"])),
        (None, None, Some(50052))
    );
    assert_eq!(config(&["--info-port=8080"]).health_port, None, "left to who asked for it");
    assert!(problems(&["--info-port=9", "--health-check-port=9"]).contains("is the port of GET /health"));
    let identity = config(&["--target=https://user:password@jenkins/hook?token=x"]).identity;
    assert_eq!(identity.target, Some(("https", "jenkins".to_owned(), 443)));
    assert!(!identity.name.is_empty());
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
    let variables = [
        ("GITSTAFETTE_TOKENS", "x"),
        ("GITSTAFETTE_REPO", "octo/*"),
        ("GITSTAFETTE_GRPC_PORT", "50051"),
        ("GITSTAFETTE_SERVICE_HOST", "10.0.0.1"),
        ("GITSTAFETTE_PORT", "tcp://10.0.0.1:1323"),
    ];
    let config = Config::read(settings(&[], &variables)).unwrap();
    let named: Vec<_> = config.remarks.iter().filter(|remark| remark.contains("is not a setting")).collect();
    let expected =
        "the environment variable GITSTAFETTE_TOKENS is not a setting; did you mean GITSTAFETTE_TOKEN?";
    assert_eq!(named, [expected]);
}

/// Every key, with values that no setting takes.
#[test]
fn mistakes_are_told_in_plain_words() {
    let keys = crate::settings::keys_of(DEFAULTS);
    assert!(keys.len() > 20, "the default file was read");
    for key in keys {
        for value in ["", "-1", "x y", "1.5", "70000", "99999999999999999999"] {
            let text = format!("{key} = {value:?}");
            let Err(error) = Config::read(Settings::from_toml(DEFAULTS, &text)) else { continue };
            for words in
                ["target type", "invalid digit", "IP address syntax", "relative URL", "os error", "expected"]
            {
                assert!(!error.to_string().contains(words), "{text}: {error}");
            }
        }
    }
    let port = problems(&["--port=70000"]);
    assert_eq!(port, "port: \"70000\" is not a port: a whole number from 0 to 65535 (from command line)");
    let target = problems(&["--target=jenkins:8080/hook"]);
    assert!(target.contains("not a URL to post to: it must begin with http:// or https://"), "{target}");
}

#[test]
fn commands_that_are_nearly_right_are_suggested() {
    for (wrong, right) in [
        ("event list", "'events'"),
        ("events lst", "'list'"),
        ("events redelivr 1", "'redeliver'"),
        ("subscription list", "'subscriptions'"),
        ("watchlst list", "'watchlist'"),
        ("stats", "'statistics'"),
        ("confg check", "'config'"),
        ("config chek", "'check'"),
        ("relay list", "'relays'"),
    ] {
        let line: Vec<_> = wrong.split(' ').collect();
        let error = Cli::try_parse_from(typed(&line)).err().unwrap();
        assert_eq!(error.exit_code(), 2, "{wrong}");
        let error = error.to_string();
        assert!(error.contains("similar subcommand") && error.contains(right), "{wrong}: {error}");
    }
}

#[test]
fn a_token_that_no_request_can_carry() {
    let error = Config::read(settings(&[], &[("GITSTAFETTE_TOKEN", "a\nb")])).unwrap_err().to_string();
    assert!(error.starts_with("token: has characters that a request cannot carry"), "{error}");
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
