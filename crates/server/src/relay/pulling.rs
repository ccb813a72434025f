//! A relay that pulls, over restarts of this server: it tells the upstream how far its events are in this server's store.
//!
//! The upstream keeps the cursor. When this server's store was emptied or set back to an older copy, the cursor is past events
//! that are missing here. So the relay stores how far the cursor went, and names that with the first subscription of each
//! process: the upstream moves its cursor back to there. What is here already is a repeat.

use std::convert::Infallible;
use std::sync::Arc;

use gitstafette_client::{Client, ClientState, Seen, Start};
use gitstafette_core::event::Sequence;
use gitstafette_core::store::EventStore;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::state::{self, StoredLog};

/// Runs the relay's client until `stop` is cancelled.
pub(super) async fn run(
    client: Client,
    store: Arc<dyn EventStore>,
    relay: &str,
    start: Start,
    stop: CancellationToken,
) {
    if !store.is_durable() {
        // It begins empty each time, by intention: not all that the upstream has is wanted again.
        return client.run(stop).await;
    }
    let seen = seen(&*store, relay, start).await;
    let (progress, mut kept) = (client.state(), Kept::default());
    tokio::select! {
        () = client.knowing(seen).run(stop) => {}
        never = keep(&*store, relay, progress.clone(), &mut kept) => match never {},
    }
    kept.update(&*store, relay, &progress).await;
}

/// How far the upstream's events are here. An empty store has none; a relay that began with the newest event does not ask for
/// older ones.
async fn seen(store: &dyn EventStore, relay: &str, start: Start) -> Option<Seen> {
    match state::load::<StoredLog>(store, relay).await {
        Some(stored) => Some(stored.into()),
        None if start == Start::Latest => None,
        None => Some(Seen::default()),
    }
}

/// Stores how far the upstream's cursor went, whenever it moves.
async fn keep(
    store: &dyn EventStore,
    relay: &str,
    mut progress: watch::Receiver<ClientState>,
    kept: &mut Kept,
) -> Infallible {
    loop {
        progress.mark_unchanged();
        kept.update(store, relay, &progress).await;
        if progress.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The cursor that is stored, and the log that it is of.
#[derive(Debug, Default)]
struct Kept(Option<(Arc<Seen>, Sequence)>);

impl Kept {
    async fn update(&mut self, store: &dyn EventStore, relay: &str, progress: &watch::Receiver<ClientState>) {
        let current = {
            let state = progress.borrow();
            state.log.clone().map(|log| (log, state.cursor))
        };
        let Some((log, cursor)) = current else { return };
        if let Some((kept, at)) = &self.0
            && Arc::ptr_eq(kept, &log)
            && *at == cursor
        {
            return;
        }
        let seen = Seen { sequence: cursor, ..Seen::clone(&log) };
        if state::store(store, relay, &StoredLog::from(&seen)).await {
            self.0 = Some((log, cursor));
        }
    }
}
