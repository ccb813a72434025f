//! The operators' calls over gRPC.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use gitstafette_core::event::{IdentifierError, Sequence};
use gitstafette_core::repository::RepositoryPattern;
use gitstafette_core::store::{Listing, WatchlistChange};
use gitstafette_proto::convert::{
    MAX_SHOWN_BODY, RedeliveryRequest, WatchlistEntry, WireError, duration, runs,
};
use gitstafette_proto::v1::change_watchlist_request::Change;
use gitstafette_proto::v1::{self, Entry};
use tonic::Status;
use tonic::codegen::BoxStream;

use super::redeliver::{Progress, RedeliveryError};
use super::{Admin, Form, RemoveError, ShowError, Shown, missing};
use crate::subscribe::{malformed, status};
use crate::watchlist::ChangeError;

/// Bytes of one part of a body.
const BODY_PART: usize = 256 << 10;

impl Admin {
    pub(crate) async fn list_events(
        &self,
        wire: v1::ListEventsRequest,
    ) -> Result<v1::ListEventsResponse, Status> {
        let listing: Listing = wire.try_into().map_err(|error: WireError| malformed(&error))?;
        let listed = self.list(&listing).await.map_err(|error| status(&error))?;
        Ok((&listed).into())
    }

    pub(crate) async fn show_event(
        &self,
        wire: v1::ShowEventRequest,
    ) -> Result<v1::ShowEventResponse, Status> {
        let sequence = Sequence::new(wire.sequence);
        let shown = self.show(sequence, Form::Embedded).await.map_err(|error| not_shown(&error))?;
        // The share is held until the answer is made. Then the answer has room of its own.
        let Shown { event, reports, share: _share } =
            shown.ok_or_else(|| Status::not_found(missing(sequence)))?;
        let mut wire = v1::Event::from(&*event);
        if wire.body.len() > MAX_SHOWN_BODY {
            wire.body = Bytes::new();
        }
        Ok(v1::ShowEventResponse {
            event: Some(wire),
            reports: reports.iter().map(Into::into).collect(),
            body_bytes: event.webhook.body.len() as u64,
        })
    }

    pub(crate) async fn show_event_body(
        &self,
        wire: v1::ShowEventBodyRequest,
    ) -> Result<BoxStream<v1::ShowEventBodyResponse>, Status> {
        let sequence = Sequence::new(wire.sequence);
        let shown = self.show(sequence, Form::Alone).await.map_err(|error| not_shown(&error))?;
        let Shown { event, share, .. } = shown.ok_or_else(|| Status::not_found(missing(sequence)))?;
        let mut rest = event.webhook.body.clone();
        let parts = std::iter::from_fn(move || {
            // The body counts as shown until its last part is taken.
            let _held = &share;
            let part = rest.split_to(rest.len().min(BODY_PART));
            (!part.is_empty()).then_some(Ok(v1::ShowEventBodyResponse { part }))
        });
        Ok(Box::pin(stream::iter(parts)))
    }

    pub(crate) fn follow_events(
        self: Arc<Self>,
        wire: v1::FollowEventsRequest,
    ) -> Result<BoxStream<v1::FollowEventsResponse>, Status> {
        let listing: Listing =
            wire.selection.unwrap_or_default().try_into().map_err(|error: WireError| malformed(&error))?;
        let after = (listing.first > Sequence::ZERO).then(|| listing.first.previous());
        let heartbeats = heartbeats(self.heartbeat);
        let entries = self.follow(listing.filter, after).map(|entry| match entry {
            Ok(entry) => {
                Ok(v1::FollowEventsResponse { entry: Some(Entry::from(&entry)), heartbeat_interval: None })
            }
            Err(error) => Err(status(&error)),
        });
        // The heartbeats never end: the stream ends with the entries.
        let entries = entries.map(Some).chain(stream::once(async { None }));
        let responses = stream::select(entries, heartbeats.map(|beat| Some(Ok(beat))));
        Ok(Box::pin(responses.scan((), |(), response| ready(response))))
    }

    pub(crate) fn redeliver_events(
        self: &Arc<Self>,
        wire: v1::RedeliverEventsRequest,
    ) -> Result<BoxStream<v1::RedeliverEventsResponse>, Status> {
        let request: RedeliveryRequest = wire.try_into().map_err(|error: WireError| malformed(&error))?;
        let redelivery = self.redelivery(request).map_err(|error| malformed(&error))?;
        let progress = redelivery.progress().map(|progress| match progress {
            Ok(progress) => Ok((&progress).into()),
            Err(error @ RedeliveryError::Missing(_)) => Err(Status::not_found(error.to_string())),
            Err(error @ RedeliveryError::Draining(_)) => Err(Status::unavailable(error.to_string())),
            Err(RedeliveryError::Store(error)) => Err(status(&error)),
        });
        Ok(Box::pin(progress))
    }

    pub(crate) async fn list_subscriptions(&self) -> Result<v1::ListSubscriptionsResponse, Status> {
        let states = self.subscriptions().await.map_err(|error| status(&error))?;
        let head = self.store.head().borrow().get();
        Ok(v1::ListSubscriptionsResponse { subscriptions: states.iter().map(Into::into).collect(), head })
    }

    pub(crate) async fn remove_subscription_by(
        &self,
        wire: v1::RemoveSubscriptionRequest,
    ) -> Result<v1::RemoveSubscriptionResponse, Status> {
        let invalid = |error: IdentifierError| Status::invalid_argument(format!("client_id: {error}"));
        let client = wire.client_id.parse().map_err(invalid)?;
        self.remove_subscription(&client).await.map_err(|error| match error {
            RemoveError::Connected(_) => Status::failed_precondition(error.to_string()),
            RemoveError::Unknown(_) => Status::not_found(error.to_string()),
            RemoveError::Store(error) => status(&error),
        })?;
        Ok(v1::RemoveSubscriptionResponse {})
    }

    pub(crate) async fn release_subscription_by(
        &self,
        wire: v1::ReleaseSubscriptionRequest,
    ) -> Result<v1::ReleaseSubscriptionResponse, Status> {
        let invalid = |error: IdentifierError| Status::invalid_argument(format!("client_id: {error}"));
        let client = wire.client_id.parse().map_err(invalid)?;
        if self.release_subscription(&client).await.map_err(|error| status(&error))? {
            return Ok(v1::ReleaseSubscriptionResponse {});
        }
        Err(Status::not_found(RemoveError::Unknown(client).to_string()))
    }

    pub(crate) async fn list_relays(&self) -> Result<v1::ListRelaysResponse, Status> {
        let states = self.relays.states().await.map_err(|error| status(&error))?;
        Ok(v1::ListRelaysResponse { relays: states.iter().map(Into::into).collect() })
    }

    pub(crate) async fn show_statistics(&self) -> Result<v1::ShowStatisticsResponse, Status> {
        let statistics = self.statistics().await.map_err(|error| status(&error))?;
        Ok(v1::ShowStatisticsResponse {
            store_id: self.store.id().to_string(),
            runs: runs(self.store.history()),
            ..(&statistics).into()
        })
    }

    pub(crate) fn list_watchlist(&self) -> v1::ListWatchlistResponse {
        v1::ListWatchlistResponse { entries: on_wire(&self.watchlist.entries()) }
    }

    pub(crate) async fn change_watchlist_by(
        &self,
        wire: v1::ChangeWatchlistRequest,
    ) -> Result<v1::ChangeWatchlistResponse, Status> {
        let (text, change) = match wire.change {
            Some(Change::Add(text)) => (text, WatchlistChange::Added),
            Some(Change::Remove(text)) => (text, WatchlistChange::Removed),
            None => return Err(Status::invalid_argument("change: say what to add or to remove")),
        };
        let pattern: RepositoryPattern =
            text.parse().map_err(|error| Status::invalid_argument(format!("change: {error}")))?;
        let entries = self.change_watchlist(&pattern, change).await.map_err(|error| match error {
            ChangeError::Unknown(_) => Status::not_found(error.to_string()),
            ChangeError::Full => Status::resource_exhausted(error.to_string()),
            ChangeError::Store(error) => status(&error),
        })?;
        Ok(v1::ChangeWatchlistResponse { entries: on_wire(&entries) })
    }
}

fn not_shown(error: &ShowError) -> Status {
    match error {
        ShowError::Busy => Status::resource_exhausted(error.to_string()),
        ShowError::Store(error) => status(error),
    }
}

impl From<&Progress> for v1::RedeliverEventsResponse {
    fn from(progress: &Progress) -> Self {
        let redelivered = progress.redelivered.iter().map(|one| v1::Redelivered {
            sequence: one.sequence.get(),
            redelivered_as: one.redelivered_as.get(),
        });
        Self {
            redelivered: redelivered.collect(),
            next: progress.next.map_or(0, Sequence::get),
            last: progress.last.get(),
            total: progress.total as u64,
        }
    }
}

fn on_wire(entries: &[WatchlistEntry]) -> Vec<v1::WatchlistEntry> {
    entries.iter().map(Into::into).collect()
}

/// The heartbeats of a follower, of which the first comes at once.
fn heartbeats(interval: Duration) -> impl Stream<Item = v1::FollowEventsResponse> {
    let message = v1::FollowEventsResponse { entry: None, heartbeat_interval: Some(duration(interval)) };
    stream::unfold(tokio::time::interval(interval), move |mut ticks| {
        let message = message.clone();
        async move {
            ticks.tick().await;
            Some((message, ticks))
        }
    })
}
