//! What the ledger asks of this node: the whole intent, one copy, one writer.
//!
//! The follower writes, the reconciler and CNI calls read; whoever waits for something waits on the one condition here.

mod cache;
mod config;
mod follow;
#[cfg(test)]
mod follow_tests;
mod hold;
mod register;
mod retry;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bulkhead_core::ledger::{self, ClusterEntry, LedgerKey, NodeEntry};
use bulkhead_core::{ClusterName, Namespace, Tenant};
use bulkhead_store::{Change, Changes, Snapshot};

pub use cache::{Cache, CacheError};
pub use follow::{FollowError, Follower};

/// The ledger, parsed.
#[derive(Debug, Clone, Default)]
pub struct Intent {
    /// The cluster's name: part of every key.
    pub name: Option<ClusterName>,
    /// The etcd cluster that it was read from.
    pub cluster_id: u64,
    /// The revision that it is of.
    pub revision: i64,
    /// The epoch that the ledger's must exceed before anything of it is followed again: etcd was restored or replaced.
    pub must_exceed: Option<u64>,
    /// Networks, mode and epoch.
    pub cluster: Option<ClusterEntry>,
    /// All nodes, by their tunnel's address.
    pub nodes: BTreeMap<IpAddr, NodeEntry>,
    /// All namespaces.
    pub namespaces: BTreeMap<Namespace, Tenant>,
    /// Ledger keys whose value could not be read; what they held before stays in force.
    pub unreadable: BTreeMap<String, String>,
    /// Read from this node's disk: no state of etcd has been followed since this agent started.
    pub cached: bool,
}

impl Intent {
    /// The ledger's epoch; 0 before there is one.
    pub fn epoch(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.epoch)
    }

    /// Replaces everything by a snapshot of the ledger below `prefix`. A value that cannot be read keeps its last state.
    pub fn replace(&mut self, prefix: &str, snapshot: &Snapshot) {
        let before = std::mem::take(self);
        self.name = before.name;
        (self.cluster_id, self.revision) = (snapshot.cluster_id, snapshot.revision);
        for entry in &snapshot.entries {
            if let Err((key, relative)) = self.put(prefix, &entry.key, &entry.value) {
                match key {
                    Some(LedgerKey::Cluster) => self.cluster.clone_from(&before.cluster),
                    Some(LedgerKey::Namespace(name)) => {
                        self.namespaces.extend(before.namespaces.get(&name).cloned().map(|held| (name, held)));
                    }
                    Some(LedgerKey::Node(ip)) => {
                        self.nodes.extend(before.nodes.get(&ip).cloned().map(|held| (ip, held)));
                    }
                    None => tracing::debug!(key = relative, "a ledger key of another version is ignored"),
                }
            }
        }
    }

    /// Applies one transaction.
    pub fn apply(&mut self, prefix: &str, changes: &Changes) {
        self.revision = changes.revision;
        for change in &changes.changes {
            match change {
                Change::Put(entry) => drop(self.put(prefix, &entry.key, &entry.value)),
                Change::Delete { key } => self.delete(prefix, key),
            }
        }
    }

    fn put(&mut self, prefix: &str, key: &str, value: &[u8]) -> Result<(), (Option<LedgerKey>, String)> {
        let relative = key.strip_prefix(prefix).unwrap_or(key);
        let parsed = LedgerKey::parse(relative);
        let read = match &parsed {
            Some(LedgerKey::Cluster) => ledger::parse(value).map(|entry| self.cluster = Some(entry)),
            Some(LedgerKey::Namespace(name)) => {
                ledger::parse(value).map(|entry| drop(self.namespaces.insert(name.clone(), entry)))
            }
            Some(LedgerKey::Node(ip)) => ledger::parse(value).map(|entry| drop(self.nodes.insert(*ip, entry))),
            None => return Err((None, relative.to_owned())),
        };
        match read {
            Ok(()) => {
                self.unreadable.remove(key);
                Ok(())
            }
            Err(error) => {
                tracing::error!(key, %error, "a ledger entry is not readable; its last state stays in force");
                self.unreadable.insert(key.to_owned(), error.to_string());
                Err((parsed, relative.to_owned()))
            }
        }
    }

    fn delete(&mut self, prefix: &str, key: &str) {
        self.unreadable.remove(key);
        match LedgerKey::parse(key.strip_prefix(prefix).unwrap_or(key)) {
            Some(LedgerKey::Cluster) => self.cluster = None,
            Some(LedgerKey::Namespace(name)) => drop(self.namespaces.remove(&name)),
            Some(LedgerKey::Node(ip)) => drop(self.nodes.remove(&ip)),
            None => {}
        }
    }
}

/// How the agent stands with etcd.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Whether the watch is live.
    pub connected: bool,
    /// When etcd was last heard.
    pub heard: Option<Instant>,
    /// What is wrong, for a person.
    pub problem: Option<String>,
    /// Why a state that etcd shows is not followed.
    pub held: Option<String>,
    /// What of the cluster's config is not in force.
    pub config: Option<String>,
    /// That this machine is a node no more.
    pub removed: Option<String>,
}

impl Connection {
    /// All that is wrong.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        [&self.problem, &self.held, &self.config, &self.removed].into_iter().flatten()
    }
}

#[derive(Debug, Default)]
struct State {
    intent: Intent,
    connection: Connection,
    generation: u64,
}

/// The one copy, and the condition that wakes whoever waits for a change.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the intent and wakes all who wait.
    pub fn update(&self, change: impl FnOnce(&mut Intent)) {
        let mut state = self.lock();
        change(&mut state.intent);
        state.generation += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Notes how etcd is.
    pub fn connection(&self, change: impl FnOnce(&mut Connection)) {
        change(&mut self.lock().connection);
    }

    /// Wakes the reconciler though the intent is the same: a pod came or went.
    pub fn nudge(&self) {
        self.update(|_| ());
    }

    /// Reads under the lock: be quick.
    pub fn read<T>(&self, read: impl FnOnce(&Intent, &Connection) -> T) -> T {
        let state = self.lock();
        read(&state.intent, &state.connection)
    }

    /// Waits until the generation is past `seen` or the deadline; returns the present one.
    pub fn wait_past(&self, seen: u64, deadline: Instant) -> u64 {
        let mut state = self.lock();
        while state.generation <= seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.generation
    }

    /// Waits until `found` finds something in the intent, or the deadline.
    pub fn wait_for<T>(&self, deadline: Instant, mut found: impl FnMut(&Intent) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(value) = found(&state.intent) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_store::Entry;

    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: format!("/l/{key}"), value: value.into(), create_revision: 1, mod_revision: 1 }
    }

    fn snapshot(entries: Vec<Entry>) -> Snapshot {
        Snapshot { revision: 7, cluster_id: 1, entries, discontinuity: None }
    }

    #[test]
    fn a_snapshot_prunes_what_it_does_not_mention() {
        let mut intent = Intent::default();
        let (a, b) =
            (entry("namespaces/a", r#"{"vni":10,"netId":10}"#), entry("namespaces/b", r#"{"vni":11,"netId":10}"#));
        intent.replace("/l/", &snapshot(vec![a.clone(), b]));
        assert_eq!(intent.namespaces.len(), 2);
        intent.replace("/l/", &snapshot(vec![a]));
        assert_eq!(intent.namespaces.len(), 1);
    }

    #[test]
    fn an_unreadable_entry_keeps_its_last_state_and_is_said() {
        let mut intent = Intent::default();
        intent.replace("/l/", &snapshot(vec![entry("namespaces/a", r#"{"vni":10,"netId":0}"#)]));
        let broken = entry("namespaces/a", "{");
        intent.apply("/l/", &Changes { revision: 8, changes: vec![Change::Put(broken.clone())] });
        assert!(intent.namespaces.values().next().unwrap().net_id.is_global());
        intent.replace("/l/", &snapshot(vec![broken]));
        assert_eq!((intent.namespaces.len(), intent.unreadable.len()), (1, 1));
        intent.apply("/l/", &Changes { revision: 9, changes: vec![Change::Delete { key: "/l/namespaces/a".into() }] });
        assert_eq!((intent.namespaces.len(), intent.unreadable.len()), (0, 0));
    }
}
