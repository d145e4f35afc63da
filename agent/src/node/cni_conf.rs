//! The CNI config file: the sign to the runtime that this node takes pods. It appears last, by rename, and goes first.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::json;
use thiserror::Error;

/// The file's name: sorts before most, as the runtime takes the first.
pub const FILE: &str = "10-bulkhead.conflist";

/// Why the file cannot be written or removed.
#[derive(Debug, Error)]
#[error("the CNI config {path} cannot be written: {source}; is --cni-conf-dir right and writable?")]
pub struct CniConfError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the file, if it is not there as it should be. Returns whether it had to.
pub fn write(folder: &Path, socket: &Path, spool: &Path) -> Result<bool, CniConfError> {
    let path = folder.join(FILE);
    let config = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "bulkhead",
        "plugins": [{
            "type": "bulkhead-cni",
            "socket": socket,
            "spool": spool,
            "capabilities": {"bandwidth": true, "io.kubernetes.cri.pod-annotations": true},
        }],
    });
    let text = format!("{config:#}\n");
    if fs::read_to_string(&path).is_ok_and(|held| held == text) {
        return Ok(false);
    }
    let failed = |source| CniConfError { path: path.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    // A dot and another ending: no runtime takes it for a config.
    let temporary = folder.join(format!(".{FILE}.new"));
    fs::write(&temporary, text).map_err(failed)?;
    fs::rename(&temporary, &path).map_err(failed)?;
    Ok(true)
}

/// Removes the file, if it is there.
pub fn remove(folder: &Path) -> Result<(), CniConfError> {
    // The half-written one of an agent that was killed goes too.
    for path in [folder.join(FILE), folder.join(format!(".{FILE}.new"))] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(CniConfError { path, source }),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_once_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, spool) = (Path::new("/run/s"), Path::new("/run/d"));
        assert!(write(folder.path(), socket, spool).unwrap());
        assert!(!write(folder.path(), socket, spool).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
