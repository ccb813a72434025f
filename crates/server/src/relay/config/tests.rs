use clap::Parser;
use gitstafette_client::settings::ConfigError;

use super::*;
use crate::cli::Cli;
use crate::config::{Config, KNOWN};

fn of_toml(text: &str) -> Result<Vec<RelayOptions>, ConfigError> {
    Config::from_toml(&format!("store = \"memory:\"\nname = \"edge\"\n{text}"))
        .map(|config| config.server.relays)
}

fn of_flags(arguments: &[&str]) -> Result<Vec<RelayOptions>, ConfigError> {
    let cli = Cli::parse_from(["gitstafette-server", "--store=memory:"].iter().chain(arguments));
    Config::read(Settings::load(KNOWN, None, [], &cli.flags)).map(|config| config.server.relays)
}

fn problems(text: &str) -> String {
    of_toml(text).unwrap_err().to_string()
}

fn url(relay: &RelayOptions) -> String {
    match &relay.neighbour {
        Neighbour::PushTo { place, .. } => place.to_string(),
        Neighbour::PullFrom(server) => Place::of_server(server).to_string(),
    }
}

#[test]
fn tables_are_relays() {
    let relays = of_toml(
        r#"
        [relay.push.site]
        server = "https://site.example:8443"
        token = "hunter2"
        repo = ["octo/*", "7"]
        [relay.push.jenkins]
        target = "http://user:password@jenkins:8080/github-webhook/?token=hunter2"
        [relay.pull.cloud]
        server = "cloud.example"
        port = 443
        max-unacknowledged-events = 7
        "#,
    )
    .unwrap();
    let [jenkins, site, cloud] = &relays[..] else { panic!("{relays:?}") };
    assert_eq!(url(site), "grpcs://site.example:8443");
    assert_eq!(site.subscription.client_id.as_str(), "relay.push.site");
    assert_eq!(site.subscription.filter.repositories.len(), 2);
    assert_eq!(site.policy.give_up_after, Duration::MAX, "a server is waited for");
    assert_eq!(url(jenkins), "http://jenkins:8080");
    assert_eq!(jenkins.policy.give_up_after, Duration::from_secs(24 * 3600));
    assert_eq!(url(cloud), "grpcs://cloud.example:443");
    assert_eq!(cloud.subscription.client_id.as_str(), "edge.pull.cloud");
    assert_eq!(cloud.subscription.max_events, Some(7));
    assert!(!format!("{relays:?}").contains("hunter2"));
}

#[test]
fn the_default_table_is_for_all() {
    let text = "[relay.push.default]\nport = 7\nretry-most = \"5s\"\n\
        [relay.push.a]\nserver = \"127.0.0.1\"\n[relay.push.b]\nserver = \"127.0.0.1\"\nport = 8\n";
    let relays = of_toml(text).unwrap();
    assert_eq!(relays.iter().map(url).collect::<Vec<_>>(), ["grpc://127.0.0.1:7", "grpc://127.0.0.1:8"]);
    assert_eq!(relays[1].policy.backoff.most, Duration::from_secs(5));
}

#[test]
fn mistakes_name_their_table() {
    for (text, expected) in [
        ("[relay.push.a]\n", "relay.push.a.server: or target says where to"),
        (
            "[relay.push.a]\nserver = \"x\"\ntarget = \"http://y/\"",
            "relay.push.a.server: or target says where to",
        ),
        ("[relay.push.a]\nserver = \"x\"\ncolour = 1", "relay.push.a.colour: there is no such key"),
        ("[relay.push.a]\nserver = \"x\"\nport = \"y\"", "relay.push.a.port: \"y\""),
        ("[relay.push.'a b']\nserver = \"x\"", "relay.push.a b: is no name"),
        ("[relay.pull.a]\n", "relay.pull.a.server: is empty"),
        ("[[relay.push]]\nserver = \"x\"", "relay.push: is no table of tables"),
        ("relay = \"x\"", "relay.push: is no table of tables"),
        ("relay-enabled = true\n[relay.push.flags]\nserver = \"x\"", "relay.push.flags: is the name"),
        ("[relay.pusch.a]\n", "relay.pusch: is neither relay.push nor relay.pull"),
        ("[relay.push]\na = 1", "relay.push.a: is a value, and a table is wanted"),
        ("[relay.push.a]\nserver = \"x\"\ntoken-file = \"/nowhere\"", "relay.push.a.token-file: /nowhere"),
    ] {
        let problems = problems(text);
        assert!(problems.contains(expected), "{text}: {problems}");
    }
}

#[test]
fn the_flags_of_the_go_implementation_make_one() {
    let grpc = of_flags(&["--relayEnabled", "--relayHost=site.example", "--relayInsecure"]).unwrap();
    assert_eq!(grpc.iter().map(url).collect::<Vec<_>>(), ["grpc://site.example:50051"]);
    let secure =
        of_flags(&["--relayEnabled=true", "--relayHost", "site.example", "--relayPort", "443"]).unwrap();
    assert_eq!(secure.iter().map(url).collect::<Vec<_>>(), ["grpcs://site.example:443"]);
    let arguments = [
        "--relayEnabled",
        "--relayProtocol=http",
        "--relayHost=jenkins",
        "--relayPort=8080",
        "--relayPath=hook/",
    ];
    let http = of_flags(&arguments).unwrap();
    let Neighbour::PushTo { target, place, .. } = &http[0].neighbour else { panic!("{http:?}") };
    assert_eq!((target.name(), place.protocol.as_str()), ("jenkins:8080", "http"));
    let wrong = of_flags(&["--relayEnabled", "--relayProtocol=ftp"]).unwrap_err().to_string();
    assert!(wrong.contains("relay-protocol: is neither grpc, http nor https"), "{wrong}");
    let idle = of_flags(&["--relayHost=jenkins"]).unwrap_err().to_string();
    assert!(idle.contains("relay-host: is given without --relay-enabled"), "{idle}");
}

#[test]
fn a_name_that_nobody_chose_is_remarked_if_an_id_is_made_of_it() {
    let remarks = |text: &str| {
        let config = Config::from_toml(&format!("store = \"memory:\"\n{text}")).unwrap();
        config.remarks.into_iter().filter(|remark| remark.starts_with("no name")).count()
    };
    let pull = "[relay.pull.a]\nserver = \"127.0.0.1\"\n";
    assert_eq!(remarks(pull), 1);
    assert_eq!(remarks(&format!("name = \"home\"\n{pull}")), 0);
    assert_eq!(remarks(&format!("{pull}client-id = \"home\"\n")), 0);
    assert_eq!(remarks("[relay.push.a]\nserver = \"127.0.0.1\"\n"), 0, "its cursor is kept here");
    assert_eq!(remarks(""), 0);
}
