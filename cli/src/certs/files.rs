//! Certificates as files: `ca`, `server`, `peer` and one per client, each with `.crt` and `.key`; keys are for the owner only.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Authority, Credential, Set};
use crate::error::CliError;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.display().to_string();
    move |source| CliError::File { path, source }
}

/// The authority that is in the folder already, if there is one.
pub fn authority(folder: &Path) -> Result<Option<Authority>, CliError> {
    let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
    match (certificate.exists(), key.exists()) {
        (false, false) => Ok(None),
        (true, true) => {
            let read = |path: &Path| fs::read_to_string(path).map_err(failed(path));
            Authority::again(Credential { certificate: read(&certificate)?, key: read(&key)? }).map(Some)
        }
        (has_certificate, _) => Err(CliError::Usage(format!(
            "{} has {} alone: put the other one beside it, or name another folder",
            folder.display(),
            if has_certificate { "ca.crt" } else { "ca.key" }
        ))),
    }
}

/// Writes all files, each by rename; those of the same names are replaced.
pub fn write(folder: &Path, set: &Set) -> Result<Vec<PathBuf>, CliError> {
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut written = Vec::new();
    let fixed = [("ca", &set.authority.credential), ("server", &set.server), ("peer", &set.peer)];
    let clients = set.clients.iter().map(|(name, credential)| (name.as_str(), credential));
    for (name, credential) in fixed.into_iter().chain(clients) {
        for (ending, text, mode) in [("crt", &credential.certificate, 0o644), ("key", &credential.key, 0o600)] {
            let path = folder.join(format!("{name}.{ending}"));
            put(&path, text, mode).map_err(failed(&path))?;
            written.push(path);
        }
    }
    Ok(written)
}

fn put(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
