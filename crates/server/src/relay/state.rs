//! What a relay stores about its peer. It is set back together with this server's store, so after a restore it tells what this
//! server still has.

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{EventStore, History, Run};
use gitstafette_proto::convert::Seen;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::error;

/// A log and how far it is known, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredLog {
    store: String,
    /// Id and start of each run.
    runs: Vec<(String, u64)>,
    sequence: u64,
}

impl From<&Seen> for StoredLog {
    fn from(seen: &Seen) -> Self {
        let run = |run: &Run| (run.id.to_string(), run.start.get());
        Self {
            store: seen.store.clone(),
            runs: seen.history.runs().iter().map(run).collect(),
            sequence: seen.sequence.get(),
        }
    }
}

impl From<StoredLog> for Seen {
    fn from(stored: StoredLog) -> Self {
        let run =
            |(id, start): &(String, u64)| Some(Run { id: id.parse().ok()?, start: Sequence::new(*start) });
        Self {
            history: History::new(stored.runs.iter().filter_map(run).collect()),
            store: stored.store,
            sequence: Sequence::new(stored.sequence),
        }
    }
}

/// The state of a relay; `None` if there is none, or none that can be read. Then events are sent again that need not be.
pub(super) async fn load<T: DeserializeOwned>(store: &dyn EventStore, relay: &str) -> Option<T> {
    let read = store.relay_state(relay).await;
    let text = read.inspect_err(|error| error!(%error, "cannot read the state of the relay")).ok()??;
    serde_json::from_str(&text)
        .inspect_err(|error| error!(%error, "the state of the relay is not what this version stores"))
        .ok()
}

/// Stores the state of a relay; `false` if that failed, to be tried again with the next change.
pub(super) async fn store<T: Serialize>(store: &dyn EventStore, relay: &str, state: &T) -> bool {
    let Ok(text) = serde_json::to_string(state) else { return false };
    store
        .store_relay_state(relay, text)
        .await
        .inspect_err(|error| error!(%error, "cannot store the state of the relay"))
        .is_ok()
}
