//! What the client's settings mean: from what was typed to what the program needs, all mistakes at once.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::backoff::Backoff;
use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::filter::Filter;
use gitstafette_core::secret::Secret;
use gitstafette_core::target::Target;
use gitstafette_proto::convert::{ExistingCursor, Start, Subscription};
use tokio_util::sync::CancellationToken;

use crate::client::ClientOptions;
use crate::connect::ServerAddress;
use crate::logging::{LogFormat, LogLevel};
use crate::policy::DeliveryPolicy;
use crate::route::Route;
use crate::settings::{ConfigError, Known, Settings};
use crate::target::{HttpTarget, PrintTarget};
use crate::tls::{IdentityFiles, PemFiles, TlsError};

/// The default file: every key with its comment.
pub const DEFAULTS: &str = include_str!("config.default.toml");

/// The settings there are. Variables by other names: those of the Go implementation.
pub const KNOWN: Known = Known { defaults: DEFAULTS, environment: &[("OAUTH_TOKEN", &["token"])] };

/// The most repositories that can be delivered at once: each may take a connection to the target.
const MOST_PARALLEL: u64 = 1024;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The client.
    pub client: ClientOptions,
    /// Cancelled when webhooks are printed and nobody reads them: the program is to end.
    pub output_closed: CancellationToken,
    /// Where `GET /health` is served.
    pub health_port: Option<HealthPort>,
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
        let print = PrintTarget::new();
        let output_closed = print.closed();
        let (target, to): (Arc<dyn Target>, _) = match target(&mut settings, &tls_files) {
            Some((target, url)) => (Arc::new(target), Some(url)),
            None => (Arc::new(print), None),
        };
        let given_id = settings.optional("client-id");
        let mut remarks = remarks(&server, &filter, to.as_deref(), given_id.is_some());
        remarks.extend(settings.unknown_variables());
        let client_id = given_id.unwrap_or_else(|| default_client_id(to.is_some()));
        let policy = policy(&mut settings);
        let health_port = match settings.value("health-check-port", 0) {
            0 => None,
            port if settings.is_set("health-check-port") => Some(HealthPort::Wanted(port)),
            // The target's own port is not to be taken from it while it is down: that of Jenkins is the default.
            port if to.as_deref().and_then(port_of) == Some(port) => None,
            port => Some(HealthPort::IfFree(port)),
        };
        let log_format = settings.value("log-format", LogFormat::Text);
        let log_level = settings.value("log-level", LogLevel::default());
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
            },
            routes: vec![Route { policy, ..Route::new(target) }],
        };
        settings.finish(Self { client, output_closed, health_port, log_format, log_level, remarks })
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
        (None, _) => settings.value("port", 1), // a wrong one is reported as itself
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
    ServerAddress { host: host.to_owned(), port, tls, token: token(settings) }
}

fn token(settings: &mut Settings) -> Option<Secret> {
    let mut tokens = settings.secrets("token");
    if tokens.len() > 1 {
        settings.problem("token", "is given more than once: as a value and as a file");
    }
    tokens.pop()
}

fn client_tls(settings: &mut Settings, files: &PemFiles) -> Option<Arc<rustls::ClientConfig>> {
    usable(settings, files, files.client_config()).map(Arc::new)
}

fn usable<T>(settings: &mut Settings, files: &PemFiles, tls: Result<T, TlsError>) -> Option<T> {
    tls.map_err(|error| settings.problem(files.setting_of(&error), &error.to_string())).ok()
}

/// The target with its URL, if there is one.
fn target(settings: &mut Settings, files: &PemFiles) -> Option<(HttpTarget, String)> {
    let timeout = settings.positive_duration("target-timeout");
    let relay = relay_url(settings);
    let url = match (settings.optional::<String>("target"), relay) {
        (Some(_), Some(_)) => {
            settings.problem("target", "and relay-enabled are two targets: give one of them");
            None
        }
        (target, relay) => target.or(relay),
    }?;
    http_target(settings, files, &url, timeout).map(|target| (target, url))
}

/// Reads how to talk to the HTTP endpoint at `url`, which answers a try within `timeout`.
pub fn http_target(
    settings: &mut Settings,
    files: &PemFiles,
    url: &str,
    timeout: Duration,
) -> Option<HttpTarget> {
    let tls = if url.starts_with("https:") { usable(settings, files, files.target_config()) } else { None };
    let target = HttpTarget::try_new(url, timeout, tls.unwrap_or_else(no_tls));
    target.map_err(|error| settings.problem("target", &error.to_string())).ok()
}

/// Reads where a client id starts that the server does not know yet.
pub fn start(settings: &mut Settings) -> Start {
    settings.value("start", StartSetting(Start::Cursor)).0
}

/// Reads the waits between tries.
pub fn backoff(settings: &mut Settings) -> Backoff {
    Backoff {
        first: settings.positive_duration("retry-first"),
        most: settings.positive_duration("retry-most"),
    }
}

/// Reads how many repositories are delivered at once.
pub fn parallel(settings: &mut Settings) -> usize {
    usize::try_from(settings.count("target-parallel", MOST_PARALLEL)).unwrap_or(usize::MAX)
}

fn policy(settings: &mut Settings) -> DeliveryPolicy {
    let attempts: u32 = settings.value("give-up-attempts", 0);
    DeliveryPolicy {
        backoff: backoff(settings),
        give_up_after: settings.duration("give-up-after"),
        give_up_attempts: Some(attempts).filter(|attempts| *attempts > 0),
        parallel: parallel(settings),
    }
}

fn relay_url(settings: &mut Settings) -> Option<String> {
    let protocol: String = settings.value("relay-protocol", String::new());
    let host: String = settings.value("relay-host", String::new());
    let port: u16 = settings.value("relay-port", 0);
    let path: String = settings.optional("relay-path").unwrap_or_default();
    if !settings.flag("relay-enabled") {
        for key in ["relay-host", "relay-port", "relay-path", "relay-protocol"] {
            if settings.is_changed(key) {
                settings.problem(key, "is given without --relay-enabled: nothing would be relayed");
            }
        }
        return None;
    }
    if !matches!(protocol.as_str(), "http" | "https") {
        settings.problem("relay-protocol", "is neither http nor https");
    }
    Some(format!("{protocol}://{host}:{port}/{}", path.trim_start_matches('/')))
}

/// For a target without TLS: trusts nobody, and is never asked.
fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
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

fn port_of(url: &str) -> Option<u16> {
    url.parse::<http::Uri>().ok()?.port_u16()
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The id of a client that was given none. One that prints has its own: it must not take over the subscription of one
/// that delivers, and acknowledge in its place.
fn default_client_id(delivers: bool) -> ClientId {
    let machine = gethostname::gethostname().to_string_lossy().into_owned();
    let what = if delivers { "gitstafette-client" } else { "gitstafette-client-print" };
    format!("{what}-{machine}").parse().or_else(|_| what.parse()).expect("the fallback is a client id")
}

fn remarks(server: &ServerAddress, filter: &Filter, target: Option<&str>, has_id: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if target.is_none() {
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
