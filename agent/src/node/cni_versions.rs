//! Which versions of the CNI specification the plugins behind ours speak: a runtime speaks one version with a whole list.
//!
//! They are asked once, when our plugin is installed, which is on no pod's path: `VERSION` is the one operation that needs
//! neither a pod nor a network. The answers lie beside the plugins in a file, and hold for as long as the binary is the same.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cni_binary::{CniBinaryError, is_executable};
use super::cni_conf::Chained;

/// The answers' file. No runtime starts it: it is hidden, and no program.
const FILE: &str = ".bulkhead-cni.versions";
/// How long a plugin may think.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer is no longer than this.
const LONGEST: u64 = 64 << 10;

/// A binary that is changed is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    binary: Identity,
    versions: Vec<String>,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self { inode: found.ino(), size: found.size(), changed: (found.ctime(), found.ctime_nsec()) })
    }
}

/// Asks every plugin in `folder` that may run behind ours, and writes the answers down. Returns what came out, for a person.
pub fn learn(folder: &Path) -> Result<Vec<String>, CniBinaryError> {
    let (mut answers, mut told) = (BTreeMap::new(), Vec::new());
    for name in Chained::ALL.map(Chained::name) {
        let path = folder.join(name);
        let Some(binary) = Identity::of(&path).filter(|_| is_executable(&path)) else { continue };
        match ask(&path) {
            Ok(versions) => {
                told.push(format!("{}: speaks CNI {}", path.display(), versions.join(", ")));
                answers.insert(name, Answer { binary, versions });
            }
            Err(error) => told.push(format!(
                "{}: which versions of CNI it speaks is not known ({error}); it is taken for one before 1.1.0",
                path.display()
            )),
        }
    }
    let path = folder.join(FILE);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CniBinaryError::Target { path, source }
    };
    let fresh = folder.join(format!("{FILE}.new"));
    fs::write(&fresh, json!(answers).to_string()).map_err(failed(&fresh))?;
    fs::rename(&fresh, &path).map_err(failed(&path))?;
    Ok(told)
}

/// What that plugin of `folder` speaks; none if it was never asked, did not answer, or is another by now.
pub fn known(folder: &Path, plugin: Chained) -> Option<Vec<String>> {
    let text = fs::read(folder.join(FILE)).ok()?;
    let mut answers: BTreeMap<String, Answer> = serde_json::from_slice(&text).ok()?;
    let answer = answers.remove(plugin.name())?;
    (Some(answer.binary) == Identity::of(&folder.join(plugin.name()))).then_some(answer.versions)
}

/// Removes the answers, if they are there.
pub fn remove(folder: &Path) -> Result<(), CniBinaryError> {
    for path in [folder.join(FILE), folder.join(format!("{FILE}.new"))] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CniBinaryError::Target { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// `VERSION`.
fn ask(plugin: &Path) -> io::Result<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        supported_versions: Vec<String>,
    }
    let mut command = Command::new(plugin);
    command.env_clear().env("CNI_COMMAND", "VERSION").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = spawn(&mut command)?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let answer = thread::spawn(move || {
        // One that does not read its input answers all the same.
        drop(input.map(|mut pipe| pipe.write_all(br#"{"cniVersion":"1.0.0"}"#)));
        let mut text = Vec::new();
        output.map_or(Ok(0), |pipe| pipe.take(LONGEST).read_to_end(&mut text)).map(|_| text)
    });
    let ended = end(&mut child);
    let text = answer.join().map_err(|_| io::Error::other("its answer cannot be read"))??;
    if !ended? {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs())));
    }
    let versions: Versions = serde_json::from_slice(&text).map_err(io::Error::other)?;
    Ok(versions.supported_versions)
}

/// Starts it; somebody who has just written it may still hold it open.
fn spawn(command: &mut Command) -> io::Result<Child> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            started => return started,
        }
    }
}

/// Waits for its end, whatever its exit status; false if it had to be killed.
fn end(child: &mut Child) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn plugin(folder: &Path, script: &str) {
        let path = folder.join("portmap");
        // Another file each time, as an upgrade brings one.
        drop(fs::remove_file(&path));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_plugin_is_asked_and_its_answer_holds_while_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(learn(folder).unwrap().is_empty());
        assert_eq!(known(folder, Chained::Portmap), None);
        let script =
            r#"test "$CNI_COMMAND" = VERSION && echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'"#;
        plugin(folder, script);
        assert_eq!(known(folder, Chained::Portmap), None, "never asked");
        let told = learn(folder).unwrap();
        assert!(told.len() == 1 && told[0].ends_with("portmap: speaks CNI 1.0.0, 1.1.0"), "{told:?}");
        assert_eq!(known(folder, Chained::Portmap).unwrap(), ["1.0.0", "1.1.0"]);
        plugin(folder, script);
        assert_eq!(known(folder, Chained::Portmap), None, "another one");
        learn(folder).unwrap();
        assert!(known(folder, Chained::Portmap).is_some());
        remove(folder).unwrap();
        remove(folder).unwrap();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }

    #[test]
    fn no_answer_is_said_and_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for script in ["exit 1", "echo nothing", "exec sleep 60"] {
            plugin(folder, script);
            let told = learn(folder).unwrap();
            assert!(told.len() == 1 && told[0].contains("before 1.1.0"), "{told:?}");
            assert_eq!(known(folder, Chained::Portmap), None);
        }
        fs::set_permissions(folder.join("portmap"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(learn(folder).unwrap().is_empty());
    }
}
