//! TLS from PEM files. The only module that knows how PEM is read, so that the reader can be exchanged in one place.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::{BuilderVerifierExt, Verifier};

use crate::explain::file_error;

/// The PEM files that identify one side and say whom it trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PemFiles {
    /// The certificates to trust.
    pub ca: Option<PathBuf>,
    /// The own certificate chain and its key.
    pub identity: Option<IdentityFiles>,
}

/// A certificate chain, the own certificate first, and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The chain.
    pub certificate: PathBuf,
    /// The key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Why TLS cannot be set up: the file and the check that failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("{path}: cannot be read: {}", file_error(source))]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It holds nothing of the kind that is wanted.
    #[error("{path}: holds no PEM {wanted}")]
    Nothing {
        /// The file.
        path: String,
        /// What is wanted.
        wanted: &'static str,
    },
    /// It holds something that TLS cannot use.
    #[error("{path}: {check}: {source}")]
    Unusable {
        /// The file or files.
        path: String,
        /// What was checked.
        check: &'static str,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The system's own roots cannot be used.
    #[error("the system's root certificates cannot be used: {0}; name a file with --ca-file-location")]
    SystemRoots(rustls::Error),
}

impl PemFiles {
    /// The client's side of TLS: trusts the CA file, else the system's roots, and shows the identity if there is one.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::SystemRoots)?;
        let builder = match &self.ca {
            Some(path) => builder.with_root_certificates(roots(path)?),
            None => builder.with_platform_verifier().map_err(TlsError::SystemRoots)?,
        };
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(identity) => {
                let (chain, key) = identity.load()?;
                builder.with_client_auth_cert(chain, key).map_err(|source| identity.unusable(source))
            }
        }
    }
}

impl PemFiles {
    /// The setting that an error is about.
    pub(crate) fn setting_of(&self, error: &TlsError) -> &'static str {
        let path = match error {
            TlsError::SystemRoots(_) => return "ca-file-location",
            TlsError::Read { path, .. }
            | TlsError::Nothing { path, .. }
            | TlsError::Unusable { path, .. } => path,
        };
        let is_ca = self.ca.as_ref().is_some_and(|ca| ca.display().to_string() == *path);
        if is_ca { "ca-file-location" } else { "cert-file-location" }
    }

    /// TLS to a target: trusts the system's roots and the CA file, and shows nothing. The identity is for the server.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn target_config(&self) -> Result<ClientConfig, TlsError> {
        let extra = self.ca.as_deref().map(certificates).transpose()?.unwrap_or_default();
        let verifier = Verifier::new_with_extra_roots(extra, provider()).map_err(TlsError::SystemRoots)?;
        Ok(ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::SystemRoots)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }
}

impl IdentityFiles {
    /// The chain and the key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        Ok((certificates(&self.certificate)?, private_key(&self.key)?))
    }

    /// The error that the chain and the key do not make an identity.
    pub fn unusable(&self, source: rustls::Error) -> TlsError {
        let path = format!("{} with key {}", self.certificate.display(), self.key.display());
        TlsError::Unusable { path, check: "certificate and key must belong together", source }
    }
}

/// The cryptography of the whole workspace: ring.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a file as roots of trust.
///
/// # Errors
/// [`TlsError`].
pub fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable {
            path: path.display().to_string(),
            check: "must be a certificate of a CA",
            source,
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = rustls_pemfile::certs(&mut open(path)?)
        .collect::<Result<_, _>>()
        .map_err(|source| read_error(path, source))?;
    if certificates.is_empty() {
        return Err(TlsError::Nothing { path: path.display().to_string(), wanted: "certificate" });
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    rustls_pemfile::private_key(&mut open(path)?)
        .map_err(|source| read_error(path, source))?
        .ok_or_else(|| TlsError::Nothing { path: path.display().to_string(), wanted: "private key" })
}

fn open(path: &Path) -> Result<BufReader<File>, TlsError> {
    let mut file = File::open(path).map(BufReader::new).map_err(|source| read_error(path, source))?;
    // Windows' editors put a byte order mark before the first line, which then begins with no dashes.
    if file.fill_buf().map_err(|source| read_error(path, source))?.starts_with("\u{feff}".as_bytes()) {
        file.consume("\u{feff}".len());
    }
    Ok(file)
}

fn read_error(path: &Path, source: io::Error) -> TlsError {
    TlsError::Read { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        fn identity(&self, name: &str) -> IdentityFiles {
            let rcgen::CertifiedKey { cert, signing_key } =
                rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
            IdentityFiles {
                certificate: self.write(&format!("{name}.pem"), &cert.pem()),
                key: self.write(&format!("{name}.key"), &signing_key.serialize_pem()),
            }
        }
    }

    fn error(files: &PemFiles) -> String {
        files.client_config().unwrap_err().to_string()
    }

    #[test]
    fn a_ca_and_an_identity() {
        let files = Files::new();
        let identity = files.identity("a");
        let pem = PemFiles { ca: Some(identity.certificate.clone()), identity: Some(identity) };
        assert!(pem.client_config().is_ok());
        assert!(pem.target_config().is_ok());
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_do_no_harm() {
        let files = Files::new();
        let identity = files.identity("a");
        let as_windows = |name: &str, path: &Path| {
            let text = std::fs::read_to_string(path).unwrap().replace('\n', "\r\n");
            files.write(name, &format!("\u{feff}{text}"))
        };
        let (certificate, key) =
            (as_windows("b.pem", &identity.certificate), as_windows("b.key", &identity.key));
        let pem =
            PemFiles { ca: Some(certificate.clone()), identity: Some(IdentityFiles { certificate, key }) };
        assert!(pem.client_config().is_ok());
    }

    #[test]
    fn errors_name_file_and_check() {
        let files = Files::new();
        let (a, b) = (files.identity("a"), files.identity("b"));
        let text = files.write("text.pem", "not PEM");
        let with = |ca: &Path, certificate: &Path, key: &Path| PemFiles {
            ca: Some(ca.into()),
            identity: Some(IdentityFiles { certificate: certificate.into(), key: key.into() }),
        };
        let missing = files.folder.path().join("missing.pem");
        assert!(
            error(&with(&missing, &a.certificate, &a.key))
                .contains("missing.pem: cannot be read: there is no such file")
        );
        assert!(error(&with(&text, &a.certificate, &a.key)).ends_with("text.pem: holds no PEM certificate"));
        assert!(
            error(&with(&a.certificate, &a.certificate, &a.certificate))
                .ends_with("a.pem: holds no PEM private key")
        );
        let mismatch = error(&with(&a.certificate, &a.certificate, &b.key));
        assert!(
            mismatch.contains("a.pem with key") && mismatch.contains("must belong together"),
            "{mismatch}"
        );
    }
}
