//! `WebhookEventStatus` and `WebhookEventStatuses`: what is stored of a repository, and where a client stands.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use gitstafette_core::event::{ClientId, IdentifierError};
use gitstafette_core::repository::{RepositoryId, RepositoryPattern};
use gitstafette_proto::v1;
use tonic::Status;
use tonic::codegen::BoxStream;

use super::{Compat, cursor_id, number};
use crate::subscribe::status;

/// How many repositories are read from the store at once. The next ones are read when the client has taken these.
const PAGE: usize = 256;

/// Who asks.
struct Caller {
    client_id: String,
    /// As a new client of this id.
    plain: ClientId,
    /// Those of its ids that have a cursor: the plain one, and one for each repository that it fetches.
    known: HashSet<ClientId>,
}

/// What is still to be told.
struct Rest {
    caller: Caller,
    /// Where the next page begins; `None` after the last.
    from: Option<RepositoryId>,
    /// Repositories that are watched by their number.
    watched: BTreeSet<RepositoryId>,
}

impl Compat {
    /// The status of one repository.
    pub(crate) async fn status(
        &self,
        request: v1::WebhookEventStatusRequest,
    ) -> Result<v1::WebhookEventStatusResponse, Status> {
        let repository = number(&request.repository_id)?;
        let caller = self.caller(request.client_id).await?;
        let counts = self.counts(repository, 1).await?;
        let count = counts.into_iter().find(|(id, _)| *id == repository).map_or(0, |(_, count)| count);
        Ok(self.status_of(&caller, repository, count))
    }

    /// The statuses of all repositories that are watched by their number or have events here, by number.
    pub(crate) async fn statuses(
        &self,
        request: v1::WebhookEventStatusesRequest,
    ) -> Result<BoxStream<v1::WebhookEventStatusResponse>, Status> {
        let numbers = |pattern: &RepositoryPattern| match pattern {
            RepositoryPattern::Id(id) => Some(*id),
            _ => None,
        };
        let watched = self.subscriptions.watchlist.current().patterns().iter().filter_map(numbers).collect();
        let caller = self.caller(request.client_id).await?;
        let rest = Rest { caller, from: Some(RepositoryId(0)), watched };
        let compat = self.clone();
        let pages = stream::try_unfold(rest, move |rest| {
            let compat = compat.clone();
            async move { compat.page(rest).await }
        });
        Ok(pages.map_ok(|page| stream::iter(page).map(Ok)).try_flatten().boxed())
    }

    /// One page of statuses, and what is left then.
    async fn page(
        &self,
        mut rest: Rest,
    ) -> Result<Option<(Vec<v1::WebhookEventStatusResponse>, Rest)>, Status> {
        let Some(from) = rest.from else { return Ok(None) };
        let mut counts: BTreeMap<_, _> = self.counts(from, PAGE).await?.into_iter().collect();
        let last = if counts.len() < PAGE { None } else { counts.last_key_value().map(|(id, _)| *id) };
        rest.from = last.and_then(|last| last.0.checked_add(1)).map(RepositoryId);
        let later = rest.from.map(|from| rest.watched.split_off(&from)).unwrap_or_default();
        for watched in std::mem::replace(&mut rest.watched, later) {
            counts.entry(watched).or_default();
        }
        let statuses =
            counts.into_iter().map(|(id, count)| self.status_of(&rest.caller, id, count)).collect();
        Ok(Some((statuses, rest)))
    }

    async fn counts(&self, from: RepositoryId, limit: usize) -> Result<Vec<(RepositoryId, u64)>, Status> {
        self.subscriptions.store.counts(from, limit).await.map_err(|error| status(&error))
    }

    /// The caller with all its cursors: one read, however many repositories are asked for.
    async fn caller(&self, client_id: String) -> Result<Caller, Status> {
        let plain = client_id
            .parse()
            .map_err(|error: IdentifierError| Status::invalid_argument(format!("client_id: {error}")))?;
        let cursors = self.subscriptions.store.cursors().await.map_err(|error| status(&error))?;
        let is_its_own = |client: &ClientId| {
            let rest = client.as_str().strip_prefix(&*client_id);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let known = cursors.into_iter().map(|(client, _)| client).filter(is_its_own).collect();
        Ok(Caller { client_id, plain, known })
    }

    fn status_of(
        &self,
        caller: &Caller,
        repository: RepositoryId,
        count: u64,
    ) -> v1::WebhookEventStatusResponse {
        let pattern = RepositoryPattern::Id(repository);
        let standing = if self.subscriptions.watchlist.current().may_admit(&pattern) {
            // Where an old client would stand, else a new one of this id. An id may be too long to fetch with.
            let old = cursor_id(&caller.client_id, &pattern).ok();
            let standing = old.and_then(|old| self.standing(caller, &old));
            standing.or_else(|| self.standing(caller, &caller.plain)).unwrap_or("unknown")
        } else {
            "not watched"
        };
        v1::WebhookEventStatusResponse {
            server_id: self.subscriptions.server_name.clone(),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            repository_id: repository.to_string(),
            status: standing.to_owned(),
        }
    }

    fn standing(&self, caller: &Caller, client: &ClientId) -> Option<&'static str> {
        if self.subscriptions.registry.is_attached(client) {
            return Some("attached");
        }
        caller.known.contains(client).then_some("away")
    }
}
