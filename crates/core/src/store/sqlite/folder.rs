//! The store's folder: private, and held by one process at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use crate::store::OpenError;

/// The file whose lock is the right to the folder.
const LOCK: &str = "lock";

/// Makes the folder if it is not there and takes it for this process. The lock ends with the returned file, and with
/// the process however it ends, so a stale one cannot be.
pub(super) fn lock(folder: &Path) -> Result<File, OpenError> {
    make(folder).map_err(|error| unusable(folder, &error))?;
    let path = folder.join(LOCK);
    let mut file = private(OpenOptions::new().read(true).write(true).create(true).truncate(false))
        .open(&path)
        .map_err(|error| unusable(&path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::Locked { path: folder.display().to_string(), holder: holder(&mut file) });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&path, &error)),
    }
    sign(&mut file).map_err(|error| unusable(&path, &error))?;
    Ok(file)
}

/// Makes the file at `path`, empty and readable by its owner only.
pub(super) fn create(path: &Path) -> std::io::Result<File> {
    private(OpenOptions::new().write(true).create_new(true)).open(path)
}

/// Makes a rename or a new file in `folder` durable.
pub(super) fn sync(folder: &Path) -> std::io::Result<()> {
    // Elsewhere a folder cannot be opened, and the system sees to it.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Makes an absolute `folder` durable, which may be new, as may all above it: made by this process, or by one that was
/// killed before it came to this.
pub(super) fn settle(folder: &Path) -> std::io::Result<()> {
    let mut above = folder.ancestors().skip(1);
    if let Some(parent) = above.next() {
        sync(parent)?;
    }
    for ancestor in above {
        // Most likely it is old, and it need not be ours to read.
        if let Err(error) = sync(ancestor) {
            tracing::debug!(path = %ancestor.display(), %error, "a folder above the store was not synced");
        }
    }
    Ok(())
}

/// The refusal for what the system would not do with `path`.
pub(super) fn unusable(path: &Path, error: &std::io::Error) -> OpenError {
    let reason = match error.kind() {
        ErrorKind::PermissionDenied => "permission denied; check the folder's owner and mode".to_owned(),
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            "it is not a folder; choose another with --store".to_owned()
        }
        ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only; choose another folder with --store".to_owned()
        }
        _ => error.to_string(),
    };
    OpenError::Unusable { path: path.display().to_string(), reason }
}

fn make(folder: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Leaves the process id for whoever finds the folder locked.
fn sign(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())
}

/// The process id in the lock file. It may be missing: where locks are mandatory the file cannot be read, and its
/// holder may just be about to write.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_folder_is_settled_in_its_parent() {
        let top = tempfile::TempDir::new().unwrap();
        let folder = top.path().join("state/gitstafette");
        settle(&folder).unwrap_err();
        make(&folder).unwrap();
        settle(&folder).unwrap();
        settle(Path::new("/")).unwrap();
        // Its parent has no name to open it by: that must not pass for durable.
        settle(Path::new("src")).unwrap_err();
    }
}
