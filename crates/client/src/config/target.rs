//! Where webhooks go: from the settings of `target` and `relay-…` to a target and how it is tried.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::backoff::Backoff;
use gitstafette_core::target::Target;
use gitstafette_core::verify::GitHubSignature;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::{is_loopback, machine, token, usable};
use crate::connect::{ServerAddress, authority};
use crate::policy::DeliveryPolicy;
use crate::settings::Settings;
use crate::target::{HttpTarget, PrintTarget, ServerTarget, VerifiedTarget};
use crate::tls::PemFiles;

/// The most repositories that can be delivered at once: each may take a connection to the target.
const MOST_PARALLEL: u64 = 1024;
/// The port of a server's gRPC listener, unless another is given.
const GRPC_PORT: u16 = 50051;
/// The settings that say where a relay goes and mean nothing without `relay-enabled`.
const RELAY_KEYS: [&str; 4] = ["relay-host", "relay-port", "relay-path", "relay-protocol"];
/// The settings that make up the URL of a relay.
pub const RELAY_URL: &str = "--relay-protocol, --relay-host, --relay-port and --relay-path";

/// The target, and what is to be known of it elsewhere.
pub(super) struct Chosen {
    pub(super) target: Arc<dyn Target>,
    /// Where it is; `None` if webhooks are printed.
    pub(super) place: Option<Place>,
    /// Cancelled when webhooks are printed and nobody reads them.
    pub(super) output_closed: CancellationToken,
    /// What the operator should know about it.
    pub(super) remark: Option<String>,
}

/// Where a target is, without its path, which may hold a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Host name or IP address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Place {
    /// Of another server.
    pub fn of_server(server: &ServerAddress) -> Self {
        let protocol = if server.tls.is_some() { Protocol::Grpcs } else { Protocol::Grpc };
        Self { protocol, host: server.host.clone(), port: server.port }
    }

    /// Of a URL that can be posted to.
    fn of_url(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        let protocol = if url.scheme() == "https" { Protocol::Https } else { Protocol::Http };
        Some(Self { protocol, host: url.host_str()?.to_owned(), port: url.port_or_known_default()? })
    }
}

impl fmt::Display for Place {
    /// As a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, host, port } = self;
        write!(f, "{}://{}", protocol.as_str(), authority(host, *port))
    }
}

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP, in plain text.
    Http,
    /// HTTP over TLS.
    Https,
    /// gRPC, in plain text: a Gitstafette server.
    Grpc,
    /// gRPC over TLS.
    Grpcs,
}

impl Protocol {
    /// The word for URLs and `GetInfo`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Grpc => "grpc",
            Self::Grpcs => "grpcs",
        }
    }
}

/// The setting `relay-protocol`.
enum RelayProtocol {
    Http,
    Https,
    Grpc,
}

impl FromStr for RelayProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            "grpc" => Ok(Self::Grpc),
            _ => Err(format!("{text:?} is neither http, https nor grpc")),
        }
    }
}

/// Reads the target; without one, webhooks are printed.
pub(super) fn target(settings: &mut Settings, files: &PemFiles) -> Chosen {
    let print = PrintTarget::new();
    let output_closed = print.closed();
    let (target, place): (Arc<dyn Target>, _) = match remote(settings, files) {
        Some((target, place)) => (target, Some(place)),
        None => (Arc::new(print), None),
    };
    let secrets = settings.secrets("webhook-hmac");
    let target = if secrets.is_empty() {
        target
    } else {
        Arc::new(VerifiedTarget::new(target, GitHubSignature::new(secrets)))
    };
    let insecure = settings.flag("relay-insecure");
    let is_https = place.as_ref().is_some_and(|place| place.protocol == Protocol::Https);
    let remark = (insecure && is_https).then(|| {
        "relay-insecure: the target's certificate is checked all the same; name its CA with --ca-file-location"
            .into()
    });
    Chosen { target, place, output_closed, remark }
}

/// How often and how long a target is tried.
pub(super) fn policy(settings: &mut Settings) -> DeliveryPolicy {
    let attempts = u32::try_from(settings.number("give-up-attempts", u32::MAX.into())).unwrap_or(u32::MAX);
    DeliveryPolicy {
        backoff: backoff(settings),
        give_up_after: settings.duration("give-up-after"),
        give_up_attempts: Some(attempts).filter(|attempts| *attempts > 0),
        parallel: parallel(settings),
    }
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

/// The target that `target` or the `relay-…` settings name, if one of them does.
fn remote(settings: &mut Settings, files: &PemFiles) -> Option<(Arc<dyn Target>, Place)> {
    let timeout = settings.positive_duration("target-timeout");
    let probe: Option<String> = settings.optional("relay-health-check-path");
    let is_relay = is_relay(settings, &RELAY_KEYS);
    match (settings.optional::<String>("target"), is_relay) {
        (Some(_), true) => {
            settings.problem("target", "and relay-enabled are two targets: give one of them");
            None
        }
        (Some(url), false) => {
            let endpoint = HttpEndpoint { url: &url, setting: "--target", probe: probe.as_deref() };
            http_target(settings, files, endpoint, timeout)
        }
        (None, true) => {
            let scheme = match settings.value("relay-protocol", RelayProtocol::Http) {
                RelayProtocol::Grpc => return server_target(settings, files, timeout),
                RelayProtocol::Http => "http",
                RelayProtocol::Https => "https",
            };
            let url = relay_url(settings, scheme);
            let endpoint = HttpEndpoint { url: &url, setting: RELAY_URL, probe: probe.as_deref() };
            http_target(settings, files, endpoint, timeout)
        }
        (None, false) => {
            if probe.is_some() && !settings.is_set("relay-enabled") {
                settings.problem("relay-health-check-path", "is given without a target to look at");
            }
            None
        }
    }
}

/// Whether to relay. What says where to, while nothing says that, is a mistake: the webhooks would not go there. Where it
/// is said that nothing is to be relayed, it is left for another time.
pub fn is_relay(settings: &mut Settings, keys: &[&str]) -> bool {
    let enabled = settings.flag("relay-enabled");
    if !enabled && !settings.is_set("relay-enabled") {
        for key in keys {
            if settings.is_changed(key) {
                settings.problem(key, "is given without --relay-enabled: nothing would be relayed");
            }
        }
    }
    enabled
}

/// The URL that `relay-host`, `relay-port` and `relay-path` make up.
pub fn relay_url(settings: &mut Settings, scheme: &str) -> String {
    let host: String = settings.value("relay-host", String::new());
    let port = settings.port("relay-port", 0);
    let path: String = settings.optional("relay-path").unwrap_or_default();
    format!("{scheme}://{}/{}", authority(&host, port), path.trim_start_matches('/'))
}

/// Another Gitstafette server.
fn server_target(
    settings: &mut Settings,
    files: &PemFiles,
    timeout: Duration,
) -> Option<(Arc<dyn Target>, Place)> {
    let host: String = settings.value("relay-host", String::new());
    let port = if settings.is_set("relay-port") { settings.port("relay-port", 0) } else { GRPC_PORT };
    let is_plain = settings.flag("relay-insecure") || is_loopback(&host);
    let tls = if is_plain { None } else { Some(Arc::new(usable(settings, files, files.client_config())?)) };
    let server = ServerAddress { host, port, tls, token: token(settings, "relay-token") };
    let place = Place::of_server(&server);
    let name: String = settings.optional("name").unwrap_or_else(machine);
    Some((Arc::new(ServerTarget::new(server, name, timeout)), place))
}

/// An HTTP endpoint in the settings.
#[derive(Clone, Copy, Debug)]
pub struct HttpEndpoint<'a> {
    /// Where webhooks are posted to.
    pub url: &'a str,
    /// The name of the setting that the URL is from.
    pub setting: &'a str,
    /// The path that tells whether the endpoint is back.
    pub probe: Option<&'a str>,
}

/// Reads how to talk to an HTTP endpoint, which answers an attempt within `timeout`.
pub fn http_target(
    settings: &mut Settings,
    files: &PemFiles,
    HttpEndpoint { url, setting, probe }: HttpEndpoint<'_>,
    timeout: Duration,
) -> Option<(Arc<dyn Target>, Place)> {
    let is_https = url.starts_with("https:");
    let tls = if is_https { usable(settings, files, files.target_config()) } else { None };
    let target = HttpTarget::try_new(url, timeout, tls.unwrap_or_else(no_tls));
    let target = target.map_err(|error| settings.problem("target", &error.to_string())).ok()?;
    let target = target.set_by(setting);
    let target = match probe {
        Some(path) => target.probed_at(path),
        None => target,
    };
    Some((Arc::new(target), Place::of_url(url)?))
}

/// For a target without TLS: trusts nobody, and is never asked.
fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
