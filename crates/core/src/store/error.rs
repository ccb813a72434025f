//! What can go wrong with a store: whose fault it is, and what to do.

use std::sync::Arc;

use crate::event::Sequence;

/// Why a store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// More appends wait for the disk than may wait. Passing; nobody's fault.
    #[error("too many events are waiting for the disk")]
    Overloaded,
    /// No room left on the disk. The operator must make some; then it goes on by itself.
    #[error("no room on the disk for {path}")]
    Full {
        /// The file that cannot grow.
        path: String,
    },
    /// The database is damaged. Permanent until the operator acts.
    #[error(
        "the store {path} is damaged: {reason}; stop the server, then restore the folder from a backup, rescue what can be read (sqlite3 {path} .recover), or move the folder away to start with an empty one"
    )]
    Damaged {
        /// The database file.
        path: String,
        /// What SQLite says.
        reason: String,
    },
    /// One event is damaged. The store as a whole is not.
    #[error("event {sequence} is damaged: {reason}")]
    DamagedEvent {
        /// Which event.
        sequence: Sequence,
        /// Why it cannot be read.
        reason: Box<str>,
    },
    /// The disk or the database refused. Permanent until the operator acts.
    #[error("the store failed: {0}")]
    Failed(Arc<dyn std::error::Error + Send + Sync>),
    /// The store was closed: the server is going down.
    #[error("the store is closed")]
    Closed,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store {path} is in use by another process{}; stop that one or choose another folder with --store", holder.map(|pid| format!(" (process id {pid})")).unwrap_or_default())]
    Locked {
        /// The store's folder.
        path: String,
        /// Who holds the lock, if it left its process id.
        holder: Option<u32>,
    },
    /// Written by a newer version of this program.
    #[error(
        "the store {path} has schema version {found}, this program knows up to {known}; use the newer program again or choose another folder with --store"
    )]
    TooNew {
        /// The database file.
        path: String,
        /// Its schema version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The file is no database, or a damaged one.
    #[error(
        "the store {path} is damaged: {reason}; restore it from a backup, or move the folder away to start with an empty one"
    )]
    Damaged {
        /// The database file.
        path: String,
        /// What SQLite says.
        reason: String,
    },
    /// The folder or a file in it cannot be used.
    #[error("the store {path} cannot be opened: {reason}")]
    Unusable {
        /// The folder or file.
        path: String,
        /// What the system says.
        reason: String,
    },
}
