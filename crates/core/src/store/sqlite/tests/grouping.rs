//! How many commits the disk has to sync.

use super::*;

/// How many transactions were committed: SQLite counts them in the file that its connections share (the field `iChange` of
/// the WAL index header, "WAL-Index Format" in its documentation).
fn commits(folder: &TempDir) -> u32 {
    let shared = std::fs::read(folder.path().join("events.db-shm")).unwrap();
    u32::from_ne_bytes(shared[8..12].try_into().unwrap())
}

#[tokio::test]
async fn redeliveries_share_commits() {
    const EVENTS: u64 = 1000;
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let mut appends = tokio::task::JoinSet::new();
    let store = Arc::new(store);
    for number in 0..EVENTS {
        let store = Arc::clone(&store);
        appends.spawn(async move { append(&store, number).await.unwrap().sequence() });
    }
    let mut sequences = appends.join_all().await;
    sequences.sort_unstable();

    let before = commits(&folder);
    for sequence in &sequences[..100] {
        store.redeliver(*sequence, Address::default()).await.unwrap();
    }
    let one_by_one = commits(&folder) - before;
    assert!(one_by_one >= 100, "each waits for its own commit: {one_by_one}");

    let before = commits(&folder);
    let copies = conformance::redeliver_together(&*store, &sequences).await;
    let together = commits(&folder) - before;
    assert_eq!(copies.iter().flatten().count() as u64, EVENTS);
    assert!(together < 250, "{together} commits for {EVENTS} events");
}
