use std::ffi::OsString;

use clap::Parser;
use gitstafette_client::arguments;

use super::*;
use crate::cli::Cli;

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let cli = Cli::parse_from(typed(arguments));
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::read(Settings::load(KNOWN, None, environment, &cli.flags))
}

/// A command line as `main` hands it to clap.
fn typed(arguments: &[&str]) -> Vec<OsString> {
    let program = ["gitstafette-server", "--store=memory:"];
    arguments::normalised(program.iter().chain(arguments).map(OsString::from))
}

fn config(arguments: &[&str], environment: &[(&str, &str)]) -> Config {
    read(arguments, environment).unwrap()
}

fn problems(arguments: &[&str]) -> String {
    read(arguments, &[]).unwrap_err().to_string()
}

const LOOPBACK: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

#[test]
fn every_flag_is_a_key_and_every_key_a_flag() {
    let keys: Vec<&str> = DEFAULTS
        .lines()
        // Tables are for the file alone.
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = ").map(|(key, _)| key))
        .collect();
    let command = <Cli as clap::CommandFactory>::command();
    let shown = command.get_arguments().filter(|flag| !flag.is_hide_set());
    let mut flags: Vec<&str> = shown.filter_map(|flag| flag.get_long()).collect();
    flags.retain(|flag| !["config", "help", "version"].contains(flag));
    assert!(keys.len() > 25, "the default file was read");
    for key in &keys {
        assert!(flags.contains(key), "no flag for {key}");
    }
    assert_eq!(keys.len(), flags.len(), "{flags:?}");
}

#[test]
fn each_program_knows_the_keys_of_the_other() {
    use gitstafette_client::config::{DEFAULTS as CLIENT, SERVER_KEYS};
    let client = keys_of(CLIENT);
    let mut own = keys_of(DEFAULTS);
    own.retain(|key| !client.contains(key));
    assert_eq!(
        own, SERVER_KEYS,
        "SERVER_KEYS in crates/client/src/config.rs lists the keys that only the server has"
    );
    assert_eq!((KNOWN.other.keys)(), client);
    let text = problems_of("target = \"http://a/\"");
    assert!(
        text.starts_with("target: there is no such key; it is a setting of gitstafette-client"),
        "{text}"
    );
}

fn problems_of(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let cli = Cli::parse_from(typed(&[]));
    let settings = Settings::load(KNOWN, Some(file.path()), [], &cli.flags);
    Config::read(settings).unwrap_err().to_string()
}

/// Every key, with values that no setting takes.
#[test]
fn mistakes_are_told_in_plain_words() {
    let keys = keys_of(DEFAULTS);
    assert!(keys.len() > 25, "the default file was read");
    for key in keys {
        for value in ["", "-1", "x y", "1.5", "70000", "99999999999999999999"] {
            let text = problems_or_nothing(&format!("{key} = {value:?}"));
            for words in ["target type", "invalid digit", "IP address syntax", "os error", "expected"] {
                assert!(!text.contains(words), "{key} = {value:?}: {text}");
            }
        }
    }
    assert!(problems(&["--bind=here"]).starts_with("bind: \"here\" is not an IP address such as 0.0.0.0"));
    assert!(
        problems(&["--port=70000"])
            .starts_with("port: \"70000\" is not a port: a whole number from 0 to 65535")
    );
}

fn problems_or_nothing(text: &str) -> String {
    Config::from_toml(text).map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn misplaced_and_misspelt_keys_get_a_suggestion() {
    for (text, expected) in [
        ("grpcPort = 1", "grpcPort: there is no such key; did you mean grpc-port? (from "),
        (
            "[relay.pull.a]\nservr = \"x\"",
            "relay.pull.a.servr: there is no such key; did you mean server? (from ",
        ),
        (
            "[relay.pull.a]\nserver = \"x\"\nbody-limit = \"1MiB\"",
            "relay.pull.a.body-limit: there is no such key; it belongs to no table: move it above the first [table] (from ",
        ),
        ("store = \"memory\"", "store: \"memory\" is neither a folder nor memory: (with a colon)"),
        ("store = \"postgres://x/y\"", "store: \"postgres://x/y\" is neither a folder nor memory:"),
    ] {
        let problems = problems_or_nothing(text);
        assert!(problems.lines().any(|line| line.starts_with(expected)), "{text}: {problems}");
    }
    let folder = Config::from_toml("store = \"./memory\"").unwrap().store;
    assert_eq!(folder, StoreLocation::Folder("./memory".into()));
}

#[test]
fn commands_that_are_nearly_right_are_suggested() {
    for (wrong, right) in [(&["confg", "check"][..], "'config'"), (&["config", "chek"], "'check'")] {
        let error = Cli::try_parse_from([&["gitstafette-server"], wrong].concat()).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.contains("similar subcommand") && error.contains(right), "{wrong:?}: {error}");
    }
}

#[test]
fn it_starts_with_nothing_on_loopback_and_says_what_is_missing() {
    let config = config(&[], &[]);
    let Listeners::Separate { http, grpc, health } = config.server.listeners else { panic!("two ports") };
    assert_eq!((http, grpc), (Address { ip: LOOPBACK, port: 1323 }, Address { ip: LOOPBACK, port: 50051 }));
    assert_eq!(health, Some(Address { ip: LOOPBACK, port: 50052 }));
    assert_eq!(config.remarks.len(), 4, "{:?}", config.remarks);
    assert!(config.server.signature.is_none() && !config.server.clients.is_required());
}

#[test]
fn with_secrets_it_listens_everywhere_and_one_token_serves_for_both() {
    let repositories = ["--repositories=octo/*"];
    let open = config(&repositories, &[("OAUTH_TOKEN", "token")]);
    let Listeners::Separate { http, .. } = open.server.listeners else { panic!("two ports") };
    assert_eq!(http.ip, None);
    assert!(open.server.signature.is_some() && open.server.clients.is_required());
    assert!(open.remarks.is_empty(), "{:?}", open.remarks);
    let half = config(&repositories, &[("GITSTAFETTE_WEBHOOK_HMAC", "secret")]);
    let Listeners::Separate { http, .. } = half.server.listeners else { panic!("two ports") };
    assert_eq!(http.ip, LOOPBACK, "clients are not authenticated");
}

#[test]
fn who_allows_unsigned_webhooks_has_hooks_without_a_secret() {
    let token = [("OAUTH_TOKEN", "token")];
    assert!(config(&["--allow-unsigned"], &token).server.signature.is_none());
    assert!(config(&["--allow-unsigned=false"], &token).server.signature.is_some());
    let named = config(&["--allow-unsigned", "--webhook-hmac=secret"], &token);
    assert!(named.server.signature.is_some(), "a secret that is named is asked for");
    assert_eq!(problems(&["--allow-unsigned=perhaps"]).lines().count(), 1);
}

#[test]
fn beyond_loopback_each_missing_half_must_be_waived() {
    let text = problems(&["--bind=0.0.0.0"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    let text = problems(&["--bind=0.0.0.0", "--allow-unsigned"]);
    assert!(text.lines().count() == 1 && text.contains("--allow-anonymous"), "{text}");
    config(&["--bind=0.0.0.0", "--allow-unsigned", "--allow-anonymous"], &[]);
    let waived = config(&["--allow-unsigned", "--allow-anonymous"], &[]);
    let Listeners::Separate { http, .. } = waived.server.listeners else { panic!("two ports") };
    assert_eq!(http.ip, None);
}

#[test]
fn the_go_implementations_command_line() {
    let config = config(
        &["--repositories=537845873,478599060", "--grpcPort=50051", "--port=1323", "--grpcHealthPort=50051"],
        &[("OAUTH_TOKEN", "token"), ("SENTRY_DSN", ""), ("OTEL_ENABLED", "false")],
    );
    assert_eq!(config.server.watchlist.patterns().len(), 2);
    let Listeners::Separate { grpc, health, .. } = config.server.listeners else { panic!("two ports") };
    assert_eq!((grpc.port, health), (50051, None));
}

#[test]
fn the_go_implementations_flags_with_one_dash_and_with_two() {
    let flags =
        ["name=relay", "port=1", "grpcPort=2", "grpcHealthPort=3", "repositories=1,2", "webhookHMAC=hunter2"];
    for dashes in ["-", "--"] {
        let flags: Vec<String> = flags.iter().map(|flag| format!("{dashes}{flag}")).collect();
        let config = config(&flags.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        let Listeners::Separate { http, grpc, health } = config.server.listeners else { panic!("two ports") };
        assert_eq!((http.port, grpc.port, health.map(|health| health.port)), (1, 2, Some(3)));
        assert_eq!((config.server.name.as_str(), config.server.watchlist.patterns().len()), ("relay", 2));
        assert!(config.server.signature.is_some());
    }
    assert!(problems(&["-certFileLocation", "a.pem"]).contains("a certificate needs its key"));
    assert!(problems(&["-caFileLocation=a.pem"]).contains("client certificates need TLS"));
    assert!(problems(&["-certKeyFileLocation=a.key"]).contains("a key needs its certificate"));
}

#[test]
fn redis_is_passed_over_and_that_is_said_once() {
    let told = |arguments: &[&str]| {
        let remarks = config(arguments, &[]).remarks;
        assert!(!remarks.iter().any(|remark| remark.contains("hunter2")), "{remarks:?}");
        remarks.iter().filter(|remark| remark.contains("Redis is not used")).count()
    };
    assert_eq!(told(&[]), 0);
    assert_eq!(
        told(&["-redisHost=redis", "--redisPort", "6379", "-redisDatabase=0", "-redisPassword=hunter2"]),
        1
    );
    assert_eq!(told(&["--redisPassword=hunter2"]), 1);
}

#[test]
fn flags_that_are_nearly_right_are_suggested() {
    for (wrong, right) in [
        ("-repositoris", "--repositories"),
        ("-grpcPrt", "--grpcPort"),
        ("--grpcHealthport", "--grpcHealthPort"),
    ] {
        let error = Cli::try_parse_from(typed(&[wrong])).err().unwrap().to_string();
        assert!(error.contains(&format!("a similar argument exists: '{right}'")), "{wrong}: {error}");
    }
}

#[test]
fn one_port() {
    let address = Address { ip: LOOPBACK, port: 8080 };
    let shared = Listeners::Shared { address, health: None };
    assert_eq!(config(&[], &[("PORT", "8080")]).server.listeners, shared);
    assert_eq!(config(&["--port=8080", "--grpc-port=8080"], &[]).server.listeners, shared);
    let probed =
        config(&["--port=8080", "--grpc-port=8080", "--grpc-health-port=9000"], &[]).server.listeners;
    assert_eq!(probed, Listeners::Shared { address, health: Some(Address { port: 9000, ..address }) });
    let zeros = config(&["--port=0", "--grpc-port=0", "--grpc-health-port=0"], &[]).server.listeners;
    assert!(matches!(zeros, Listeners::Separate { health: None, .. }), "the system chooses two");
    assert!(problems(&["--grpc-health-port=1323"]).contains("is the port of webhooks"));
}

#[test]
fn secrets_never_show() {
    let config = config(&["--client-token=hunter2"], &[("GITSTAFETTE_WEBHOOK_HMAC", "hunter3")]);
    let text = format!("{config:?}");
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn limits_that_contradict_each_other() {
    assert!(problems(&["--body-limit=65MiB"]).contains("is more than 64 MiB"));
    assert!(problems(&["--inflight-limit=1MiB"]).contains("is less than body-limit"));
    assert_eq!(problems(&["--body-limit=big"]).lines().count(), 1);
    let more_than_0 = [
        "body-limit",
        "request-timeout",
        "idle-timeout",
        "retention-age",
        "retention-bytes",
        "heartbeat-interval",
    ];
    for flag in more_than_0 {
        let text = problems(&[&format!("--{flag}=0")]);
        assert!(text.starts_with(&format!("{flag}: must be more than 0")), "{text}");
    }
    for flag in ["max-connections", "max-unacknowledged-events", "retention-count"] {
        assert!(problems(&[&format!("--{flag}=0")]).contains("must be between 1 and"));
    }
    assert!(problems(&["--max-connections=99999999999"]).contains("must be between 1 and"));
    assert_eq!(config(&["--stream-window=0"], &[]).server.streams.window, None);
}

#[test]
fn tls_needs_its_parts() {
    assert!(problems(&["--cert-file-location=a.pem"]).contains("a certificate needs its key"));
    assert!(problems(&["--ca-file-location=a.pem"]).contains("client certificates need TLS"));
    let missing = problems(&["--cert-file-location=/no/a.pem", "--cert-key-file-location=/no/a.key"]);
    assert!(missing.contains("/no/a.pem: cannot be read"), "{missing}");
}

#[test]
fn the_stores_folder() {
    let folder = |variables: &[(&str, &str)]| {
        state_folder(|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| PathBuf::from(*value))
        })
    };
    let all = [("STATE_DIRECTORY", "/var/lib/a"), ("XDG_STATE_HOME", "/state"), ("HOME", "/home/a")];
    assert_eq!(folder(&all), Some("/var/lib/a".into()));
    assert_eq!(folder(&all[1..]), Some("/state/gitstafette".into()));
    assert_eq!(folder(&all[2..]), Some("/home/a/.local/state/gitstafette".into()));
    assert_eq!(folder(&[("HOME", "relative")]), None);
    assert_eq!(config(&[], &[]).store, StoreLocation::Memory);
}

#[test]
fn an_embedded_configuration() {
    let config = Config::from_toml("repositories = [\"octo/*\"]\nport = 0\ngrpc-port = 0").unwrap();
    assert_eq!(config.server.watchlist.patterns().len(), 1);
    let error = Config::from_toml("repository = 1\nport = \"x\"").unwrap_err();
    assert_eq!(error.problems().len(), 2, "{error}");
}

#[test]
fn client_ids_have_bounds() {
    let streams = |arguments: &[&str]| config(arguments, &[]).server.streams;
    let default = streams(&[]);
    assert_eq!(
        (default.max_client_ids, default.forget_clients),
        (100, Some(Duration::from_secs(90 * 86_400)))
    );
    let set = streams(&["--max-client-ids=7", "--forget-clients=1d"]);
    assert_eq!((set.max_client_ids, set.forget_clients), (7, Some(Duration::from_secs(86_400))));
    assert_eq!(streams(&["--forget-clients=0"]).forget_clients, None);
    let problems = problems(&["--max-client-ids=0", "--forget-clients=23h"]);
    for problem in ["max-client-ids", "forget-clients", "use 1d or more"] {
        assert!(problems.contains(problem), "{problems}");
    }
}

#[test]
fn the_watchlist_has_a_bound() {
    let entries = |count: usize| vec!["octo/hello"; count].join(",");
    let list = |count| config(&["--repositories", &entries(count)], &[]).server.watchlist;
    assert_eq!(list(MAX_ENTRIES).patterns().len(), MAX_ENTRIES);
    let problems = problems(&["--repositories", &entries(MAX_ENTRIES + 1)]);
    assert!(problems.contains("more than 10000 entries; use owner/*"), "{problems}");
}
