//! What each gRPC method requires of its caller, and the one place that checks it.
//!
//! A method that is not in the table is closed to every caller, even if a generated service implements it.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::header;
use tonic::Status;
use tracing::warn;

use super::{AuthError, CallLimits, CallOf, ClientAuth, Peer, Publisher};
use crate::REFUSALS;
use crate::listen::Caller;

/// The path of the method `Subscribe`.
pub(crate) const SUBSCRIBE: &str = "/gitstafette.v1.Gitstafette/Subscribe";
/// The path of the method `FetchWebhookEvents`.
pub(crate) const FETCH: &str = "/gitstafette.v1.Gitstafette/FetchWebhookEvents";
/// The path of the method `Publish`.
pub(crate) const PUBLISH: &str = "/gitstafette.v1.Gitstafette/Publish";
/// The path of the method `WebhookEventPush`.
pub(crate) const PUSH: &str = "/gitstafette.v1.Gitstafette/WebhookEventPush";

/// The path of the method `Watch` of health.
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// What a caller must show to call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Required {
    /// Nothing, not even a client certificate: probes have neither.
    Nothing,
    /// A token of a client or of an operator.
    Client,
    /// A token of a publisher.
    Publisher,
    /// A token of a publisher. Without any token, a webhook with a valid signature.
    PublisherOrSignature,
    /// A token of an operator.
    Operator,
}

/// Every method that the server offers.
const METHODS: [(&str, Required); 22] = [
    ("/grpc.health.v1.Health/Check", Required::Nothing),
    (WATCH, Required::Nothing),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Required::Client),
    ("/info.Info/GetInfo", Required::Client),
    (FETCH, Required::Client),
    ("/gitstafette.v1.Gitstafette/WebhookEventStatus", Required::Client),
    ("/gitstafette.v1.Gitstafette/WebhookEventStatuses", Required::Client),
    (SUBSCRIBE, Required::Client),
    (PUSH, Required::PublisherOrSignature),
    (PUBLISH, Required::Publisher),
    ("/gitstafette.v1.Gitstafette/ListEvents", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ShowEvent", Required::Operator),
    ("/gitstafette.v1.Gitstafette/FollowEvents", Required::Operator),
    ("/gitstafette.v1.Gitstafette/RedeliverEvents", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ListSubscriptions", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ShowStatistics", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ListWatchlist", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ChangeWatchlist", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ListRelays", Required::Operator),
    ("/gitstafette.v1.Gitstafette/RemoveSubscription", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ShowEventBody", Required::Operator),
    ("/gitstafette.v1.Gitstafette/ReleaseSubscription", Required::Operator),
];

/// The answer to a method that the server does not offer.
pub(crate) fn unknown_method() -> Status {
    Status::unimplemented("there is no such method; is this the right version of the client?")
}

/// Checks the caller of every method before the method sees the request.
#[derive(Clone, Debug)]
pub(crate) struct MethodGuard {
    /// What callers must show.
    pub(crate) auth: ClientAuth,
    /// Whether the server verifies the signatures of webhooks.
    pub(crate) verifies_webhooks: bool,
    /// How many calls they may have in progress.
    pub(crate) limits: CallLimits,
}

impl MethodGuard {
    /// Puts the check before every method of `router`.
    pub(crate) fn protect(self, router: Router) -> Router {
        router.route_layer(from_fn_with_state(self, check))
    }

    /// Whether a caller that shows this may call the method. For methods that publish: how far the caller is believed.
    fn authorize(
        &self,
        required: Required,
        authorization: Option<&[u8]>,
        peer: Option<&Peer>,
    ) -> Result<Option<Publisher>, AuthError> {
        if required == Required::Nothing {
            return Ok(None);
        }
        self.auth.check_certificate(peer)?;
        match required {
            Required::Nothing => Ok(None),
            Required::Client => self.auth.check_client(authorization).map(|()| None),
            Required::Operator => self.auth.check_operator(authorization).map(|()| None),
            Required::Publisher => self.auth.publisher(authorization).map(Some),
            Required::PublisherOrSignature => match self.auth.publisher(authorization) {
                Err(AuthError::Missing) if self.verifies_webhooks => Ok(Some(Publisher::WithoutToken)),
                publisher => publisher.map(Some),
            },
        }
    }
}

async fn check(State(guard): State<MethodGuard>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let Some((method, required)) = METHODS.iter().find(|(method, _)| *method == path) else {
        return unknown_method().into_http();
    };
    let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let peer: Option<&Peer> = request.extensions().get();
    let authorized = guard.authorize(*required, authorization, peer).map_err(Status::from);
    let admitted = authorized.and_then(|publisher| {
        let whose = match (*required, publisher) {
            (Required::Nothing, _) if *method == WATCH => CallOf::Watch,
            (Required::Nothing, _) | (_, Some(Publisher::WithoutToken)) => CallOf::Nobody,
            _ => guard.auth.call_of(authorization),
        };
        Ok((publisher, whose, guard.limits.begin(whose, peer)?))
    });
    match admitted {
        Ok((publisher, whose, call)) => {
            if let Some(caller) = request.extensions().get::<Caller>() {
                match whose {
                    CallOf::Watch => {}
                    CallOf::Nobody if *required == Required::Nothing => {}
                    CallOf::Nobody => caller.sends_webhook(),
                    CallOf::Token(_) | CallOf::Anonymous => caller.keeps_connection(),
                }
            }
            if let Some(publisher) = publisher {
                request.extensions_mut().insert(publisher);
            }
            call.answer(next.run(request)).await
        }
        Err(status) => {
            let address = peer.map(|peer| tracing::field::display(peer.address));
            let reason = status.message();
            warn!(
                target: REFUSALS,
                { client.address = address, rpc.method = path, reason },
                "caller refused"
            );
            status.into_http()
        }
    }
}

#[cfg(test)]
mod tests;
