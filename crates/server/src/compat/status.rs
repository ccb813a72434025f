//! `WebhookEventStatus` and `WebhookEventStatuses`: what is stored of a repository, and where a client stands.

use std::collections::BTreeMap;

use gitstafette_core::event::{ClientId, IdentifierError};
use gitstafette_core::repository::{RepositoryId, RepositoryPattern};
use gitstafette_proto::v1;
use tonic::Status;

use super::{Compat, cursor_id, number};
use crate::subscribe::status;

impl Compat {
    /// The status of one repository.
    pub(crate) async fn status(
        &self,
        request: v1::WebhookEventStatusRequest,
    ) -> Result<v1::WebhookEventStatusResponse, Status> {
        let repository = number(&request.repository_id)?;
        let counts: BTreeMap<RepositoryId, u64> = self.counts().await?.into_iter().collect();
        let count = counts.get(&repository).copied().unwrap_or(0);
        self.status_of(&request.client_id, repository, count).await
    }

    /// The statuses of all repositories that are watched by their number or have events here, by number.
    pub(crate) async fn statuses(
        &self,
        request: v1::WebhookEventStatusesRequest,
    ) -> Result<Vec<v1::WebhookEventStatusResponse>, Status> {
        let mut counts: BTreeMap<RepositoryId, u64> = self.counts().await?.into_iter().collect();
        for pattern in self.subscriptions.watchlist.current().patterns() {
            if let RepositoryPattern::Id(id) = pattern {
                counts.entry(*id).or_default();
            }
        }
        let mut statuses = Vec::with_capacity(counts.len());
        for (repository, count) in counts {
            statuses.push(self.status_of(&request.client_id, repository, count).await?);
        }
        Ok(statuses)
    }

    async fn counts(&self) -> Result<Vec<(RepositoryId, u64)>, Status> {
        self.subscriptions.store.counts().await.map_err(|error| status(&error))
    }

    async fn status_of(
        &self,
        client_id: &str,
        repository: RepositoryId,
        count: u64,
    ) -> Result<v1::WebhookEventStatusResponse, Status> {
        let pattern = RepositoryPattern::Id(repository);
        let plain = client_id
            .parse()
            .map_err(|error: IdentifierError| Status::invalid_argument(format!("client_id: {error}")))?;
        let standing = if self.subscriptions.watchlist.current().may_admit(&pattern) {
            // Where an old client would stand, else a new one of this id.
            let old = match cursor_id(client_id, &pattern) {
                Ok(old) => self.standing(&old).await?,
                Err(_) => None, // too long to fetch with
            };
            match old {
                Some(standing) => standing,
                None => self.standing(&plain).await?.unwrap_or("unknown"),
            }
        } else {
            "not watched"
        };
        Ok(v1::WebhookEventStatusResponse {
            server_id: self.subscriptions.server_name.clone(),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            repository_id: repository.to_string(),
            status: standing.to_owned(),
        })
    }

    async fn standing(&self, client: &ClientId) -> Result<Option<&'static str>, Status> {
        if self.subscriptions.registry.is_attached(client) {
            return Ok(Some("attached"));
        }
        let progress = self.subscriptions.store.progress(client).await.map_err(|error| status(&error))?;
        Ok(progress.map(|_| "away"))
    }
}
