//! What people do in these tests: write records and wait for what comes of it.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::Duration;

use bulkhead_core::record::{ConfigRecord, NetNamespaceRecord, Record, SubnetRecord};
use bulkhead_core::{Action, ClusterName, Keys, Namespace, Tenant, keys};
use bulkhead_store::{Change, Compare, Settings, Store, Timeouts, Txn, Update};

const PATIENCE: Duration = Duration::from_mins(2);

pub struct People {
    pub store: Store,
    pub keys: Keys,
}

pub fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

pub fn config() -> ConfigRecord {
    ConfigRecord::parse(ConfigRecord::EXAMPLE.as_bytes()).unwrap()
}

pub async fn connect(endpoint: &str) -> Store {
    let settings = Settings::new(&[endpoint], None, None, Timeouts::default()).unwrap();
    Store::connect(settings).await.unwrap()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

impl People {
    pub fn new(store: Store) -> Self {
        let keys = Keys::new(keys::DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
        Self { store, keys }
    }

    pub async fn write(&self, key: &str, value: &[u8]) -> i64 {
        self.store.commit(Txn::new().put(key, value)).await.unwrap().done().unwrap()
    }

    pub async fn delete(&self, key: &str) {
        self.store.commit(Txn::new().delete(key)).await.unwrap().done().unwrap();
    }

    /// Waits until the key's value (none if it is absent) is as wanted.
    pub async fn until(&self, key: &str, wanted: impl Fn(Option<&[u8]>) -> bool) {
        let mut watch = self.store.watch(key);
        let mut last = None;
        let waiting = async {
            while let Some(update) = watch.next().await {
                match update {
                    Update::Snapshot(snapshot) => last = snapshot.get(key).map(|entry| entry.value.clone()),
                    Update::Changes(changes) => {
                        for change in changes.changes {
                            match change {
                                Change::Put(entry) if entry.key == key => last = Some(entry.value),
                                Change::Delete { key: gone } if gone == key => last = None,
                                _ => {}
                            }
                        }
                    }
                    Update::Unreachable { .. } => {}
                }
                if wanted(last.as_deref()) {
                    return;
                }
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(outcome.is_ok(), "{key} stays {:?}", last.map(|value| String::from_utf8_lossy(&value).into_owned()));
    }

    pub async fn creates(&self, name: &str) {
        self.write(&self.keys.netnamespace(&ns(name)), &NetNamespaceRecord::asking(&ns(name)).to_json()).await;
    }

    pub async fn record(&self, name: &str) -> NetNamespaceRecord {
        let entry = self.store.get(&self.keys.netnamespace(&ns(name))).await.unwrap().unwrap();
        NetNamespaceRecord::parse(&entry.value).unwrap()
    }

    /// Writes an action into existing records by one transaction, as the CLI does; gives its revision.
    pub async fn act(&self, names: &[&str], action: &Action) -> i64 {
        let mut txn = Txn::new();
        for name in names {
            let key = self.keys.netnamespace(&ns(name));
            let entry = self.store.get(&key).await.unwrap().unwrap();
            let (verb, target) = action.fields();
            let record = NetNamespaceRecord::parse(&entry.value).unwrap();
            let record = NetNamespaceRecord { action: verb.to_owned(), namespace: target.to_owned(), ..record };
            txn = txn.when(Compare::unchanged(&entry)).put(key, record.to_json());
        }
        self.store.commit(txn).await.unwrap().done().unwrap()
    }

    pub async fn until_net_id(&self, name: &str, net_id: u32) {
        let key = self.keys.ledger_namespace(&ns(name));
        self.until(&key, |value| tenant(value).is_some_and(|tenant| tenant.net_id.get() == net_id)).await;
    }

    /// Waits until the record shows what the ledger has: the last write that a new namespace needs.
    pub async fn until_mirrored(&self, name: &str, net_id: u32) {
        let key = self.keys.netnamespace(&ns(name));
        let shown =
            |value: &[u8]| NetNamespaceRecord::parse(value).is_ok_and(|record| record.net_id == Some(net_id.into()));
        self.until(&key, |value| value.is_some_and(shown)).await;
    }

    pub async fn until_answered(&self, name: &str, text: &str) {
        let key = self.keys.netnamespace(&ns(name));
        self.until(&key, |value| {
            value
                .and_then(|value| NetNamespaceRecord::parse(value).ok())
                .is_some_and(|record| record.error.contains(text) && (!text.is_empty() || record.error.is_empty()))
        })
        .await;
    }

    pub async fn asks(&self, host: &str, address: &str) {
        let address = address.parse().unwrap();
        self.write(&self.keys.subnet(address), &SubnetRecord::asking(host, address).to_json()).await;
    }

    pub async fn until_subnet(&self, address: &str, subnet: &str) {
        let key = self.keys.subnet(address.parse().unwrap());
        self.until(&key, |value| {
            value.and_then(|value| SubnetRecord::parse(value).ok()).is_some_and(|record| record.subnet == subnet)
        })
        .await;
    }

    /// Waits until so many controllers lead or wait to.
    pub async fn until_candidates(&self, count: usize) {
        let election = self.keys.election();
        let mut watch = self.store.watch(&election);
        within(async {
            while self.store.list(&election).await.unwrap().entries.len() < count {
                watch.next().await;
            }
        })
        .await;
    }

    /// Waits until a machine's request is answered so.
    pub async fn until_refused(&self, address: &str, text: &str) {
        let key = self.keys.subnet(address.parse().unwrap());
        let refused = |value: &[u8]| SubnetRecord::parse(value).is_ok_and(|record| record.error.contains(text));
        self.until(&key, |value| value.is_some_and(refused)).await;
    }

    /// Waits until this controller leads.
    pub async fn until_leads(&self, identity: &str) {
        let mut observer = bulkhead_store::Candidate::observe(&self.store, &self.keys.election());
        within(async { while observer.next().await.flatten().is_none_or(|leader| leader.identity != identity) {} })
            .await;
    }
}

fn tenant(value: Option<&[u8]>) -> Option<Tenant> {
    value.and_then(|value| bulkhead_core::ledger::parse(value).ok())
}
