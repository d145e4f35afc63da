//! Where a cluster keeps its data: a temporary directory that goes with its owner.
//!
//! An owner that is killed cannot remove it, so the next one does: each directory holds a file that its owner keeps
//! locked, and a lock that can be taken has lost its owner. Process ids would not do, containers may share `/tmp`.

use std::fs::{File, remove_dir_all, rename};
use std::path::Path;

use tempfile::TempDir;

use super::ProcessError;

const PREFIX: &str = "bulkhead-etcd-";
const LOCK: &str = "owner.lock";

#[derive(Debug)]
pub(super) struct DataDirectory {
    directory: TempDir,
    _lock: File,
}

impl DataDirectory {
    /// Makes a new one, and removes those of owners that were killed.
    pub(super) fn new() -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::System { what: "make a directory for etcd's data", source };
        sweep(&std::env::temp_dir());
        let directory = TempDir::with_prefix(PREFIX).map_err(failed)?;
        // It gets its name when it is locked, so that nobody ever sees it unlocked while its owner lives.
        let unnamed = directory.path().join("owner.new");
        let lock = File::create(&unnamed).map_err(failed)?;
        lock.lock().map_err(failed)?;
        rename(&unnamed, directory.path().join(LOCK)).map_err(failed)?;
        Ok(Self { directory, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes ownerless directories; what cannot be judged or removed stays for the next time.
fn sweep(parent: &Path) {
    for entry in parent.read_dir().into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() && remove_dir_all(entry.path()).is_err() {
            tracing::debug!(directory = ?entry.path(), "not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ownerless_directories_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let lock = File::create(path.join(LOCK)).unwrap();
            (path, lock)
        };
        let (left, lock) = make("bulkhead-etcd-left");
        drop(lock);
        let (owned, lock) = make("bulkhead-etcd-owned");
        lock.lock().unwrap();
        let (foreign, _) = make("other");
        sweep(parent.path());
        assert!(!left.exists() && owned.exists() && foreign.exists());
    }
}
