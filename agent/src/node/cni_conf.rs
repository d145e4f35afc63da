//! The CNI config file: the sign to the runtime that this node takes pods. It appears last, by rename, and goes first.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::ValueEnum;
use serde_json::{Value, json};
use thiserror::Error;

use super::cni_binary::is_executable;

/// The file's name: sorts before most, as the runtime takes the first.
pub const FILE: &str = "10-bulkhead.conflist";

/// The versions of the CNI specification that the file offers.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A plugin of others that may run behind ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Chained {
    /// `portmap` of the reference plugins: hostPort.
    Portmap,
}

impl Chained {
    /// Its file name, which is its `type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portmap => "portmap",
        }
    }

    fn entry(self) -> Value {
        match self {
            // snat: a pod that reaches itself, or the node itself by 127.0.0.1, through a hostPort.
            Self::Portmap => json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        }
    }

    /// The wanted plugins that `folder` has, and what is wrong with the others: a runtime refuses every pod of a list that
    /// names a plugin which is not there.
    pub fn present(wanted: &[Self], folder: Option<&Path>) -> (Vec<Self>, Vec<String>) {
        let Some(folder) = folder else { return (Vec::new(), Vec::new()) };
        let (there, missing): (Vec<Self>, Vec<Self>) =
            wanted.iter().partition(|plugin| is_executable(&folder.join(plugin.name())));
        let told = missing.into_iter().map(|plugin| match plugin {
            Self::Portmap => format!(
                "the CNI plugin portmap is not in {}, so hostPort does not work; install the reference CNI plugins there",
                folder.display()
            ),
        });
        (there, told.collect())
    }
}

/// Why the file cannot be written or removed.
#[derive(Debug, Error)]
#[error("the CNI config {path} cannot be written: {source}; is --cni-conf-dir right and writable?")]
pub struct CniConfError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the file, if it is not there as it should be. Returns whether it had to. `chain` runs behind our plugin, in its order.
pub fn write(folder: &Path, socket: &Path, spool: &Path, chain: &[Chained]) -> Result<bool, CniConfError> {
    let path = folder.join(FILE);
    let own = json!({
        "type": super::cni_binary::NAME,
        "socket": socket,
        "spool": spool,
        "capabilities": {"bandwidth": true, "io.kubernetes.cri.pod-annotations": true},
    });
    let plugins: Vec<Value> = [own].into_iter().chain(chain.iter().map(|plugin| plugin.entry())).collect();
    // A runtime speaks one version with the whole list, and the reference plugins speak 1.1.0 (STATUS, GC) only since 1.6.0.
    let versions = if chain.is_empty() { &VERSIONS[..] } else { &VERSIONS[..3] };
    let config = json!({
        "cniVersion": "1.0.0",
        "cniVersions": versions,
        "name": "bulkhead",
        "plugins": plugins,
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
        assert!(write(folder.path(), socket, spool, &[]).unwrap());
        assert!(!write(folder.path(), socket, spool, &[]).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_chained_stands_behind_ours_if_its_binary_is_there() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let present = || Chained::present(&[Chained::Portmap], Some(folder.path()));
        let (there, told) = present();
        assert_eq!((there.len(), told.len()), (0, 1));
        assert!(told[0].contains("portmap") && told[0].contains("hostPort"), "{told:?}");
        let binary = folder.path().join("portmap");
        fs::write(&binary, "").unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(present(), (vec![Chained::Portmap], vec![]));
        write(folder.path(), Path::new("/run/s"), Path::new("/run/d"), &[Chained::Portmap]).unwrap();
        let text = fs::read(folder.path().join(FILE)).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["plugins"][0]["type"], "bulkhead-cni");
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
        assert_eq!(config["plugins"][1], portmap);
    }
}
