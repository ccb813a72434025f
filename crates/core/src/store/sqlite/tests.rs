//! What only a store on a disk can be asked: reopening, refusing, running out of room.

mod ahead;
mod damage;
mod failing;
mod full;
mod grouping;
mod large;
mod relaying;
mod runs;
mod upgrading;
mod waiting;

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::store::{Acknowledgement, Fate, FateFilter, Retention, conformance};
use crate::target::{Outcome, OutcomeResult};
use crate::testing;

const HELLO: &str = "octo/hello";
const ALL: ReadLimit = ReadLimit { events: 1000, bytes: u64::MAX };

type Answered = Result<Appended, StoreError>;

fn open(folder: &TempDir) -> SqliteStore {
    SqliteStore::open(folder.path(), Options::default()).unwrap()
}

fn with_count(folder: &TempDir, count: u64) -> SqliteStore {
    let retention = Retention { count, ..Retention::default() };
    SqliteStore::open(folder.path(), Options { retention, ..Options::default() }).unwrap()
}

fn refused(folder: &Path) -> OpenError {
    SqliteStore::open(folder, Options::default()).unwrap_err()
}

fn client() -> ClientId {
    "a".parse().unwrap()
}

fn acknowledgement(sequence: Sequence) -> Acknowledgement {
    let outcome = Outcome {
        target: "jenkins".to_owned(),
        result: OutcomeResult::Delivered,
        code: Some(200),
        attempts: 1,
        duration: Duration::from_millis(5),
        at: Timestamp::from_millis(7),
        detail: "OK".to_owned(),
    };
    Acknowledgement { sequence, outcomes: vec![outcome] }
}

async fn append(store: &SqliteStore, number: u64) -> Answered {
    store.append(testing::webhook(number, HELLO, 1000)).await
}

async fn fill(store: &SqliteStore, numbers: std::ops::Range<u64>) {
    for number in numbers {
        append(store, number).await.unwrap();
    }
}

async fn sequences(store: &SqliteStore) -> Vec<u64> {
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    page.events.iter().map(|event| event.sequence.get()).collect()
}

/// What the store holds, whatever its files take for it.
async fn holds(store: &SqliteStore) -> Statistics {
    let statistics = store.statistics().await.unwrap();
    assert!(statistics.disk_bytes > 0 && statistics.writable);
    Statistics { disk_bytes: 0, ..statistics }
}

/// Queues an append and does not wait for it.
async fn queue_append(store: &SqliteStore, number: u64, size: usize) -> oneshot::Receiver<Answered> {
    let webhook = Box::new(testing::webhook(number, HELLO, size));
    store.queue.offer(|answer| Task::Append { webhook, answer }).await.unwrap()
}

/// Likewise for several, of which there must be room for all.
async fn queue_appends(
    store: &SqliteStore,
    numbers: impl IntoIterator<Item = u64>,
    size: usize,
) -> Vec<oneshot::Receiver<Answered>> {
    let mut answers = Vec::new();
    for number in numbers {
        answers.push(queue_append(store, number, size).await);
    }
    answers
}

/// Runs something with the writer's connection, between groups.
async fn inspect(store: &SqliteStore, run: impl FnOnce(&Connection) + Send + 'static) {
    store.write(|answer| Task::Inspect { run: Box::new(run), answer }).await.unwrap();
}

/// Holds the writer up until the sender is dropped, so that what is queued meanwhile becomes one group.
async fn hold_up(store: &SqliteStore) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (tell, told) = oneshot::channel();
    let run = move |_: &Connection| {
        tell.send(()).unwrap();
        held.recv().unwrap_err();
    };
    let queue = |answer| Task::Inspect { run: Box::new(run), answer };
    drop(store.queue.offer(queue).await.unwrap());
    told.await.unwrap();
    release
}

/// A connection beside the store, as an operator's shell has one.
fn shell(folder: &TempDir) -> Connection {
    Connection::open(folder.path().join(schema::FILE)).unwrap()
}

/// What a crash now would leave, in another folder.
fn crashed_copy(folder: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in ["events.db", "events.db-wal"] {
        std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    copy
}

#[tokio::test]
async fn keeps_the_contract() {
    let folders = Mutex::new(Vec::new());
    conformance::run(async |options| {
        let folder = TempDir::new().unwrap();
        let store = SqliteStore::open(folder.path(), options).unwrap();
        folders.lock().unwrap().push(folder);
        store
    })
    .await;
}

#[tokio::test]
async fn everything_survives_reopening() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..5).await;
    let (cursor, ahead) = (Sequence::new(2), Sequence::new(4));
    store
        .acknowledge(&client(), vec![acknowledgement(cursor), acknowledgement(ahead)], cursor)
        .await
        .unwrap();
    let before = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    let statistics = holds(&store).await;
    let id = store.id();
    store.close().await;
    assert!(!folder.path().join("events.db-wal").exists(), "a closed store is one file");

    let store = open(&folder);
    assert_eq!(store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap(), before);
    assert_eq!(holds(&store).await, statistics);
    assert_eq!(store.id(), id);
    assert_ne!(store.id(), open(&TempDir::new().unwrap()).id());
    assert_eq!(*store.head().borrow(), Sequence::new(5));
    let progress = Progress { cursor, ahead: [ahead].into_iter().collect() };
    assert_eq!(store.progress(&client()).await.unwrap(), Some(progress));
    assert_eq!(
        store.reports(ahead).await.unwrap(),
        [Report {
            client: client(),
            outcome: acknowledgement(ahead).outcomes.remove(0),
            redelivered_as: None
        }]
    );
    assert_eq!(append(&store, 0).await.unwrap(), Appended::Repeat { sequence: Sequence::new(1) });
    let redelivered = Appended::Stored { sequence: Sequence::new(6), redelivery: true };
    assert_eq!(append(&store, 1).await.unwrap(), redelivered);
    // The disk below, the tail above: a page of both has no seam.
    assert_eq!(sequences(&store).await, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn sequences_go_on_after_everything_was_removed() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..3).await;
    store.close().await;
    let retention = Retention { age: Duration::ZERO, ..Retention::default() };
    let store = SqliteStore::open(folder.path(), Options { retention, ..Options::default() }).unwrap();
    until(async || store.statistics().await.unwrap().events == 0).await;
    store.close().await;
    let store = open(&folder);
    assert_eq!(*store.head().borrow(), Sequence::new(3));
    assert_eq!(append(&store, 9).await.unwrap().sequence(), Sequence::new(4));
}

#[tokio::test]
async fn a_dropped_store_does_what_it_was_given() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let answers = queue_appends(&store, 0..100, 1000).await;
    drop(store);
    for (answer, expected) in answers.into_iter().zip(1..) {
        assert_eq!(answer.await.unwrap().unwrap().sequence(), Sequence::new(expected));
    }
    assert_eq!(sequences(&open(&folder)).await.len(), 100);
}

#[tokio::test]
async fn a_crash_loses_nothing_accepted_and_keeps_nothing_by_halves() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..20).await;
    let path = folder.path().to_owned();
    let (tell, told) = oneshot::channel();
    inspect(&store, move |connection| {
        // Larger than the page cache, so that uncommitted pages are in the log when it is copied.
        connection.execute_batch("BEGIN; DELETE FROM events WHERE sequence = 7;").unwrap();
        let mut insert = connection
            .prepare("INSERT INTO payloads (sequence, headers, body) VALUES (?1, x'', zeroblob(100000))")
            .unwrap();
        for sequence in 100..200 {
            insert.execute([sequence]).unwrap();
        }
        let copy = crashed_copy(&path);
        connection.execute_batch("ROLLBACK;").unwrap();
        tell.send(copy).unwrap();
    })
    .await;
    let copy = told.await.unwrap();
    assert!(std::fs::metadata(copy.path().join("events.db-wal")).unwrap().len() > 5_000_000);
    let recovered = open(&copy);
    assert_eq!(sequences(&recovered).await, (1..=20).collect::<Vec<_>>());
    assert_eq!(append(&recovered, 3).await.unwrap(), Appended::Repeat { sequence: Sequence::new(4) });
    assert_eq!(append(&recovered, 20).await.unwrap().sequence(), Sequence::new(21));
    assert_eq!(sequences(&store).await.len(), 20);
}

#[tokio::test]
async fn one_bad_request_leaves_its_group_alone() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    inspect(&store, |connection| {
        let sql = "CREATE TRIGGER refuse AFTER INSERT ON events WHEN new.delivery_id = 'delivery-2' \
                   BEGIN SELECT RAISE(ABORT, 'refused'); END;";
        connection.execute_batch(sql).unwrap();
    })
    .await;
    let held = hold_up(&store).await;
    let answers = queue_appends(&store, [0, 1, 2, 3, 0], 10).await;
    drop(held);
    let mut results = Vec::new();
    for answer in answers {
        results.push(answer.await.unwrap().ok().map(Appended::sequence).map(Sequence::get));
    }
    assert_eq!(results, [Some(1), Some(2), None, Some(3), Some(1)]);
    assert_eq!(sequences(&store).await, [1, 2, 3]);
    let statistics = holds(&store).await;
    store.close().await;
    assert_eq!(holds(&open(&folder)).await, statistics);
}

#[tokio::test]
async fn a_full_disk_says_so_and_passes() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..3).await;
    inspect(&store, |connection| {
        let pages: i64 = connection.query_row("PRAGMA page_count", (), |row| row.get(0)).unwrap();
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), (), |_| Ok(())).unwrap();
    })
    .await;
    let held = hold_up(&store).await;
    let answers = queue_appends(&store, 3..6, 100_000).await;
    drop(held);
    for answer in answers {
        let error = answer.await.unwrap().unwrap_err();
        assert!(matches!(&error, StoreError::Full { path } if path.ends_with("events.db")), "{error}");
    }
    assert_eq!(sequences(&store).await, [1, 2, 3]);
    assert_eq!(*store.head().borrow(), Sequence::new(3));

    inspect(&store, |connection| {
        connection.query_row("PRAGMA max_page_count = 1000000", (), |_| Ok(())).unwrap();
    })
    .await;
    assert_eq!(append(&store, 3).await.unwrap().sequence(), Sequence::new(4));
    assert_eq!(sequences(&store).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_retention_frees_goes_back_to_the_disk() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    for number in 0..20 {
        store.append(testing::webhook(number, HELLO, 1_000_000)).await.unwrap();
    }
    store.close().await;
    let length = || std::fs::metadata(folder.path().join(schema::FILE)).unwrap().len();
    assert!(length() > 20_000_000);
    let store = with_count(&folder, 1);
    until(async || length() < 5_000_000).await;
    assert_eq!(sequences(&store).await, [20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_what_was_removed_before_it_are_of_one_moment() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..50).await;
    store.close().await;
    // Opened anew, its tail is empty, and a read from the start goes to the disk.
    let store = Arc::new(with_count(&folder, 20));
    let appends = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { fill(&store, 50..250).await })
    };
    loop {
        let ended = appends.is_finished();
        let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
        assert_eq!(page.events[0].sequence, page.removed_to.next());
        if ended {
            break;
        }
    }
    appends.await.unwrap();
    until(async || store.statistics().await.unwrap().events == 20).await;
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    assert_eq!((page.removed_to, store.statistics().await.unwrap().removed), (Sequence::new(230), 230));
    store.close().await;

    let retention = Retention { age: Duration::ZERO, ..Retention::default() };
    let store = SqliteStore::open(folder.path(), Options { retention, ..Options::default() }).unwrap();
    until(async || store.statistics().await.unwrap().events == 0).await;
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    assert_eq!((page.events.len(), page.removed_to, page.read_to.get()), (0, Sequence::new(250), 250));
}

#[tokio::test]
async fn a_clock_that_was_ahead_removes_nothing() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..2).await;
    store.close().await;
    // As if they had been accepted in the year 2100.
    shell(&folder).execute("UPDATE events SET accepted_at = 4102444800000", ()).unwrap();
    let store = open(&folder);
    fill(&store, 2..4).await;
    assert_eq!(sequences(&store).await, [1, 2, 3, 4]);
    let stamps = "SELECT count(*) FROM events WHERE accepted_at >= 4102444800000";
    assert_eq!(
        shell(&folder).query_row(stamps, (), |row| row.get::<_, u32>(0)).unwrap(),
        4,
        "it never goes back"
    );
}

#[tokio::test]
async fn a_folder_has_one_holder() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    let error = refused(folder.path());
    assert!(
        matches!(error, OpenError::Locked { holder: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    store.close().await;
    // Closed is enough: the store itself may still be around.
    drop(open(&folder));
    drop(open(&folder));
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let inner = folder.path().join("state/gitstafette");
    let store = SqliteStore::open(&inner, Options::default()).unwrap();
    fill(&store, 0..1).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for name in ["lock", "events.db", "events.db-wal", "events.db-shm"] {
        assert_eq!(mode(&inner.join(name)), 0o600, "{name}");
    }
}

#[test]
fn a_store_interrupted_at_birth_is_begun_anew() {
    let folder = TempDir::new().unwrap();
    for name in ["events.db.new", "events.db.new-journal", "events.db.new-wal"] {
        std::fs::write(folder.path().join(name), b"half").unwrap();
    }
    drop(open(&folder));
    assert!(!folder.path().join("events.db.new").exists());
}

/// A closed store with three events.
async fn closed_store() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..3).await;
    store.close().await;
    let database = folder.path().join(schema::FILE);
    (folder, database)
}

#[tokio::test]
async fn what_is_damaged_is_refused_and_left_alone() {
    let refuses = |folder: &TempDir, database: &Path| {
        let before = std::fs::read(database).ok();
        let error = refused(folder.path());
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read(database).ok(), before);
        error.to_string()
    };
    let (folder, database) = closed_store().await;
    std::fs::write(&database, b"").unwrap();
    assert!(refuses(&folder, &database).contains("empty"));
    std::fs::write(folder.path().join("events.db-wal"), b"log").unwrap();
    refuses(&folder, &database);
    std::fs::remove_file(&database).unwrap();
    assert!(refuses(&folder, &database).contains("missing"));

    let (folder, database) = closed_store().await;
    let bytes = std::fs::read(&database).unwrap();
    std::fs::write(&database, &bytes[..bytes.len() / 2]).unwrap();
    refuses(&folder, &database);
    std::fs::write(&database, &bytes[..50]).unwrap();
    refuses(&folder, &database);
    std::fs::write(&database, vec![b'x'; bytes.len()]).unwrap();
    refuses(&folder, &database);

    let (folder, database) = closed_store().await;
    shell(&folder).execute_batch("DROP TABLE position").unwrap();
    refuses(&folder, &database);
    let (folder, database) = closed_store().await;
    shell(&folder).execute_batch("PRAGMA application_id = 0").unwrap();
    refuses(&folder, &database);
}

#[tokio::test]
async fn a_newer_store_is_refused() {
    let (folder, _) = closed_store().await;
    shell(&folder).execute_batch("PRAGMA user_version = 99").unwrap();
    let error = refused(folder.path());
    let newest = schema::MIGRATIONS.len() as u32;
    assert!(matches!(error, OpenError::TooNew { found: 99, known, .. } if known == newest), "{error}");
}

#[test]
fn a_file_is_no_folder() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = refused(file.path());
    assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
}

#[test]
fn a_relative_folder_is_made_absolute() {
    // A file beside which the tests run, so that nothing is made there.
    let OpenError::Unusable { path, .. } = refused(Path::new("Cargo.toml")) else { panic!("it is a file") };
    assert_eq!(Path::new(&path), std::env::current_dir().unwrap().join("Cargo.toml"));
    assert!(matches!(refused(Path::new("")), OpenError::Unusable { .. }));
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holds).await.expect("it comes in the end");
}
