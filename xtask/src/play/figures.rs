//! The table of figures, and how they are read and written.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use crate::text::Colours;

/// A table whose rows are shown as they are measured.
#[derive(Debug)]
pub(crate) struct Figures(Colours);

impl Figures {
    /// An empty table.
    pub(crate) fn start() -> Self {
        Self(Colours::detect())
    }

    /// A heading above the next rows.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}", self.0.heading(text));
    }

    /// A figure with its unit, and what it is compared with.
    pub(crate) fn row(&self, label: &str, value: impl std::fmt::Display, unit: &str, remark: &str) {
        println!("{}", format!("  {label:<42} {value:>8} {unit:<4} {remark}").trim_end());
    }
}

/// How many times `unit` a duration is.
pub(crate) fn times(duration: Duration, unit: Duration, name: &str) -> String {
    format!("{:.1} x {name}", duration.as_secs_f64() / unit.as_secs_f64())
}

/// Bytes in MiB.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// What Linux says of a process's memory, in bytes: `VmRSS` is what is resident, `VmHWM` the most that ever was.
pub(crate) fn memory(process: u32, field: &str) -> Option<u64> {
    kibibytes(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?, field).map(|kib| kib << 10)
}

/// The size of all files in a folder, in bytes. The database removes files of its own while it runs.
pub(crate) fn folder_size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(file) => bytes += file.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

fn kibibytes(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_linux_says() {
        let status = "Name:\tserver\nVmHWM:\t   30720 kB\nVmRSS:\t    9216 kB\nThreads:\t4\n";
        assert_eq!(kibibytes(status, "VmRSS"), Some(9216));
        assert_eq!(kibibytes(status, "VmHWM"), Some(30720));
        assert_eq!(kibibytes(status, "Vm"), None);
        assert_eq!(kibibytes(status, "Threads"), None);
        assert_eq!(mebibytes(30720 << 10), "30.0");
    }

    #[test]
    fn the_files_of_a_folder_are_added_up() {
        let folder = tempfile::tempdir().unwrap();
        for (name, size) in [("one", 3), ("two", 4)] {
            std::fs::write(folder.path().join(name), vec![0; size]).unwrap();
        }
        assert_eq!(folder_size(folder.path()).unwrap(), 7);
        assert!(folder_size(&folder.path().join("three")).is_err());
    }

    #[test]
    fn durations_are_compared() {
        let (long, short) = (Duration::from_millis(31), Duration::from_millis(10));
        assert_eq!(times(long, short, "one fsync"), "3.1 x one fsync");
    }
}
