//! The server's side of TLS.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use gitstafette_client::tls::{IdentityFiles, TlsError, provider, roots};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;

/// TLS of the listeners.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Certificate, key and, if client certificates are wanted, the CA that signs them.
    pub config: Arc<ServerConfig>,
    /// Whether the webhook listener takes plain text, too. A listener that serves gRPC never does.
    pub plain_webhooks: PlainWebhooks,
}

/// What the webhook listener does with a request in plain text when there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainWebhooks {
    /// Takes it: a proxy in front of the port may speak plain text, as the Go implementation's always did.
    Taken,
    /// Closes the connection.
    Refused,
}

impl FromStr for PlainWebhooks {
    type Err = &'static str;

    /// The setting `http-tls`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "detect" => Ok(Self::Taken),
            "required" => Ok(Self::Refused),
            _ => Err("it is detect or required"),
        }
    }
}

/// A TLS configuration that shows the identity. With `client_ca` it asks for a client certificate: one that the CA did
/// not sign ends the handshake; whether one is needed at all is decided per call, so that a health probe without one
/// and a webhook beside gRPC on the same port get through.
///
/// # Errors
/// [`TlsError`] names the file and the check.
pub(crate) fn server_config(
    identity: &IdentityFiles,
    client_ca: Option<&Path>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|source| identity.unusable(source))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Unusable {
                    path: path.display().to_string(),
                    check: "must hold a CA for client certificates",
                    source: rustls::Error::General(error.to_string()),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = identity.load()?;
    let mut config = builder.with_single_cert(chain, key).map_err(|source| identity.unusable(source))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
