//! The SQLite store.
/// SQLite store.
#[derive(Debug)]
pub struct SqliteStore;
