//! `bulkhead restore FILE`: writes a backup below the prefix and asks for a higher epoch.
//!
//! No controller may lead meanwhile: it would act on half of the state. The wish for a higher epoch is written first, so that
//! whoever leads next raises it before it gives any number out. With it goes the cluster's entry, with an epoch below the one
//! that was: at that agents stop to obey, and keep their last state until the epoch is higher than ever. So they see nothing of
//! what is between, and nothing of what the backup lacks.

use std::path::Path;

use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_core::record::{Record, RestoreRecord};
use bulkhead_core::{ClusterName, Keys};
use bulkhead_store::{Candidate, Compare, Entry, Outcome, Store, Txn};
use serde::Serialize;

use super::file::Backup;
use crate::cluster::Etcd;
use crate::error::CliError;
use crate::output::Console;
use crate::restore::{confirmed, words};

/// What one transaction may hold, well below etcd's limits.
const MAX_RECORDS: usize = 60;
const MAX_BYTES: usize = 1 << 20;

/// What was done, as `-o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    keys: usize,
    removed: usize,
    /// The epoch that the leader will raise.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
}

/// Writes the backup. `force`: even where keys are, which go if the backup has them not.
pub async fn restore(
    etcd: &Etcd,
    path: &Path,
    force: bool,
    yes: bool,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    let backup = super::read(path)?;
    let prefix = etcd.prefix()?;
    let name = ClusterName::new(backup.name.clone()).map_err(|error| CliError::Usage(error.to_string()))?;
    let keys = Keys::new(prefix, &name)?;
    if !yes && !confirmed()? {
        return Err(CliError::Refused("not confirmed".into()));
    }
    let store = etcd.connect().await?;
    let there = free(&store, prefix, &keys, force).await?;
    let epoch = highest_epoch(&backup, &keys, &there);
    let mut wanted = Vec::new();
    for saved in &backup.entries {
        let (key, value) = (format!("{prefix}/{}", saved.key), saved.bytes().map_err(CliError::Usage)?);
        let value = if key == keys.ledger_cluster() {
            with_epoch(&value, epoch.map(|epoch| epoch.saturating_sub(1)))
        } else {
            value
        };
        wanted.push((key, value));
    }
    // The config last: without one, nobody takes the prefix for a cluster.
    wanted.sort_by_key(|(key, _)| *key == keys.config());
    let extra: Vec<String> = there
        .iter()
        .filter(|entry| entry.key != keys.restore() && !wanted.iter().any(|(key, _)| *key == entry.key))
        .map(|entry| entry.key.clone())
        .collect();
    write(&store, &keys, (&wanted, &extra), epoch, force).await?;
    let report = Report { keys: wanted.len(), removed: extra.len(), epoch };
    let mut sentences = vec![format!("{} keys are written", report.keys)];
    if report.removed > 0 {
        sentences.push(format!("{} keys that the backup does not have are removed", report.removed));
    }
    sentences.push("start the controllers: the one that leads raises the epoch, and agents follow".to_owned());
    console.report(&report, &sentences)
}

/// What is below the prefix, if it may be written to.
async fn free(store: &Store, prefix: &str, keys: &Keys, force: bool) -> Result<Vec<Entry>, CliError> {
    if let Some(leader) = Candidate::leader(store, &keys.election()).await? {
        return Err(CliError::Refused(format!(
            "the controller {} leads and would act on half of the state; stop all controllers first",
            leader.identity
        )));
    }
    let mut there = store.list(&format!("{prefix}/")).await?.entries;
    there.retain(|entry| !entry.key.starts_with(&keys.election()));
    match there.first() {
        Some(first) if !force => Err(CliError::Refused(format!(
            "{} keys are below {prefix} already, such as {}; --force replaces all of them by the backup",
            there.len(),
            first.key
        ))),
        _ => Ok(there),
    }
}

/// The backup's epoch, or a higher one that is there: what agents have seen is not to come again.
fn highest_epoch(backup: &Backup, keys: &Keys, there: &[Entry]) -> Option<u64> {
    let current = there.iter().find(|entry| entry.key == keys.ledger_cluster());
    let current = current.and_then(|entry| ledger::parse::<ClusterEntry>(&entry.value).ok()).map(|entry| entry.epoch);
    // A restore that was begun before has lowered that, and says in its wish what it was.
    let wish = there.iter().find(|entry| entry.key == keys.restore());
    let begun = wish.and_then(|entry| RestoreRecord::parse(&entry.value).ok()).and_then(|wish| wish.above);
    backup.epoch.max(current).max(begun)
}

fn with_epoch(value: &[u8], epoch: Option<u64>) -> Vec<u8> {
    match (ledger::parse::<ClusterEntry>(value), epoch) {
        (Ok(entry), Some(epoch)) => ledger::to_json(&ClusterEntry { epoch, ..entry }),
        _ => value.to_vec(),
    }
}

async fn write(
    store: &Store,
    keys: &Keys,
    (wanted, extra): (&[(String, Vec<u8>)], &[String]),
    above: Option<u64>,
    force: bool,
) -> Result<(), CliError> {
    let unless_there = |txn: Txn, key: &str| if force { txn } else { txn.when(Compare::absent(key)) };
    // What is gone on is gone on whole: a second try after a failure finds keys, and takes --force.
    let wish = RestoreRecord::asking(&words(), above);
    let mut first = unless_there(Txn::new(), &keys.restore()).put(keys.restore(), wish.to_json());
    if let Some((key, value)) = wanted.iter().find(|(key, _)| *key == keys.ledger_cluster()) {
        first = unless_there(first, key).put(key.clone(), value.clone());
    }
    commit(store, first).await?;
    for chunk in extra.chunks(MAX_RECORDS) {
        commit(store, chunk.iter().fold(Txn::new(), |txn, key| txn.delete(key.clone()))).await?;
    }
    let (mut txn, mut bytes) = (Txn::new(), 0);
    for (key, value) in wanted.iter().filter(|(key, _)| *key != keys.ledger_cluster()) {
        let size = 2 * key.len() + value.len() + 200;
        // The config alone, when all else is there.
        if txn.operations() == MAX_RECORDS || bytes + size > MAX_BYTES || *key == keys.config() {
            commit(store, std::mem::take(&mut txn)).await?;
            bytes = 0;
        }
        txn = unless_there(txn, key).put(key.clone(), value.clone());
        bytes += size;
    }
    commit(store, txn).await
}

async fn commit(store: &Store, txn: Txn) -> Result<(), CliError> {
    if txn.operations() == 0 {
        return Ok(());
    }
    let begun = "the restore has begun and is not whole: keep the controllers stopped and begin again with --force";
    match store.commit(txn).await {
        Ok(Outcome::Done { .. }) => Ok(()),
        Ok(Outcome::Conflict(_)) => Err(CliError::Unfinished(vec![format!("somebody else writes there; {begun}")])),
        Err(error) => Err(CliError::Unfinished(vec![format!("{}; {begun}", error.chain())])),
    }
}
