//! When more comes than the disk takes: who waits, who is refused, and what ends the waiting.

use tokio::task::JoinHandle;

use super::*;

const MEGABYTE: usize = 1_000_000;

fn shared(folder: &TempDir) -> Arc<SqliteStore> {
    Arc::new(open(folder))
}

/// Starts an append.
fn start(store: &Arc<SqliteStore>, number: u64, size: usize) -> JoinHandle<Answered> {
    let store = Arc::clone(store);
    tokio::spawn(async move { store.append(testing::webhook(number, HELLO, size)).await })
}

/// Starts appends while the writer is held up, until that many wait for room.
async fn start_until_waiting(
    store: &Arc<SqliteStore>,
    size: usize,
    waiting: usize,
) -> Vec<JoinHandle<Answered>> {
    let mut appends = Vec::new();
    while store.queue.waiting() < waiting {
        appends.push(start(store, appends.len() as u64, size));
        tokio::task::yield_now().await;
    }
    appends
}

async fn results(appends: Vec<JoinHandle<Answered>>) -> Vec<Answered> {
    let mut results = Vec::new();
    for append in appends {
        results.push(append.await.unwrap());
    }
    results
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_appends_at_once_all_succeed() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    // The last one is larger than the queue.
    let appends = (0..65).map(|number| start(&store, number, if number < 64 { MEGABYTE } else { 9 << 20 }));
    for result in results(appends.collect()).await {
        result.unwrap();
    }
    assert_eq!(sequences(&store).await, (1..=65).collect::<Vec<_>>());
    assert_eq!(store.queue.waiting(), 0);
}

#[tokio::test]
async fn first_come_first_served() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    let held = hold_up(&store).await;
    let mut appends = start_until_waiting(&store, MEGABYTE, 2).await;
    assert_eq!(appends.len(), 10, "eight fit");
    // One that needs the whole queue is not starved by small ones that come later, nor overtaken.
    for (number, size) in [(100, 9 << 20), (101, 10), (102, 10)] {
        appends.push(start(&store, number, size));
        tokio::task::yield_now().await;
    }
    drop(held);
    for (result, expected) in results(appends).await.into_iter().zip(1..) {
        assert_eq!(result.unwrap().sequence(), Sequence::new(expected));
    }
}

#[tokio::test]
async fn a_redelivery_takes_as_much_room_as_its_event() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    let large = start(&store, 100, 25 << 20).await.unwrap().unwrap().sequence();
    let held = hold_up(&store).await;
    let appends = start_until_waiting(&store, MEGABYTE, 1).await;
    let copies: Vec<_> = (0..3)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.redeliver(large, Address::default()).await })
        })
        .collect();
    until(async || store.queue.waiting() == 4).await;
    drop(held);
    for result in results(appends).await {
        result.unwrap();
    }
    let mut last = large;
    for copy in copies {
        let copy = copy.await.unwrap().unwrap().unwrap();
        let limit = ReadLimit { events: 1, bytes: 0 };
        let page = store.read(copy.previous(), &Filter::default(), limit).await.unwrap();
        assert_eq!(page.events[0].webhook, testing::webhook(100, HELLO, 25 << 20));
        assert_ne!(copy, std::mem::replace(&mut last, copy));
    }
}

#[tokio::test]
async fn only_very_many_waiting_appends_are_refused() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    let held = hold_up(&store).await;
    let mut appends = start_until_waiting(&store, 10, queue::WAITING_APPENDS).await;
    assert_eq!(appends.len(), 1024 + queue::WAITING_APPENDS);
    for _ in 0..2 {
        let error = append(&store, 10_000).await.unwrap_err();
        assert!(matches!(error, StoreError::Overloaded), "{error}");
    }
    // Who gives up makes place for another.
    let gone = appends.pop().unwrap();
    gone.abort();
    gone.await.unwrap_err();
    let last = appends.len() as u64;
    appends.push(start(&store, last, 10));
    drop(held);
    for result in results(appends).await {
        result.unwrap();
    }
    append(&store, 10_000).await.unwrap();
}

#[tokio::test]
async fn acknowledgements_are_not_refused_while_the_queue_is_full() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    let held = hold_up(&store).await;
    let appends = start_until_waiting(&store, 10, queue::WAITING_APPENDS).await;
    let progress: Vec<_> = (0..1500)
        .map(|number| {
            let (store, cursor) = (Arc::clone(&store), Sequence::new(number));
            tokio::spawn(async move {
                match number % 2 {
                    0 => store.seek(&client(), cursor).await,
                    _ => store.acknowledge(&client(), vec![acknowledgement(cursor)], cursor).await,
                }
            })
        })
        .collect();
    for done in &progress {
        tokio::task::yield_now().await;
        assert!(!done.is_finished(), "it waits");
    }
    drop(held);
    for done in progress {
        done.await.unwrap().unwrap();
    }
    assert_eq!(store.progress(&client()).await.unwrap().unwrap().cursor, Sequence::new(1499));
    for result in results(appends).await {
        result.unwrap();
    }
}

#[tokio::test]
async fn closing_wakes_who_waits_and_does_what_was_taken() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    let held = hold_up(&store).await;
    let mut taken = start_until_waiting(&store, MEGABYTE, 3).await;
    let waiting = taken.split_off(taken.len() - 3);
    let closing = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.close().await })
    };
    // The writer is still held up: this does not wait for it.
    for result in results(waiting).await {
        assert!(matches!(result, Err(StoreError::Closed)), "{result:?}");
    }
    assert!(matches!(append(&store, 100).await, Err(StoreError::Closed)));
    assert!(matches!(store.seek(&client(), Sequence::ZERO).await, Err(StoreError::Closed)));
    drop(held);
    for result in results(taken).await {
        result.unwrap();
    }
    closing.await.unwrap();
    assert_eq!(sequences(&open(&folder)).await.len(), 8);
}

#[tokio::test]
async fn the_end_of_the_writer_wakes_who_waits() {
    let folder = TempDir::new().unwrap();
    let store = shared(&folder);
    let held = hold_up(&store).await;
    let run = Box::new(|_: &Connection| panic!("as a defect would"));
    drop(store.queue.offer(|answer| Task::Inspect { run, answer }).await.unwrap());
    let appends = start_until_waiting(&store, MEGABYTE, 3).await;
    drop(held);
    for result in results(appends).await {
        assert!(matches!(result, Err(StoreError::Closed)), "{result:?}");
    }
}
