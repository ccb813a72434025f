//! The wire of the Go implementation (joostvdg/gitstafette 0.3) over the same store and cursors: what its clients fetch,
//! what its servers push, and both statuses. Its names and its ways stop here.
//!
//! Read on in `fetch`, which opens a stream, and `courier`, which brings its events; then `push`.

mod courier;
mod fetch;
mod push;
mod status;

use std::sync::Arc;

use gitstafette_core::event::ClientId;
use gitstafette_core::repository::{RepositoryId, RepositoryPattern};
use tonic::Status;

use crate::metrics::Metrics;
use crate::subscribe::Subscriptions;

pub(crate) use push::{answer_refusals, router as push_router};

/// Serves old clients, through subscriptions as new clients have them.
#[derive(Clone, Debug)]
pub(crate) struct Compat {
    pub(crate) subscriptions: Arc<Subscriptions>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Under which id the cursor of an old client is kept: all old clients of one house share the default client id, and run
/// one process per repository.
fn cursor_id(client_id: &str, repository: &RepositoryPattern) -> Result<ClientId, Status> {
    let refused = || {
        Status::invalid_argument(format!(
            "client_id: it must not be empty, and with /{repository} after it be at most 128 visible ASCII characters; \
             choose a shorter or plainer one (-clientId), or name the repository by its number (-repo)"
        ))
    };
    if client_id.is_empty() {
        return Err(refused());
    }
    // Two spellings of one name are one repository.
    let repository_name = repository.to_string().to_ascii_lowercase();
    format!("{client_id}/{repository_name}").parse().map_err(|_| refused())
}

/// The repository's number, as the statuses have it.
fn number(repository_id: &str) -> Result<RepositoryId, Status> {
    let number = repository_id.trim().parse().map(RepositoryId);
    number.map_err(|_| Status::invalid_argument("repository_id: it is the repository's number"))
}
