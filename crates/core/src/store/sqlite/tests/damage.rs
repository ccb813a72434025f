//! Pages that a failing disk has changed.

use std::io::{Seek, SeekFrom, Write};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;
use crate::event::Source;
use crate::store::Order;

/// Every error that any test of this process has logged.
static ERRORS: OnceLock<Arc<Mutex<Vec<String>>>> = OnceLock::new();

/// Keeps what is logged.
struct Log(Arc<Mutex<Vec<String>>>);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

/// The errors logged from now on, or since this was asked first, that name the file.
fn errors_about(database: &Path) -> Vec<String> {
    let errors = ERRORS.get_or_init(|| {
        let errors = Arc::default();
        tracing::subscriber::set_global_default(Log(Arc::clone(&errors))).unwrap();
        errors
    });
    let errors = errors.lock().unwrap();
    errors.iter().filter(|line| line.contains(database.to_str().unwrap())).cloned().collect()
}

/// A closed store with that many events, and its file.
pub(super) async fn closed_with(events: u64) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..events).await;
    store.close().await;
    let database = folder.path().join(schema::FILE);
    (folder, database)
}

/// Overwrites the page that holds the middle of a table's leaves, and says how many there are.
pub(super) fn damage_middle(folder: &TempDir, database: &Path, table: &str) -> usize {
    let pages: Vec<u64> = {
        let connection = shell(folder);
        let leaves = "SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf' ORDER BY path";
        let mut select = connection.prepare(leaves).unwrap();
        let pages = select.query_map([table], |row| row.get::<_, i64>(0)).unwrap();
        pages.map(|page| page.unwrap().unsigned_abs()).collect()
    };
    overwrite(database, pages[pages.len() / 2]);
    pages.len()
}

pub(super) fn overwrite(database: &Path, page: u64) {
    let mut file = std::fs::OpenOptions::new().write(true).open(database).unwrap();
    file.seek(SeekFrom::Start((page - 1) * 8192)).unwrap();
    file.write_all(&[0xff; 8192]).unwrap();
}

pub(super) fn root_page(folder: &TempDir, table: &str) -> u64 {
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    shell(folder).query_row(root, [table], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
}

fn assert_damaged<T>(result: Result<T, StoreError>, database: &Path) {
    let error = result.err().expect("the page is damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(database.to_str().unwrap()) && text.contains("malformed"), "{text}");
}

/// Reads all from the start: the sequences of the events, and of those that are damaged.
async fn read_everything(store: &SqliteStore) -> (Vec<u64>, Vec<u64>) {
    let (mut at, mut events, mut damaged) = (Sequence::ZERO, Vec::new(), Vec::new());
    while at < *store.head().borrow() {
        let page = store.read(at, &Filter::default(), ALL).await.unwrap();
        assert!(page.read_to > at);
        events.extend(page.events.iter().map(|event| event.sequence.get()));
        damaged.extend(page.damaged.iter().flat_map(|damage| damage.first.get()..=damage.last.get()));
        at = page.read_to;
    }
    let mut all = [&events[..], &damaged[..]].concat();
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=at.get()), "each is there or damaged: {events:?} {damaged:?}");
    (events, damaged)
}

/// Each entry of a listing of everything that is damaged, and whether its metadata can be read.
async fn listed_as_damaged(store: &SqliteStore, order: Order) -> Vec<(u64, bool)> {
    let mut listing = Listing { order, limit: 70, ..Listing::default() };
    let mut damaged = Vec::new();
    loop {
        let listed = store.list(&listing).await.unwrap();
        let entries = listed.entries.iter().filter(|entry| entry.damage.is_some());
        damaged.extend(entries.map(|entry| (entry.sequence.get(), entry.facts.is_some())));
        match (listed.next, order) {
            (None, _) => break,
            (Some(next), Order::OldestFirst) => listing.first = next,
            (Some(next), Order::NewestFirst) => listing.last = next,
        }
    }
    damaged.sort_unstable();
    damaged
}

fn assert_event_damaged<T>(result: Result<T, StoreError>, lost: Sequence) {
    let error = result.err().expect("the event is damaged");
    assert!(matches!(error, StoreError::DamagedEvent { sequence, .. } if sequence == lost), "{error}");
}

#[tokio::test]
async fn a_damaged_payload_withholds_no_other() {
    let (folder, database) = closed_with(100).await;
    let leaves = damage_middle(&folder, &database, "payloads");
    assert!(leaves > 10);
    assert!(errors_about(&database).is_empty());
    let store = open(&folder);
    assert!(listed_as_damaged(&store, Order::NewestFirst).await.is_empty(), "a listing reads no payload");
    let (events, damaged) = read_everything(&store).await;
    assert!((1..10).contains(&damaged.len()) && events.len() > 90, "{damaged:?}");
    // Again and again, and with both connections.
    for _ in 0..4 {
        assert_eq!(read_everything(&store).await, (events.clone(), damaged.clone()));
    }
    let lost = Sequence::new(damaged[0]);
    assert_event_damaged(store.redeliver(lost, Address::default()).await, lost);
    let logged = errors_about(&database);
    assert!(logged.len() == 1 && logged[0].contains("will not be delivered"), "once: {logged:?}");
    let statistics = store.statistics().await.unwrap();
    assert!(statistics.writable, "it was a read that failed");
    assert_eq!(statistics.damaged, damaged.len() as u64);

    let other = Filter { repositories: vec!["octo/other".parse().unwrap()], ..Filter::default() };
    let unselected = store.read(Sequence::ZERO, &other, ALL).await.unwrap();
    assert_eq!((unselected.damaged, unselected.read_to), (vec![], Sequence::new(100)), "they are for others");
    let expected: Vec<_> = damaged.iter().map(|sequence| (*sequence, true)).collect();
    assert_eq!(listed_as_damaged(&store, Order::NewestFirst).await, expected);
    let copy = store.redeliver(Sequence::new(99), Address::default()).await.unwrap();
    assert_eq!(copy, Some(Sequence::new(101)));
    assert_eq!(append(&store, 100).await.unwrap().sequence(), Sequence::new(102));
    store.acknowledge(&client(), vec![acknowledgement(lost)], lost).await.unwrap();
    assert_eq!(store.progress(&client()).await.unwrap().unwrap().cursor, lost);
}

#[tokio::test]
async fn a_damaged_event_withholds_no_other() {
    let (folder, database) = closed_with(500).await;
    let leaves = damage_middle(&folder, &database, "events");
    assert!(leaves > 4);
    let store = open(&folder);
    let (events, damaged) = read_everything(&store).await;
    assert!((10..200).contains(&damaged.len()) && events.len() > 300, "{damaged:?}");
    assert_eq!(errors_about(&database).len(), 1, "one page, one line");
    assert_eq!(store.statistics().await.unwrap().damaged, damaged.len() as u64);
    let expected: Vec<_> = damaged.iter().map(|sequence| (*sequence, false)).collect();
    for order in [Order::OldestFirst, Order::NewestFirst] {
        assert_eq!(listed_as_damaged(&store, order).await, expected);
        let (first, last) = (Sequence::new(damaged[2]), Sequence::new(damaged[4]));
        let within = Listing { first, last, order, ..Listing::default() };
        assert_eq!(store.list(&within).await.unwrap().entries.len(), 3);
    }
    let (lost, before) = (Sequence::new(damaged[1]), Sequence::new(damaged[0]));
    let one = ReadLimit { events: 1, bytes: 0 };
    let from_within = store.read(before, &Filter::default(), one).await.unwrap();
    assert_eq!(from_within.damaged[0].first, lost);
    assert_eq!(from_within.events[0].sequence.get(), damaged[damaged.len() - 1] + 1);
    assert_event_damaged(store.redeliver(lost, Address::default()).await, lost);
    assert_eq!(append(&store, 500).await.unwrap().sequence(), Sequence::new(501));
    assert_eq!(append(&store, 0).await.unwrap(), Appended::Repeat { sequence: Sequence::new(1) });
    // The repeat of one that cannot be read fails alone.
    let held = hold_up(&store).await;
    let answers = queue_appends(&store, [501, lost.get(), 502], 10).await;
    drop(held);
    let mut results = Vec::new();
    for answer in answers {
        results.push(answer.await.unwrap());
    }
    assert!(matches!(results[0], Ok(Appended::Stored { .. })), "{results:?}");
    assert_damaged(results.remove(1), &database);
    assert!(matches!(results[1], Ok(Appended::Stored { .. })), "{results:?}");
    assert!(store.statistics().await.unwrap().writable);
}

#[tokio::test]
async fn a_table_that_is_damaged_as_a_whole_is_not_passed() {
    for table in ["events", "payloads"] {
        let (folder, database) = closed_with(500).await;
        let store = open(&folder);
        // While the store is open, as it does not open with a root page that cannot be read.
        overwrite(&database, root_page(&folder, table));
        assert_damaged(store.read(Sequence::ZERO, &Filter::default(), ALL).await, &database);
        assert_eq!(store.statistics().await.unwrap().damaged, 0);
    }
}

#[tokio::test]
async fn a_row_needs_its_delivery_id_alone() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..4).await;
    for sequence in 1..=4 {
        let acknowledgement = acknowledgement(Sequence::new(sequence));
        store.acknowledge(&client(), vec![acknowledgement], Sequence::ZERO).await.unwrap();
    }
    store.close().await;
    shell(&folder)
        .execute_batch(
            "UPDATE events SET source = 'ODD', hook_id = '', repository_name = 'none', received_at = -1,
                 accepted_at = 77, redelivery = 9, size = -1, for_client = '', hops = x'0102' WHERE sequence = 2;
             UPDATE events SET delivery_id = '' WHERE sequence = 3;
             UPDATE outcomes SET code = -1, attempts = -1, duration_ns = -1, at = -1 WHERE sequence = 2;
             UPDATE outcomes SET result = 'odd' WHERE sequence = 3;
             INSERT INTO cursors (client, cursor) VALUES ('', 1);
             INSERT INTO watchlist (pattern, change) VALUES ('', 'added'), ('octo/*', 'added');",
        )
        .unwrap();
    let store = open(&folder);
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    let read: Vec<_> = page.events.iter().map(|event| event.sequence.get()).collect();
    assert_eq!(read, [1, 2, 4]);
    let facts = &page.events[1].webhook.facts;
    assert_eq!(page.events[1].webhook.body, testing::webhook(1, HELLO, 1000).body);
    assert_eq!((&facts.source, &facts.hook_id, &facts.repository_name), (&Source::UNKNOWN, &None, &None));
    assert_eq!(facts.received_at, Timestamp::from_millis(77), "it was accepted then");
    assert_eq!((page.events[1].address.clone(), facts.hops.iter().len()), (Address::default(), 0));
    let damage = &page.damaged[0];
    assert_eq!((damage.first.get(), damage.last.get()), (3, 3));
    assert!(damage.reason.contains("delivery id"), "{damage:?}");

    assert_eq!(listed_as_damaged(&store, Order::OldestFirst).await, [(3, false)]);
    let reports = store.reports(Sequence::new(2)).await.unwrap();
    assert_eq!((reports[0].outcome.code, reports[0].outcome.attempts), (None, 0));
    assert!(store.reports(Sequence::new(3)).await.unwrap().is_empty());
    assert_eq!(store.cursors().await.unwrap().len(), 1);
    assert_eq!(store.watchlist_changes().await.unwrap().len(), 1);
    assert!(store.redeliver(Sequence::new(2), Address::default()).await.unwrap().is_some());
}

#[tokio::test]
async fn what_cannot_be_appended_for_damage_says_so() {
    let (folder, database) = closed_with(500).await;
    damage_middle(&folder, &database, "position");
    let error = refused(folder.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");

    let (folder, database) = closed_with(500).await;
    damage_middle(&folder, &database, "cursors");
    let store = open(&folder);
    assert_damaged(store.seek(&client(), Sequence::ZERO).await, &database);
    assert!(!store.statistics().await.unwrap().writable);
    assert_damaged(store.progress(&client()).await, &database);
    fill(&store, 500..502).await;
    assert!(store.statistics().await.unwrap().writable);
    assert_eq!(sequences(&store).await.len(), 502);
}

#[tokio::test]
async fn bytes_that_changed_on_the_disk_are_not_delivered() {
    let (folder, _) = closed_with(3).await;
    shell(&folder)
        .execute("UPDATE payloads SET body = zeroblob(length(body)) WHERE sequence = 2", ())
        .unwrap();
    let store = open(&folder);
    let (events, damaged) = read_everything(&store).await;
    assert_eq!((events, damaged), (vec![1, 3], vec![2]));
    let page = store.read(Sequence::new(1), &Filter::default(), ALL).await.unwrap();
    assert!(page.damaged[0].reason.contains("checksum"), "{:?}", page.damaged);
    let hello = Filter { repositories: vec![HELLO.parse().unwrap()], ..Filter::default() };
    let one = ReadLimit { events: 1, bytes: 0 };
    let page = store.read(Sequence::new(1), &hello, one).await.unwrap();
    assert_eq!((page.events[0].sequence.get(), page.damaged.len()), (3, 1));
}

#[tokio::test]
async fn a_redelivery_replaces_a_damaged_event() {
    let (folder, _) = closed_with(3).await;
    shell(&folder).execute("UPDATE payloads SET headers = x'05' WHERE sequence = 2", ()).unwrap();
    let store = open(&folder);
    assert_eq!(append(&store, 0).await.unwrap(), Appended::Repeat { sequence: Sequence::new(1) });
    let replaced = append(&store, 1).await.unwrap();
    assert_eq!(replaced, Appended::Stored { sequence: Sequence::new(4), redelivery: true });
    assert_eq!(append(&store, 1).await.unwrap(), Appended::Repeat { sequence: Sequence::new(4) });
}

#[tokio::test]
async fn every_kind_of_damage_to_a_payload_is_passed() {
    let (folder, _) = closed_with(5).await;
    shell(&folder)
        .execute_batch(
            "UPDATE payloads SET headers = x'05' WHERE sequence = 2;
             UPDATE events SET checksum = NULL WHERE sequence = 2;
             DELETE FROM payloads WHERE sequence = 3;
             UPDATE events SET checksum = -1 WHERE sequence = 4;",
        )
        .unwrap();
    let store = open(&folder);
    assert_eq!(read_everything(&store).await, (vec![1, 5], vec![2, 3, 4]));
    let page = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    let reasons: Vec<_> = page.damaged.iter().map(|damage| &*damage.reason).collect();
    assert_eq!(
        reasons,
        [
            "its headers cannot be read",
            "its payload is missing",
            "its payload has changed on the disk: its checksum is another"
        ]
    );
}
