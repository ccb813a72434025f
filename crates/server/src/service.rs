//! The gRPC service `Gitstafette`: every method on one screen. Subscriptions are for clients, the first methods for those
//! of the Go implementation, all else for operators. `Publish` and `WebhookEventPush` are for other servers, with messages and
//! callers of their own, and stand in `publish` and `compat`.

use std::sync::Arc;

use gitstafette_proto::v1;
use gitstafette_proto::v1::gitstafette_server::Gitstafette;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::admin::Admin;
use crate::auth::ClientAuth;
use crate::compat::Compat;
use crate::subscribe::{SendProgress, Subscriber, Subscriptions};

/// Serves all of them. Every caller has the right to call the method: [`MethodGuard`](crate::auth::MethodGuard) checked it.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) subscriptions: Arc<Subscriptions>,
    pub(crate) compat: Compat,
    pub(crate) admin: Arc<Admin>,
    /// Whose the client ids are.
    pub(crate) auth: ClientAuth,
    /// All owners of client ids.
    pub(crate) owners: Arc<[String]>,
}

impl Service {
    /// The caller as a subscriber.
    fn subscriber<T>(&self, request: &Request<T>) -> Subscriber {
        let authorization = request.metadata().get("authorization").map(|value| value.as_bytes());
        let (store, max_ids) = (self.subscriptions.store.id(), self.subscriptions.options.max_client_ids);
        let owner = self.auth.owner_of_ids(authorization, store, max_ids, &self.owners);
        let progress = request.extensions().get::<Arc<SendProgress>>().cloned().unwrap_or_default();
        Subscriber::client(request.extensions().get(), progress, owner)
    }
}

#[tonic::async_trait]
impl Gitstafette for Service {
    async fn fetch_webhook_events(
        &self,
        request: Request<v1::WebhookEventsRequest>,
    ) -> Result<Response<BoxStream<v1::WebhookEventsResponse>>, Status> {
        let subscriber = self.subscriber(&request);
        let metadata = request.metadata().clone();
        let request = request.into_inner();
        self.compat.fetch(subscriber, &metadata, request).await.map(Response::new)
    }

    async fn webhook_event_status(
        &self,
        request: Request<v1::WebhookEventStatusRequest>,
    ) -> Result<Response<v1::WebhookEventStatusResponse>, Status> {
        self.compat.status(request.into_inner()).await.map(Response::new)
    }

    async fn webhook_event_statuses(
        &self,
        request: Request<v1::WebhookEventStatusesRequest>,
    ) -> Result<Response<BoxStream<v1::WebhookEventStatusResponse>>, Status> {
        self.compat.statuses(request.into_inner()).await.map(Response::new)
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<BoxStream<v1::SubscribeResponse>>, Status> {
        let subscriber = self.subscriber(&request);
        let requests = Box::pin(request.into_inner());
        self.subscriptions.subscribe(subscriber, requests).await.map(Response::new)
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        self.admin.list_events(request.into_inner()).await.map(Response::new)
    }

    async fn show_event(
        &self,
        request: Request<v1::ShowEventRequest>,
    ) -> Result<Response<v1::ShowEventResponse>, Status> {
        self.admin.show_event(request.into_inner()).await.map(Response::new)
    }

    async fn follow_events(
        &self,
        request: Request<v1::FollowEventsRequest>,
    ) -> Result<Response<BoxStream<v1::FollowEventsResponse>>, Status> {
        Arc::clone(&self.admin).follow_events(request.into_inner()).map(Response::new)
    }

    async fn redeliver_events(
        &self,
        request: Request<v1::RedeliverEventsRequest>,
    ) -> Result<Response<BoxStream<v1::RedeliverEventsResponse>>, Status> {
        self.admin.redeliver_events(request.into_inner()).map(Response::new)
    }

    async fn list_subscriptions(
        &self,
        _: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        self.admin.list_subscriptions().await.map(Response::new)
    }

    async fn show_statistics(
        &self,
        _: Request<v1::ShowStatisticsRequest>,
    ) -> Result<Response<v1::ShowStatisticsResponse>, Status> {
        self.admin.show_statistics().await.map(Response::new)
    }

    async fn list_watchlist(
        &self,
        _: Request<v1::ListWatchlistRequest>,
    ) -> Result<Response<v1::ListWatchlistResponse>, Status> {
        Ok(Response::new(self.admin.list_watchlist()))
    }

    async fn change_watchlist(
        &self,
        request: Request<v1::ChangeWatchlistRequest>,
    ) -> Result<Response<v1::ChangeWatchlistResponse>, Status> {
        self.admin.change_watchlist_by(request.into_inner()).await.map(Response::new)
    }

    async fn list_relays(
        &self,
        _: Request<v1::ListRelaysRequest>,
    ) -> Result<Response<v1::ListRelaysResponse>, Status> {
        self.admin.list_relays().await.map(Response::new)
    }

    async fn remove_subscription(
        &self,
        request: Request<v1::RemoveSubscriptionRequest>,
    ) -> Result<Response<v1::RemoveSubscriptionResponse>, Status> {
        self.admin.remove_subscription_by(request.into_inner()).await.map(Response::new)
    }

    async fn show_event_body(
        &self,
        request: Request<v1::ShowEventBodyRequest>,
    ) -> Result<Response<BoxStream<v1::ShowEventBodyResponse>>, Status> {
        self.admin.show_event_body(request.into_inner()).await.map(Response::new)
    }

    async fn release_subscription(
        &self,
        request: Request<v1::ReleaseSubscriptionRequest>,
    ) -> Result<Response<v1::ReleaseSubscriptionResponse>, Status> {
        self.admin.release_subscription_by(request.into_inner()).await.map(Response::new)
    }
}
