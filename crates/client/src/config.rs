//! What the client's settings mean: from what was typed to what the program needs, all mistakes at once.

mod target;

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::secret::Secret;
use gitstafette_proto::convert::{ExistingCursor, Start, Subscription};
use tokio_util::sync::CancellationToken;

use crate::client::ClientOptions;
use crate::connect::{ServerAddress, is_sendable};
use crate::info::Identity;
use crate::logging::{LogFormat, LogLevel};
use crate::route::Route;
use crate::settings::{ConfigError, Known, OtherProgram, Settings};
use crate::tls::{IdentityFiles, PemFiles, TlsError};
use target::{Chosen, policy, target};

pub use target::{
    HttpEndpoint, Place, Protocol, RELAY_URL, backoff, http_target, is_relay, parallel, relay_url,
};

/// The default file: every key with its comment.
pub const DEFAULTS: &str = include_str!("config.default.toml");

/// The settings there are. Variables by other names: those of the Go implementation.
pub const KNOWN: Known = Known {
    defaults: DEFAULTS,
    environment: &[("OAUTH_TOKEN", &["token"])],
    other: OtherProgram { name: "gitstafette-server", keys: server_keys },
};

/// The settings that only the server has, in alphabetical order. A test of the server compares them with its default file.
pub const SERVER_KEYS: &[&str] = &[
    "admin-bind",
    "admin-port",
    "admin-token",
    "admin-token-file",
    "allow-anonymous",
    "allow-unsigned",
    "bind",
    "body-limit",
    "client-token",
    "client-token-file",
    "drain-timeout",
    "forget-clients",
    "grpc-health-port",
    "grpc-port",
    "heartbeat-interval",
    "http-tls",
    "idle-timeout",
    "inflight-limit",
    "max-client-ids",
    "max-connections",
    "outgoing-limit",
    "publisher-token",
    "publisher-token-file",
    "redelivery",
    "relay",
    "repositories",
    "request-timeout",
    "retention-age",
    "retention-bytes",
    "retention-count",
    "store",
];

fn server_keys() -> Vec<String> {
    SERVER_KEYS.iter().map(|key| (*key).to_owned()).collect()
}

/// The shortest stream: below that, a client would do little else than connecting.
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The client.
    pub client: ClientOptions,
    /// Cancelled when webhooks are printed and nobody reads them: the program is to end.
    pub output_closed: CancellationToken,
    /// Where `GET /health` is served.
    pub health_port: Option<HealthPort>,
    /// Where `info.Info` and gRPC health are served, on all addresses.
    pub info_port: Option<u16>,
    /// What is told there.
    pub identity: Identity,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogLevel,
    /// What the operator should know about this configuration.
    pub remarks: Vec<String>,
}

/// The port for `GET /health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPort {
    /// The default, on loopback: if it is taken, the client runs without.
    IfFree(u16),
    /// Asked for, on all addresses: if it is taken, the client does not start.
    Wanted(u16),
}

impl HealthPort {
    /// Its number.
    pub const fn number(self) -> u16 {
        match self {
            Self::IfFree(number) | Self::Wanted(number) => number,
        }
    }
}

impl Config {
    /// Checks the settings.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(mut settings: Settings) -> Result<Self, ConfigError> {
        let tls_files = pem_files(&mut settings);
        let server = server(&mut settings, &tls_files);
        let filter = Filter { repositories: settings.list("repo"), events: settings.list("event") };
        let start = start(&mut settings);
        let max_events = settings.count("max-unacknowledged-events", u32::MAX.into());
        let max_bytes = settings.positive_bytes("max-unacknowledged-bytes");
        let Chosen { target, place, output_closed, remark } = target(&mut settings, &tls_files);
        let given_id = settings.optional("client-id");
        let mut remarks = remarks(&server, &filter, place.is_some(), given_id.is_some());
        remarks.extend(remark);
        let client_id = given_id.unwrap_or_else(|| default_client_id(place.is_some()));
        let policy = policy(&mut settings);
        let stream_window = stream_window(&mut settings);
        let info_port = settings.optional_port("info-port").filter(|port| *port != 0);
        let health_port = health_port(&mut settings, place.as_ref(), info_port);
        let identity = Identity {
            name: settings.optional("name").unwrap_or_else(machine),
            repositories: filter.repositories.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            health_port: health_port.map(HealthPort::number),
            target: place.map(|Place { protocol, host, port }| (protocol.as_str(), host, port)),
        };
        let log_format = settings.value("log-format", LogFormat::Text);
        let log_level = settings.value("log-level", LogLevel::default());
        remarks.extend_from_slice(settings.warnings());
        let client = ClientOptions {
            server,
            subscription: Subscription {
                client_id,
                filter,
                start,
                existing_cursor: ExistingCursor::Keep,
                max_events: u32::try_from(max_events).ok(),
                max_bytes: Some(max_bytes),
                deferred: Vec::new(),
                seen: None,
                resume_at_seen: false,
            },
            routes: vec![Route { policy, ..Route::new(target) }],
            stream_window,
        };
        settings.finish(Self {
            client,
            output_closed,
            health_port,
            info_port,
            identity,
            log_format,
            log_level,
            remarks,
        })
    }
}

/// Reads the three flags for PEM files, which both programs have.
pub fn pem_files(settings: &mut Settings) -> PemFiles {
    let ca = settings.optional("ca-file-location");
    let certificate = settings.optional("cert-file-location");
    let key = settings.optional("cert-key-file-location");
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(IdentityFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            settings.problem("cert-key-file-location", "is missing: a certificate needs its key");
            None
        }
        (None, Some(_)) => {
            settings.problem("cert-file-location", "is missing: a key needs its certificate");
            None
        }
    };
    PemFiles { ca, identity }
}

/// Reads where the server is and how to talk to it.
pub fn server(settings: &mut Settings, files: &PemFiles) -> ServerAddress {
    let typed: String = settings.value("server", String::new());
    let (scheme, address) = match typed.split_once("://") {
        Some((scheme, address)) => (Some(scheme), address.trim_end_matches('/')),
        None => (None, typed.as_str()),
    };
    let (host, port) = split_port(address);
    let port = match (port, scheme) {
        (Some(port), _) => port,
        // A URL without a port means its scheme's own (RFC 9110 §4.2).
        (None, Some("https")) if !settings.is_set("port") => 443,
        (None, Some("http")) if !settings.is_set("port") => 80,
        (None, _) => settings.port("port", 1), // a wrong one is reported as itself
    };
    if host.is_empty() || host.contains(['/', '@', '?']) || port == 0 {
        settings.problem("server", "wants a host, host:port or https://host:port");
    }
    let secure = settings.flag("secure");
    let insecure = settings.flag("insecure");
    let tls = match (scheme, secure, insecure) {
        (_, true, true) => {
            settings.problem("secure", "contradicts insecure: give one of them");
            true
        }
        (Some("https"), _, false) | (None, true, _) => true,
        (Some("http"), false, _) | (None, _, true) => false,
        (None, false, false) => files.ca.is_some() || !is_loopback(host),
        (Some("https" | "http"), ..) => {
            settings.problem("server", "has a scheme that secure or insecure contradicts");
            true
        }
        (Some(_), ..) => {
            settings.problem("server", "has a scheme that is neither http nor https");
            true
        }
    };
    let tls = if tls { client_tls(settings, files) } else { None };
    ServerAddress { host: host.to_owned(), port, tls, token: token(settings, "token") }
}

fn token(settings: &mut Settings, key: &str) -> Option<Secret> {
    let mut tokens = settings.secrets(key);
    if tokens.len() > 1 {
        settings.problem(key, "is given more than once: as a value and as a file");
    }
    if !tokens.iter().all(is_sendable) {
        settings.problem(key, "has characters that a request cannot carry: is it one line of visible ASCII?");
    }
    tokens.pop()
}

fn client_tls(settings: &mut Settings, files: &PemFiles) -> Option<Arc<rustls::ClientConfig>> {
    usable(settings, files, files.client_config()).map(Arc::new)
}

fn usable<T>(settings: &mut Settings, files: &PemFiles, tls: Result<T, TlsError>) -> Option<T> {
    tls.map_err(|error| settings.problem(files.setting_of(&error), &error.to_string())).ok()
}

/// Reads where a client id starts that the server does not know yet.
pub fn start(settings: &mut Settings) -> Start {
    settings.value("start", StartSetting(Start::Cursor)).0
}

/// Where `GET /health` is served, if at all.
fn health_port(settings: &mut Settings, target: Option<&Place>, info: Option<u16>) -> Option<HealthPort> {
    match settings.port("health-check-port", 0) {
        0 => None,
        port if settings.is_set("health-check-port") => {
            if info == Some(port) {
                settings.problem("info-port", "is the port of GET /health; choose another");
            }
            Some(HealthPort::Wanted(port))
        }
        // The target's own port is not to be taken from it while it is down: that of Jenkins is the default.
        port if target.is_some_and(|target| target.port == port) || info == Some(port) => None,
        port => Some(HealthPort::IfFree(port)),
    }
}

fn stream_window(settings: &mut Settings) -> Option<Duration> {
    let window = settings.optional_duration("stream-window").filter(|window| !window.is_zero())?;
    if window < SHORTEST_WINDOW {
        settings.problem("stream-window", "is less than 1s; 0 is for ever");
    }
    Some(window)
}

/// `host:port` in its parts; an IPv6 address may stand alone, or in brackets before a port.
fn split_port(address: &str) -> (&str, Option<u16>) {
    if address.parse::<IpAddr>().is_ok() {
        return (address, None);
    }
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
        _ => (address, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn machine() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// The id of a client that was given none. One that prints has its own: it must not take over the subscription of one
/// that delivers, and acknowledge in its place.
fn default_client_id(delivers: bool) -> ClientId {
    let machine = machine();
    let what = if delivers { "gitstafette-client" } else { "gitstafette-client-print" };
    format!("{what}-{machine}").parse().or_else(|_| what.parse()).expect("the fallback is a client id")
}

fn remarks(server: &ServerAddress, filter: &Filter, has_target: bool, has_id: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if !has_target {
        remarks.push(
            "no target: webhooks are printed here; deliver them with --target http://host:port/path".into(),
        );
    } else if !has_id {
        remarks.push(
            "no --client-id: under this machine's name; where that changes (containers), all stored webhooks come again"
                .into(),
        );
    }
    if filter.repositories.is_empty() {
        remarks.push("no --repo: everything that the server accepts is delivered".into());
    }
    remarks.extend(plain_text_remark(server));
    remarks
}

/// What is to be said of a connection without TLS.
pub(crate) fn plain_text_remark(server: &ServerAddress) -> Option<String> {
    (server.tls.is_none() && !is_loopback(&server.host))
        .then(|| "plain text to the server: everybody on the way can read webhooks and the token".into())
}

/// A start as it is typed.
struct StartSetting(Start);

impl FromStr for StartSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self(Start::Cursor)), // where an id without a cursor starts anyway
            "latest" => Ok(Self(Start::Latest)),
            _ => text
                .parse()
                .map(|number| Self(Start::After(Sequence::new(number))))
                .map_err(|_| format!("{text:?} is neither earliest, latest nor a sequence number")),
        }
    }
}

#[cfg(test)]
mod tests;
