//! What this controller has seen of etcd's history, whether it led or waited, before a restart too: enough to notice a
//! restore.
//!
//! Promises: each list of etcd is judged by what was seen before ([`memory`](crate::memory) has the rules), and what other
//! controllers remembered is taken in once. A restored etcd that has passed the revision and the epoch seen before under its
//! old cluster id is not noticed: `bulkhead restore` is for that. A file that cannot be written or read is said and costs
//! only the memory across a restart.

use std::path::Path;
use std::time::Duration;

use bulkhead_core::Keys;
use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_store::{Change, Changes, Entry, Snapshot, Store, Update};
use tokio::time::Instant;
use tracing::warn;

use crate::memory::place::Place;
use crate::memory::{Break, Memory};
use crate::state::State;

/// The shortest time between two writes of the file.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The memory of one controller.
#[derive(Debug, Default)]
pub struct History {
    /// What is known; of an earlier process until the first list.
    memory: Option<Memory>,
    /// Whether etcd was listed by this process.
    listed: bool,
    /// Whether what Kubernetes remembers was taken in.
    recalled: bool,
    /// Where it is kept for the next process; none for nowhere, or for a place that refuses.
    place: Option<Place>,
    /// What is kept there, and since when.
    saved: Option<(Memory, Instant)>,
}

impl History {
    /// What an earlier process kept in `folder` of this cluster; empty if there is nothing, or none that can be read.
    pub async fn load(folder: Option<&Path>, keys: &Keys) -> Self {
        let Some(place) = folder.map(|folder| Place::file(folder, keys)) else { return Self::default() };
        let memory = place.read().await.unwrap_or_else(|error| {
            warn!(?place, %error, "what was seen of etcd before cannot be read: a restore since then is not noticed");
            None
        });
        Self { place: Some(place), ..Self::knowing(memory) }
    }

    /// With what an earlier process knew.
    pub fn knowing(memory: Option<Memory>) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Ends when it should be kept again: a second behind the last time, once something was seen since.
    pub async fn worth_saving(&self) {
        match (&self.place, &self.memory, &self.saved) {
            (None, ..) | (_, None, _) => std::future::pending().await,
            (_, Some(memory), Some((saved, _))) if saved == memory => std::future::pending().await,
            (.., Some((_, since))) => tokio::time::sleep_until(*since + SAVE_EVERY).await,
            _ => {}
        }
    }

    /// Keeps it, if something was seen since.
    pub async fn save(&mut self) {
        let (Some(place), Some(memory)) = (&self.place, &self.memory) else { return };
        if self.saved.as_ref().is_some_and(|(saved, _)| saved == memory) {
            return;
        }
        let (written, memory) = (place.write(memory).await, memory.clone());
        if let Err(error) = written {
            warn!(%error, "what was seen of etcd is not kept across a restart");
            self.place = None;
        }
        self.saved = Some((memory, Instant::now()));
    }

    /// The highest epoch that was seen.
    pub fn epoch(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.epoch)
    }

    /// The epoch that the ledger's has to exceed before anything else happens.
    pub fn owed(&self) -> Option<u64> {
        self.memory.as_ref()?.owed
    }

    /// What is to be remembered, once etcd was listed.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref().filter(|_| self.listed)
    }

    /// Takes a list in, and marks it if it is no successor of what was seen. `key` is the cluster's ledger entry.
    pub fn listed(&mut self, snapshot: &mut Snapshot, key: &str) {
        let found = snapshot.get(key).and_then(epoch);
        let mut now = Memory { cluster_id: snapshot.cluster_id, revision: snapshot.revision, epoch: 0, owed: None };
        let broken = self.memory.take().and_then(|earlier| {
            // A ledger that goes while this process looks on is put back by it, or begun above the epoch: see the plan.
            let absent = if self.listed { earlier.epoch } else { 0 };
            now.follow(&earlier, found.unwrap_or(absent))
        });
        if let Some(Break::History(discontinuity)) = broken {
            snapshot.discontinuity = snapshot.discontinuity.or(Some(discontinuity));
        }
        now.reached(snapshot.revision, found);
        say(broken, &now);
        (self.memory, self.listed) = (Some(now), true);
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
        if let Some(memory) = &mut self.memory {
            memory.reached(revision, epoch);
        }
    }

    /// Takes in what outlived this process's beginning: how far etcd had come by then. `found` is the epoch of the ledger
    /// now. Once, and not before etcd was listed: what is seen later is this process's own.
    pub fn recall(&mut self, earlier: &Memory, found: Option<u64>) {
        let Some(memory) = self.memory.as_mut().filter(|_| self.listed && !self.recalled) else { return };
        self.recalled = true;
        let broken = memory.follow(earlier, found.unwrap_or(0));
        memory.reached(memory.revision, found);
        say(broken, memory);
    }

    /// Looks on while another leads, so that what it knew is known here as well. Never ends but with the runtime.
    pub async fn follow(&mut self, store: &Store, state: &mut State, prefix: &str, key: &str) {
        let mut watch = store.watch(prefix);
        loop {
            let update = tokio::select! {
                biased;
                update = watch.next() => update,
                () = self.worth_saving() => {
                    self.save().await;
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

/// Says it, unless somebody has dealt with it.
fn say(broken: Option<Break>, now: &Memory) {
    if let (Some(broken), Some(seen)) = (broken, now.owed) {
        warn!(?broken, seen, "etcd was restored or replaced: the leader raises the epoch before anything else");
    }
}

fn epoch(entry: &Entry) -> Option<u64> {
    ledger::parse::<ClusterEntry>(&entry.value).ok().map(|cluster| cluster.epoch)
}
