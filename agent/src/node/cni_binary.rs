//! The plugin's binary in the runtime's folder: put there before the agent starts, by rename, so that a runtime never starts
//! half of one and a running one is not disturbed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The plugin's file name, which is its `type` in the CNI config.
pub const NAME: &str = "bulkhead-cni";
/// What every ELF file starts with (elf(5)).
const ELF: &[u8] = b"\x7fELF";

/// Why the plugin cannot be installed or removed.
#[derive(Debug, Error)]
pub enum CniBinaryError {
    /// The agent's own place is not known.
    #[error("the folder of this program cannot be found: {0}; say where the plugin is with --cni-binary")]
    OwnPlace(#[source] io::Error),
    /// The plugin cannot be read.
    #[error("the CNI plugin {path} cannot be read: {source}; say where it is with --cni-binary")]
    Source {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else is in its place.
    #[error("{0} is no program; say where the CNI plugin is with --cni-binary")]
    NotAProgram(PathBuf),
    /// The target.
    #[error("{path} cannot be written: {source}; is the folder of the node's CNI plugins mounted there, writable?")]
    Target {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// It is new.
    New,
    /// It replaced another.
    Replaced,
    /// The same was there already.
    Unchanged,
}

/// A plugin to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniBinary {
    /// The file; none: the one beside this program.
    pub source: Option<PathBuf>,
    /// The runtime's folder.
    pub folder: PathBuf,
}

fn temporary(folder: &Path) -> PathBuf {
    folder.join(format!(".{NAME}.new"))
}

impl CniBinary {
    /// Where the plugin goes.
    pub fn target(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    fn source(&self) -> Result<PathBuf, CniBinaryError> {
        match &self.source {
            Some(path) => Ok(path.clone()),
            None => std::env::current_exe().map(|own| own.with_file_name(NAME)).map_err(CniBinaryError::OwnPlace),
        }
    }

    /// Copies the plugin, unless the same is there: written under another name, synced, renamed.
    pub fn install(&self) -> Result<Installed, CniBinaryError> {
        let (path, target) = (self.source()?, self.target());
        let mut content = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut content))
            .map_err(|source| CniBinaryError::Source { path: path.clone(), source })?;
        if !content.starts_with(ELF) {
            return Err(CniBinaryError::NotAProgram(path));
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CniBinaryError::Target { path, source }
        };
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        let held = match fs::read(&target) {
            Ok(held) => Some(held),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(&target)(source)),
        };
        if held.as_ref() == Some(&content) && is_executable(&target) {
            return Ok(Installed::Unchanged);
        }
        let fresh = temporary(&self.folder);
        write(&fresh, &content).map_err(failed(&fresh))?;
        fs::rename(&fresh, &target).map_err(failed(&target))?;
        // The rename, too, should outlive a power cut.
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed(&self.folder))?;
        Ok(if held.is_some() { Installed::Replaced } else { Installed::New })
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    // One of an installation that was cut off may have another mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    io::Write::write_all(&mut file, content)?;
    // Whatever the umask.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    file.sync_all()
}

/// Whether a runtime could start it.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Removes the plugin from the runtime's folder, if it is there.
pub fn remove(folder: &Path) -> Result<(), CniBinaryError> {
    for path in [folder.join(NAME), temporary(folder)] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CniBinaryError::Target { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_copied_replaced_and_left_alone_when_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("image/plugin");
        fs::create_dir_all(source.parent().unwrap()).unwrap();
        let asked = CniBinary { source: Some(source.clone()), folder: folder.path().join("opt/cni/bin") };
        assert!(matches!(asked.install(), Err(CniBinaryError::Source { .. })));
        fs::write(&source, "#!/bin/sh").unwrap();
        assert!(matches!(asked.install(), Err(CniBinaryError::NotAProgram(_))));
        assert!(!asked.folder.exists(), "nothing is made before the source is good");
        for (content, outcome) in [
            (&b"\x7fELF one"[..], Installed::New),
            (b"\x7fELF one", Installed::Unchanged),
            (b"\x7fELF two", Installed::Replaced),
        ] {
            fs::write(&source, content).unwrap();
            assert_eq!(asked.install().unwrap(), outcome);
            assert_eq!(fs::read(asked.target()).unwrap(), content);
        }
        fs::set_permissions(asked.target(), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(asked.install().unwrap(), Installed::Replaced, "one that nobody can start is mended");
        assert!(is_executable(&asked.target()));
        assert_eq!(fs::read_dir(&asked.folder).unwrap().count(), 1);
        fs::write(temporary(&asked.folder), "half").unwrap();
        fs::write(asked.folder.join("bridge"), "theirs").unwrap();
        remove(&asked.folder).unwrap();
        remove(&asked.folder).unwrap();
        assert_eq!(fs::read_dir(&asked.folder).unwrap().count(), 1, "others' plugins stay");
    }

    #[test]
    fn a_program_that_runs_is_replaced_without_a_word() {
        let folder = tempfile::tempdir().unwrap();
        let asked = CniBinary { source: Some("/bin/sleep".into()), folder: folder.path().to_owned() };
        asked.install().unwrap();
        let mut running = std::process::Command::new(asked.target()).arg("60").spawn().unwrap();
        let other = CniBinary { source: Some("/bin/true".into()), ..asked.clone() };
        assert_eq!(other.install().unwrap(), Installed::Replaced, "not ETXTBSY");
        running.kill().unwrap();
        running.wait().unwrap();
    }
}
