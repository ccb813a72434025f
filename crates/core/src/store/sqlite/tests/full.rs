//! A file system without room: a small one in memory, which takes the rights to mount it.

use std::io::Write;
use std::process::Command;

use super::*;

/// A small file system, for as long as a test runs.
struct Disk(TempDir);

impl Disk {
    /// Nothing if this process may not mount one; whoever runs the tests is told.
    fn mount(kilobytes: u64) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let size = format!("size={kilobytes}k");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(folder));
        }
        // Not by a macro, whose output is shown for tests that fail only.
        writeln!(std::io::stderr(), "SKIPPED: a full disk, as no file system can be mounted here").unwrap();
        None
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    /// Takes room: that much, or all there is.
    fn take(&self, name: &str, bytes: u64) {
        let mut file = std::fs::File::create(self.0.path().join(name)).unwrap();
        let block = [7; 4096];
        for _ in 0..bytes.div_ceil(4096) {
            if file.write_all(&block).is_err() {
                break;
            }
        }
    }

    fn give_back(&self, name: &str) {
        std::fs::remove_file(self.0.path().join(name)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmount = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmount.is_ok_and(|status| status.success()), "the test's file system stays");
    }
}

/// Appends until there is no room; how many there are then.
async fn append_until_full(store: &SqliteStore, from: u64, size: usize) -> u64 {
    for number in from.. {
        match store.append(testing::webhook(number, HELLO, size)).await {
            Ok(appended) => assert_eq!(appended.sequence(), Sequence::new(number + 1)),
            Err(StoreError::Full { path }) => {
                assert!(path.ends_with("events.db"), "{path}");
                return number;
            }
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("no disk is endless")
}

/// Checks that exactly these events are there, each as it was sent.
async fn assert_holds(store: &SqliteStore, sizes: &[usize]) {
    let limit = ReadLimit { events: 16, bytes: u64::MAX };
    let (mut at, mut count) = (Sequence::ZERO, 0);
    while at < *store.head().borrow() {
        let page = store.read(at, &Filter::default(), limit).await.unwrap();
        for event in &page.events {
            assert_eq!(event.webhook, testing::webhook(count as u64, HELLO, sizes[count]));
            count += 1;
        }
        at = page.read_to;
    }
    assert_eq!(count, sizes.len());
    assert_eq!(store.statistics().await.unwrap().events, sizes.len() as u64);
}

fn assert_whole(folder: &Path) {
    let connection = Connection::open(folder.join(schema::FILE)).unwrap();
    let answer = connection.query_row("PRAGMA integrity_check", (), |row| row.get::<_, String>(0));
    assert_eq!(answer.unwrap(), "ok");
}

/// Takes the last room with acknowledgements and seeks; the cursor that was acknowledged last.
async fn seek_until_full(store: &SqliteStore, client: &ClientId) -> Sequence {
    let mut cursor = Sequence::ZERO;
    loop {
        let next = cursor.next();
        let done = match next.get() % 2 {
            0 => store.seek(client, next).await,
            _ => store.acknowledge(client, vec![acknowledgement(Sequence::new(1))], next).await,
        };
        match done {
            Ok(()) => cursor = next,
            Err(StoreError::Full { .. }) => return cursor,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Fills a disk of that size with webhooks of that size, makes room, and fills it again.
async fn fill_and_recover(kilobytes: u64, ballast: u64, size: usize) {
    let Some(disk) = Disk::mount(kilobytes) else { return };
    disk.take("ballast", ballast);
    let store = SqliteStore::open(&disk.store(), Options::default()).unwrap();
    let owner = Owner { label: "tests".to_owned(), max_ids: 1, current: ["tests".to_owned()].into() };
    store.register_client(&client(), &owner).await.unwrap();
    let events = append_until_full(&store, 0, size).await;
    assert!(events > 0, "{kilobytes} {size}");
    disk.take("rest", u64::MAX >> 1);
    let known = store.register_client(&client(), &owner).await.unwrap();
    assert_eq!(known, Registration::Registered, "a known client may connect");
    assert!(!store.statistics().await.unwrap().writable);
    let cursor = seek_until_full(&store, &client()).await;
    // While there is no room, all that can be read is, and everything is tried.
    let mut sizes = vec![size; events as usize];
    assert_holds(&store, &sizes).await;
    assert!(matches!(
        store.append(testing::webhook(events, HELLO, size)).await,
        Err(StoreError::Full { .. })
    ));
    assert!(matches!(
        store.redeliver(Sequence::new(1), Address::default()).await,
        Err(StoreError::Full { .. })
    ));
    let progress = store.progress(&client()).await.unwrap().map(|progress| progress.cursor);
    assert_eq!(progress.unwrap_or_default(), cursor);

    disk.give_back("rest");
    disk.give_back("ballast");
    // Without any traffic.
    until(async || store.statistics().await.unwrap().writable).await;
    store.append(testing::webhook(events, HELLO, 10)).await.unwrap();
    sizes.push(10);
    assert_holds(&store, &sizes).await;
    let more = append_until_full(&store, events + 1, size).await;
    sizes.resize(more as usize, size);

    // Closed without room and opened without room, or refused as long as there is none.
    disk.take("rest", u64::MAX >> 1);
    store.close().await;
    match SqliteStore::open(&disk.store(), Options::default()) {
        Ok(store) => assert_holds(&store, &sizes).await,
        Err(error) => assert!(matches!(error, OpenError::Unusable { .. }), "{error}"),
    }
    disk.give_back("rest");
    let store = SqliteStore::open(&disk.store(), Options::default()).unwrap();
    assert_holds(&store, &sizes).await;
    let progress = store.progress(&client()).await.unwrap().map(|progress| progress.cursor);
    assert_eq!(progress.unwrap_or_default(), cursor);
    store.close().await;
    assert_whole(&disk.store());
}

#[tokio::test]
async fn the_log_finds_no_room() {
    for (kilobytes, ballast, size) in
        [(4096, 400_000, 1000), (4096, 1_000_000, 30_000), (4096, 777_777, 300_000), (2048, 300_000, 7)]
    {
        fill_and_recover(kilobytes, ballast, size).await;
    }
}

/// It is larger than the page cache, so that it is in the log, in part, before it is committed.
#[tokio::test]
async fn one_large_event_finds_no_room() {
    fill_and_recover(12 << 10, 3 << 20, 4_000_000).await;
}

/// The log is carried over when it has 16 MiB, and the database then needs about as much room again. Until it has
/// that, nothing is won by less.
#[tokio::test]
async fn carrying_the_log_over_finds_no_room() {
    for (kilobytes, ballast, size) in
        [(40 << 10, 21 << 20, 100_000), (48 << 10, 14 << 20, 250_000), (60 << 10, 20 << 20, 60_000)]
    {
        fill_and_recover(kilobytes, ballast, size).await;
    }
}
