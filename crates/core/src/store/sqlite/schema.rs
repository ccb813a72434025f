//! The tables, their versions, and how a database is made, recognised and opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{codec, folder};
use crate::event::Sequence;
use crate::store::{History, OpenError, Run, RunId, Statistics, StoreId};

/// The database's file in the store's folder.
pub(super) const FILE: &str = "events.db";

/// Tells a store from any other SQLite file: "GtSt" in the file's header.
const APPLICATION_ID: i32 = 0x4774_5374;

/// Bytes of a page, fixed when the file is made.
const PAGE_SIZE: u32 = 8192;

/// The log is carried over into the database when it is about this long: rarely enough that a hot page is carried
/// once for many commits, soon enough that reopening stays a matter of milliseconds.
pub(super) const LOG_BYTES: u32 = 16 << 20;

/// How long to wait for another program that writes to the file: an operator's shell, a backup.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Page cache of the writer and of each reader, in KiB.
pub(super) const WRITER_CACHE: u32 = 2048;
/// See [`WRITER_CACHE`].
pub(super) const READER_CACHE: u32 = 512;

/// Every step of the schema, oldest first. The schema's version is how many were taken. Steps are only ever added.
///
/// - Repository and installation ids are unsigned in the model and signed here; the bits are the same.
/// - `accepted_at` is the store's own clock, which never goes back: see `clock`.
/// - `payloads` and the tables about clients refer to events without a foreign key: retention always removes a
///   prefix of the log, which is one range in each of them.
/// - `ahead` has ranges since the second version. What the first kept one by one is put together by walking it in its
///   own order, because it may be as much as there are events; so is `repositories`, one event after the other.
/// - `position` has one row; its `store` is the store's id.
/// - `for_client` and `for_target` are the event's address: a client, and a line for each target. `original` is the event of which an operator made it, and
///   null for what a sender sent: only that has an identity.
/// - The indexes of dead letters hold only what is one now, so they cost nothing while all goes well.
/// - `hops` are the servers that an event came through, and `origin_store` and `origin_sequence` the first of them, to find
///   it by: all null, and in no index, if there are none. Not unique: a neighbour that was restored from a backup numbers
///   other events alike.
/// - `boot_id` and `booted_at` are the boot of the system in which the store was opened, and its time on the store's clock.
/// - `repositories` counts the events of each repository with a number: see `counts`.
/// - `clients` has one row for each registered client id: see `clients`. The fourth version registers every client that
///   has a cursor, without an owner, as seen now by the store's clock.
/// - `times` has the latest time of each 4096 sequences: see `times`.
/// - `runs` has the runs of the store, oldest first: see [`History`]. The first stands for all events that were stored before
///   there were runs, so all copies of the store share it.
/// - `relays` has what each relay stored about its peer.
/// - `position.bytes` also counts the outcomes since the fourth version, as `acknowledging::stored_bytes` does.
/// - `first_attempts` has the first failed attempts of events that are not acknowledged: see `attempts`.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE events (
        sequence        INTEGER PRIMARY KEY,
        source          TEXT NOT NULL,
        hook_id         TEXT,
        delivery_id     TEXT NOT NULL,
        event           TEXT NOT NULL,
        action          TEXT,
        repository_id   INTEGER,
        repository_name TEXT,
        owner           TEXT,
        installation_id INTEGER,
        received_at     INTEGER NOT NULL,
        accepted_at     INTEGER NOT NULL,
        redelivery      INTEGER NOT NULL,
        size            INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX events_by_delivery ON events (delivery_id);
    CREATE INDEX events_by_time ON events (received_at);

    CREATE TABLE payloads (
        sequence INTEGER PRIMARY KEY,
        headers  BLOB NOT NULL,
        body     BLOB NOT NULL
    ) STRICT;

    CREATE TABLE outcomes (
        sequence    INTEGER NOT NULL,
        client      TEXT NOT NULL,
        target      TEXT NOT NULL,
        result      TEXT NOT NULL,
        code        INTEGER,
        attempts    INTEGER NOT NULL,
        duration_ns INTEGER NOT NULL,
        at          INTEGER NOT NULL,
        detail      TEXT NOT NULL,
        PRIMARY KEY (sequence, client, target)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE cursors (
        client TEXT PRIMARY KEY,
        cursor INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE ahead (
        client   TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (client, sequence)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE position (
        id     INTEGER PRIMARY KEY CHECK (id = 1),
        head   INTEGER NOT NULL,
        events INTEGER NOT NULL,
        bytes  INTEGER NOT NULL,
        skew   INTEGER NOT NULL,
        store  INTEGER NOT NULL
    ) STRICT;
    INSERT INTO position VALUES (1, 0, 0, 0, 0, random());
",
    "
    ALTER TABLE events ADD COLUMN for_client TEXT;
    ALTER TABLE events ADD COLUMN for_target TEXT;
    ALTER TABLE events ADD COLUMN checksum INTEGER;
    ALTER TABLE events ADD COLUMN original INTEGER;

    ALTER TABLE outcomes ADD COLUMN redelivered_as INTEGER;
    CREATE INDEX dead_letters ON outcomes (sequence)
        WHERE result = 'failed' AND redelivered_as IS NULL;
    CREATE INDEX dead_letters_by_target ON outcomes (target, sequence)
        WHERE result = 'failed' AND redelivered_as IS NULL;

    CREATE TABLE watchlist (
        pattern TEXT PRIMARY KEY,
        change  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    ALTER TABLE ahead RENAME TO ahead_one_by_one;
    CREATE TABLE ahead (
        client TEXT NOT NULL,
        first  INTEGER NOT NULL,
        last   INTEGER NOT NULL,
        PRIMARY KEY (client, first)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO ahead (client, first, last)
        SELECT client, sequence, (
            SELECT sequence FROM ahead_one_by_one AS later
            WHERE later.client = one.client AND later.sequence >= one.sequence AND NOT EXISTS (
                SELECT 1 FROM ahead_one_by_one AS next
                WHERE next.client = later.client AND next.sequence = later.sequence + 1
            )
            ORDER BY sequence LIMIT 1
        )
        FROM ahead_one_by_one AS one
        WHERE NOT EXISTS (
            SELECT 1 FROM ahead_one_by_one AS previous
            WHERE previous.client = one.client AND previous.sequence = one.sequence - 1
        );
    DROP TABLE ahead_one_by_one;
",
    "
    ALTER TABLE events ADD COLUMN hops BLOB;
    ALTER TABLE events ADD COLUMN origin_store INTEGER;
    ALTER TABLE events ADD COLUMN origin_sequence INTEGER;
    CREATE INDEX events_by_origin ON events (origin_store, origin_sequence)
        WHERE origin_store IS NOT NULL;

    CREATE TABLE repositories (
        id     INTEGER PRIMARY KEY,
        events INTEGER NOT NULL
    ) STRICT;
    INSERT INTO repositories (id, events)
        SELECT repository_id, 1 FROM events WHERE repository_id IS NOT NULL
        ON CONFLICT (id) DO UPDATE SET events = events + 1;
",
    "
    ALTER TABLE position ADD COLUMN boot_id TEXT;
    ALTER TABLE position ADD COLUMN booted_at INTEGER;
    CREATE TABLE clients (
        client  TEXT PRIMARY KEY,
        owner   TEXT,
        seen_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX clients_by_owner ON clients (owner);
    INSERT INTO clients (client, owner, seen_at)
        SELECT client, NULL, max(
            unixepoch() * 1000 - (SELECT skew FROM position),
            coalesce((SELECT accepted_at FROM events ORDER BY sequence DESC LIMIT 1), 0)
        )
        FROM cursors;

    CREATE TABLE times (
        block  INTEGER PRIMARY KEY,
        latest INTEGER NOT NULL
    ) STRICT;
    INSERT INTO times (block, latest)
        SELECT sequence >> 12, max(received_at) FROM events GROUP BY sequence >> 12;
    DROP INDEX events_by_time;

    CREATE TABLE runs (
        number INTEGER PRIMARY KEY,
        run    INTEGER NOT NULL,
        head   INTEGER NOT NULL
    ) STRICT;
    INSERT INTO runs (run, head) SELECT store, 0 FROM position;

    CREATE TABLE relays (
        relay TEXT PRIMARY KEY,
        state TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE first_attempts (
        client   TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        target   TEXT NOT NULL,
        at       INTEGER NOT NULL,
        PRIMARY KEY (client, sequence, target)
    ) STRICT, WITHOUT ROWID;

    UPDATE position SET bytes = bytes + coalesce((
        SELECT sum(100 + octet_length(client) + octet_length(target) + octet_length(detail))
        FROM outcomes
    ), 0);
",
];

/// Opens the database for writing; makes it if there is none.
pub(super) fn open(database: &Path) -> Result<Connection, OpenError> {
    let io = |error: std::io::Error| folder::unusable(database, &error);
    let log = sibling(database, "-wal");
    match std::fs::metadata(database) {
        Ok(file) if file.len() == 0 => return Err(damaged(database, "the file is empty")),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Events may be in the log alone: a database that went missing beside it is not a fresh start.
            if std::fs::metadata(&log).is_ok_and(|file| file.len() > 0) {
                return Err(damaged(database, "the file is missing, but its write-ahead log is there"));
            }
            create(database)?;
        }
        Err(error) => return Err(io(error)),
    }
    let mut connection = existing(database).map_err(|error| refusal(database, &error))??;
    upgrade(&mut connection, database)?;
    Ok(connection)
}

/// Sets what a connection needs beyond SQLite's defaults. `cache` is in KiB.
pub(super) fn configure(connection: &Connection, cache: u32) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    // Temporary files would go to a folder that may be missing or small.
    connection.execute_batch(&format!(
        "PRAGMA cache_size = -{cache}; PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY;"
    ))
}

/// Flags to open a connection with: each is used by one thread at a time.
pub(super) fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// What the database says that it holds.
pub(super) fn statistics(connection: &Connection) -> rusqlite::Result<Statistics> {
    let (head, events, bytes): (i64, i64, i64) =
        connection.query_row("SELECT head, events, bytes FROM position", (), |row| row.try_into())?;
    let sequence = |number: i64| Sequence::new(number.unsigned_abs());
    Ok(Statistics {
        events: events.unsigned_abs(),
        bytes: bytes.unsigned_abs(),
        first: first(connection)?,
        head: sequence(head),
        removed: 0,
        damaged: 0,
        disk_bytes: 0,
        writable: true,
    })
}

/// Bytes of the database's files.
pub(super) fn disk_bytes(database: &Path) -> u64 {
    let length = |suffix| std::fs::metadata(sibling(database, suffix)).map_or(0, |file| file.len());
    ["", "-wal", "-shm"].into_iter().map(length).sum()
}

/// The store's id.
pub(super) fn id(connection: &Connection) -> rusqlite::Result<StoreId> {
    let id: i64 = connection.query_row("SELECT store FROM position", (), |row| row.get(0))?;
    Ok(StoreId::new(id.cast_unsigned()))
}

/// The recorded runs, and the one that begins now after `head`.
pub(super) fn history(connection: &Connection, head: Sequence) -> rusqlite::Result<History> {
    let mut select = connection.prepare("SELECT run, head FROM runs WHERE head < ?1 ORDER BY number")?;
    let recorded = select.query_map([codec::signed(head.get())], |row| {
        let id: i64 = row.get(0)?;
        Ok(Run { id: RunId::new(id.cast_unsigned()), start: codec::sequence(row, 1)? })
    })?;
    let mut runs = recorded.collect::<rusqlite::Result<Vec<_>>>()?;
    runs.push(Run { id: RunId::random(), start: head });
    Ok(History::new(runs))
}

/// The oldest event, or zero.
pub(super) fn first(connection: &Connection) -> rusqlite::Result<Sequence> {
    let first: Option<i64> =
        connection.query_row("SELECT min(sequence) FROM events", (), |row| row.get(0))?;
    Ok(Sequence::new(first.unwrap_or_default().unsigned_abs()))
}

/// The refusal for what SQLite says on opening.
pub(super) fn refusal(database: &Path, error: &rusqlite::Error) -> OpenError {
    let path = database.display().to_string();
    let reason = error.to_string();
    match error.sqlite_error_code() {
        // What holds up a healthy file: rights, room, another program, the disk.
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory,
        ) => OpenError::Unusable { path, reason },
        _ => OpenError::Damaged { path, reason },
    }
}

/// Makes the database under another name and gives it its own when it is complete.
fn create(database: &Path) -> Result<(), OpenError> {
    let draft = sibling(database, ".new");
    let io = |error: std::io::Error| folder::unusable(&draft, &error);
    for suffix in ["", "-journal", "-wal", "-shm"] {
        match std::fs::remove_file(sibling(&draft, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    drop(folder::create(&draft).map_err(io)?);
    fill(&draft).map_err(|error| refusal(&draft, &error))?;
    std::fs::File::open(&draft).and_then(|file| file.sync_all()).map_err(io)?;
    let folder = database.parent().unwrap_or(database);
    // Before the rename: a database that is there is not made again, so nothing above it would be seen to again.
    folder::settle(folder).map_err(|error| folder::unusable(folder, &error))?;
    std::fs::rename(&draft, database).map_err(io)?;
    folder::sync(folder).map_err(io)
}

fn fill(draft: &Path) -> rusqlite::Result<()> {
    let mut connection = Connection::open_with_flags(draft, flags())?;
    // Both must be set before the first page is written, and the log only after that.
    connection
        .execute_batch(&format!("PRAGMA page_size = {PAGE_SIZE}; PRAGMA auto_vacuum = INCREMENTAL;"))?;
    migrate(&mut connection, 0)?;
    connection.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID};"))?;
    connection.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(()))?;
    connection.close().map_err(|(_, error)| error)
}

/// Opens a database that is there. The inner error is a refusal found without SQLite.
fn existing(database: &Path) -> rusqlite::Result<Result<Connection, OpenError>> {
    let connection = Connection::open_with_flags(database, flags())?;
    configure(&connection, WRITER_CACHE)?;
    let number =
        |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), (), |row| row.get::<_, i64>(0));
    if number("application_id")? != i64::from(APPLICATION_ID) {
        return Ok(Err(damaged(database, "it is not a store of this program")));
    }
    let pages = i64::from(LOG_BYTES) / number("page_size")?.max(512);
    // The answer to journal_mode is the mode that is in force, hence no batch.
    connection.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(()))?;
    connection.query_row(&format!("PRAGMA journal_size_limit = {LOG_BYTES}"), (), |_| Ok(()))?;
    connection.query_row(&format!("PRAGMA wal_autocheckpoint = {pages}"), (), |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous = FULL;")?;
    Ok(Ok(connection))
}

/// Brings the schema to the version known here.
fn upgrade(connection: &mut Connection, database: &Path) -> Result<(), OpenError> {
    let found = connection
        .query_row("PRAGMA user_version", (), |row| row.get::<_, u32>(0))
        .map_err(|error| refusal(database, &error))?;
    let known = MIGRATIONS.len() as u32;
    if found > known {
        return Err(OpenError::TooNew { path: database.display().to_string(), found, known });
    }
    migrate(connection, found as usize).map_err(|error| refusal(database, &error))
}

/// Takes the steps that are missing, all or none.
fn migrate(connection: &mut Connection, from: usize) -> rusqlite::Result<()> {
    let steps = &MIGRATIONS[from..];
    if steps.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for step in steps {
        transaction.execute_batch(step)?;
    }
    transaction.execute_batch(&format!("PRAGMA user_version = {};", MIGRATIONS.len()))?;
    transaction.commit()
}

/// An empty database in memory.
#[cfg(test)]
pub(super) fn in_memory() -> Connection {
    let mut connection = Connection::open_in_memory().expect("SQLite opens a database in memory");
    migrate(&mut connection, 0).expect("the schema is valid");
    connection
}

fn damaged(database: &Path, reason: &str) -> OpenError {
    OpenError::Damaged { path: database.display().to_string(), reason: reason.to_owned() }
}

/// The file beside `path` whose name goes on with `suffix`.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
