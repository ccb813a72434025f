//! Who may subscribe and read: bearer tokens and client certificates.

use gitstafette_core::secret::Secret;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Whether the peer of a connection showed a certificate that the CA signed. Put into every request's extensions by
/// the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerCertificate {
    /// It did.
    Verified,
    /// It showed none.
    None,
}

/// What a client must show. All that is set up is asked for.
#[derive(Clone, Debug, Default)]
pub struct ClientAuth {
    /// Any of these tokens; none asks for no token. Several serve to change one while both are in use.
    pub tokens: Vec<Secret>,
    /// A certificate that the CA signed.
    pub certificate: bool,
}

impl ClientAuth {
    /// Whether anything is asked for.
    pub fn is_required(&self) -> bool {
        self.certificate || !self.tokens.is_empty()
    }

    /// Whether the caller showed what is asked for. Every token is compared, in constant time.
    pub(crate) fn check(
        &self,
        authorization: Option<&[u8]>,
        certificate: Option<PeerCertificate>,
    ) -> Result<(), AuthError> {
        if self.certificate && certificate != Some(PeerCertificate::Verified) {
            return Err(AuthError::Certificate);
        }
        if self.tokens.is_empty() { Ok(()) } else { self.check_token(authorization) }
    }

    /// Whether the caller showed one of the tokens.
    pub(crate) fn check_token(&self, authorization: Option<&[u8]>) -> Result<(), AuthError> {
        let given = authorization.and_then(bearer).ok_or(AuthError::Missing)?;
        let mut matched = false;
        for token in &self.tokens {
            matched |= token.matches(given);
        }
        if matched { Ok(()) } else { Err(AuthError::Wrong) }
    }
}

/// Why a caller is not let in. Its fault; calling again the same way does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("no bearer token; set the client's token to one of the server's")]
    Missing,
    #[error("the bearer token is wrong; set the client's token to one of the server's")]
    Wrong,
    #[error("no client certificate; connect with TLS and a certificate that the server's CA signed")]
    Certificate,
}

/// The token in `Bearer <token>` (RFC 6750 §2.1); the scheme's name has no case (RFC 9110 §11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

impl Interceptor for ClientAuth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let authorization = request.metadata().get("authorization").map(|value| value.as_bytes());
        match self.check(authorization, request.extensions().get().copied()) {
            Ok(()) => Ok(request),
            Err(error) => {
                tracing::warn!(reason = %error, "a client was refused");
                Err(Status::unauthenticated(error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let auth = ClientAuth { tokens: vec![Secret::new("old"), Secret::new("new")], certificate: false };
        let check = |header: &str| auth.check(Some(header.as_bytes()), None);
        assert_eq!(check("Bearer old"), Ok(()));
        assert_eq!(check("bearer new"), Ok(()));
        assert_eq!(check("Bearer other"), Err(AuthError::Wrong));
        assert_eq!(check("Bearer "), Err(AuthError::Wrong));
        assert_eq!(check("Basic old"), Err(AuthError::Missing));
        assert_eq!(check("old"), Err(AuthError::Missing));
        assert_eq!(auth.check(None, Some(PeerCertificate::Verified)), Err(AuthError::Missing));
        assert_eq!(ClientAuth::default().check(None, None), Ok(()));
    }

    #[test]
    fn certificates_come_on_top() {
        let auth = ClientAuth { tokens: vec![Secret::new("token")], certificate: true };
        assert_eq!(auth.check(Some(b"Bearer token"), None), Err(AuthError::Certificate));
        assert_eq!(
            auth.check(Some(b"Bearer token"), Some(PeerCertificate::None)),
            Err(AuthError::Certificate)
        );
        assert_eq!(auth.check(None, Some(PeerCertificate::Verified)), Err(AuthError::Missing));
        assert_eq!(auth.check(Some(b"Bearer token"), Some(PeerCertificate::Verified)), Ok(()));
    }
}
