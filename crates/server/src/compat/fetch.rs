//! `FetchWebhookEvents`: what an old client asks for becomes a subscription, whose events a courier brings to it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_proto::v1;
use gitstafette_proto::v1::subscribe_request::Request as Wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tracing::Instrument;

use super::courier::{self, Courier};
use super::{Compat, cursor_id};
use crate::subscribe::{SendProgress, Subscriber};

/// How often the Go implementation's own client reads a message (`requestInterval` in its cmd/client/main.go), whatever
/// lies there. At the end of its window it leaves the rest unread.
const GO_PACE: Duration = Duration::from_secs(5);
/// How clients made with grpc-go introduce themselves (its `internal/transport`: "grpc-go/" and the version).
const GO_USER_AGENT: &[u8] = b"grpc-go/";

impl Compat {
    /// Opens a stream of one repository's events.
    pub(crate) async fn fetch(
        &self,
        mut subscriber: Subscriber,
        metadata: &MetadataMap,
        request: v1::WebhookEventsRequest,
    ) -> Result<BoxStream<v1::WebhookEventsResponse>, Status> {
        let pace = pace(metadata);
        let repository = repository(&request.repository_id)?;
        let client = cursor_id(&request.client_id, &repository)?;
        let span = tracing::info_span!("fetch", client.id = %client, client.address = subscriber.from);
        let subscription = v1::Subscription {
            client_id: client.to_string(),
            repositories: vec![repository.to_string()],
            start: (request.last_received_event_id > 0)
                .then_some(v1::subscription::Start::AfterSequence(request.last_received_event_id)),
            ..v1::Subscription::default()
        };
        // Without a bound of its own: there is no more to acknowledge than the subscription's window lets out.
        let (requests, receiver) = mpsc::unbounded_channel();
        let first = v1::SubscribeRequest { request: Some(Wire::Subscription(subscription)) };
        drop(requests.send(first)); // it is received below
        let cut = subscriber.cut.clone();
        // The connection takes what the courier brings. The courier takes what the subscription sends.
        let progress = std::mem::replace(&mut subscriber.progress, Arc::new(SendProgress::of_server()));
        let receiver = UnboundedReceiverStream::new(receiver).map(Ok).boxed();
        let incoming = self.subscriptions.subscribe(subscriber, receiver).await?;
        let (outgoing, messages) = courier::doorstep(progress);
        let courier = Courier::new(self, client, incoming, requests, outgoing, pace, cut);
        let lifetime =
            Some(Duration::from_secs(request.duration_secs.into())).filter(|lifetime| !lifetime.is_zero());
        self.subscriptions.tasks.spawn(courier.run(lifetime).instrument(span));
        Ok(Box::pin(messages))
    }
}

fn repository(repository_id: &str) -> Result<RepositoryPattern, Status> {
    match repository_id.parse() {
        Ok(repository @ (RepositoryPattern::Id(_) | RepositoryPattern::Name(_))) => Ok(repository),
        Ok(RepositoryPattern::Owner(_) | RepositoryPattern::All) | Err(_) => Err(Status::invalid_argument(
            "repository_id: it is one repository's number, or its owner/name (-repo)",
        )),
    }
}

/// How long this client takes for a message.
fn pace(metadata: &MetadataMap) -> Duration {
    let is_go = metadata.get("user-agent").is_some_and(|agent| agent.as_bytes().starts_with(GO_USER_AGENT));
    if is_go { GO_PACE } else { Duration::ZERO }
}
