//! `bulkhead backup` and `bulkhead restore FILE`: our keys as a file, and a file as our keys.
//!
//! The file is JSON: every key of the cluster at one revision, below the prefix, so that it can be restored below another one.
//! What only lives while controllers run (the election, a wish for a restore) is no part of it.

mod file;
mod put_back;

use std::io::{Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_core::record::{ConfigRecord, Record};
use serde::Serialize;

pub use put_back::restore;

use crate::backup::file::{Backup, Saved};
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;

/// The largest backup that is read: more than 100,000 namespaces.
const MAX_BYTES: u64 = 256 << 20;
/// The name that stands for stdin and stdout.
const STREAM: &str = "-";

/// What was saved, as `-o json` prints it.
#[derive(Serialize)]
struct Report {
    file: String,
    keys: usize,
    revision: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

/// Saves the cluster's keys.
pub async fn backup(cluster: &Cluster, prefix: &str, path: &Path, console: &mut Console<'_>) -> Result<(), CliError> {
    // The config is no part of the cluster's root, so one list covers both or they would not be of one revision.
    let snapshot = cluster.store.list(&format!("{prefix}/")).await?;
    let (root, config) = (cluster.keys.root(), cluster.keys.config());
    let lasting = |key: &str| {
        (key == config || key.starts_with(&root))
            && !key.starts_with(&cluster.keys.election())
            && key != cluster.keys.restore()
    };
    let mut entries = Vec::new();
    let mut epoch = None;
    for entry in snapshot.entries.iter().filter(|entry| lasting(&entry.key)) {
        if entry.key == cluster.keys.ledger_cluster() {
            epoch = ledger::parse::<ClusterEntry>(&entry.value).ok().map(|entry| entry.epoch);
        }
        let key = entry.key.strip_prefix(prefix).and_then(|key| key.strip_prefix('/')).unwrap_or(&entry.key);
        entries.push(Saved::new(key, &entry.value));
    }
    let config = entries.iter().find(|entry| entry.key == "config").and_then(|entry| entry.bytes().ok());
    if config.is_none_or(|config| ConfigRecord::parse(&config).is_err()) {
        return Err(CliError::Contended);
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let backup = Backup::new(cluster.record.name.clone(), snapshot.revision, epoch, created, entries);
    let text = backup.to_json()?;
    if path == Path::new(STREAM) {
        return console.raw(&text);
    }
    write(path, &text).map_err(|source| CliError::File { path: path.display().to_string(), source })?;
    let report =
        Report { file: path.display().to_string(), keys: backup.entries.len(), revision: backup.revision, epoch };
    let sentence = format!("{} keys of revision {} are in {}", report.keys, report.revision, report.file);
    console.report(&report, &[sentence])
}

/// Whole or not at all, for its owner only.
fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Reads a file, or stdin.
fn read(path: &Path) -> Result<Backup, CliError> {
    let failed = |source| CliError::File { path: path.display().to_string(), source };
    let mut text = Vec::new();
    if path == Path::new(STREAM) {
        std::io::stdin().lock().take(MAX_BYTES).read_to_end(&mut text).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(failed)?;
    }
    Backup::parse(&text).map_err(|problem| CliError::Usage(format!("{}: {problem}", path.display())))
}
