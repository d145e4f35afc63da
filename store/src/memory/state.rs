//! The twin's data: keys, history and leases under one lock. No tasks, no waiting.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::entry::{Change, Changes, Entry, Snapshot};
use crate::error::StoreError;
use crate::txn::{Conflict, Operation, Outcome, Txn};
use crate::watch::Prefixes;

#[derive(Debug, Clone)]
struct Record {
    entry: Entry,
    lease: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

/// The whole server.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) revision: i64,
    pub(super) cluster_id: u64,
    /// Raised whenever all watches must break.
    pub(super) incarnation: u64,
    compacted: i64,
    records: BTreeMap<String, Record>,
    history: VecDeque<Changes>,
    leases: HashMap<i64, Lease>,
    next_lease: i64,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            revision: 1,
            cluster_id: 0x0b1c_4ead,
            incarnation: 0,
            compacted: 0,
            records: BTreeMap::new(),
            history: VecDeque::new(),
            leases: HashMap::new(),
            next_lease: 0x7000_0000_0000_0001,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.records.get(key).map(|record| record.entry.clone())
    }

    pub(super) fn list(&self, prefixes: &Prefixes) -> Snapshot {
        let entries = prefixes.iter().flat_map(|prefix| {
            self.records
                .range(prefix.to_owned()..)
                .take_while(move |(key, _)| key.starts_with(prefix))
                .map(|(_, record)| record.entry.clone())
        });
        Snapshot {
            revision: self.revision,
            cluster_id: self.cluster_id,
            entries: entries.collect(),
            discontinuity: None,
        }
    }

    pub(super) fn apply(&mut self, txn: &Txn) -> Result<Outcome, StoreError> {
        let conflict = Conflict::judge(self.revision, &txn.compares, |key| self.get(key));
        if !conflict.failed.is_empty() {
            return Ok(Outcome::Conflict(conflict));
        }
        for operation in &txn.operations {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseLost { lease: *lease });
            }
        }
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for operation in &txn.operations {
            match operation {
                Operation::Put { key, value, lease } => {
                    let created = self.records.get(key).map_or(revision, |r| r.entry.create_revision);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: created,
                        mod_revision: revision,
                    };
                    changes.push(Change::Put(entry.clone()));
                    let record = Record { entry, lease: *lease };
                    self.records.insert(key.clone(), record);
                }
                Operation::Delete { key } => {
                    if self.records.remove(key).is_some() {
                        changes.push(Change::Delete { key: key.clone() });
                    }
                }
            }
        }
        self.record(changes);
        Ok(Outcome::Done { revision: self.revision })
    }

    /// Ends a revision; nothing changed means no revision, as in etcd.
    fn record(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.revision += 1;
            self.history.push_back(Changes { revision: self.revision, changes });
        }
    }

    /// The first revision after `cursor` that touches the prefixes.
    pub(super) fn after(&self, cursor: i64, prefixes: &Prefixes) -> Result<Option<Changes>, StoreError> {
        if cursor < self.compacted {
            return Err(StoreError::Compacted);
        }
        let start = self.history.partition_point(|c| c.revision <= cursor);
        Ok(self.history.range(start..).find_map(|whole| {
            let changes: Vec<_> =
                whole.changes.iter().filter(|change| prefixes.contains(change.key())).cloned().collect();
            (!changes.is_empty()).then_some(Changes { revision: whole.revision, changes })
        }))
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Takes over saved data; returns the leases, whose time starts anew.
    pub(super) fn restore(&mut self, saved: &Self) -> Vec<i64> {
        let (incarnation, cluster_id) = (self.incarnation + 1, self.cluster_id);
        let next_lease = self.next_lease;
        *self = saved.clone();
        self.incarnation = incarnation;
        self.cluster_id = cluster_id;
        self.next_lease = next_lease;
        let now = Instant::now();
        for lease in self.leases.values_mut() {
            lease.deadline = now + lease.ttl;
        }
        self.leases.keys().copied().collect()
    }

    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> i64 {
        let id = self.next_lease;
        self.next_lease += 1;
        let deadline = now + ttl;
        self.leases.insert(id, Lease { ttl, deadline });
        id
    }

    pub(super) fn keep_alive(&mut self, id: i64, now: Instant) -> Result<(), StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::LeaseLost { lease: id })?;
        lease.deadline = now + lease.ttl;
        Ok(())
    }

    pub(super) fn lease_deadline(&self, id: i64) -> Option<Instant> {
        self.leases.get(&id).map(|lease| lease.deadline)
    }

    /// Revokes the lease if its time is up; true also if it is gone already.
    pub(super) fn expire_if_due(&mut self, id: i64, now: Instant) -> bool {
        let due = self.lease_deadline(id).is_none_or(|at| at <= now);
        if due {
            self.revoke(id);
        }
        due
    }

    pub(super) fn expire_lease_of(&mut self, key: &str) -> bool {
        let lease = self.records.get(key).and_then(|record| record.lease);
        if let Some(id) = lease {
            self.revoke(id);
        }
        lease.is_some()
    }

    /// Removes the lease and its keys, in one revision. Nothing happens if it is gone already.
    pub(super) fn revoke(&mut self, id: i64) {
        if self.leases.remove(&id).is_none() {
            return;
        }
        let keys: Vec<String> =
            self.records.iter().filter(|(_, record)| record.lease == Some(id)).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.records.remove(key);
        }
        self.record(keys.into_iter().map(|key| Change::Delete { key }).collect());
    }
}
