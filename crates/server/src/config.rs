//! What the server's settings mean: from what was typed to what the program needs, all mistakes at once.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gitstafette_client::config::pem_files;
use gitstafette_client::logging::{LogFormat, LogLevel};
use gitstafette_client::settings::{ConfigError, Known, OtherProgram, Settings, keys_of};
use gitstafette_core::repository::Watchlist;
use gitstafette_core::store::{Options, Redelivery, Retention};
use gitstafette_core::subscription::Window;
use gitstafette_core::text::is_showable;
use gitstafette_core::verify::GitHubSignature;
use gitstafette_proto::MAX_BODY_BYTES;

use crate::app::{Listeners, ServerOptions};
use crate::auth::ClientAuth;
use crate::ingest::IngestLimits;
use crate::listen::Address;
use crate::relay::{self, RelayOptions};
use crate::subscribe::StreamOptions;
use crate::tls::{PlainWebhooks, ServerTls, server_config};
use crate::watchlist::MAX_ENTRIES;

/// The default file: every key with its comment.
pub const DEFAULTS: &str = include_str!("config.default.toml");

/// The settings there are. Variables by other names: the Go implementation's, and the one by which platforms such as
/// Cloud Run name the port.
pub const KNOWN: Known = Known {
    defaults: DEFAULTS,
    environment: &[("OAUTH_TOKEN", &["client-token"]), ("PORT", &["port", "grpc-port", "grpc-health-port"])],
    other: OtherProgram { name: "gitstafette-client", keys: client_keys },
};

fn client_keys() -> Vec<String> {
    keys_of(gitstafette_client::config::DEFAULTS)
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The server.
    pub server: ServerOptions,
    /// Where events are kept.
    pub store: StoreLocation,
    /// What is kept, and how.
    pub store_options: Options,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogLevel,
    /// What the operator should know about this configuration.
    pub remarks: Vec<String>,
}

/// Where events are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// In this folder.
    Folder(PathBuf),
    /// In memory: they end with the process.
    Memory,
}

impl Config {
    /// A configuration from a file's text alone, for embedding: without environment and flags.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::read(Settings::from_toml(DEFAULTS, text))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(mut settings: Settings) -> Result<Self, ConfigError> {
        let settings = &mut settings;
        let watchlist = watchlist(settings);
        let clients_tokens = settings.secrets("client-token");
        let unsigned = settings.flag("allow-unsigned");
        let mut secrets = settings.secrets("webhook-hmac");
        // With the clients' token as the only secret, clients can sign whatever they like anyway.
        let believes_clients = secrets.is_empty();
        // Who allows unsigned webhooks and names no secret has hooks without one: the token is for clients only.
        if secrets.is_empty() && !unsigned {
            secrets.clone_from(&clients_tokens);
        }
        let (tls, certificate) = tls(settings);
        let operator_tokens = settings.secrets("admin-token");
        let publisher_tokens = settings.secrets("publisher-token");
        let clients = ClientAuth {
            tokens: clients_tokens,
            certificate,
            operator_tokens,
            publisher_tokens,
            believes_clients,
        };
        let signature = Some(secrets).filter(|secrets| !secrets.is_empty()).map(GitHubSignature::new);
        let verified = unsigned || signature.is_some();
        let (listeners, open) = listeners(settings, verified, clients.is_required());
        let admin = admin(settings, &clients);
        let mut remarks = remarks(&watchlist, signature.is_some(), clients.is_required(), open);
        if admin.is_some() && clients.operator_tokens.is_empty() && !clients.tokens.is_empty() {
            remarks.push(
                "no operator token: every client's may read and redeliver webhooks and change the watchlist; set --admin-token-file".into(),
            );
        }
        remarks.extend(redis_remark(settings));
        let given_name: Option<String> = settings.optional("name");
        let is_named = given_name.is_some();
        let name = given_name.unwrap_or_else(machine);
        if !is_showable(&name) {
            settings.problem("name", "is longer than 256 bytes, or cannot be shown on one line");
        }
        let relays = relay::configured(settings, &name);
        remarks.extend(name_remark(is_named, &name, &relays));
        remarks.extend_from_slice(settings.warnings());
        let config = Self {
            server: ServerOptions {
                name,
                listeners,
                admin,
                tls,
                watchlist,
                signature,
                clients,
                limits: limits(settings),
                max_connections: count(settings, "max-connections"),
                idle_timeout: settings.positive_duration("idle-timeout"),
                streams: streams(settings),
                relays,
                drain_timeout: settings.duration("drain-timeout"),
            },
            store: store_location(settings),
            store_options: store_options(settings),
            log_format: settings.value("log-format", LogFormat::Text),
            log_level: settings.value("log-level", LogLevel::default()),
            remarks,
        };
        std::mem::take(settings).finish(config)
    }
}

fn watchlist(settings: &mut Settings) -> Watchlist {
    let patterns = settings.list("repositories");
    if patterns.len() > MAX_ENTRIES {
        let problem =
            format!("has more than {MAX_ENTRIES} entries; use owner/* for all repositories of an owner");
        settings.problem("repositories", &problem);
    }
    Watchlist::new(patterns)
}

/// TLS, and whether clients must show a certificate.
fn tls(settings: &mut Settings) -> (Option<ServerTls>, bool) {
    let files = pem_files(settings);
    let plain_webhooks = settings.value("http-tls", PlainWebhooks::Taken);
    let Some(identity) = &files.identity else {
        if files.ca.is_some() {
            settings.problem(
                "ca-file-location",
                "is given without --cert-file-location: client certificates need TLS",
            );
        }
        return (None, false);
    };
    match server_config(identity, files.ca.as_deref()) {
        Ok(config) => (Some(ServerTls { config: Arc::new(config), plain_webhooks }), files.ca.is_some()),
        Err(error) => {
            settings.problem("cert-file-location", &error.to_string());
            (None, files.ca.is_some())
        }
    }
}

/// The listeners, and whether they are open to other machines. Closed by default: beyond loopback only if webhooks are
/// verified and clients authenticated, or each is explicitly waived.
fn listeners(settings: &mut Settings, verified: bool, authenticated: bool) -> (Listeners, bool) {
    let authenticated = settings.flag("allow-anonymous") || authenticated;
    let bind = settings.optional_ip("bind");
    let ip = match bind {
        Some(ip) => Some(ip),
        None if verified && authenticated => None,
        None => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    let open = ip.is_none_or(|ip| !ip.is_loopback());
    if open && !verified {
        settings.problem(
            "bind",
            "is beyond loopback, and webhooks are not verified; set --webhook-hmac-file, or take the risk with --allow-unsigned",
        );
    }
    if open && !authenticated {
        settings.problem(
            "bind",
            "is beyond loopback, and clients are not authenticated; set --client-token-file or --ca-file-location, or take the risk with --allow-anonymous",
        );
    }
    let at = |port| Address { ip, port };
    let (port, grpc_port) = (settings.port("port", 0), settings.port("grpc-port", 0));
    let health_port = settings.port("grpc-health-port", 0);
    // Two zeros are two ports that the system chooses.
    if port == grpc_port && port != 0 {
        // The default is for two ports: beside one for all, health has its own only when asked.
        let apart = settings.is_set("grpc-health-port") && health_port != 0 && health_port != port;
        return (Listeners::Shared { address: at(port), health: apart.then(|| at(health_port)) }, open);
    }
    let health = Some(health_port).filter(|port| *port != 0 && *port != grpc_port).map(at);
    if health_port != 0 && health_port == port {
        settings.problem("grpc-health-port", "is the port of webhooks; choose another, or 0");
    }
    (Listeners::Separate { http: at(port), grpc: at(grpc_port), health }, open)
}

/// The listener for operators, if it is wanted.
fn admin(settings: &mut Settings, clients: &ClientAuth) -> Option<Address> {
    let ip = settings.optional_ip("admin-bind").unwrap_or(Ipv4Addr::LOCALHOST.into());
    let port = settings.optional_port("admin-port")?;
    if !ip.is_loopback() && !clients.asks_for_token() {
        settings.problem(
            "admin-bind",
            "is beyond loopback, and operators are not authenticated; set --admin-token-file or --client-token-file",
        );
    }
    Some(Address { ip: Some(ip), port })
}

fn limits(settings: &mut Settings) -> IngestLimits {
    let limits = IngestLimits {
        body_bytes: settings.positive_bytes("body-limit"),
        inflight_bytes: settings.bytes("inflight-limit"),
        request_timeout: settings.positive_duration("request-timeout"),
    };
    if !settings.are_sound(&["body-limit", "inflight-limit"]) {
        return limits;
    }
    if limits.body_bytes > MAX_BODY_BYTES {
        settings.problem(
            "body-limit",
            &format!("is more than {} MiB, which gRPC messages carry at most", MAX_BODY_BYTES >> 20),
        );
    }
    if limits.inflight_bytes < limits.body_bytes {
        settings.problem("inflight-limit", "is less than body-limit: the largest webhook would never fit");
    }
    limits
}

fn streams(settings: &mut Settings) -> StreamOptions {
    StreamOptions {
        heartbeat: settings.positive_duration("heartbeat-interval"),
        window: settings.optional_duration("stream-window").filter(|window| !window.is_zero()),
        unacknowledged: Window {
            events: count(settings, "max-unacknowledged-events"),
            bytes: settings.positive_bytes("max-unacknowledged-bytes"),
        },
        outgoing_bytes: settings.positive_bytes("outgoing-limit"),
        max_client_ids: count(settings, "max-client-ids"),
        forget_clients: forget_clients(settings),
    }
}

/// How long a client may stay away. Shorter than a day is a mistake: its cursor would be gone after a night.
fn forget_clients(settings: &mut Settings) -> Option<Duration> {
    let age = settings.optional_duration("forget-clients").filter(|age| !age.is_zero())?;
    if age < Duration::from_secs(24 * 3600) {
        settings.problem(
            "forget-clients",
            "is less than a day; use 1d or more, or 0 to keep client ids for ever",
        );
    }
    Some(age)
}

fn store_location(settings: &mut Settings) -> StoreLocation {
    match settings.optional::<String>("store") {
        Some(memory) if memory == "memory:" => StoreLocation::Memory,
        Some(name) if name == "memory" || name.contains("://") || name.starts_with("memory:") => {
            let advice = "is neither a folder nor memory: (with a colon); a folder of that name is ./";
            settings.problem("store", &format!("{name:?} {advice}{name}"));
            StoreLocation::Memory
        }
        Some(folder) => StoreLocation::Folder(folder.into()),
        None => match state_folder(|name| std::env::var_os(name).map(PathBuf::from)) {
            Some(folder) => StoreLocation::Folder(folder),
            None => {
                settings.problem(
                    "store",
                    "is empty, and neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set",
                );
                StoreLocation::Memory
            }
        },
    }
}

/// The default folder: systemd's, else the XDG state folder (XDG Base Directory Specification 0.8).
fn state_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let usable = |name| variable(name).filter(|path| path.is_absolute());
    usable("STATE_DIRECTORY")
        .or_else(|| usable("XDG_STATE_HOME").map(|path| path.join("gitstafette")))
        .or_else(|| usable("HOME").map(|path| path.join(".local/state/gitstafette")))
}

fn store_options(settings: &mut Settings) -> Options {
    let retention = Retention {
        age: settings.positive_duration("retention-age"),
        bytes: settings.positive_bytes("retention-bytes"),
        count: settings.count("retention-count", u64::MAX),
    };
    Options { retention, redelivery: settings.value("redelivery", Redelivery::Deliver) }
}

/// A count of things that each take memory: no machine has room for more.
fn count(settings: &mut Settings, key: &str) -> usize {
    const MOST: u64 = 1 << 24;
    usize::try_from(settings.count(key, MOST)).unwrap_or(usize::MAX)
}

/// What is to be said to whoever has a command line of the Go implementation that names a Redis.
fn redis_remark(settings: &Settings) -> Option<String> {
    let given = ["redis-database", "redis-host", "redis-port", "redis-password"];
    given.iter().any(|key| settings.is_set(key)).then(|| {
        "Redis is not used: events are kept where --store says, by default on disk; the flags that begin with redis can go"
            .into()
    })
}

/// What is to be said if a neighbour keeps a cursor under a name that nobody chose.
fn name_remark(is_named: bool, name: &str, relays: &[RelayOptions]) -> Option<String> {
    (!is_named && relays.iter().any(|relay| relay.is_pull_under(name))).then(|| {
        "no name: pulls without a client-id go under this machine's; where that changes (containers), all that their servers have comes again"
            .into()
    })
}

fn machine() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

fn remarks(watchlist: &Watchlist, verified: bool, authenticated: bool, open: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if watchlist.patterns().is_empty() {
        remarks
            .push("the watchlist is empty: every webhook is refused; add --repositories owner/name".into());
    }
    if !verified {
        remarks.push("no webhook secret: signatures are not checked; set --webhook-hmac-file".into());
    }
    if !authenticated {
        remarks.push(
            "no client token: everybody who reaches the gRPC port may subscribe; set --client-token-file"
                .into(),
        );
    }
    if !(open || verified && authenticated) {
        remarks
            .push("listening on loopback only until webhooks are verified and clients authenticated".into());
    }
    remarks
}

#[cfg(test)]
mod tests;
