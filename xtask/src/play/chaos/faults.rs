//! Power cuts and clock jumps for the servers of a chaos run.
//!
//! A small C library is loaded into each server (`faults.c`): it records each write that the server has not synced yet, and
//! shifts the wall clock. After kill -9 the writes are still in the system's cache, so a kill alone never loses one. Here
//! they are taken back, as a power cut may do: all of them, or some.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The C library's source.
const SOURCE: &str = include_str!("faults.c");
/// A disk writes a sector of this many bytes or none of it.
const SECTOR: usize = 512;
/// By how much the clock is wrong, in seconds: not at all, an hour, or longer than the store keeps events.
const CLOCK_OFFSETS: [i64; 5] = [0, 3_600, -3_600, 400 * 86_400, -400 * 86_400];

/// Which faults a chaos run has besides kill -9.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A kill also takes back what was not synced.
    pub(crate) power_loss: bool,
    /// The wall clock jumps in each round.
    pub(crate) clock_jumps: bool,
    /// fsync does nothing: shows that a lost write is noticed.
    pub(crate) lying_disk: bool,
}

/// The library, and the file with the clock's offset.
#[derive(Debug)]
pub(crate) struct Library {
    faults: Faults,
    library: PathBuf,
    clock: PathBuf,
}

impl Library {
    /// Builds the library in `folder`; `None` if the run has no such faults.
    pub(crate) fn build(faults: Faults, folder: &Path) -> anyhow::Result<Option<Self>> {
        if !faults.power_loss && !faults.clock_jumps {
            return Ok(None);
        }
        let (source, library, clock) =
            (folder.join("faults.c"), folder.join("faults.so"), folder.join("clock"));
        std::fs::write(&source, SOURCE)?;
        std::fs::write(&clock, 0_i64.to_ne_bytes())?;
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(&compiler);
        command.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-lpthread");
        let status = command.status().with_context(|| format!("{} did not start", compiler.display()))?;
        if !status.success() {
            bail!("{} cannot build {}: {status}", compiler.display(), source.display());
        }
        Ok(Some(Self { faults, library, clock }))
    }

    /// Whether this machine can load the library into the servers.
    pub(crate) fn is_supported() -> bool {
        cfg!(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))
    }

    /// Has a server whose files are in `folder` run with the faults.
    pub(crate) fn load_into(&self, command: &mut Command, folder: &Path) -> anyhow::Result<()> {
        command.env("LD_PRELOAD", &self.library);
        if self.faults.clock_jumps {
            command.env("FAULT_CLOCK", &self.clock);
        }
        if self.faults.power_loss {
            // The library compares whole paths, as the system gives them.
            command.env("FAULT_FOLDER", folder.canonicalize()?).env("FAULT_JOURNAL", journal(folder));
        }
        if self.faults.lying_disk {
            command.env("FAULT_LYING_DISK", "1");
        }
        Ok(())
    }

    /// After the server of this folder was killed: takes back what it had not synced. Returns the number of writes that
    /// were not synced.
    pub(crate) fn cut_power(&self, folder: &Path) -> anyhow::Result<u64> {
        if !self.faults.power_loss {
            return Ok(0);
        }
        let path = journal(folder);
        let records = match std::fs::read(&path) {
            Ok(bytes) => read_records(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut unsynced = 0;
        for (path, changes) in unsynced_changes(records) {
            unsynced += changes.len() as u64;
            lose(&path, &changes)
                .with_context(|| format!("cannot take back writes to {}", path.display()))?;
        }
        std::fs::remove_file(&path)?;
        Ok(unsynced)
    }

    /// Sets the clock of all servers, which may be running, to another offset.
    pub(crate) fn jump(&self) -> anyhow::Result<()> {
        if self.faults.clock_jumps {
            let offset = CLOCK_OFFSETS[fastrand::usize(..CLOCK_OFFSETS.len())];
            // In place: the servers have the file mapped.
            OpenOptions::new().write(true).open(&self.clock)?.write_all_at(&offset.to_ne_bytes(), 0)?;
        }
        Ok(())
    }
}

fn journal(folder: &Path) -> PathBuf {
    folder.with_extension("journal")
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    path: PathBuf,
    change: Option<Change>,
}

/// A write or a truncation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// Where the new bytes start, or where the file ends now.
    offset: u64,
    /// The file's size before.
    old_size: u64,
    /// The bytes that were replaced or cut off.
    old: Vec<u8>,
    /// The new bytes; `None` for a truncation.
    new: Option<Vec<u8>>,
}

/// Reads the journal, of which the last record may be cut off: its change was not made then.
fn read_records(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(record) = read_record(&mut bytes) {
        records.push(record);
    }
    records
}

fn read_record(bytes: &mut &[u8]) -> Option<Record> {
    let mut number = || {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        Some(u64::from_ne_bytes(*head))
    };
    let (kind, path, offset, old_size, old, new) =
        (number()?, number()?, number()?, number()?, number()?, number()?);
    let mut take = |length: u64| {
        let (part, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
        *bytes = rest;
        Some(part.to_vec())
    };
    let path = PathBuf::from(OsStr::from_bytes(&take(path)?));
    let (old, new) = (take(old)?, take(new)?);
    let change = match kind {
        1 => Some(Change { offset, old_size, old, new: Some(new) }),
        2 => Some(Change { offset, old_size, old, new: None }),
        _ => None,
    };
    Some(Record { path, change })
}

/// The changes of each file after its last sync.
fn unsynced_changes(records: Vec<Record>) -> BTreeMap<PathBuf, Vec<Change>> {
    let mut files: BTreeMap<PathBuf, Vec<Change>> = BTreeMap::new();
    for Record { path, change } in records {
        let changes = files.entry(path).or_default();
        match change {
            Some(change) => changes.push(change),
            None => changes.clear(),
        }
    }
    files.retain(|path, changes| !changes.is_empty() && path.exists());
    files
}

/// Takes all changes back, then makes some of them again: none, each with a chance of a half, or the first ones.
fn lose(path: &Path, changes: &[Change]) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    for change in changes.iter().rev() {
        take_back(&file, change)?;
    }
    match fastrand::u8(..3) {
        0 => {}
        1 => {
            for change in changes.iter().filter(|_| fastrand::bool()) {
                make_again(&file, change)?;
            }
        }
        _ => {
            for change in &changes[..fastrand::usize(..=changes.len())] {
                make_again(&file, change)?;
            }
        }
    }
    Ok(())
}

fn take_back(file: &File, change: &Change) -> std::io::Result<()> {
    file.write_all_at(&change.old, change.offset)?;
    file.set_len(change.old_size)
}

/// Makes a change again; a write perhaps only in part, by whole sectors.
fn make_again(file: &File, change: &Change) -> std::io::Result<()> {
    let Some(new) = &change.new else { return file.set_len(change.offset) };
    let sectors = new.len().div_ceil(SECTOR);
    let written = if fastrand::u8(..8) == 0 { fastrand::usize(..=sectors) } else { sectors };
    file.write_all_at(&new[..new.len().min(written * SECTOR)], change.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(kind: u64, path: &Path, change: &Change) -> Vec<u8> {
        let path = path.as_os_str().as_bytes();
        let new = change.new.as_deref().unwrap_or_default();
        let lengths = [
            kind,
            path.len() as u64,
            change.offset,
            change.old_size,
            change.old.len() as u64,
            new.len() as u64,
        ];
        let head: Vec<u8> = lengths.iter().flat_map(|number| number.to_ne_bytes()).collect();
        [&head, path, &change.old, new].concat()
    }

    fn write(offset: u64, old_size: u64, old: &str, new: &str) -> Change {
        Change { offset, old_size, old: old.into(), new: Some(new.into()) }
    }

    #[test]
    fn a_journal_is_read_up_to_a_record_that_is_cut_off() {
        let path = Path::new("/store/events.db");
        let change = write(2, 6, "cd", "CD");
        let bytes = [encode(1, path, &change), encode(3, path, &write(0, 0, "", ""))].concat();
        let records = read_records(&bytes);
        assert_eq!(records.len(), 2);
        assert_eq!(records[0], Record { path: path.into(), change: Some(change.clone()) });
        assert_eq!(records[1].change, None);
        for cut in 0..bytes.len() {
            assert!(read_records(&bytes[..cut]).len() < 2, "{cut}");
        }
    }

    #[test]
    fn only_what_came_after_the_last_sync_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        std::fs::write(&path, "ABCDEFgh").unwrap();
        let (before, after) = (write(0, 6, "ab", "AB"), write(2, 6, "cdef", "CDEFgh"));
        let sync = Record { path: path.clone(), change: None };
        let record = |change: &Change| Record { path: path.clone(), change: Some(change.clone()) };
        let files = unsynced_changes(vec![record(&before), sync, record(&after)]);
        assert_eq!(files[&path], std::slice::from_ref(&after));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        take_back(&file, &after).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ABcdef");
        let truncation = Change { offset: 1, old_size: 6, old: "Bcdef".into(), new: None };
        make_again(&file, &truncation).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"A");
        take_back(&file, &truncation).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ABcdef");
    }
}
