//! Requests that fail by themselves within a group.

use super::damage::{closed_with, damage_middle, overwrite, root_page};
use super::*;

/// How many transactions SQLite's log holds: a frame that ends one says how large the database then is.
fn commits(folder: &TempDir) -> usize {
    let log = std::fs::read(folder.path().join("events.db-wal")).unwrap();
    let frames = log[32..].chunks_exact(24 + 8192);
    frames.filter(|frame| frame[8..16] == log[16..24] && frame[4..8] != [0; 4]).count()
}

async fn queue_redelivery(
    store: &SqliteStore,
    number: u64,
) -> oneshot::Receiver<Result<Option<Sequence>, StoreError>> {
    let (sequence, address) = (Sequence::new(number), Address::default());
    let task = |answer| Task::Redeliver { sequence, address, size: 1000, event: None, answer };
    store.queue.offer(task).await.unwrap()
}

/// Queues appends with redeliveries of a damaged event among them, as one group.
async fn assert_one_commit(folder: &TempDir, lost: u64) {
    let store = open(folder);
    append(&store, 1000).await.unwrap();
    let head = store.head().borrow().get();
    let before = commits(folder);
    let held = hold_up(&store).await;
    let (mut appends, mut redeliveries) = (Vec::new(), Vec::new());
    for number in 0..10 {
        appends.extend(queue_appends(&store, 2000 + number * 10..2003 + number * 10, 10).await);
        redeliveries.push(queue_redelivery(&store, lost).await);
    }
    drop(held);
    for (answer, expected) in appends.into_iter().zip(head + 1..) {
        assert_eq!(answer.await.unwrap().unwrap().sequence().get(), expected, "in order and without gaps");
    }
    for answer in redeliveries {
        let error = answer.await.unwrap().unwrap_err();
        assert!(
            matches!(error, StoreError::DamagedEvent { sequence, .. } if sequence.get() == lost),
            "{error}"
        );
    }
    assert_eq!(commits(folder) - before, 1, "what failed did not split the group");
    assert!(store.statistics().await.unwrap().writable);
}

#[tokio::test]
async fn a_damaged_event_does_not_split_a_group() {
    let (folder, _) = closed_with(3).await;
    let change = "UPDATE payloads SET body = zeroblob(length(body)) WHERE sequence = 2";
    shell(&folder).execute(change, ()).unwrap();
    assert_one_commit(&folder, 2).await;
}

#[tokio::test]
async fn an_unreadable_page_does_not_split_a_group() {
    let (folder, database) = closed_with(100).await;
    damage_middle(&folder, &database, "payloads");
    let store = open(&folder);
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    store.close().await;
    let lost = page.damaged[0].first.get();
    assert_one_commit(&folder, lost).await;
}

#[tokio::test]
async fn a_request_that_fails_half_way_is_undone() {
    let (folder, database) = closed_with(3).await;
    let outcomes = root_page(&folder, "outcomes");
    let store = open(&folder);
    overwrite(&database, outcomes);
    let held = hold_up(&store).await;
    let mut appends = queue_appends(&store, [10], 10).await;
    let (acknowledgements, cursor) = (vec![acknowledgement(Sequence::new(1))], Sequence::new(1));
    let task = |answer| Task::Acknowledge { client: client(), acknowledgements, cursor, answer };
    let acknowledged = store.queue.offer(task).await.unwrap();
    appends.extend(queue_appends(&store, [11], 10).await);
    drop(held);
    assert!(matches!(acknowledged.await.unwrap(), Err(StoreError::Damaged { .. })));
    for answer in appends {
        assert!(matches!(answer.await.unwrap(), Ok(Appended::Stored { .. })));
    }
    assert_eq!(store.progress(&client()).await.unwrap(), None, "the cursor did not move");
}
