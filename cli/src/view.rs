//! The cluster's state at one revision, read as records and ledger entries.
//!
//! What cannot be read is an answer too: a list must show it, not fail over it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use bulkhead_core::ledger::{self, ClusterEntry, NodeEntry};
use bulkhead_core::record::{NetNamespaceRecord, Record, RecordError, RestoreRecord, SubnetRecord};
use bulkhead_core::{Keys, Mode, Namespace, Numbers, Tenant};
use bulkhead_store::{Change, Changes, Entry, Snapshot};
use serde::de::DeserializeOwned;

/// A mailbox record as it lies in etcd.
#[derive(Debug)]
pub enum Mail<'a, R> {
    /// There is none.
    Absent,
    /// It can be read.
    Read(R, &'a Entry),
    /// It cannot.
    Broken(RecordError, &'a Entry),
}

impl<'a, R> Mail<'a, R> {
    /// The record, if it can be read.
    pub const fn record(&self) -> Option<&R> {
        match self {
            Self::Read(record, _) => Some(record),
            Self::Absent | Self::Broken(..) => None,
        }
    }

    /// The entry, if there is one.
    pub const fn entry(&self) -> Option<&'a Entry> {
        match self {
            Self::Read(_, entry) | Self::Broken(_, entry) => Some(entry),
            Self::Absent => None,
        }
    }
}

/// The state.
#[derive(Debug)]
pub struct View {
    keys: Keys,
    revision: i64,
    entries: BTreeMap<String, Entry>,
}

impl View {
    /// The state that a list brought.
    pub fn new(keys: Keys, snapshot: Snapshot) -> Self {
        let entries = snapshot.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Self { keys, revision: snapshot.revision, entries }
    }

    /// The revision that it is of: no older than this.
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// Takes one revision's changes in.
    pub fn apply(&mut self, changes: Changes) {
        self.revision = changes.revision;
        for change in changes.changes {
            match change {
                Change::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry)),
                Change::Delete { key } => drop(self.entries.remove(&key)),
            }
        }
    }

    fn mail<R: Record>(&self, key: &str) -> Mail<'_, R> {
        match self.entries.get(key) {
            None => Mail::Absent,
            Some(entry) => match R::parse(&entry.value) {
                Ok(record) => Mail::Read(record, entry),
                Err(error) => Mail::Broken(error, entry),
            },
        }
    }

    /// An entry that cannot be read counts as absent: only the leader writes it, and only whole.
    fn ledger<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.entries.get(key).and_then(|entry| ledger::parse(&entry.value).ok())
    }

    /// The last segments of the keys below a prefix.
    fn names(&self, prefix: &str) -> impl Iterator<Item = &str> + use<'_> {
        let below = self.entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let names: Vec<&str> = below.map_while(|(key, _)| key.strip_prefix(prefix)).collect();
        names.into_iter()
    }

    /// All namespaces that have a record or a ledger entry.
    pub fn namespaces(&self) -> BTreeSet<Namespace> {
        let all = self.names(&self.keys.netnamespaces()).chain(self.names(&self.keys.ledger_namespaces()));
        all.filter_map(|name| Namespace::new(name).ok()).collect()
    }

    /// A namespace's record.
    pub fn netnamespace(&self, namespace: &Namespace) -> Mail<'_, NetNamespaceRecord> {
        self.mail(&self.keys.netnamespace(namespace))
    }

    /// A namespace's numbers.
    pub fn tenant(&self, namespace: &Namespace) -> Option<Tenant> {
        self.ledger(&self.keys.ledger_namespace(namespace))
    }

    /// The revision that last wrote a namespace's numbers; 0 if it has none.
    pub fn tenant_revision(&self, namespace: &Namespace) -> i64 {
        self.entries.get(&self.keys.ledger_namespace(namespace)).map_or(0, |entry| entry.mod_revision)
    }

    /// Everybody's numbers.
    pub fn tenants(&self) -> BTreeMap<Namespace, Tenant> {
        let names = self.names(&self.keys.ledger_namespaces()).filter_map(|name| Namespace::new(name).ok());
        names.filter_map(|name| self.tenant(&name).map(|tenant| (name, tenant))).collect()
    }

    /// All nodes that have a record or a ledger entry.
    pub fn nodes(&self) -> BTreeSet<IpAddr> {
        let all = self.names(&self.keys.subnets()).chain(self.names(&self.keys.ledger_nodes()));
        all.filter_map(|name| name.parse().ok()).collect()
    }

    /// A node's record.
    pub fn subnet(&self, host_ip: IpAddr) -> Mail<'_, SubnetRecord> {
        self.mail(&self.keys.subnet(host_ip))
    }

    /// A node's ledger entry.
    pub fn node(&self, host_ip: IpAddr) -> Option<NodeEntry> {
        self.ledger(&self.keys.ledger_node(host_ip))
    }

    /// The cluster's ledger entry.
    pub fn cluster(&self) -> Option<ClusterEntry> {
        self.ledger(&self.keys.ledger_cluster())
    }

    /// The wish for a restore.
    pub fn restore(&self) -> Mail<'_, RestoreRecord> {
        self.mail(&self.keys.restore())
    }

    /// The allocator's state.
    pub fn numbers(&self) -> Option<Numbers> {
        self.ledger(&self.keys.numbers())
    }

    /// Whether there is one network for all.
    pub fn is_flat(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.mode == Mode::Flat)
    }
}
