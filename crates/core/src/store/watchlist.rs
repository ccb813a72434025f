//! Changes of the watchlist at run time.

use std::str::FromStr;

/// How the watchlist differs from the configured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchlistChange {
    /// The pattern was added.
    Added,
    /// It was removed.
    Removed,
}

impl WatchlistChange {
    /// The word for stores and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }
}

impl FromStr for WatchlistChange {
    type Err = WatchlistChangeError;

    fn from_str(text: &str) -> Result<Self, WatchlistChangeError> {
        [Self::Added, Self::Removed]
            .into_iter()
            .find(|change| change.as_str() == text)
            .ok_or(WatchlistChangeError)
    }
}

/// The text names no change of a watchlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is added or removed")]
pub struct WatchlistChangeError;
