//! What the settings of relays mean: `[relay.push.NAME]`, `[relay.pull.NAME]`, and the Go implementation's flags.

use std::sync::Arc;
use std::time::Duration;

use gitstafette_client::config::{
    HttpEndpoint, Place, RELAY_URL, backoff, http_target, is_relay, parallel, pem_files, relay_url, server,
    start,
};
use gitstafette_client::settings::Settings;
use gitstafette_client::target::ServerTarget;
use gitstafette_client::{DeliveryPolicy, ExistingCursor, Subscription};
use gitstafette_core::event::ClientId;
use gitstafette_core::filter::Filter;
use gitstafette_core::target::Target;
use gitstafette_proto::convert::RelayDirection;
use tokio::sync::watch;

use super::{Neighbour, RELAY_CLIENTS, RelayOptions};

/// The relay that the Go implementation's flags make.
const OF_FLAGS: &str = "flags";

/// Reads all relays of a server with this name.
pub(crate) fn relays(settings: &mut Settings, name: &str) -> Vec<RelayOptions> {
    let mut relays = Vec::new();
    let mut tables = settings.tables("relay.push");
    if let Some(of_flags) = of_flags(settings) {
        if tables.iter().any(|(name, _)| *name == of_flags.0) {
            let message = "is the name of the relay that --relay-enabled makes; choose another";
            settings.problem(&format!("relay.push.{OF_FLAGS}"), message);
        }
        tables.push(of_flags);
    }
    for (relay, mut table) in tables {
        check_name(settings, RelayDirection::Push, &relay);
        relays.extend(push(&mut table, &relay, name));
        settings.absorb(table);
    }
    for (relay, mut table) in settings.tables("relay.pull") {
        check_name(settings, RelayDirection::Pull, &relay);
        relays.extend(pull(&mut table, &relay, name));
        settings.absorb(table);
    }
    for other in settings.keys("relay").into_iter().filter(|key| key != "push" && key != "pull") {
        settings.problem(&format!("relay.{other}"), "is neither relay.push nor relay.pull");
    }
    relays
}

/// A relay's name is a part of its client id.
fn check_name(settings: &mut Settings, direction: RelayDirection, name: &str) {
    let is_usable = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if !is_usable {
        let key = format!("relay.{}.{name}", direction.as_str());
        settings.problem(&key, "is no name for a relay: up to 64 letters, digits, - and _");
    }
}

/// The flags of the Go implementation, as a table of the same meaning.
fn of_flags(settings: &mut Settings) -> Option<(String, Settings)> {
    const KEYS: [&str; 6] = [
        "relay-host",
        "relay-port",
        "relay-path",
        "relay-protocol",
        "relay-insecure",
        "relay-health-check-path",
    ];
    if !is_relay(settings, &KEYS) {
        return None;
    }
    let text = |settings: &mut Settings, key| settings.optional::<String>(key).unwrap_or_default();
    let protocol = text(settings, "relay-protocol");
    let host = text(settings, "relay-host");
    let port = settings.port("relay-port", 0);
    let health = text(settings, "relay-health-check-path");
    let is_insecure = settings.flag("relay-insecure");
    let mut values =
        vec![("token", text(settings, "relay-token")), ("token-file", text(settings, "relay-token-file"))];
    match protocol.as_str() {
        "grpc" => values.extend([
            ("server", host),
            ("port", port.to_string()),
            ("insecure", is_insecure.to_string()),
        ]),
        "http" | "https" => {
            values.extend([("target", relay_url(settings, &protocol)), ("target-health-check-path", health)]);
        }
        _ => {
            settings.problem("relay-protocol", "is neither grpc, http nor https");
            return None;
        }
    }
    let values = values.into_iter().filter(|(_, text)| !text.is_empty()).collect();
    Some((OF_FLAGS.to_owned(), settings.made_table("relay.push", OF_FLAGS, values)))
}

fn push(table: &mut Settings, relay: &str, name: &str) -> Option<RelayOptions> {
    let files = pem_files(table);
    let timeout = table.positive_duration("target-timeout");
    let to_server = table.optional::<String>("server").is_some();
    let url = table.optional::<String>("target");
    let probe: Option<String> = table.optional("target-health-check-path");
    let (target, server, place): (Arc<dyn Target>, _, _) = match (to_server, url) {
        (true, None) => {
            let address = server(table, &files);
            let place = Place::of_server(&address);
            let server = ServerTarget::new(address, name.to_owned(), timeout);
            let server = Arc::new(server.following(watch::Sender::default()));
            (Arc::clone(&server) as Arc<dyn Target>, Some(server), place)
        }
        (false, Some(url)) => {
            let setting = match relay {
                OF_FLAGS => RELAY_URL.to_owned(),
                _ => format!("target in [relay.push.{relay}]"),
            };
            let endpoint = HttpEndpoint { url: &url, setting: &setting, probe: probe.as_deref() };
            let (target, place) = http_target(table, &files, endpoint, timeout)?;
            (target, None, place)
        }
        _ => {
            table.problem("server", "or target says where to: one of them is wanted");
            return None;
        }
    };
    let endless = if to_server { Duration::MAX } else { DeliveryPolicy::default().give_up_after };
    let policy = DeliveryPolicy {
        backoff: backoff(table),
        give_up_after: table.optional_duration("give-up-after").unwrap_or(endless),
        give_up_attempts: None,
        parallel: parallel(table),
    };
    // A name that is none was reported.
    let client_id: ClientId = format!("{RELAY_CLIENTS}{relay}").parse().ok()?;
    Some(RelayOptions {
        name: relay.to_owned(),
        neighbour: Neighbour::PushTo { target, server, place },
        subscription: subscription(table, client_id),
        policy,
    })
}

fn pull(table: &mut Settings, relay: &str, name: &str) -> Option<RelayOptions> {
    let files = pem_files(table);
    if table.optional::<String>("server").is_none() {
        table.problem("server", "is empty: it says where from");
        return None;
    }
    let server = server(table, &files);
    let client_id = table.optional("client-id").or_else(|| pull_id(name, relay).parse().ok());
    let Some(client_id) = client_id else {
        table.problem(
            "client-id",
            &format!(
                "is wanted: the server's name, {name:?}, has characters that no id can have, or too many"
            ),
        );
        return None;
    };
    let policy = DeliveryPolicy {
        backoff: backoff(table),
        give_up_after: Duration::MAX,
        give_up_attempts: None,
        parallel: parallel(table),
    };
    Some(RelayOptions {
        name: relay.to_owned(),
        subscription: subscription(table, client_id),
        neighbour: Neighbour::PullFrom(server),
        policy,
    })
}

/// The id of a pull that was given none: that of this relay, at the server with this name.
pub(super) fn pull_id(name: &str, relay: &str) -> String {
    format!("{name}.pull.{relay}")
}

fn subscription(table: &mut Settings, client_id: ClientId) -> Subscription {
    Subscription {
        filter: Filter { repositories: table.list("repo"), events: table.list("event") },
        start: start(table),
        existing_cursor: ExistingCursor::Keep,
        max_events: u32::try_from(table.count("max-unacknowledged-events", u32::MAX.into())).ok(),
        max_bytes: Some(table.positive_bytes("max-unacknowledged-bytes")),
        ..Subscription::new(client_id)
    }
}

#[cfg(test)]
mod tests;
