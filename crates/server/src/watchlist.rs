//! The watchlist as it stands: the configured one, and what operators changed at run time, which the store keeps.

use std::sync::{Arc, PoisonError, RwLock};

use gitstafette_core::repository::{RepositoryPattern, Watchlist};
use gitstafette_core::store::{EventStore, StoreError, WatchlistChange};
use gitstafette_proto::convert::{WatchlistEntry, WatchlistOrigin};

/// How many entries a watchlist may have. Every webhook is compared with all of them.
pub(crate) const MAX_ENTRIES: usize = 10_000;

/// A watchlist that changes while it is in use.
#[derive(Debug)]
pub(crate) struct LiveWatchlist {
    configured: Watchlist,
    store: Arc<dyn EventStore>,
    state: RwLock<State>,
    /// Held for one change: what is in memory follows the store in the same order.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    entries: Vec<WatchlistEntry>,
    /// What the entries amount to.
    current: Arc<Watchlist>,
}

impl LiveWatchlist {
    /// The configured watchlist with the changes that the store keeps.
    pub(crate) async fn load(configured: Watchlist, store: Arc<dyn EventStore>) -> Result<Self, StoreError> {
        let changes = store.watchlist_changes().await?;
        let state = RwLock::new(State::new(&configured, changes));
        Ok(Self { configured, store, state, changing: tokio::sync::Mutex::default() })
    }

    /// What is accepted now.
    pub(crate) fn current(&self) -> Arc<Watchlist> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).current)
    }

    /// Every pattern and where it comes from.
    pub(crate) fn entries(&self) -> Vec<WatchlistEntry> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).entries.clone()
    }

    fn len(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).entries.len()
    }

    /// Adds a pattern, or removes it: from now on, and after a restart.
    ///
    /// # Errors
    /// What is to be removed is not there, the watchlist is full, or the change cannot be kept.
    pub(crate) async fn change(
        self: &Arc<Self>,
        pattern: &RepositoryPattern,
        change: WatchlistChange,
    ) -> Result<Vec<WatchlistEntry>, ChangeError> {
        let (this, pattern) = (Arc::clone(self), pattern.clone());
        // In a task of its own: a caller that hangs up in between must not leave a change stored and not in force.
        let applied = tokio::spawn(async move { this.apply(&pattern, change).await });
        applied.await.unwrap_or(Err(ChangeError::Store(StoreError::Closed)))
    }

    async fn apply(
        &self,
        pattern: &RepositoryPattern,
        change: WatchlistChange,
    ) -> Result<Vec<WatchlistEntry>, ChangeError> {
        let _changing = self.changing.lock().await;
        // As it is spelled where it stands already.
        let known = self.entries().into_iter().find(|entry| entry.pattern.is(pattern));
        let is_accepted = known.as_ref().is_some_and(|entry| entry.origin != WatchlistOrigin::Removed);
        if change == WatchlistChange::Removed && !is_accepted {
            return Err(ChangeError::Unknown(pattern.clone()));
        }
        if change == WatchlistChange::Added && known.is_none() && self.len() >= MAX_ENTRIES {
            return Err(ChangeError::Full);
        }
        let configured = known.as_ref().is_some_and(|entry| entry.origin != WatchlistOrigin::Added);
        let pattern = known.as_ref().map_or(pattern, |entry| &entry.pattern);
        // What is as configured again needs no note.
        let kept = match (change, configured) {
            (WatchlistChange::Added, true) | (WatchlistChange::Removed, false) => None,
            (change, _) => Some(change),
        };
        self.store.change_watchlist(pattern, kept).await?;
        let mut changes = self.changes();
        changes.retain(|(other, _)| !other.is(pattern));
        changes.extend(kept.map(|change| (pattern.clone(), change)));
        let state = State::new(&self.configured, changes);
        let entries = state.entries.clone();
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(entries)
    }

    /// What is in force and not as configured.
    fn changes(&self) -> Vec<(RepositoryPattern, WatchlistChange)> {
        let change = |entry: WatchlistEntry| match entry.origin {
            WatchlistOrigin::Configured => None,
            WatchlistOrigin::Added => Some((entry.pattern, WatchlistChange::Added)),
            WatchlistOrigin::Removed => Some((entry.pattern, WatchlistChange::Removed)),
        };
        self.entries().into_iter().filter_map(change).collect()
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("{0} is not on the watchlist; what is on it is listed with its spelling")]
    Unknown(RepositoryPattern),
    #[error(
        "the watchlist has {MAX_ENTRIES} entries, which is the most; remove some, or add owner/* for all repositories of an owner"
    )]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl State {
    fn new(configured: &Watchlist, changes: Vec<(RepositoryPattern, WatchlistChange)>) -> Self {
        let is_removed = |pattern: &RepositoryPattern| {
            changes.iter().any(|(other, change)| other.is(pattern) && *change == WatchlistChange::Removed)
        };
        let mut entries: Vec<_> = configured
            .patterns()
            .iter()
            .map(|pattern| WatchlistEntry {
                pattern: pattern.clone(),
                origin: if is_removed(pattern) {
                    WatchlistOrigin::Removed
                } else {
                    WatchlistOrigin::Configured
                },
            })
            .collect();
        let mut added: Vec<_> = changes
            .into_iter()
            .filter(|(pattern, change)| {
                *change == WatchlistChange::Added && !configured.patterns().iter().any(|own| own.is(pattern))
            })
            .map(|(pattern, _)| WatchlistEntry { pattern, origin: WatchlistOrigin::Added })
            .collect();
        added.sort_by_cached_key(|entry| entry.pattern.to_string());
        entries.extend(added);
        let accepted = entries.iter().filter(|entry| entry.origin != WatchlistOrigin::Removed);
        let current = Arc::new(Watchlist::new(accepted.map(|entry| entry.pattern.clone()).collect()));
        Self { entries, current }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::repository::RepositoryId;
    use gitstafette_core::store::{MemoryStore, Options};

    fn pattern(text: &str) -> RepositoryPattern {
        text.parse().unwrap()
    }

    fn shown(entries: &[WatchlistEntry]) -> Vec<String> {
        entries.iter().map(|entry| format!("{} {:?}", entry.pattern, entry.origin)).collect()
    }

    #[tokio::test]
    async fn changes_are_kept_over_the_configuration() {
        let store: Arc<dyn EventStore> = Arc::new(MemoryStore::new(Options::default()));
        let configured = Watchlist::new(vec![pattern("octo/*"), pattern("7")]);
        let load = async |configured: &Watchlist| {
            Arc::new(LiveWatchlist::load(configured.clone(), Arc::clone(&store)).await.unwrap())
        };
        let live = load(&configured).await;
        live.change(&pattern("cat/hub"), WatchlistChange::Added).await.unwrap();
        live.change(&pattern("Octo/*"), WatchlistChange::Removed).await.unwrap();
        let unknown = live.change(&pattern("never/there"), WatchlistChange::Removed).await;
        assert!(matches!(unknown, Err(ChangeError::Unknown(_))), "{unknown:?}");
        let expected = ["octo/* Removed", "7 Configured", "cat/hub Added"];
        assert_eq!(shown(&live.entries()), expected);
        assert_eq!(live.current().patterns(), [pattern("7"), pattern("cat/hub")]);

        let again = load(&configured).await;
        assert_eq!(shown(&again.entries()), expected, "after a restart");
        again.change(&pattern("octo/*"), WatchlistChange::Added).await.unwrap();
        assert_eq!(shown(&again.entries())[0], "octo/* Configured");

        // There is room for so many, and known entries still change.
        let full = (0..MAX_ENTRIES as u64).map(|id| RepositoryPattern::Id(RepositoryId(id))).collect();
        let full = load(&Watchlist::new(full)).await;
        let refused = full.change(&pattern("one/more"), WatchlistChange::Added).await;
        assert!(matches!(refused, Err(ChangeError::Full)), "{refused:?}");
        full.change(&pattern("8"), WatchlistChange::Removed).await.unwrap();
        full.change(&pattern("8"), WatchlistChange::Added).await.unwrap();

        // What was added is now configured, and what was removed is gone: the notes do no harm.
        again.change(&pattern("7"), WatchlistChange::Removed).await.unwrap();
        let other = load(&Watchlist::new(vec![pattern("cat/hub")])).await;
        assert_eq!(shown(&other.entries()), ["cat/hub Configured"]);
    }
}
