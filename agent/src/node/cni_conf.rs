//! The CNI config file: the sign to the runtime that this node takes pods. It appears last, by rename, and goes first.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::ValueEnum;
use serde_json::{Value, json};
use thiserror::Error;

use super::cni_binary::is_executable;
use super::cni_versions;

/// The file's name: sorts before most, as the runtime takes the first.
pub const FILE: &str = "10-bulkhead.conflist";

/// The versions of the CNI specification that the file offers, lowest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What every plugin of others is taken to speak: the reference plugins speak 1.1.0 (STATUS, GC) only since 1.6.0.
const SPOKEN_BY_ALL: &[&str] = VERSIONS.split_at(3).0;

/// A plugin of others that may run behind ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Chained {
    /// `portmap` of the reference plugins: hostPort.
    Portmap,
}

impl Chained {
    /// All that there are.
    pub const ALL: [Self; 1] = [Self::Portmap];

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
    /// names a plugin which is not there, or does not speak its version.
    pub fn present(wanted: &[Self], folder: Option<&Path>) -> (Chain, Vec<String>) {
        let (mut chain, mut told) = (Chain::default(), Vec::new());
        for &plugin in wanted {
            let Some(folder) = folder else { break };
            let without = match plugin {
                Self::Portmap => "so hostPort does not work; install the reference CNI plugins there",
            };
            let name = plugin.name();
            if !is_executable(&folder.join(name)) {
                told.push(format!("the CNI plugin {name} is not in {}, {without}", folder.display()));
                continue;
            }
            let spoken = cni_versions::known(folder, plugin);
            let speaks = |version: &&str| match &spoken {
                Some(spoken) => spoken.iter().any(|one| one == version),
                None => SPOKEN_BY_ALL.contains(version),
            };
            let common: Vec<&str> = chain.versions.iter().copied().filter(speaks).collect();
            if common.is_empty() {
                told.push(format!("the CNI plugin {name} in {} is too old, {without}", folder.display()));
            } else {
                chain.versions = common;
                chain.plugins.push(plugin);
            }
        }
        (chain, told)
    }
}

/// What runs behind our plugin, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    plugins: Vec<Chained>,
    /// Spoken by all of them and by ours, lowest first; never empty.
    versions: Vec<&'static str>,
}

impl Default for Chain {
    /// Nothing.
    fn default() -> Self {
        Self { plugins: Vec::new(), versions: VERSIONS.to_vec() }
    }
}

impl Chain {
    /// What a runtime takes that does not read `cniVersions`: none such knows 1.1.0.
    fn plain_version(&self) -> &'static str {
        let known = |version: &&&str| SPOKEN_BY_ALL.contains(*version);
        self.versions.iter().rev().find(known).or(self.versions.first()).copied().unwrap_or("1.0.0")
    }
}

/// Why the file cannot be written or removed.
#[derive(Debug, Error)]
#[error("the CNI config {path} cannot be written: {source}; is --cni-conf-dir right and writable?")]
pub struct CniConfError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the file, if it is not there as it should be. Returns whether it had to.
pub fn write(folder: &Path, socket: &Path, spool: &Path, chain: &Chain) -> Result<bool, CniConfError> {
    let path = folder.join(FILE);
    let own = json!({
        "type": super::cni_binary::NAME,
        "socket": socket,
        "spool": spool,
        "capabilities": {"bandwidth": true, "io.kubernetes.cri.pod-annotations": true},
    });
    let plugins: Vec<Value> = [own].into_iter().chain(chain.plugins.iter().map(|plugin| plugin.entry())).collect();
    let config = json!({
        "cniVersion": chain.plain_version(),
        "cniVersions": chain.versions,
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

    fn written(folder: &Path, chain: &Chain) -> Value {
        write(folder, Path::new("/run/s"), Path::new("/run/d"), chain).unwrap();
        serde_json::from_slice(&fs::read(folder.join(FILE)).unwrap()).unwrap()
    }

    fn portmap(folder: &Path, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let binary = folder.join("portmap");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_file_is_written_once_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, spool) = (Path::new("/run/s"), Path::new("/run/d"));
        assert!(write(folder.path(), socket, spool, &Chain::default()).unwrap());
        assert!(!write(folder.path(), socket, spool, &Chain::default()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let config = written(folder.path(), &Chain::default());
        assert_eq!((&config["cniVersion"], &config["cniVersions"]), (&json!("1.0.0"), &json!(VERSIONS)));
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_chained_stands_behind_ours_if_its_binary_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let present = || Chained::present(&[Chained::Portmap], Some(folder));
        let (chain, told) = present();
        assert_eq!((chain, told.len()), (Chain::default(), 1));
        assert!(told[0].contains("portmap") && told[0].contains("hostPort"), "{told:?}");
        portmap(folder, "exit 1");
        let (chain, told) = present();
        assert!(told.is_empty(), "{told:?}");
        let config = written(folder, &chain);
        assert_eq!(config["plugins"][0]["type"], "bulkhead-cni");
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
        assert_eq!(config["plugins"][1], portmap);
    }

    #[test]
    fn a_runtime_is_offered_what_the_whole_list_speaks() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let answer = |versions: &[&str]| format!("echo '{}'", json!({"supportedVersions": versions}));
        for (script, plain, offered) in [
            ("exit 1".to_owned(), "1.0.0", &["0.3.1", "0.4.0", "1.0.0"][..]),
            (answer(&["0.3.0", "0.3.1", "0.4.0", "1.0.0"]), "1.0.0", &["0.3.1", "0.4.0", "1.0.0"]),
            (answer(&["0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.2.0"]), "1.0.0", &["0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
            (answer(&["0.1.0", "0.4.0"]), "0.4.0", &["0.4.0"]),
        ] {
            portmap(folder, &script);
            cni_versions::learn(folder).unwrap();
            let (chain, told) = Chained::present(&[Chained::Portmap], Some(folder));
            let config = written(folder, &chain);
            assert_eq!((&config["cniVersion"], &config["cniVersions"]), (&json!(plain), &json!(offered)), "{script}");
            assert!(told.is_empty() && config["plugins"].as_array().unwrap().len() == 2, "{told:?} {config}");
        }
        portmap(folder, &answer(&["0.2.0"]));
        cni_versions::learn(folder).unwrap();
        let (chain, told) = Chained::present(&[Chained::Portmap], Some(folder));
        assert!(chain == Chain::default() && told[0].contains("too old"), "{told:?}");
    }
}
