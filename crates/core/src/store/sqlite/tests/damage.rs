//! Pages that a failing disk has changed.

use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;

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
async fn closed_with(events: u64) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let store = open(&folder);
    fill(&store, 0..events).await;
    store.close().await;
    let database = folder.path().join(schema::FILE);
    (folder, database)
}

/// Overwrites the page that holds the middle of a table's leaves, and says how many there are.
fn damage_middle(folder: &TempDir, database: &Path, table: &str) -> usize {
    let pages: Vec<u64> = {
        let connection = shell(folder);
        let leaves = "SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf' ORDER BY path";
        let mut select = connection.prepare(leaves).unwrap();
        let pages = select.query_map([table], |row| row.get::<_, i64>(0)).unwrap();
        pages.map(|page| page.unwrap().unsigned_abs()).collect()
    };
    let mut bytes = std::fs::read(database).unwrap();
    let start = (pages[pages.len() / 2] as usize - 1) * 8192;
    bytes[start..start + 8192].fill(0xff);
    std::fs::write(database, bytes).unwrap();
    pages.len()
}

fn assert_damaged<T>(result: Result<T, StoreError>, database: &Path) {
    let error = result.err().expect("the page is damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(database.to_str().unwrap()) && text.contains("malformed"), "{text}");
}

/// Reads from the start until it fails; what came before. A read fails only where the damage begins.
async fn read_until_damage(store: &SqliteStore, database: &Path) -> Sequence {
    let (mut at, mut count) = (Sequence::ZERO, 0);
    loop {
        match store.read(at, &Filter::default(), ALL).await {
            Ok(page) => {
                assert!(page.read_to > at, "there is damage ahead");
                count += page.events.len() as u64;
                at = page.read_to;
            }
            error => {
                assert_damaged(error, database);
                assert_eq!(count, at.get(), "everything before it was served");
                return at;
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_payload_withholds_no_other() {
    let (folder, database) = closed_with(100).await;
    let leaves = damage_middle(&folder, &database, "payloads");
    assert!(leaves > 10);
    assert!(errors_about(&database).is_empty());
    let store = open(&folder);
    let good = read_until_damage(&store, &database).await;
    assert!((10..90).contains(&good.get()), "{good}");
    // Again and again, and with both connections.
    for _ in 0..4 {
        assert_damaged(store.read(good, &Filter::default(), ALL).await, &database);
    }
    let logged = errors_about(&database);
    assert!(
        logged.len() == 1 && logged[0].contains("malformed; stop the server"),
        "once, in full: {logged:?}"
    );
    let lost = good.next();
    assert_damaged(store.redeliver(lost, Address::default()).await, &database);
    assert!(store.statistics().await.unwrap().writable, "it was a read that failed");

    let listed = store.list(&Listing::default()).await.unwrap();
    assert_eq!(listed.entries.len(), 100, "a listing needs no payload");
    let rest = store.read(Sequence::new(95), &Filter::default(), ALL).await.unwrap();
    assert_eq!(rest.events.len(), 5);
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
    let good = read_until_damage(&store, &database).await;
    assert!((50..450).contains(&good.get()), "{good}");
    assert_damaged(store.list(&Listing { limit: 1000, ..Listing::default() }).await, &database);
    let newest = Listing { first: Sequence::new(450), ..Listing::default() };
    assert_eq!(store.list(&newest).await.unwrap().entries.len(), 51);
    let rest = store.read(Sequence::new(450), &Filter::default(), ALL).await.unwrap();
    assert_eq!(rest.events.len(), 50);
    assert_eq!(append(&store, 500).await.unwrap().sequence(), Sequence::new(501));
    assert_eq!(append(&store, 0).await.unwrap(), Appended::Repeat { sequence: Sequence::new(1) });
    // The repeat of one that cannot be read fails alone.
    let held = hold_up(&store).await;
    let answers = queue_appends(&store, [501, good.get(), 502], 10).await;
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
    let before = store.read(Sequence::ZERO, &Filter::default(), ALL).await.unwrap();
    assert_eq!((before.events.len(), before.read_to), (1, Sequence::new(1)));
    let error = store.read(Sequence::new(1), &Filter::default(), ALL).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("event 2"), "{error}");
    assert_eq!(store.read(Sequence::new(2), &Filter::default(), ALL).await.unwrap().events.len(), 1);
}
