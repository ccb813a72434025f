//! What happens to a disk: it fills up, it is damaged. And stores of earlier versions.

use std::fs::File;
use std::process::Command;

use super::*;
use crate::event::Address;
use crate::store::{Fate, FateFilter};

/// A file system of a few MiB of its own, if this process may mount one.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("SKIPPED: no small file system could be mounted (that takes root on Linux)");
        }
        mounted.then_some(Self { folder })
    }

    /// Takes room away until only about `left` bytes remain.
    fn fill(&self, ballast: u64) -> PathBuf {
        let path = self.folder.path().join("ballast");
        std::fs::write(&path, vec![1; ballast as usize]).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.folder.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Appends until the disk is full; what was stored, and the refusal.
async fn append_until_full(store: &SqliteStore, numbers: std::ops::Range<u64>) -> (Vec<u64>, StoreError) {
    let mut stored = Vec::new();
    for number in numbers {
        match store.append(testing::webhook(number, HELLO, 20_000)).await {
            Ok(_) => stored.push(number),
            Err(error) => return (stored, error),
        }
    }
    panic!("the disk never filled up");
}

async fn is_all_there(store: &SqliteStore, numbers: &[u64]) {
    let mut at = Sequence::ZERO;
    let mut found = Vec::new();
    loop {
        let page = store.read(at, &Filter::default(), ALL).await.unwrap();
        if page.read_to <= at {
            break;
        }
        at = page.read_to;
        found.extend(page.events);
    }
    // What was refused may be there or not; what was stored is, byte for byte.
    for number in numbers {
        let expected = testing::webhook(*number, HELLO, 20_000);
        assert!(found.iter().any(|event| event.webhook == expected), "{number} is missing");
    }
}

#[tokio::test]
async fn a_full_file_system_is_survived_and_left_behind() {
    // At several fillings, so that it is full in the log, at a commit, and when the log is carried over.
    for ballast in [0, 2_000_000, 3_500_000, 5_000_000] {
        let Some(disk) = SmallDisk::mount("8m") else { return };
        let ballast = disk.fill(ballast + 100_000);
        let store = SqliteStore::open(&disk.folder.path().join("store"), Options::default()).unwrap();
        let (mut stored, error) = append_until_full(&store, 0..1000).await;
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert!(!store.statistics().await.unwrap().writable);
        // Acknowledgements are refused as well, or find room that a webhook did not.
        let acknowledged =
            store.acknowledge(&client(), vec![acknowledgement(Sequence::new(1))], Sequence::ZERO).await;
        is_all_there(&store, &stored).await;

        std::fs::remove_file(ballast).unwrap();
        // The store finds out by itself: nobody may send to a server that says it is full.
        while !store.statistics().await.unwrap().writable {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        store.append(testing::webhook(5000, HELLO, 20_000)).await.unwrap();
        stored.push(5000);
        let reports = store.reports(Sequence::new(1)).await.unwrap();
        assert_eq!(reports.len(), usize::from(acknowledged.is_ok()));
        is_all_there(&store, &stored).await;
        store.close().await;

        let store = SqliteStore::open(&disk.folder.path().join("store"), Options::default()).unwrap();
        is_all_there(&store, &stored).await;
        inspect(&store, |connection| {
            let checked: String =
                connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
            assert_eq!(checked, "ok");
        })
        .await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_damaged_page_is_named_and_the_rest_is_served() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    for number in 0..40 {
        store.append(testing::webhook(number, HELLO, 20_000)).await.unwrap();
    }
    store.close().await;
    let database = folder.path().join(schema::FILE);
    // The bytes of one event's body, somewhere in the middle: its pages are made to point nowhere.
    let mut bytes = std::fs::read(&database).unwrap();
    let page = 8192;
    let middle = bytes.len() / page / 2 * page;
    bytes[middle..middle + 2 * page].fill(0xff);
    std::fs::write(&database, bytes).unwrap();
    File::open(&database).unwrap().sync_all().unwrap();

    let store = open(&folder);
    let mut damaged = 0;
    let mut served = 0;
    for sequence in 0..40 {
        let limit = ReadLimit { events: 1, bytes: 0 };
        match store.read(Sequence::new(sequence), &Filter::default(), limit).await {
            Ok(page) => served += page.events.len(),
            Err(error @ StoreError::Damaged { .. }) => {
                damaged += 1;
                let text = error.to_string();
                assert!(text.contains("events.db") && text.contains("backup"), "{text}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    println!("{served} served, {damaged} damaged");
    assert!(damaged > 0 && served > 20, "{served} served, {damaged} damaged");
    append(&store, 99).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_large_body_is_stored_and_read_whole() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let webhook = testing::webhook(1, HELLO, (5 << 20) + 17);
    store.append(webhook.clone()).await.unwrap();
    let copy = store.redeliver(Sequence::new(1), Address::default()).await.unwrap().unwrap();
    for sequence in [Sequence::new(1), copy] {
        let limit = ReadLimit { events: 1, bytes: 0 };
        let page = store.read(sequence.previous(), &Filter::default(), limit).await.unwrap();
        assert!(page.events[0].webhook == webhook, "{sequence}");
    }
}

#[tokio::test]
async fn a_store_of_the_first_version_is_upgraded() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..3).await;
    store.acknowledge(&client(), vec![acknowledgement(Sequence::new(1))], Sequence::new(1)).await.unwrap();
    store.close().await;
    // As the first version left it.
    shell(&folder)
        .execute_batch(
            "DROP INDEX dead_letters; DROP TABLE watchlist; ALTER TABLE outcomes DROP COLUMN redelivered_as; \
             ALTER TABLE events DROP COLUMN for_target; ALTER TABLE events DROP COLUMN for_client; \
             ALTER TABLE events DROP COLUMN original; PRAGMA user_version = 1;",
        )
        .unwrap();
    let store = open(&folder);
    assert_eq!(sequences(&store).await, [1, 2, 3]);
    assert_eq!(store.reports(Sequence::new(1)).await.unwrap().len(), 1);
    assert!(store.redeliver(Sequence::new(2), Address::default()).await.unwrap().is_some());
    assert_eq!(store.watchlist_changes().await.unwrap(), []);
}

#[tokio::test]
async fn dead_letters_are_found_by_their_index() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let plan = |listing: &Listing| {
        let statement = listing::statement(listing);
        shell(&folder)
            .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
            .unwrap()
            .query_map((0, i64::MAX, None::<String>), |row| row.get::<_, String>(3))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
            .join("; ")
    };
    let fate = FateFilter { fate: Fate::DeadLetter, client: None, target: None };
    let dead = plan(&Listing { fate: Some(fate), ..Listing::default() });
    assert!(dead.contains("INDEX dead_letters") && !dead.contains("TEMP B-TREE"), "{dead}");
    let all = plan(&Listing::default());
    assert!(all.contains("INTEGER PRIMARY KEY") && !all.contains("TEMP B-TREE"), "{all}");
    store.close().await;
}
