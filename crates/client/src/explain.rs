//! Errors of the system and of libraries in plain words, for people.
//!
//! Causes are recognised by their types, never by their texts.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use rustls::{AlertDescription, CertificateError};

/// Why a file cannot be read.
pub fn file_error(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied; check the file's owner and mode".to_owned(),
        ErrorKind::IsADirectory => "it is a folder; a file is needed".to_owned(),
        ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

/// Why a port cannot be listened on.
pub fn listen_error(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "another program uses the port; stop it, or choose another port".to_owned(),
        ErrorKind::PermissionDenied => {
            "permission denied; ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_owned()
        }
        ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
        _ => error.to_string(),
    }
}

/// What went wrong on a connection to a server or a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The name has no address.
    UnknownHost(String),
    /// Something answers that does not speak TLS.
    NotTls,
    /// Something answers that does not speak the expected version of HTTP.
    NotHttp,
    /// The other side's certificate is not accepted.
    Certificate(String),
    /// The TLS handshake failed in another way.
    Tls(String),
    /// The other side closed the connection.
    Closed,
    /// Any other reason.
    Other(String),
}

/// A name that has no address.
#[derive(Debug, thiserror::Error)]
#[error("the name {name} has no address: {source}")]
pub(crate) struct UnknownHost {
    pub(crate) name: String,
    pub(crate) source: io::Error,
}

/// Looks a host up, with an error that [`Fault`] knows.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<impl Iterator<Item = SocketAddr>> {
    let unknown = |source| io::Error::other(UnknownHost { name: host.to_owned(), source });
    tokio::net::lookup_host((host, port)).await.map_err(unknown)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownHost(name) => write!(f, "the name {name} has no address"),
            Self::NotTls => f.write_str("the port does not speak TLS"),
            Self::NotHttp => f.write_str("the port does not speak HTTP"),
            Self::Closed => f.write_str("the other side closed the connection"),
            Self::Certificate(text) | Self::Tls(text) | Self::Other(text) => f.write_str(text),
        }
    }
}

impl Fault {
    /// Looks for the cause of an error, from the outermost error inwards.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        let mut innermost = error;
        let (mut http, mut system) = (None, None);
        while let Some(error) = cause {
            innermost = error;
            system = error.downcast_ref::<io::Error>().or(system);
            if let Some(error) = error.downcast_ref::<UnknownHost>() {
                return Self::UnknownHost(error.name.clone());
            }
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Self::of_tls(error);
            }
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                http = Self::of_http2(error).or(http);
            } else if let Some(error) = error.downcast_ref::<hyper::Error>() {
                http = Self::of_http(error).or(http);
            }
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
        }
        http.unwrap_or_else(|| system.map_or_else(|| Self::Other(innermost.to_string()), Self::of_io))
    }

    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::InvalidCertificate(error) => Self::Certificate(certificate_error(error)),
            rustls::Error::AlertReceived(alert) => Self::Tls(alert_text(*alert)),
            rustls::Error::NoApplicationProtocol => Self::NotHttp,
            rustls::Error::PeerIncompatible(_) => {
                Self::Tls("the two sides have no TLS version or cipher in common".to_owned())
            }
            other => Self::Tls(other.to_string()),
        }
    }

    /// Only an error that this side found by itself tells that the other side does not speak HTTP/2.
    fn of_http2(error: &h2::Error) -> Option<Self> {
        if let Some(error) = error.get_io() {
            return Some(Self::of_io(error));
        }
        if error.is_remote() {
            return Some(Self::Closed);
        }
        let is_foreign =
            matches!(error.reason(), Some(h2::Reason::FRAME_SIZE_ERROR | h2::Reason::PROTOCOL_ERROR));
        (error.is_library() && is_foreign).then_some(Self::NotHttp)
    }

    fn of_http(error: &hyper::Error) -> Option<Self> {
        if error.is_parse() {
            Some(Self::NotHttp)
        } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            Some(Self::Closed)
        } else {
            None
        }
    }

    fn of_io(error: &io::Error) -> Self {
        Self::Other(match error.kind() {
            ErrorKind::ConnectionRefused => "nothing listens on the port (connection refused)".to_owned(),
            ErrorKind::TimedOut => "no answer in time".to_owned(),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                "there is no route to the host".to_owned()
            }
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof => return Self::Closed,
            _ => error.to_string(),
        })
    }
}

fn certificate_error(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "no trusted CA signed its certificate; name the CA with --ca-file-location".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; check this machine's clock".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        CertificateError::Revoked => "its certificate was revoked".to_owned(),
        other => format!("its certificate is not valid: {other}"),
    }
}

/// What the other side's refusal means.
fn alert_text(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it asks for a client certificate (--cert-file-location and --cert-key-file-location)".to_owned()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => {
            "it does not accept this side's certificate (--cert-file-location)".to_owned()
        }
        AlertDescription::CertificateExpired => "this side's certificate has expired".to_owned(),
        AlertDescription::UnrecognisedName => "it does not know the host's name".to_owned(),
        AlertDescription::NoApplicationProtocol => "it does not offer HTTP/2, which gRPC needs".to_owned(),
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "the two sides have no TLS version or cipher in common".to_owned()
        }
        other => format!("it ended the TLS handshake with the alert {other:?}"),
    }
}

#[cfg(test)]
mod tests;
