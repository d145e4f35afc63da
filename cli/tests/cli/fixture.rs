//! A cluster in memory, and commands typed at it.

use std::ffi::OsString;

use bulkhead_core::keys::DEFAULT_PREFIX;
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_core::{ClusterName, Keys, Namespace};
use bulkhead_store::{Store, Twin, Txn};
use serde_json::Value;

use crate::leader::{Leader, cluster_entry};

/// What a command came to.
#[derive(Debug)]
pub struct Answer {
    pub code: u8,
    pub out: String,
    pub err: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The output of a command that worked.
    pub fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// The errors of a command that was refused.
    pub fn refused(self) -> String {
        assert_eq!(self.code, 1, "{self:?}");
        assert!(self.err.starts_with("error: "), "{self:?}");
        self.err
    }
}

/// Types a command line, words separated by spaces, at a store.
pub async fn type_at(store: &Store, line: &str) -> Answer {
    let words = std::iter::once("bulkhead").chain(line.split_whitespace()).map(OsString::from);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bulkhead_cli::run(words, Some(store.clone()), &mut out, &mut err).await;
    Answer { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// A configured cluster, with or without a leader.
pub struct Cluster {
    pub twin: Twin,
    /// The CLI's own client: faults injected here leave the leader alone.
    pub store: Store,
    pub keys: Keys,
    leader: Option<Leader>,
}

impl Cluster {
    pub async fn led() -> Self {
        let mut cluster = Self::leaderless().await;
        cluster.leader = Some(Leader::start(&cluster.twin.store(), &cluster.keys));
        cluster
    }

    pub async fn leaderless() -> Self {
        let twin = Twin::new();
        let keys = Keys::new(DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
        let record = ConfigRecord::parse(ConfigRecord::EXAMPLE.as_bytes()).unwrap();
        let txn = Txn::new().put(keys.config(), record.to_json()).put(keys.ledger_cluster(), cluster_entry(&record));
        assert!(twin.store().commit(txn).await.unwrap().done().is_some());
        Self { store: twin.store(), twin, keys, leader: None }
    }

    /// A led cluster with these namespaces, numbered from 10 in this order.
    pub async fn with(namespaces: &[&str]) -> Self {
        let cluster = Self::led().await;
        for name in namespaces {
            cluster.run(&format!("tenant create {name}")).await.ok();
        }
        cluster
    }

    pub async fn run(&self, line: &str) -> Answer {
        type_at(&self.store, line).await
    }

    /// Runs a command and reads its JSON.
    pub async fn json(&self, line: &str) -> Value {
        let answer = self.run(&format!("{line} -o json")).await;
        answer.json()
    }

    /// A namespace's record as it lies in etcd.
    pub async fn record(&self, name: &str) -> Option<String> {
        let entry = self.twin.store().get(&self.keys.netnamespace(&Namespace::new(name).unwrap())).await.unwrap();
        entry.map(|entry| String::from_utf8(entry.value).unwrap())
    }

    /// Writes a namespace's record as a user with etcdctl would.
    pub async fn write(&self, name: &str, json: &str) {
        let key = self.keys.netnamespace(&Namespace::new(name).unwrap());
        assert!(self.twin.store().commit(Txn::new().put(key, json)).await.unwrap().done().is_some());
    }

    /// Writes a namespace's record and numbers in one transaction, as the leader does that carries an action out.
    pub async fn carry_out(&self, name: &str, vni: u32, net_id: u32) {
        let namespace = Namespace::new(name).unwrap();
        let record = format!(r#"{{"NetName":"{name}","NetID":{net_id},"Action":"","Namespace":""}}"#);
        let numbers = format!(r#"{{"vni":{vni},"netId":{net_id}}}"#);
        let txn = Txn::new()
            .put(self.keys.netnamespace(&namespace), record)
            .put(self.keys.ledger_namespace(&namespace), numbers);
        assert!(self.twin.store().commit(txn).await.unwrap().done().is_some());
    }

    /// Writes a key.
    pub async fn put(&self, key: &str, value: &str) {
        assert!(self.twin.store().commit(Txn::new().put(key, value)).await.unwrap().done().is_some());
    }

    /// Waits until a namespace's record contains this.
    pub async fn until_written(&self, name: &str, part: &str) {
        while !self.record(name).await.unwrap().contains(part) {
            tokio::task::yield_now().await;
        }
    }
}
