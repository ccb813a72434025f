//! Who may subscribe and read: bearer tokens and client certificates.

use std::net::SocketAddr;
use std::sync::Arc;

use gitstafette_core::secret::Secret;
use gitstafette_core::store::{Owner, StoreId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;

mod calls;
mod methods;

pub(crate) use calls::{CallLimits, CallOf};
pub(crate) use methods::{FETCH, MethodGuard, PUBLISH, PUSH, SUBSCRIBE, unknown_method};

/// The owner of all client ids where clients need no token.
const ANONYMOUS: &str = "anonymous";

/// Who is at the other end of a connection. Put into every request's extensions by the listener.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it comes from: a client, or the proxy before it.
    pub(crate) address: SocketAddr,
    /// Whether it showed a certificate.
    pub(crate) certificate: PeerCertificate,
    /// Cuts the connection, whatever is on it.
    pub(crate) cut: CancellationToken,
    /// A permit for each call without a token that may be in progress on the connection.
    pub(crate) calls_without_token: Arc<Semaphore>,
}

impl Peer {
    /// The peer of a new connection.
    pub(crate) fn new(address: SocketAddr, certificate: PeerCertificate) -> Self {
        let calls_without_token = Arc::new(Semaphore::new(calls::MOST_OF_CONNECTION));
        Self { address, certificate, cut: CancellationToken::new(), calls_without_token }
    }
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
    /// Its webhooks need no signature. Their metadata is read from the webhooks all the same.
    Believed,
    /// The webhook's signature must hold, if the server has secrets.
    Unproven,
    /// It showed no token, though one is asked for: the webhook's signature must hold.
    WithoutToken,
}

impl ClientAuth {
    /// Whether anything is asked for.
    pub fn is_required(&self) -> bool {
        self.certificate || !self.tokens.is_empty()
    }

    /// Whether the caller showed a certificate, if one is asked for.
    pub(crate) fn check_certificate(&self, peer: Option<&Peer>) -> Result<(), AuthError> {
        let is_verified = peer.is_some_and(|peer| peer.certificate == PeerCertificate::Verified);
        if self.certificate && !is_verified { Err(AuthError::Certificate) } else { Ok(()) }
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

    /// Whether the caller may subscribe. Where clients need no token, a publisher's is refused all the same.
    pub(crate) fn check_client(&self, authorization: Option<&[u8]>) -> Result<(), AuthError> {
        if !self.tokens.is_empty() {
            return self.check_token(authorization);
        }
        let given = authorization.and_then(bearer);
        let is_publisher = given.is_some_and(|given| {
            is_among(&self.publisher_tokens, given) && !is_among(&self.operator_tokens, given)
        });
        if is_publisher { Err(AuthError::NotClient) } else { Ok(()) }
    }

    /// Whose call it is, of a caller that may call. All tokens are compared.
    pub(crate) fn call_of(&self, authorization: Option<&[u8]>) -> CallOf {
        let Some(given) = authorization.and_then(bearer) else { return CallOf::Anonymous };
        let all = self.tokens.iter().chain(&self.operator_tokens).chain(&self.publisher_tokens);
        let known = all.enumerate().filter(|(_, token)| token.matches(given));
        known.last().map_or(CallOf::Anonymous, |(place, _)| CallOf::Token(place))
    }

    /// Whether the caller may publish, and is believed. Where nobody needs a token, everybody may.
    pub(crate) fn publisher(&self, authorization: Option<&[u8]>) -> Result<Publisher, AuthError> {
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

    /// The owner of the client ids that the caller uses: the holders of its token, or everybody where clients need none.
    /// `current` are all owners, see [`owners_of_ids`](Self::owners_of_ids).
    pub(crate) fn owner_of_ids(
        &self,
        authorization: Option<&[u8]>,
        store: StoreId,
        max_ids: usize,
        current: &Arc<[String]>,
    ) -> Owner {
        // Where no token is asked for, a caller could make up a new one each time.
        let token = authorization.and_then(bearer).filter(|_| !self.tokens.is_empty());
        let label = token.map_or_else(|| ANONYMOUS.to_owned(), |token| Owner::label_of_token(token, store));
        Owner { label, max_ids, current: Arc::clone(current) }
    }

    /// The labels of all owners of client ids that there are now.
    pub(crate) fn owners_of_ids(&self, store: StoreId) -> Arc<[String]> {
        if self.tokens.is_empty() {
            return [ANONYMOUS.to_owned()].into();
        }
        let tokens = self.tokens.iter().chain(&self.operator_tokens);
        tokens.map(|token| Owner::label_of_token(token.expose(), store)).collect()
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
        "the token is not an operator's; this call needs a token of the server's --admin-token-file, or a client's if it has none"
    )]
    NotOperator,
    #[error("the token is a publisher's; this call needs a token of the server's --client-token-file")]
    NotClient,
    #[error("the token is not a publisher's; this call needs a token of the server's --publisher-token-file")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let auth =
            ClientAuth { tokens: vec![Secret::new("old"), Secret::new("new")], ..ClientAuth::default() };
        let check = |header: &str| auth.check_client(Some(header.as_bytes()));
        assert_eq!(check("Bearer old"), Ok(()));
        assert_eq!(check("bearer new"), Ok(()));
        assert_eq!(check("Bearer other"), Err(AuthError::Wrong));
        assert_eq!(check("Bearer "), Err(AuthError::Wrong));
        assert_eq!(check("Basic old"), Err(AuthError::Missing));
        assert_eq!(check("old"), Err(AuthError::Missing));
        assert_eq!(auth.check_client(None), Err(AuthError::Missing));
        assert_eq!(ClientAuth::default().check_client(None), Ok(()));
    }

    #[test]
    fn operators_are_clients_and_not_the_other_way_round() {
        let tokens = |text: &str| vec![Secret::new(text)];
        let apart = ClientAuth {
            tokens: tokens("client"),
            operator_tokens: tokens("operator"),
            ..ClientAuth::default()
        };
        assert_eq!(apart.check_client(Some(b"Bearer operator")), Ok(()));
        assert_eq!(apart.check_operator(Some(b"Bearer operator")), Ok(()));
        assert_eq!(apart.check_operator(Some(b"Bearer client")), Err(AuthError::NotOperator));
        assert_eq!(apart.check_operator(Some(b"Bearer other")), Err(AuthError::Wrong));
        assert_eq!(apart.check_operator(None), Err(AuthError::Missing));
        let alike = ClientAuth { tokens: tokens("client"), ..ClientAuth::default() };
        assert_eq!(alike.check_operator(Some(b"Bearer client")), Ok(()));
        let calls = [&b"Bearer client"[..], b"bearer operator", b"Bearer other"]
            .map(|text| apart.call_of(Some(text)));
        assert_eq!(calls, [CallOf::Token(0), CallOf::Token(1), CallOf::Anonymous]);
        let anonymous = ClientAuth { operator_tokens: tokens("operator"), ..ClientAuth::default() };
        assert_eq!(anonymous.check_client(None), Ok(()), "clients need none");
        assert_eq!(anonymous.check_operator(None), Err(AuthError::Missing));
        assert_eq!(ClientAuth::default().check_operator(None), Ok(()));
    }

    #[test]
    fn client_ids_belong_to_the_token() {
        let auth = ClientAuth { tokens: vec![Secret::new("a"), Secret::new("b")], ..ClientAuth::default() };
        let store = StoreId::new(1);
        let owner = |auth: &ClientAuth, authorization: &str| {
            let current = auth.owners_of_ids(store);
            let owner = auth.owner_of_ids(Some(authorization.as_bytes()), store, 100, &current);
            assert!(current.contains(&owner.label));
            owner.label
        };
        assert_eq!(owner(&auth, "Bearer a"), owner(&auth, "bearer a"));
        assert_ne!(owner(&auth, "Bearer a"), owner(&auth, "Bearer b"));
        let open = ClientAuth::default();
        assert_eq!(owner(&open, "Bearer a"), owner(&open, "Bearer made-up"), "nobody checks them");
    }

    #[test]
    fn publishers_are_apart_if_they_have_tokens() {
        let tokens = |text: &str| vec![Secret::new(text)];
        let apart = ClientAuth {
            tokens: tokens("client"),
            publisher_tokens: tokens("publisher"),
            ..ClientAuth::default()
        };
        assert_eq!(apart.check_client(Some(b"Bearer publisher")), Err(AuthError::NotClient));
        assert_eq!(apart.check_client(Some(b"Bearer client")), Ok(()));
        assert_eq!(apart.publisher(Some(b"Bearer publisher")), Ok(Publisher::Believed));
        assert_eq!(apart.publisher(Some(b"Bearer client")), Err(AuthError::NotPublisher));
        assert_eq!(apart.publisher(None), Err(AuthError::Missing));
        assert_eq!(apart.check_operator(Some(b"Bearer publisher")), Err(AuthError::NotOperator));
        let anonymous = ClientAuth { publisher_tokens: tokens("publisher"), ..ClientAuth::default() };
        assert_eq!(anonymous.check_client(None), Ok(()));
        assert_eq!(anonymous.check_client(Some(b"Bearer publisher")), Err(AuthError::NotClient));
        let alike = ClientAuth { tokens: tokens("client"), ..ClientAuth::default() };
        assert_eq!(alike.publisher(Some(b"Bearer client")), Ok(Publisher::Unproven));
        assert_eq!(alike.publisher(Some(b"Bearer other")), Err(AuthError::Wrong));
        let trusting = ClientAuth { believes_clients: true, ..alike };
        assert_eq!(trusting.publisher(Some(b"Bearer client")), Ok(Publisher::Believed));
        let open = ClientAuth { believes_clients: true, ..ClientAuth::default() };
        assert_eq!(open.publisher(None), Ok(Publisher::Unproven), "nobody has shown anything");
    }
}
