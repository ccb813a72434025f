//! Runs of a store over restarts, and of a store that is set back to a copy.

use super::*;
use crate::store::MAX_RUNS;

fn starts(store: &SqliteStore) -> Vec<u64> {
    store.history().runs().iter().map(|run| run.start.get()).collect()
}

#[tokio::test]
async fn each_start_is_a_run_and_those_with_events_are_recorded() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    assert_eq!(starts(&store), [0]);
    let first = store.history().current();
    fill(&store, 0..3).await;
    store.close().await;
    let empty = {
        let store = open(&folder);
        assert_eq!(starts(&store), [0, 3]);
        let empty = store.history().current();
        store.close().await;
        empty
    };
    let store = open(&folder);
    assert_eq!(starts(&store), [0, 3]);
    assert_eq!(store.history().runs().first().copied(), first);
    assert_ne!(store.history().current(), empty, "each start has an id of its own");
    fill(&store, 3..5).await;
    let history = store.history().clone();
    store.close().await;
    let store = open(&folder);
    assert_eq!(starts(&store), [0, 3, 5]);
    assert_eq!(store.history().runs()[..2], *history.runs());
    store.close().await;
}

#[tokio::test]
async fn a_copy_agrees_up_to_where_it_was_made() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..5).await;
    let copy = crashed_copy(folder.path());
    fill(&store, 5..10).await;
    store.close().await;
    let store = open(&folder);
    fill(&store, 10..12).await;
    let (id, seen) = (store.id(), store.history().clone());
    store.close().await;
    for number in 0..3 {
        let restored = open(&copy);
        assert_eq!(restored.id(), id);
        let head = *restored.head().borrow();
        assert_eq!(seen.last_common(restored.history(), Sequence::new(12)), Sequence::new(5), "{head:?}");
        fill(&restored, 20 + 10 * number..30 + 10 * number).await;
        restored.close().await;
    }
}

#[tokio::test]
async fn the_recorded_runs_are_bounded() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..1).await;
    store.close().await;
    let insert = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500) \
                  INSERT INTO runs (run, head) SELECT n, 0 FROM n";
    shell(&folder).execute(insert, ()).unwrap();
    let store = open(&folder);
    assert_eq!(store.history().runs().len(), MAX_RUNS);
    fill(&store, 1..2).await;
    store.close().await;
    let count = shell(&folder).query_row("SELECT count(*) FROM runs", (), |row| row.get::<_, u32>(0));
    assert_eq!(count.unwrap() as usize, MAX_RUNS);
}
