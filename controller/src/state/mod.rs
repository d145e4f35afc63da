//! The cluster as the leader sees it: every mailbox record and ledger entry, parsed, with its revisions.
//!
//! Assumes that updates come in the order of a [`Watch`](bulkhead_store::Watch). Promises that what it holds of a key
//! is never older than what it was told before, except after a snapshot, which replaces everything. Does no I/O.

mod lost;
mod mail;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bulkhead_core::ledger::{ClusterEntry, LedgerKey, NodeEntry, ReleasedEntry};
use bulkhead_core::record::{ConfigRecord, NetNamespaceRecord, Record, RestoreRecord, SubnetRecord};
use bulkhead_core::{ClusterConfig, Keys, Namespace, Numbers, Tenant, Tenants};
use bulkhead_store::{Change, Changes, Entry, Snapshot};
use ipnetwork::IpNetwork;

use crate::objects::{Objects, Source};

pub(crate) use lost::Lost;
pub use mail::{Broken, Mail};

/// A parsed value with the revisions of its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Held<T> {
    /// The value.
    pub value: T,
    /// Revision at which the key was created.
    pub created: i64,
    /// Revision of the last write: what a transaction compares.
    pub revision: i64,
}

/// A value that only we write, or why it cannot be read.
pub type Readable<T> = Result<T, String>;

/// A key below the prefix that nothing can be done with, and what a person should know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Revision of the last write.
    pub revision: i64,
    /// What is wrong.
    pub problem: String,
}

/// What a key is.
enum Place {
    Config,
    Subnet(String),
    NetNamespace(Namespace),
    Restore,
    BadNetNamespace(String),
    Cluster,
    Tenant(Namespace),
    Node(IpAddr),
    Numbers,
    Released(String),
    Elsewhere,
}

/// Everything below the prefix that belongs to one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    keys: Keys,
    revision: i64,
    pub(crate) config: Option<Held<Readable<ClusterConfig>>>,
    pub(crate) records: BTreeMap<Namespace, Held<Mail<NetNamespaceRecord>>>,
    /// By the last segment of the key, which should be an address.
    pub(crate) subnets: BTreeMap<String, Held<Mail<SubnetRecord>>>,
    /// The wish that etcd's restore be dealt with.
    pub(crate) restore: Option<Held<Mail<RestoreRecord>>>,
    /// The epoch that the ledger's has to exceed, for etcd's history broke.
    pub(crate) owed: Option<u64>,
    /// The highest epoch that this process has seen.
    pub(crate) seen_epoch: u64,
    /// The epoch behind whose rise everybody had their time to come back.
    pub(crate) settled: Option<u64>,
    pub(crate) cluster: Option<Held<Readable<ClusterEntry>>>,
    pub(crate) ledger: BTreeMap<Namespace, Held<Readable<Tenant>>>,
    /// The readable part of `ledger`, indexed.
    pub(crate) tenants: Tenants,
    pub(crate) nodes: BTreeMap<IpAddr, Held<Readable<NodeEntry>>>,
    pub(crate) numbers: Option<Held<Readable<Numbers>>>,
    /// By the last segment of the key; none if it is no subnet with a turn.
    pub(crate) released: BTreeMap<String, Held<Option<(IpNetwork, u64)>>>,
    pub(crate) strangers: BTreeMap<String, Stranger>,
    /// Namespaces whose record was deleted, even if there is a new one already.
    pub(crate) departed: BTreeSet<Namespace>,
    /// What others deleted from the ledger.
    pub(crate) lost: Lost,
    /// Where namespaces and nodes come from. It outlives a snapshot: it is not of etcd.
    pub(crate) source: Source,
    /// Nodes' addresses in the ledger whose Node has been away for longer than the grace period.
    pub(crate) overdue: BTreeSet<IpAddr>,
}

impl State {
    /// An empty cluster.
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            revision: 0,
            config: None,
            records: BTreeMap::new(),
            subnets: BTreeMap::new(),
            restore: None,
            owed: None,
            seen_epoch: 0,
            settled: None,
            cluster: None,
            ledger: BTreeMap::new(),
            tenants: Tenants::default(),
            nodes: BTreeMap::new(),
            numbers: None,
            released: BTreeMap::new(),
            strangers: BTreeMap::new(),
            departed: BTreeSet::new(),
            lost: Lost::default(),
            source: Source::default(),
            overdue: BTreeSet::new(),
        }
    }

    /// The same, with Kubernetes as the source of namespaces and nodes.
    #[must_use]
    pub fn with_kubernetes(self) -> Self {
        Self { source: Source::Kubernetes(None), ..self }
    }

    /// Takes in what Kubernetes has.
    pub fn observe(&mut self, objects: Objects) {
        self.source = Source::Kubernetes(Some(objects));
        self.forget_what_is_settled();
    }

    /// Says which nodes of the ledger have been away from Kubernetes for longer than the grace period.
    pub fn expire(&mut self, overdue: BTreeSet<IpAddr>) {
        self.overdue = overdue;
    }

    /// Where namespaces and nodes come from.
    pub const fn source(&self) -> &Source {
        &self.source
    }

    /// The nodes of the ledger that can be read.
    pub fn nodes(&self) -> impl Iterator<Item = (IpAddr, &NodeEntry)> {
        self.nodes.iter().filter_map(|(address, held)| Some((*address, held.value.as_ref().ok()?)))
    }

    /// The cluster's keys.
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The revision that the watch has brought it to.
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// The namespaces with their numbers, as the ledger has them.
    pub const fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    /// The ledger's epoch, if it can be read.
    pub fn epoch(&self) -> Option<u64> {
        self.cluster.as_ref()?.value.as_ref().ok().map(|cluster| cluster.epoch)
    }

    /// Says which epoch the ledger's has to exceed before anything else happens, and which is the highest one seen.
    pub const fn owe(&mut self, owed: Option<u64>, seen: u64) {
        self.owed = owed;
        self.seen_epoch = seen;
    }

    /// The ledger's epoch, if it rose a moment ago: those that lost their place come first, and show or name what they had.
    /// The ledger itself says so, for whoever leads next.
    pub fn settling(&self) -> Option<u64> {
        let numbers = self.numbers.as_ref()?.value.as_ref().ok();
        self.epoch().filter(|_| numbers.is_some_and(Numbers::is_settling))
    }

    /// Says behind the rise of which epoch they had their time.
    pub const fn settle(&mut self, epoch: Option<u64>) {
        self.settled = epoch;
    }

    /// Replaces everything but what is not of etcd: what is owed, what Kubernetes has.
    pub fn replace(&mut self, snapshot: &Snapshot) {
        let mut fresh = Self::new(self.keys.clone());
        fresh.source = self.source.clone();
        fresh.overdue.clone_from(&self.overdue);
        for entry in &snapshot.entries {
            fresh.put(entry);
        }
        fresh.revision = snapshot.revision;
        (fresh.owed, fresh.seen_epoch, fresh.settled) = (self.owed, self.seen_epoch, self.settled);
        // Histories of two clusters, or of one before and after a restore, cannot be compared.
        if snapshot.discontinuity.is_none() {
            let replaced = self
                .records
                .iter()
                .filter(|(namespace, old)| fresh.records.get(*namespace).is_none_or(|new| new.created > old.created));
            let departed = replaced.map(|(namespace, _)| namespace).chain(&self.departed);
            // An entry made after the new record is the new namespace's: another leader has seen to it.
            let outlived = |namespace: &&Namespace| {
                let record = fresh.records.get(*namespace).map_or(i64::MAX, |record| record.created);
                fresh.ledger.get(*namespace).is_some_and(|entry| entry.created < record)
            };
            fresh.departed = departed.filter(outlived).cloned().collect();
            let blank = Self { source: self.source.clone(), ..Self::new(self.keys.clone()) };
            let before = std::mem::replace(self, blank);
            fresh.lose_what_is_missing(before);
        }
        *self = fresh;
    }

    /// Applies one revision.
    pub fn apply(&mut self, changes: &Changes) {
        for change in &changes.changes {
            match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key } => {
                    // Our own deletions were applied when they were committed: nothing is held of their keys.
                    if self.held(key).is_some_and(|(_, held)| held <= changes.revision) {
                        self.lose(key);
                    }
                    self.delete(key, changes.revision);
                }
            }
        }
        self.forget_what_is_settled();
        self.revision = self.revision.max(changes.revision);
    }

    /// Applies our own transaction, before the watch brings it.
    pub fn committed(&mut self, writes: &BTreeMap<String, Option<Vec<u8>>>, revision: i64) {
        for (key, value) in writes {
            match value {
                None => self.delete(key, revision),
                Some(value) => {
                    let create_revision = self.created(key).unwrap_or(revision);
                    self.put(&Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision,
                        mod_revision: revision,
                    });
                }
            }
        }
        self.forget_what_is_settled();
    }

    /// Remembers what of the ledger somebody else is about to delete.
    fn lose(&mut self, key: &str) {
        match self.place(key) {
            Place::Tenant(namespace) => self.lose_tenant(&namespace),
            Place::Node(address) => self.lose_node(address),
            Place::Numbers => self.lose_numbers(),
            Place::Cluster => self.lose_cluster(),
            _ => {}
        }
    }

    fn place(&self, key: &str) -> Place {
        if key == self.keys.config() {
            return Place::Config;
        }
        let Some(relative) = key.strip_prefix(&self.keys.root()) else { return Place::Elsewhere };
        if let Some(name) = relative.strip_prefix("netnamespaces/") {
            return Namespace::new(name).map_or_else(|e| Place::BadNetNamespace(e.to_string()), Place::NetNamespace);
        }
        if let Some(segment) = relative.strip_prefix("subnets/") {
            return Place::Subnet(segment.to_owned());
        }
        if relative == "restore" {
            return Place::Restore;
        }
        match relative.strip_prefix("bulkhead/") {
            Some("numbers") => Place::Numbers,
            Some(own) => {
                match (own.strip_prefix("released/"), own.strip_prefix("ledger/").and_then(LedgerKey::parse)) {
                    (Some(segment), _) => Place::Released(segment.to_owned()),
                    (_, Some(LedgerKey::Cluster)) => Place::Cluster,
                    (_, Some(LedgerKey::Namespace(namespace))) => Place::Tenant(namespace),
                    (_, Some(LedgerKey::Node(address))) => Place::Node(address),
                    _ => Place::Elsewhere,
                }
            }
            None => Place::Elsewhere,
        }
    }

    /// The create and mod revisions that are held of a key.
    fn held(&self, key: &str) -> Option<(i64, i64)> {
        fn of<T>(held: &Held<T>) -> (i64, i64) {
            (held.created, held.revision)
        }
        match self.place(key) {
            Place::Config => self.config.as_ref().map(of),
            Place::Subnet(segment) => self.subnets.get(&segment).map(of),
            Place::NetNamespace(namespace) => self.records.get(&namespace).map(of),
            Place::Restore => self.restore.as_ref().map(of),
            Place::Cluster => self.cluster.as_ref().map(of),
            Place::Tenant(namespace) => self.ledger.get(&namespace).map(of),
            Place::Node(address) => self.nodes.get(&address).map(of),
            Place::Numbers => self.numbers.as_ref().map(of),
            Place::Released(segment) => self.released.get(&segment).map(of),
            Place::BadNetNamespace(_) | Place::Elsewhere => None,
        }
    }

    fn created(&self, key: &str) -> Option<i64> {
        self.held(key).map(|(created, _)| created)
    }

    fn put(&mut self, entry: &Entry) {
        // Our own transactions are applied before the watch tells of what came before them.
        if self.held(&entry.key).is_some_and(|(_, revision)| revision >= entry.mod_revision) {
            return;
        }
        match self.place(&entry.key) {
            Place::Config => self.config = Some(hold(entry, read_config(&entry.value))),
            Place::Subnet(segment) => drop(self.subnets.insert(segment, hold(entry, Mail::read(&entry.value)))),
            Place::NetNamespace(namespace) => {
                let new = hold(entry, Mail::read(&entry.value));
                let old = self.records.insert(namespace.clone(), new);
                if old.is_some_and(|old| old.created != entry.create_revision) && self.ledger.contains_key(&namespace) {
                    self.departed.insert(namespace);
                }
            }
            Place::BadNetNamespace(problem) => {
                let stranger = Stranger { revision: entry.mod_revision, problem };
                self.strangers.insert(entry.key.clone(), stranger);
            }
            Place::Restore => self.restore = Some(hold(entry, Mail::read(&entry.value))),
            Place::Cluster => {
                let cluster = read(&entry.value);
                if cluster.is_err() {
                    self.lose_cluster();
                }
                self.cluster = Some(hold(entry, cluster));
            }
            Place::Tenant(namespace) => {
                let tenant: Readable<Tenant> = read(&entry.value);
                if tenant.is_err() {
                    self.lose_tenant(&namespace);
                }
                match &tenant {
                    Ok(tenant) => self.tenants.insert(namespace.clone(), tenant.clone()),
                    Err(_) => drop(self.tenants.remove(&namespace)),
                }
                self.ledger.insert(namespace, hold(entry, tenant));
            }
            Place::Node(address) => {
                let node = read(&entry.value);
                if node.is_err() {
                    self.lose_node(address);
                }
                self.nodes.insert(address, hold(entry, node));
            }
            Place::Numbers => {
                let numbers = read(&entry.value);
                if numbers.is_err() {
                    self.lose_numbers();
                }
                self.numbers = Some(hold(entry, numbers));
            }
            Place::Released(segment) => {
                let released = read_released(&segment, &entry.value);
                self.released.insert(segment, hold(entry, released));
            }
            Place::Elsewhere => {}
        }
    }

    fn delete(&mut self, key: &str, revision: i64) {
        if self.held(key).is_some_and(|(_, held)| held > revision) {
            return;
        }
        match self.place(key) {
            Place::Config => self.config = None,
            Place::Subnet(segment) => drop(self.subnets.remove(&segment)),
            Place::NetNamespace(namespace) => {
                self.records.remove(&namespace);
                if self.ledger.contains_key(&namespace) {
                    self.departed.insert(namespace);
                }
            }
            Place::BadNetNamespace(_) => drop(self.strangers.remove(key)),
            Place::Restore => self.restore = None,
            Place::Cluster => self.cluster = None,
            Place::Tenant(namespace) => {
                self.tenants.remove(&namespace);
                self.ledger.remove(&namespace);
                self.departed.remove(&namespace);
            }
            Place::Node(address) => drop(self.nodes.remove(&address)),
            Place::Numbers => self.numbers = None,
            Place::Released(segment) => drop(self.released.remove(&segment)),
            Place::Elsewhere => {}
        }
    }
}

fn hold<T>(entry: &Entry, value: T) -> Held<T> {
    Held { value, created: entry.create_revision, revision: entry.mod_revision }
}

fn read<T: serde::de::DeserializeOwned>(value: &[u8]) -> Readable<T> {
    bulkhead_core::ledger::parse(value).map_err(|error| error.to_string())
}

fn read_config(value: &[u8]) -> Readable<ClusterConfig> {
    let record = ConfigRecord::parse(value).map_err(|error| error.to_string())?;
    ClusterConfig::try_from(&record).map_err(|error| error.to_string())
}

fn read_released(segment: &str, value: &[u8]) -> Option<(IpNetwork, u64)> {
    let (address, prefix) = segment.rsplit_once('-')?;
    let subnet = IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    let entry: ReleasedEntry = bulkhead_core::ledger::parse(value).ok()?;
    Some((subnet, entry.turn))
}
