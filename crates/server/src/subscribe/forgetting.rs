//! Forgets client ids that nobody has used for a long time. A cursor is cheap, but names are free.

use std::time::Duration;

use gitstafette_core::event::ClientId;
use tracing::{info, warn};

use super::Subscriptions;

/// How often to look for such client ids.
const INTERVAL: Duration = Duration::from_secs(3600);

impl Subscriptions {
    /// Forgets clients until the server drains. `relays` are the ids of the configured relays, which count as connected.
    pub(crate) async fn forget_clients(&self, relays: Vec<ClientId>) {
        let Some(age) = self.options.forget_clients else { return };
        // It waits first: after a long stop of the server, its clients must have the time to reconnect.
        while self.draining.run_until_cancelled(tokio::time::sleep(age.min(INTERVAL))).await.is_some() {
            self.forget(age, &relays).await;
        }
    }

    async fn forget(&self, age: Duration, relays: &[ClientId]) {
        loop {
            let connected = self.registry.clients().chain(relays.iter().cloned()).collect();
            match self.store.forget_clients(age, connected).await {
                Ok(forgotten) if forgotten.is_empty() => return,
                Ok(forgotten) => {
                    for client in forgotten {
                        info!(client.id = %client, "client id forgotten: it was not seen for too long");
                    }
                }
                Err(error) => {
                    warn!(%error, "cannot forget client ids, trying again later");
                    return;
                }
            }
        }
    }
}
