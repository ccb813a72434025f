//! Where webhooks go: from the settings of `target` and `relay-…` to a target and how it is tried.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use gitstafette_core::backoff::Backoff;
use gitstafette_core::target::Target;
use gitstafette_core::verify::GitHubSignature;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::usable;
use crate::policy::DeliveryPolicy;
use crate::settings::Settings;
use crate::target::{HttpTarget, PrintTarget, VerifiedTarget};
use crate::tls::PemFiles;

/// The most repositories that can be delivered at once: each may take a connection to the target.
const MOST_PARALLEL: u64 = 1024;
/// The settings that say where a relay goes and mean nothing without `relay-enabled`.
const RELAY_KEYS: [&str; 4] = ["relay-host", "relay-port", "relay-path", "relay-protocol"];

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
pub(super) struct Place {
    pub(super) protocol: Protocol,
    pub(super) host: String,
    pub(super) port: u16,
}

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Https,
}

impl Protocol {
    /// The scheme of its URLs.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Http, Self::Https]
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or_else(|| format!("{text:?} is neither http nor https"))
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
    let attempts: u32 = settings.value("give-up-attempts", 0);
    DeliveryPolicy {
        backoff: Backoff {
            first: settings.positive_duration("retry-first"),
            most: settings.positive_duration("retry-most"),
        },
        give_up_after: settings.duration("give-up-after"),
        give_up_attempts: Some(attempts).filter(|attempts| *attempts > 0),
        parallel: usize::try_from(settings.count("target-parallel", MOST_PARALLEL)).unwrap_or(usize::MAX),
    }
}

/// The target that `target` or the `relay-…` settings name, if one of them does.
fn remote(settings: &mut Settings, files: &PemFiles) -> Option<(Arc<dyn Target>, Place)> {
    let http = Http {
        timeout: settings.positive_duration("target-timeout"),
        probe: settings.optional("relay-health-check-path"),
    };
    let is_relay = is_relay(settings);
    match (settings.optional::<String>("target"), is_relay) {
        (Some(_), true) => {
            settings.problem("target", "and relay-enabled are two targets: give one of them");
            None
        }
        (Some(url), false) => http.target(&url, settings, files),
        (None, true) => match settings.value("relay-protocol", Protocol::Http) {
            protocol @ (Protocol::Http | Protocol::Https) => {
                let url = relay_url(settings, protocol);
                http.target(&url, settings, files)
            }
        },
        (None, false) => {
            if http.probe.is_some() && !settings.is_set("relay-enabled") {
                settings.problem("relay-health-check-path", "is given without a target to look at");
            }
            None
        }
    }
}

/// Whether to relay. What says where to, while nothing says that, is a mistake: the webhooks would not go there. Where it
/// is said that nothing is to be relayed, it is left for another time.
fn is_relay(settings: &mut Settings) -> bool {
    let enabled = settings.flag("relay-enabled");
    if !enabled && !settings.is_set("relay-enabled") {
        for key in RELAY_KEYS {
            if settings.is_changed(key) {
                settings.problem(key, "is given without --relay-enabled: nothing would be relayed");
            }
        }
    }
    enabled
}

fn relay_url(settings: &mut Settings, protocol: Protocol) -> String {
    let host: String = settings.value("relay-host", String::new());
    let port: u16 = settings.value("relay-port", 0);
    let path: String = settings.optional("relay-path").unwrap_or_default();
    format!("{}://{host}:{port}/{}", protocol.as_str(), path.trim_start_matches('/'))
}

/// What targets of HTTP and HTTPS have in common.
struct Http {
    timeout: Duration,
    /// The path that is asked whether the target is back.
    probe: Option<String>,
}

impl Http {
    fn target(
        self,
        url: &str,
        settings: &mut Settings,
        files: &PemFiles,
    ) -> Option<(Arc<dyn Target>, Place)> {
        let is_https = url.starts_with("https:");
        let tls = if is_https { usable(settings, files, files.target_config()) } else { None };
        let target = HttpTarget::try_new(url, self.timeout, tls.unwrap_or_else(no_tls));
        let target = target.map_err(|error| settings.problem("target", &error.to_string())).ok()?;
        let target = match &self.probe {
            Some(path) => target.probed_at(path),
            None => target,
        };
        Some((Arc::new(target), place(url)?))
    }
}

/// Where a URL that can be posted to leads.
fn place(url: &str) -> Option<Place> {
    let url = Url::parse(url).ok()?;
    Some(Place {
        protocol: url.scheme().parse().ok()?,
        host: url.host_str()?.to_owned(),
        port: url.port_or_known_default()?,
    })
}

/// For a target without TLS: trusts nobody, and is never asked.
fn no_tls() -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default protocol versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
