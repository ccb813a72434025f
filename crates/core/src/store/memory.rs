//! The memory store.
/// Memory store.
#[derive(Debug)]
pub struct MemoryStore;
