//! The connections of each listener, derived from the number of files that the process may have open. The store, the log, the
//! listeners and the relays keep a reserve: without it a full listener would stop the store.

use gitstafette_client::open_files;
use tracing::warn;

use crate::app::{Listeners, ServerOptions};
use crate::relay::Neighbour;

/// Connections of a listener that only probes or operators use.
const SMALL: usize = 64;
/// Files of a server without connections: the store 14 at most, the runtime 6, standard streams and signals 5, four listeners
/// with one accepted connection each that waits, and some for what is open for a moment.
const RESERVED: usize = 36;

/// How many connections the listeners may have open at once, each its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// Of the listeners for webhooks and gRPC.
    pub(crate) public: usize,
    /// Of those for health alone and for operators.
    pub(crate) small: usize,
}

impl ConnectionLimits {
    /// What fits. Warns if it is less than what is configured.
    pub(crate) fn new(options: &ServerOptions) -> Self {
        let (public_listeners, health) = match options.listeners {
            Listeners::Shared { health, .. } => (1, health),
            Listeners::Separate { health, .. } => (2, health),
        };
        let small_listeners = usize::from(health.is_some()) + usize::from(options.admin.is_some());
        let wanted = Self { public: options.max_connections, small: SMALL };
        let Some(files) = open_files::limit() else { return wanted };
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let relays = options.relays.iter().map(|relay| match relay.neighbour {
            Neighbour::PushTo { .. } => relay.policy.parallel,
            Neighbour::PullFrom(_) => 1,
        });
        let reserved = RESERVED.saturating_add(relays.sum());
        let limits = wanted.fitting(files.saturating_sub(reserved), public_listeners, small_listeners);
        if limits != wanted {
            warn!(
                open_files = files,
                "the process may have only {files} files open: each listener serves {} connections at once instead of {}; raise the limit (ulimit -n, LimitNOFILE) or lower --max-connections",
                limits.public,
                wanted.public,
            );
        }
        limits
    }

    /// The same in so many files. Every listener has one connection at least.
    fn fitting(self, files: usize, public_listeners: usize, small_listeners: usize) -> Self {
        let small = self.small.min(files / 8).max(1);
        let public = files.saturating_sub(small * small_listeners) / public_listeners;
        Self { public: self.public.min(public).max(1), small }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_files() {
        let wanted = ConnectionLimits { public: 4096, small: 64 };
        assert_eq!(wanted.fitting(1 << 20, 2, 2), wanted);
        assert_eq!(wanted.fitting(992, 2, 2), ConnectionLimits { public: 432, small: 64 });
        assert_eq!(wanted.fitting(16, 2, 1), ConnectionLimits { public: 7, small: 2 });
        assert_eq!(wanted.fitting(0, 2, 2), ConnectionLimits { public: 1, small: 1 });
        assert_eq!(wanted.fitting(usize::MAX, 1, 0), wanted);
    }
}
