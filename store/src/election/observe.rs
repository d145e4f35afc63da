//! Following who leads. What it says is history by the time it is read: guard writes with the fence, not with this.

use std::collections::BTreeMap;

use super::Fence;
use crate::entry::{Change, Entry, Update};
use crate::watch::Watch;

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The identity given to the campaign.
    pub identity: String,
    /// Its fence.
    pub fence: Fence,
}

pub(super) fn lowest<'a>(candidates: impl Iterator<Item = &'a Entry>) -> Option<Leader> {
    candidates.min_by_key(|entry| entry.create_revision).map(|entry| Leader {
        identity: String::from_utf8_lossy(&entry.value).into_owned(),
        fence: Fence { key: entry.key.clone(), create_revision: entry.create_revision },
    })
}

/// A running observation. Dropping it ends it.
#[derive(Debug)]
pub struct Observer {
    watch: Watch,
    candidates: BTreeMap<String, Entry>,
    told: bool,
    leader: Option<Leader>,
}

impl Observer {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, candidates: BTreeMap::new(), told: false, leader: None }
    }

    /// The current leader, then each change of it; `Some(None)` means that nobody leads. Cancel-safe. `None` only when
    /// the runtime shuts down. While etcd is away nothing is reported.
    pub async fn next(&mut self) -> Option<Option<Leader>> {
        loop {
            match self.watch.next().await? {
                Update::Snapshot(snapshot) => {
                    let entries = snapshot.entries.into_iter();
                    self.candidates = entries.map(|e| (e.key.clone(), e)).collect();
                }
                Update::Changes(changes) => {
                    for change in changes.changes {
                        match change {
                            Change::Put(entry) => {
                                self.candidates.insert(entry.key.clone(), entry);
                            }
                            Change::Delete { key } => {
                                self.candidates.remove(&key);
                            }
                        }
                    }
                }
                Update::Unreachable { .. } => continue,
            }
            let leader = lowest(self.candidates.values());
            if !self.told || self.leader != leader {
                self.told = true;
                self.leader.clone_from(&leader);
                return Some(leader);
            }
        }
    }
}
