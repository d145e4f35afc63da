//! What this controller has seen of etcd's history, whether it led or waited, before a restart too: enough to notice a
//! restore.
//!
//! Promises: a list that does not lead on from what was seen before makes the ledger's epoch owe a rise above the
//! highest one seen, which is what agents wait for; any leader's rise settles that. A restored etcd that has passed the
//! revision seen before under its old cluster id is not noticed: `bulkhead restore` is for that. A file that cannot be
//! written or read is said and costs only the memory across a restart.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use bulkhead_core::Keys;
use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_store::{Change, Changes, Entry, Snapshot, Store, Update};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use crate::state::State;

/// The shortest time between two writes of the file.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The memory of one controller.
#[derive(Debug, Default)]
pub struct History {
    memory: Memory,
    file: Option<PathBuf>,
    /// What the file holds, and since when.
    saved: Option<(Memory, Instant)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    /// The cluster id and the highest revision of it.
    seen: Option<(u64, i64)>,
    /// The highest epoch of the ledger.
    epoch: u64,
    /// The epoch that the ledger's has to exceed.
    owed: Option<u64>,
}

impl History {
    /// What an earlier process kept in `folder` of this cluster; empty if there is nothing, or none that can be read.
    pub fn load(folder: Option<&Path>, keys: &Keys) -> Self {
        // One machine may run controllers of several clusters.
        let file = folder.map(|folder| folder.join(format!("history{}json", keys.root().replace('/', "."))));
        let read = file.as_ref().map(|file| (fs::read(file), file));
        let memory = match read {
            Some((Ok(bytes), file)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(file = %file.display(), %error, "what was seen of etcd before cannot be read: a restore since then is not noticed");
                Memory::default()
            }),
            Some((Err(error), file)) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file = %file.display(), %error, "what was seen of etcd before cannot be read: a restore since then is not noticed");
                Memory::default()
            }
            _ => Memory::default(),
        };
        Self { memory, file, saved: None }
    }

    /// Ends when the file should be written again: a second behind the last time, once something was seen since.
    pub async fn worth_saving(&self) {
        match self.saved {
            _ if self.file.is_none() => std::future::pending().await,
            Some((saved, _)) if saved == self.memory => std::future::pending().await,
            Some((_, since)) => tokio::time::sleep_until(since + SAVE_EVERY).await,
            None => {}
        }
    }

    /// Writes the file, by rename, if something was seen since.
    pub fn save(&mut self) {
        let Some(file) = self.file.clone().filter(|_| self.saved.is_none_or(|(saved, _)| saved != self.memory)) else {
            return;
        };
        let written = (|| {
            fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
            let temporary = file.with_extension("new");
            fs::write(&temporary, serde_json::to_vec(&self.memory)?)?;
            fs::rename(&temporary, &file)
        })();
        if let Err(error) = written {
            warn!(file = %file.display(), %error, "what was seen of etcd is not kept across a restart; is --state-dir writable?");
            self.file = None;
        }
        self.saved = Some((self.memory, Instant::now()));
    }

    /// The highest epoch that was seen.
    pub const fn epoch(&self) -> u64 {
        self.memory.epoch
    }

    /// The epoch that the ledger's has to exceed before anything else happens.
    pub const fn owed(&self) -> Option<u64> {
        self.memory.owed
    }

    /// Takes a list in, and marks it if it is no successor of what was seen. `key` is the cluster's ledger entry.
    pub fn listed(&mut self, snapshot: &mut Snapshot, key: &str) {
        let ours = self.memory.seen.and_then(|(cluster, revision)| snapshot.discontinuity_since(cluster, revision));
        snapshot.discontinuity = snapshot.discontinuity.or(ours);
        self.memory.seen = Some((snapshot.cluster_id, snapshot.revision));
        let found = snapshot.get(key).and_then(epoch);
        if let Some(discontinuity) = snapshot.discontinuity {
            let (seen, found) = (self.memory.epoch, found.unwrap_or(0));
            self.memory.owed = Some(seen);
            if found <= seen {
                warn!(
                    ?discontinuity,
                    seen, found, "etcd was restored or replaced: the leader raises the epoch before anything else"
                );
            }
        }
        self.reached(snapshot.revision, found);
    }

    /// Takes a revision in.
    pub fn changed(&mut self, changes: &Changes, key: &str) {
        let entry = changes.changes.iter().find_map(|change| match change {
            Change::Put(entry) if entry.key == key => Some(entry),
            _ => None,
        });
        self.reached(changes.revision, entry.and_then(epoch));
    }

    /// Takes a revision and the epoch in that are known otherwise, for instance by an own transaction.
    pub fn reached(&mut self, revision: i64, epoch: Option<u64>) {
        let memory = &mut self.memory;
        if let Some((_, seen)) = &mut memory.seen {
            *seen = revision.max(*seen);
        }
        memory.epoch = memory.epoch.max(epoch.unwrap_or(0));
        memory.owed = memory.owed.filter(|owed| *owed >= epoch.unwrap_or(0));
    }

    /// Looks on while another leads, so that what it knew is known here as well. Never ends but with the runtime.
    pub async fn follow(&mut self, store: &Store, state: &mut State, prefix: &str, key: &str) {
        let mut watch = store.watch(prefix);
        loop {
            let update = tokio::select! {
                biased;
                update = watch.next() => update,
                () = self.worth_saving() => {
                    self.save();
                    continue;
                }
            };
            match update {
                None => break,
                Some(Update::Snapshot(mut snapshot)) => {
                    self.listed(&mut snapshot, key);
                    state.replace(&snapshot);
                }
                Some(Update::Changes(changes)) => {
                    self.changed(&changes, key);
                    state.apply(&changes);
                }
                Some(Update::Unreachable { .. }) => {}
            }
        }
        std::future::pending::<()>().await;
    }
}

fn epoch(entry: &Entry) -> Option<u64> {
    ledger::parse::<ClusterEntry>(&entry.value).ok().map(|cluster| cluster.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/cluster";

    fn entry(epoch: u64) -> Entry {
        let value = format!(
            r#"{{"epoch":{epoch},"network":["172.11.0.0/16"],"hostSubnetLength":10,"serviceNetwork":[],"mode":"multitenant"}}"#
        );
        Entry { key: KEY.into(), value: value.into(), create_revision: 1, mod_revision: 1 }
    }

    fn list(cluster_id: u64, revision: i64, epoch: u64) -> Snapshot {
        Snapshot { cluster_id, revision, entries: vec![entry(epoch)], discontinuity: None }
    }

    #[test]
    fn a_restore_owes_an_epoch_above_the_highest_seen_until_somebody_raises_it() {
        let mut history = History::default();
        for (cluster_id, revision) in [(1, 10), (1, 10), (1, 12)] {
            history.listed(&mut list(cluster_id, revision, 3), KEY);
            assert_eq!(history.owed(), None);
        }
        for (cluster_id, revision) in [(1, 11), (2, 40)] {
            let mut restored = list(cluster_id, revision, 1);
            history.listed(&mut restored, KEY);
            assert!(restored.discontinuity.is_some());
            assert_eq!(history.owed(), Some(3));
        }
        // Once for that break: a list that leads on owes nothing more, and does not forget either.
        history.listed(&mut list(2, 41, 1), KEY);
        assert_eq!(history.owed(), Some(3));
        history.changed(&Changes { revision: 42, changes: vec![Change::Put(entry(3))] }, KEY);
        assert_eq!(history.owed(), Some(3), "agents saw 3");
        history.changed(&Changes { revision: 43, changes: vec![Change::Put(entry(4))] }, KEY);
        assert_eq!(history.owed(), None);
    }

    #[test]
    fn what_was_seen_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::new("/p", &bulkhead_core::ClusterName::new("c").unwrap()).unwrap();
        let mut history = History::load(Some(folder.path()), &keys);
        history.listed(&mut list(1, 10, 3), KEY);
        history.save();
        let mut next = History::load(Some(folder.path()), &keys);
        assert_eq!((next.epoch(), next.owed()), (3, None));
        next.listed(&mut list(1, 9, 1), KEY);
        assert_eq!(next.owed(), Some(3));
        next.save();
        assert_eq!(History::load(Some(folder.path()), &keys).owed(), Some(3), "owed across a restart");
        let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        fs::write(&file, "{").unwrap();
        assert_eq!(History::load(Some(folder.path()), &keys).epoch(), 0);
        let other = Keys::new("/p", &bulkhead_core::ClusterName::new("d").unwrap()).unwrap();
        assert_eq!(History::load(Some(folder.path()), &other).epoch(), 0, "of another cluster");
    }

    #[test]
    fn a_restore_that_another_leader_has_dealt_with_is_not_dealt_with_twice() {
        let mut history = History::default();
        history.listed(&mut list(1, 10, 1), KEY);
        history.listed(&mut list(1, 9, 2), KEY);
        assert_eq!(history.owed(), None);
    }
}
