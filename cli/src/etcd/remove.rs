//! `bulkhead etcd remove-data`: the last step of an uninstall on a node that carried a member of the bundled etcd.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use crate::error::CliError;
use crate::output::Console;

/// Removes the folder, if it is one of the bundled etcd's: those have `data/member`, and nothing beside `data`. Not while an
/// etcd runs on it, whoever started that.
pub fn remove_data(folder: &Path, console: &mut Console<'_>) -> Result<(), CliError> {
    let failed = |source| CliError::File { path: folder.display().to_string(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return done(folder, "is not there", console),
        Err(error) => return Err(failed(error)),
    };
    let names =
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let ours = names.is_empty() || (names == ["data"] && folder.join("data/member").is_dir());
    if !ours {
        return Err(CliError::Refused(format!("{} is no folder of the bundled etcd", folder.display())));
    }
    if is_open(&folder.join("data/member/snap/db")).map_err(failed)? {
        return Err(CliError::Refused(format!("an etcd runs on {}: stop it first", folder.display())));
    }
    fs::remove_dir_all(folder).map_err(failed)?;
    done(folder, "is removed", console)
}

/// Whether an etcd holds its lock on the database.
fn is_open(database: &Path) -> io::Result<bool> {
    let file = match File::open(database) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn done(folder: &Path, fate: &str, console: &mut Console<'_>) -> Result<(), CliError> {
    console.report(&folder, &[format!("{} {fate}", folder.display())])
}
