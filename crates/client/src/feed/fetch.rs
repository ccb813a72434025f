//! A fetch stream of a server of the Go implementation: the webhooks of one repository, until the server ends it.

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use gitstafette_core::repository::RepositoryId;
use gitstafette_proto::v1;
use tonic::{Status, Streaming};

use crate::connect::Calls;

/// What a fetch stream brings.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) repository: RepositoryId,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Events(Vec<v1::WebhookEvent>),
    /// The last.
    End(Result<(), Status>),
}

/// Where a fetch stream stands.
enum Fetch {
    Asking(Box<Calls>, v1::WebhookEventsRequest),
    Reading(Box<Streaming<v1::WebhookEventsResponse>>, Heard),
    Over,
}

/// Whether a fetch stream has brought a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Something,
}

/// The fetch stream of one repository.
pub(super) fn fetched(
    calls: Calls,
    repository: RepositoryId,
    request: v1::WebhookEventsRequest,
) -> BoxStream<'static, Fetched> {
    let asking = Fetch::Asking(Box::new(calls), request);
    let steps = unfold(asking, |fetch| async {
        let (mut messages, heard) = match fetch {
            Fetch::Asking(mut calls, request) => match calls.fetch_webhook_events(request).await {
                Ok(answer) => (Box::new(answer.into_inner()), Heard::Nothing),
                Err(status) => return Some((What::End(Err(status)), Fetch::Over)),
            },
            Fetch::Reading(messages, heard) => (messages, heard),
            Fetch::Over => return None,
        };
        let end = match messages.message().await {
            Ok(Some(message)) => {
                let events = What::Events(message.webhook_events);
                return Some((events, Fetch::Reading(messages, Heard::Something)));
            }
            Ok(None) if heard == Heard::Something => Ok(()),
            // Not an end as that of a window: the next stream must not follow at once.
            Ok(None) => Err(Status::unavailable("the server ended the stream without a message")),
            Err(status) => Err(status),
        };
        Some((What::End(end), Fetch::Over))
    });
    steps.map(move |what| Fetched { repository, what }).boxed()
}
