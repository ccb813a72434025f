//! Who may subscribe and read: bearer tokens and client certificates.

use std::net::SocketAddr;

use gitstafette_core::secret::Secret;
use tokio_util::sync::CancellationToken;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Who is at the other end of a connection. Put into every request's extensions by the listener.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it comes from: a client, or the proxy before it.
    pub(crate) address: SocketAddr,
    /// Whether it showed a certificate.
    pub(crate) certificate: PeerCertificate,
    /// Cuts the connection, whatever is on it.
    pub(crate) cut: CancellationToken,
}

/// Whether the peer of a connection showed a certificate that the CA signed.
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
    /// Tokens of operators, who may do all that clients may, and see and redeliver everything and change the watchlist.
    /// Without any, clients are operators.
    pub operator_tokens: Vec<Secret>,
    /// Tokens of servers that publish here: what they hand on is believed without a signature. Without any, clients may
    /// publish.
    pub publisher_tokens: Vec<Secret>,
    /// Whether what clients publish is believed, too. Where hooks have secrets of their own the webhook's signature must hold:
    /// who may read must not be able to forge.
    pub believes_clients: bool,
}

/// Whether a caller that may publish is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publisher {
    /// What it hands on is taken as it says.
    Believed,
    /// The webhook's signature must hold, if the server has secrets.
    Unproven,
}

impl ClientAuth {
    /// Whether anything is asked for.
    pub fn is_required(&self) -> bool {
        self.certificate || !self.tokens.is_empty()
    }

    /// Whether the caller is known at all: it showed a certificate if one is asked for, and anybody's token if clients need
    /// one. What it may do is looked at by its call. Every token is compared, in constant time.
    pub(crate) fn check(
        &self,
        authorization: Option<&[u8]>,
        certificate: Option<PeerCertificate>,
    ) -> Result<(), AuthError> {
        if self.certificate && certificate != Some(PeerCertificate::Verified) {
            return Err(AuthError::Certificate);
        }
        if self.tokens.is_empty() {
            return Ok(());
        }
        let anybody = [&*self.tokens, &*self.operator_tokens];
        match self.shows(authorization, anybody, AuthError::NotClient) {
            // A publisher's: known, and not a client's.
            Err(AuthError::NotClient) => Ok(()),
            checked => checked,
        }
    }

    /// Whether the caller showed one of these tokens, and else whether it showed any. All are compared.
    fn shows(
        &self,
        authorization: Option<&[u8]>,
        wanted: [&[Secret]; 2],
        otherwise: AuthError,
    ) -> Result<(), AuthError> {
        let given = authorization.and_then(bearer).ok_or(AuthError::Missing)?;
        let is_wanted = wanted.iter().fold(false, |matched, tokens| matched | is_among(tokens, given));
        let all = [&self.tokens, &self.operator_tokens, &self.publisher_tokens];
        let is_known = all.iter().fold(false, |matched, tokens| matched | is_among(tokens, given));
        match (is_wanted, is_known) {
            (true, _) => Ok(()),
            (false, true) => Err(otherwise),
            (false, false) => Err(AuthError::Wrong),
        }
    }

    /// Whether the caller showed a client's token, or an operator's.
    pub(crate) fn check_token(&self, authorization: Option<&[u8]>) -> Result<(), AuthError> {
        self.shows(authorization, [&self.tokens, &self.operator_tokens], AuthError::NotClient)
    }

    /// Whether the caller may subscribe.
    pub(crate) fn check_client(&self, authorization: Option<&[u8]>) -> Result<(), AuthError> {
        if self.tokens.is_empty() { Ok(()) } else { self.check_token(authorization) }
    }

    /// Whether the caller may publish, and is believed. Where nobody needs a token, everybody may.
    pub(crate) fn publisher(
        &self,
        authorization: Option<&[u8]>,
        peer: Option<&Peer>,
    ) -> Result<Publisher, AuthError> {
        self.check(authorization, peer.map(|peer| peer.certificate))?;
        if !self.publisher_tokens.is_empty() {
            self.shows(authorization, [&self.publisher_tokens, &[]], AuthError::NotPublisher)?;
            return Ok(Publisher::Believed);
        }
        self.check_client(authorization)?;
        let is_believed = self.is_required() && self.believes_clients;
        Ok(if is_believed { Publisher::Believed } else { Publisher::Unproven })
    }

    /// Whether the caller is an operator.
    pub(crate) fn check_operator(&self, authorization: Option<&[u8]>) -> Result<(), AuthError> {
        if !self.asks_for_token() {
            return Ok(());
        }
        let operators = if self.operator_tokens.is_empty() { &self.tokens } else { &self.operator_tokens };
        self.shows(authorization, [operators, &[]], AuthError::NotOperator)
    }

    /// Whether an operator must show a token.
    pub(crate) fn asks_for_token(&self) -> bool {
        !(self.tokens.is_empty() && self.operator_tokens.is_empty())
    }
}

/// Why a caller is not let in. Its fault; calling again the same way does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("no bearer token; set the client's token to one of the server's")]
    Missing,
    #[error("the bearer token is wrong; set the client's token to one of the server's")]
    Wrong,
    #[error(
        "the token is not an operator's; this takes one of the server's --admin-token-file, or a client's if it has none"
    )]
    NotOperator,
    #[error("the token is a publishing server's; to subscribe takes one of the server's --client-token-file")]
    NotClient,
    #[error("the token is not a publishing server's; this takes one of the server's --publisher-token-file")]
    NotPublisher,
    #[error("no client certificate; connect with TLS and a certificate that the server's CA signed")]
    Certificate,
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::NotOperator | AuthError::NotClient | AuthError::NotPublisher => {
                Self::permission_denied(error.to_string())
            }
            _ => Self::unauthenticated(error.to_string()),
        }
    }
}

/// Every token is compared, in constant time.
fn is_among(tokens: &[Secret], given: &[u8]) -> bool {
    tokens.iter().fold(false, |matched, token| matched | token.matches(given))
}

/// The token in `Bearer <token>` (RFC 6750 §2.1); the scheme's name has no case (RFC 9110 §11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

impl Interceptor for ClientAuth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let authorization = request.metadata().get("authorization").map(|value| value.as_bytes());
        let peer: Option<&Peer> = request.extensions().get();
        match self.check(authorization, peer.map(|peer| peer.certificate)) {
            Ok(()) => Ok(request),
            Err(error) => {
                let address = peer.map(|peer| tracing::field::display(peer.address));
                tracing::warn!(client.address = address, reason = %error, "a client was refused");
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let auth =
            ClientAuth { tokens: vec![Secret::new("old"), Secret::new("new")], ..ClientAuth::default() };
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
    fn operators_are_clients_and_not_the_other_way_round() {
        let tokens = |text: &str| vec![Secret::new(text)];
        let apart = ClientAuth {
            tokens: tokens("client"),
            operator_tokens: tokens("operator"),
            ..ClientAuth::default()
        };
        assert_eq!(apart.check(Some(b"Bearer operator"), None), Ok(()));
        assert_eq!(apart.check_operator(Some(b"Bearer operator")), Ok(()));
        assert_eq!(apart.check_operator(Some(b"Bearer client")), Err(AuthError::NotOperator));
        assert_eq!(apart.check_operator(Some(b"Bearer other")), Err(AuthError::Wrong));
        assert_eq!(apart.check_operator(None), Err(AuthError::Missing));
        let alike = ClientAuth { tokens: tokens("client"), ..ClientAuth::default() };
        assert_eq!(alike.check_operator(Some(b"Bearer client")), Ok(()));
        let anonymous = ClientAuth { operator_tokens: tokens("operator"), ..ClientAuth::default() };
        assert_eq!(anonymous.check(None, None), Ok(()), "clients need none");
        assert_eq!(anonymous.check_operator(None), Err(AuthError::Missing));
        assert_eq!(ClientAuth::default().check_operator(None), Ok(()));
    }

    #[test]
    fn certificates_come_on_top() {
        let auth =
            ClientAuth { tokens: vec![Secret::new("token")], certificate: true, ..ClientAuth::default() };
        assert_eq!(auth.check(Some(b"Bearer token"), None), Err(AuthError::Certificate));
        assert_eq!(
            auth.check(Some(b"Bearer token"), Some(PeerCertificate::None)),
            Err(AuthError::Certificate)
        );
        assert_eq!(auth.check(None, Some(PeerCertificate::Verified)), Err(AuthError::Missing));
        assert_eq!(auth.check(Some(b"Bearer token"), Some(PeerCertificate::Verified)), Ok(()));
    }

    #[test]
    fn publishers_are_apart_if_they_have_tokens() {
        let tokens = |text: &str| vec![Secret::new(text)];
        let apart = ClientAuth {
            tokens: tokens("client"),
            publisher_tokens: tokens("publisher"),
            ..ClientAuth::default()
        };
        assert_eq!(apart.check(Some(b"Bearer publisher"), None), Ok(()), "it is known");
        assert_eq!(apart.check_client(Some(b"Bearer publisher")), Err(AuthError::NotClient));
        assert_eq!(apart.check_client(Some(b"Bearer client")), Ok(()));
        assert_eq!(apart.publisher(Some(b"Bearer publisher"), None), Ok(Publisher::Believed));
        assert_eq!(apart.publisher(Some(b"Bearer client"), None), Err(AuthError::NotPublisher));
        assert_eq!(apart.publisher(None, None), Err(AuthError::Missing));
        assert_eq!(apart.check_operator(Some(b"Bearer publisher")), Err(AuthError::NotOperator));
        let alike = ClientAuth { tokens: tokens("client"), ..ClientAuth::default() };
        assert_eq!(alike.publisher(Some(b"Bearer client"), None), Ok(Publisher::Unproven));
        assert_eq!(alike.publisher(Some(b"Bearer other"), None), Err(AuthError::Wrong));
        let trusting = ClientAuth { believes_clients: true, ..alike };
        assert_eq!(trusting.publisher(Some(b"Bearer client"), None), Ok(Publisher::Believed));
        let open = ClientAuth { believes_clients: true, ..ClientAuth::default() };
        assert_eq!(open.publisher(None, None), Ok(Publisher::Unproven), "nobody has shown anything");
    }
}
