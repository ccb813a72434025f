//! The gRPC service `Gitstafette`: every method on one screen. Subscriptions are for clients, the first methods for those
//! of the Go implementation, all else for operators. `Publish` and `WebhookEventPush` are for other servers, with messages and
//! callers of their own, and stand in `publish` and `compat`.

use std::sync::Arc;

use futures_util::stream;
use gitstafette_proto::v1;
use gitstafette_proto::v1::gitstafette_server::Gitstafette;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::admin::Admin;
use crate::auth::{AuthError, ClientAuth, Peer};
use crate::compat::Compat;
use crate::subscribe::{Subscriber, Subscriptions};

/// Serves all of them. Callers are authenticated before they come here; what one may do is looked at here.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) subscriptions: Arc<Subscriptions>,
    pub(crate) compat: Compat,
    pub(crate) admin: Arc<Admin>,
    pub(crate) auth: ClientAuth,
}

/// Whether a caller with this authorization may do something.
type Check = fn(&ClientAuth, Option<&[u8]>) -> Result<(), AuthError>;

impl Service {
    /// The message of a request, if its caller may make it.
    fn allow<T>(&self, request: Request<T>, check: Check) -> Result<T, Status> {
        let authorization = request.metadata().get("authorization").map(|value| value.as_bytes());
        if let Err(error) = check(&self.auth, authorization) {
            let address =
                request.extensions().get::<Peer>().map(|peer| tracing::field::display(peer.address));
            warn!(client.address = address, reason = %error, "a caller was refused");
            return Err(error.into());
        }
        Ok(request.into_inner())
    }

    /// The message of an operator's request.
    fn operator<T>(&self, request: Request<T>) -> Result<T, Status> {
        self.allow(request, ClientAuth::check_operator)
    }
}

#[tonic::async_trait]
impl Gitstafette for Service {
    async fn fetch_webhook_events(
        &self,
        request: Request<v1::WebhookEventsRequest>,
    ) -> Result<Response<BoxStream<v1::WebhookEventsResponse>>, Status> {
        let subscriber = Subscriber::client(request.extensions().get());
        let metadata = request.metadata().clone();
        let request = self.allow(request, ClientAuth::check_client)?;
        self.compat.fetch(subscriber, &metadata, request).await.map(Response::new)
    }

    async fn webhook_event_status(
        &self,
        request: Request<v1::WebhookEventStatusRequest>,
    ) -> Result<Response<v1::WebhookEventStatusResponse>, Status> {
        self.compat.status(self.allow(request, ClientAuth::check_client)?).await.map(Response::new)
    }

    async fn webhook_event_statuses(
        &self,
        request: Request<v1::WebhookEventStatusesRequest>,
    ) -> Result<Response<BoxStream<v1::WebhookEventStatusResponse>>, Status> {
        let request = self.allow(request, ClientAuth::check_client)?;
        let statuses = self.compat.statuses(request).await?;
        Ok(Response::new(Box::pin(stream::iter(statuses.into_iter().map(Ok)))))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<BoxStream<v1::SubscribeResponse>>, Status> {
        let subscriber = Subscriber::client(request.extensions().get());
        let requests = Box::pin(self.allow(request, ClientAuth::check_client)?);
        self.subscriptions.subscribe(subscriber, requests).await.map(Response::new)
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        self.admin.list_events(self.operator(request)?).await.map(Response::new)
    }

    async fn show_event(
        &self,
        request: Request<v1::ShowEventRequest>,
    ) -> Result<Response<v1::ShowEventResponse>, Status> {
        self.admin.show_event(self.operator(request)?).await.map(Response::new)
    }

    async fn follow_events(
        &self,
        request: Request<v1::FollowEventsRequest>,
    ) -> Result<Response<BoxStream<v1::FollowEventsResponse>>, Status> {
        Arc::clone(&self.admin).follow_events(self.operator(request)?).map(Response::new)
    }

    async fn redeliver_events(
        &self,
        request: Request<v1::RedeliverEventsRequest>,
    ) -> Result<Response<v1::RedeliverEventsResponse>, Status> {
        self.admin.redeliver_events(self.operator(request)?).await.map(Response::new)
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        self.operator(request)?;
        self.admin.list_subscriptions().await.map(Response::new)
    }

    async fn show_statistics(
        &self,
        request: Request<v1::ShowStatisticsRequest>,
    ) -> Result<Response<v1::ShowStatisticsResponse>, Status> {
        self.operator(request)?;
        self.admin.show_statistics().await.map(Response::new)
    }

    async fn list_watchlist(
        &self,
        request: Request<v1::ListWatchlistRequest>,
    ) -> Result<Response<v1::ListWatchlistResponse>, Status> {
        self.operator(request)?;
        Ok(Response::new(self.admin.list_watchlist()))
    }

    async fn change_watchlist(
        &self,
        request: Request<v1::ChangeWatchlistRequest>,
    ) -> Result<Response<v1::ChangeWatchlistResponse>, Status> {
        self.admin.change_watchlist_by(self.operator(request)?).await.map(Response::new)
    }

    async fn list_relays(
        &self,
        request: Request<v1::ListRelaysRequest>,
    ) -> Result<Response<v1::ListRelaysResponse>, Status> {
        self.operator(request)?;
        self.admin.list_relays().await.map(Response::new)
    }
}
