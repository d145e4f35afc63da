//! A leader just good enough to answer: it decides by `bulkhead_core` and writes what the controller would.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bulkhead_core::ledger::{self, ClusterEntry, NodeEntry};
use bulkhead_core::record::{ConfigRecord, NetNamespaceRecord, Record, RestoreRecord, SubnetRecord};
use bulkhead_core::tenant::parse_net_id;
use bulkhead_core::{Action, ClusterConfig, Keys, Namespace, Numbers, Tenant, Tenants};
use bulkhead_store::{Compare, Entry, Store, Txn};
use tokio::task::JoinHandle;

/// Runs until it is dropped.
pub struct Leader {
    task: JoinHandle<()>,
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Leader {
    pub fn start(store: &Store, keys: &Keys) -> Self {
        let (store, keys) = (store.clone(), keys.clone());
        let task = tokio::spawn(async move {
            let mut numbers = Numbers::default();
            let mut watch = store.watch(&keys.root());
            while watch.next().await.is_some() {
                while turn(&store, &keys, &mut numbers).await {}
            }
        });
        Self { task }
    }
}

/// Answers all that is asked; true if there was anything.
pub async fn turn(store: &Store, keys: &Keys, numbers: &mut Numbers) -> bool {
    let Ok(snapshot) = store.list(&keys.root()).await else { return false };
    let entries: BTreeMap<&str, &Entry> = snapshot.entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let mut txn = Txn::new();
    if let (Some(wish), Some(cluster)) =
        (entries.get(keys.restore().as_str()), entries.get(keys.ledger_cluster().as_str()))
    {
        let mut entry: ClusterEntry = ledger::parse(&cluster.value).unwrap();
        let above = RestoreRecord::parse(&wish.value).unwrap().above.unwrap_or(0);
        let epoch = entry.epoch.max(above) + 1;
        numbers.rise(epoch - entry.epoch);
        entry.epoch = epoch;
        let txn = txn
            .when(Compare::unchanged(wish))
            .delete(keys.restore())
            .put(keys.ledger_cluster(), ledger::to_json(&entry))
            .put(keys.numbers(), ledger::to_json(numbers));
        return store.commit(txn).await.is_ok_and(|outcome| outcome.done().is_some());
    }
    let mut tenants = Tenants::default();
    for (key, entry) in &entries {
        if let Some(name) = key.strip_prefix(&keys.ledger_namespaces()) {
            let name = Namespace::new(name).unwrap();
            if entries.contains_key(keys.netnamespace(&name).as_str()) {
                tenants.insert(name, ledger::parse(&entry.value).unwrap());
            } else {
                txn = txn.when(Compare::unchanged(entry)).delete(*key);
            }
        }
        if let Some(ip) = key.strip_prefix(&keys.ledger_nodes())
            && !entries.contains_key(keys.subnet(ip.parse().unwrap()).as_str())
        {
            txn = txn.when(Compare::unchanged(entry)).delete(*key);
        }
    }
    for (key, entry) in &entries {
        if txn.operations() > 100 {
            break; // the rest in another turn; the real leader moves what was written together at once
        }
        if let Some(name) = key.strip_prefix(&keys.netnamespaces()) {
            txn = namespace(txn, keys, &Namespace::new(name).unwrap(), entry, &mut tenants, numbers);
        } else if let Some(ip) = key.strip_prefix(&keys.subnets()) {
            txn = node(txn, store, keys, ip.parse().unwrap(), entry, &entries).await;
        }
    }
    txn.operations() > 0 && store.commit(txn).await.is_ok_and(|outcome| outcome.done().is_some())
}

fn namespace(
    txn: Txn,
    keys: &Keys,
    name: &Namespace,
    entry: &Entry,
    tenants: &mut Tenants,
    numbers: &mut Numbers,
) -> Txn {
    let Ok(mut record) = NetNamespaceRecord::parse(&entry.value) else { return txn };
    let before = record.clone();
    let own = tenants.get(name).cloned();
    let decided: Result<Option<Tenant>, String> = match own {
        None => record
            .net_id
            .map(parse_net_id)
            .transpose()
            .and_then(|asked| tenants.birth(asked, None, numbers))
            .map(Some)
            .map_err(|error| error.to_string()),
        Some(own) => match Action::parse(&record.action, &record.namespace) {
            Ok(None) => Ok(None),
            Ok(Some(action)) => tenants
                .decide(name, &action, numbers)
                .map(|net_id| Some(Tenant { net_id, ..own }))
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        },
    };
    let mut txn = txn;
    match decided {
        Ok(None) => return txn,
        Err(error) => record.error = error,
        Ok(Some(tenant)) => {
            record.net_id = Some(tenant.net_id.get().into());
            record.action.clear();
            record.namespace.clear();
            record.error.clear();
            txn = txn.put(keys.ledger_namespace(name), ledger::to_json(&tenant));
            tenants.insert(name.clone(), tenant);
        }
    }
    if record == before {
        return txn;
    }
    txn.when(Compare::unchanged(entry)).put(entry.key.clone(), record.to_json())
}

async fn node(txn: Txn, store: &Store, keys: &Keys, ip: IpAddr, entry: &Entry, all: &BTreeMap<&str, &Entry>) -> Txn {
    let Ok(mut record) = SubnetRecord::parse(&entry.value) else { return txn };
    if all.contains_key(keys.ledger_node(ip).as_str()) || !record.error.is_empty() {
        return txn;
    }
    let config = store.get(&keys.config()).await.unwrap().unwrap();
    let config = ClusterConfig::try_from(&ConfigRecord::parse(&config.value).unwrap()).unwrap();
    let nodes = all.keys().filter(|key| key.starts_with(&keys.ledger_nodes())).count();
    let mut txn = txn;
    match config.networks().node_subnets(u32::try_from(nodes).unwrap()) {
        None => record.error = format!("no subnet is left: all {nodes} are in use"),
        Some(subnets) => {
            record.subnet = subnets.iter().map(|subnet| subnet.to_string()).collect::<Vec<_>>().join(",");
            let host = record.host.parse().unwrap();
            txn = txn.put(
                keys.ledger_node(ip),
                ledger::to_json(&NodeEntry { host, addresses: vec![ip], subnets, uid: None }),
            );
        }
    }
    record.assign = false;
    txn.when(Compare::unchanged(entry)).put(entry.key.clone(), record.to_json())
}

/// What the controller writes when it first sees the config.
pub fn cluster_entry(record: &ConfigRecord) -> Vec<u8> {
    let config = ClusterConfig::try_from(record).unwrap();
    ledger::to_json(&ClusterEntry {
        epoch: 1,
        networks: config.networks().clone(),
        mode: config.mode(),
        building: false,
    })
}
