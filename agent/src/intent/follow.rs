//! Follows the ledger: list and watch into the shared intent, for as long as the agent lives.
//!
//! It may assume nothing of etcd. While etcd cannot be read the last state stays; a state that etcd cannot have reached
//! from the last one (another cluster, a lower revision or epoch) is held off until the leader has raised the epoch.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_core::network::NodeSubnets;
use bulkhead_core::record::{ConfigRecord, Record, SubnetRecord};
use bulkhead_core::{ClusterConfig, ClusterName, Keys, NodeName};
use bulkhead_store::{Change, Compare, Discontinuity, Snapshot, Store, StoreError, Txn, Update};
use thiserror::Error;

use super::{Intent, Shared};

/// How soon a machine asks again for its subnet after etcd did not take its record.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Why following ended.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The prefix is not valid.
    #[error(transparent)]
    Prefix(#[from] bulkhead_core::keys::PrefixError),
    /// The store's task ended: the runtime is shutting down.
    #[error("the watch of etcd ended; the agent must be restarted")]
    Ended,
}

/// Who follows, and where.
#[derive(Debug, Clone)]
pub struct Follower {
    /// etcd.
    pub store: Store,
    /// The prefix of all keys.
    pub prefix: String,
    /// This node's underlay address.
    pub node_ip: IpAddr,
    /// This node's name.
    pub node: NodeName,
    /// Whether this machine asks for its own subnet: an external machine, or a node without Kubernetes.
    pub register: bool,
    /// Where the intent goes.
    pub shared: Arc<Shared>,
}

impl Follower {
    /// Follows until the runtime ends.
    pub async fn run(self) -> Result<(), FollowError> {
        let name = match self.shared.read(|intent, _| intent.name.clone()) {
            Some(name) => name,
            None => self.cluster_name().await?,
        };
        let keys = Keys::new(&self.prefix, &name)?;
        let prefix = keys.ledger();
        self.shared.update(|intent| intent.name = Some(name));
        let mut watch = self.store.watch(&prefix);
        let mut asked = true;
        // What this node has, or had: after a restore of etcd from an older state it asks for the same again.
        let mut own = None;
        loop {
            own = self.shared.read(|intent, _| intent.nodes.get(&self.node_ip).map(|node| node.subnets)).or(own);
            let update = if asked {
                watch.next().await
            } else if let Ok(update) = tokio::time::timeout(ASK_AGAIN, watch.next()).await {
                update
            } else {
                asked = self.ask_for_subnet(&keys, own).await;
                continue;
            };
            match update.ok_or(FollowError::Ended)? {
                Update::Snapshot(snapshot) => {
                    self.take_snapshot(&prefix, &snapshot);
                    asked = self.ask_for_subnet(&keys, own).await;
                }
                Update::Changes(changes) => {
                    self.heard();
                    let emptied = changes.changes.iter().any(|change| match change {
                        Change::Delete { key } => *key == keys.ledger_cluster(),
                        Change::Put(_) => false,
                    });
                    if emptied {
                        // Nobody but a person deletes it, perhaps with all the rest: judged as a list without it is.
                        let reason =
                            hold_reason(None, self.shared.read(|intent, _| intent.epoch()), &Intent::default());
                        self.shared.connection(|connection| connection.held = reason);
                    }
                    if self.shared.read(|_, connection| connection.held.is_some()) {
                        // Held off: only a whole list under a raised epoch is believed again.
                        let listed = self.store.list(&prefix).await;
                        if let Ok(snapshot) = listed {
                            self.take_snapshot(&prefix, &snapshot);
                            asked = self.ask_for_subnet(&keys, own).await;
                        }
                    } else {
                        self.shared.update(|intent| intent.apply(&prefix, &changes));
                    }
                }
                Update::Unreachable { error, .. } => self.lost(&error),
            }
        }
    }

    /// Waits for a valid config and says meanwhile what it waits for.
    async fn cluster_name(&self) -> Result<ClusterName, FollowError> {
        let key = bulkhead_core::keys::config(bulkhead_core::keys::check_prefix(&self.prefix)?);
        let mut watch = self.store.watch(&key);
        loop {
            let value = match watch.next().await.ok_or(FollowError::Ended)? {
                Update::Snapshot(snapshot) => snapshot.get(&key).map(|entry| entry.value.clone()),
                Update::Changes(changes) => changes.changes.into_iter().find_map(|change| match change {
                    Change::Put(entry) if entry.key == key => Some(entry.value),
                    _ => None,
                }),
                Update::Unreachable { error, .. } => {
                    self.lost(&error);
                    continue;
                }
            };
            self.heard();
            let problem = match value.as_deref().map(ConfigRecord::parse) {
                Some(Ok(record)) => match ClusterConfig::try_from(&record) {
                    Ok(config) => return Ok(config.name().clone()),
                    Err(error) => format!("the cluster's config {key} is not valid: {error}"),
                },
                Some(Err(error)) => format!("the cluster's config {key} is not valid: {error}"),
                None => format!("there is no cluster config at {key}; make one with `bulkhead config init`"),
            };
            tracing::warn!("{problem}");
            self.shared.connection(|connection| connection.problem = Some(problem));
        }
    }

    fn heard(&self) {
        self.shared.connection(|connection| {
            connection.connected = true;
            connection.heard = Some(Instant::now());
            connection.problem = None;
        });
    }

    fn lost(&self, error: &StoreError) {
        let problem = format!("etcd cannot be reached, the last state stays in force: {error}");
        tracing::warn!("{problem}");
        self.shared.connection(|connection| {
            connection.connected = false;
            connection.problem = Some(problem);
        });
    }

    fn take_snapshot(&self, prefix: &str, snapshot: &Snapshot) {
        self.heard();
        let (cluster_id, revision, epoch) =
            self.shared.read(|intent, _| (intent.cluster_id, intent.revision, intent.epoch()));
        let mut fresh = self.shared.read(|intent, _| intent.clone());
        fresh.replace(prefix, snapshot);
        let break_ = if cluster_id == 0 { None } else { snapshot.discontinuity_since(cluster_id, revision) };
        if let Some(reason) = hold_reason(break_, epoch, &fresh) {
            tracing::error!("{reason}");
            self.shared.connection(|connection| connection.held = Some(reason));
            return;
        }
        self.shared.connection(|connection| connection.held = None);
        self.shared.update(|intent| *intent = fresh);
    }

    /// Writes the record by which a machine asks for its subnet, if the ledger has none for it. False: to be tried again.
    async fn ask_for_subnet(&self, keys: &Keys, own: Option<NodeSubnets>) -> bool {
        if !self.register || self.shared.read(|intent, _| intent.nodes.contains_key(&self.node_ip)) {
            return true;
        }
        let key = keys.subnet(self.node_ip);
        let mut record = SubnetRecord::asking(self.node.as_str(), self.node_ip);
        let named: Vec<String> = own.iter().flat_map(NodeSubnets::iter).map(|subnet| subnet.to_string()).collect();
        record.subnet = named.join(",");
        let txn = Txn::new().when(Compare::absent(&key)).put(&key, record.to_json());
        match self.store.commit(txn).await {
            Ok(outcome) if outcome.done().is_some() => tracing::info!(key, "asked for a subnet"),
            Ok(_) => tracing::info!(key, "this node's record is there already; waiting for the leader"),
            Err(error) => {
                tracing::warn!(key, %error, "could not ask for a subnet; trying again");
                return false;
            }
        }
        true
    }
}

/// Why a listed state is not followed; none if it is.
fn hold_reason(discontinuity: Option<Discontinuity>, epoch: u64, fresh: &Intent) -> Option<String> {
    let what = match discontinuity {
        _ if fresh.epoch() > epoch => return None,
        Some(Discontinuity::ClusterChanged { .. }) => "another etcd cluster answers",
        Some(Discontinuity::RevisionWentBack { .. }) => "etcd went back to an older revision",
        None if fresh.epoch() < epoch => "the ledger's epoch went back",
        None => return None,
    };
    Some(format!(
        "{what} (ledger epoch {}, seen {epoch}): this node keeps its last state until the controller has raised the \
         epoch; if etcd was emptied on purpose, stop the agent, remove its --state-dir and start it again",
        fresh.epoch()
    ))
}

#[cfg(test)]
mod tests {
    use bulkhead_store::{Entry, Twin, WriteFault};

    use super::*;

    const CLUSTER: &str =
        r#"{"epoch":1,"network":["10.77.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#;

    fn follower(store: Store) -> (Follower, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        let follower = Follower {
            store,
            prefix: "/p".into(),
            node_ip: "10.0.0.1".parse().unwrap(),
            node: NodeName::new("n1").unwrap(),
            register: true,
            shared: Arc::clone(&shared),
        };
        (follower, shared)
    }

    async fn eventually(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "the condition never came true");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_node_waits_for_the_config_asks_for_its_subnet_and_follows_the_ledger() {
        let twin = Twin::new();
        let store = twin.store();
        let (follower, shared) = follower(twin.store());
        tokio::spawn(follower.run());
        eventually(|| shared.read(|_, c| c.problem.as_deref().is_some_and(|p| p.contains("config init")))).await;
        let config = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
        store.commit(Txn::new().put("/p/config", config)).await.unwrap().done().unwrap();
        eventually(|| shared.read(|intent, _| intent.name.is_some())).await;
        let record = loop {
            if let Some(Entry { value, .. }) = store.get("/p/c/subnets/10.0.0.1").await.unwrap() {
                break SubnetRecord::parse(&value).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(record.assign && record.host == "n1");
        let txn = Txn::new()
            .put("/p/c/bulkhead/ledger/cluster", CLUSTER)
            .put("/p/c/bulkhead/ledger/namespaces/a", r#"{"vni":10,"netId":10}"#);
        store.commit(txn).await.unwrap().done().unwrap();
        eventually(|| shared.read(|intent, _| intent.namespaces.len() == 1 && intent.epoch() == 1)).await;
    }

    #[tokio::test]
    async fn a_write_that_etcd_did_not_take_is_tried_again() {
        let twin = Twin::new();
        let store = twin.store();
        let config = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
        store.commit(Txn::new().put("/p/config", config)).await.unwrap().done().unwrap();
        let faulty = twin.store();
        let faults = faulty.faults().unwrap();
        faults.fail_writes(WriteFault::Unreachable);
        let (follower, shared) = follower(faulty);
        tokio::spawn(follower.run());
        eventually(|| shared.read(|intent, _| intent.revision > 0)).await;
        // The watch goes on: no list will come by itself.
        faults.fail_writes(WriteFault::None);
        let deadline = Instant::now() + Duration::from_secs(10);
        while store.get("/p/c/subnets/10.0.0.1").await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "it never asked again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_ledger_that_somebody_deletes_stays_in_force() {
        let twin = Twin::new();
        let store = twin.store();
        let (cluster, tenant) = ("/p/c/bulkhead/ledger/cluster", "/p/c/bulkhead/ledger/namespaces/a");
        let config = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
        let entry = r#"{"vni":10,"netId":10}"#;
        let txn = Txn::new().put("/p/config", config).put(cluster, CLUSTER).put(tenant, entry);
        store.commit(txn).await.unwrap().done().unwrap();
        let (follower, shared) = follower(twin.store());
        tokio::spawn(follower.run());
        eventually(|| shared.read(|intent, _| intent.namespaces.len() == 1)).await;
        store.commit(Txn::new().delete(tenant).delete(cluster)).await.unwrap().done().unwrap();
        eventually(|| shared.read(|_, connection| connection.held.is_some())).await;
        shared.read(|intent, _| assert_eq!((intent.namespaces.len(), intent.epoch()), (1, 1)));
        // Put back, it is followed again.
        let txn = Txn::new().put(cluster, CLUSTER).put(tenant, r#"{"vni":10,"netId":0}"#);
        store.commit(txn).await.unwrap().done().unwrap();
        eventually(|| {
            shared.read(|intent, c| c.held.is_none() && intent.namespaces.values().all(|t| t.net_id.is_global()))
        })
        .await;
    }

    #[tokio::test]
    async fn after_a_restore_a_node_asks_for_the_subnet_it_had() {
        let twin = Twin::new();
        let store = twin.store();
        let (follower, shared) = follower(twin.store());
        let config = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
        let txn = Txn::new().put("/p/config", config).put("/p/c/bulkhead/ledger/cluster", CLUSTER);
        store.commit(txn).await.unwrap().done().unwrap();
        let before = twin.checkpoint();
        let entry = r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["10.77.5.0/24"]}"#;
        store.commit(Txn::new().put("/p/c/bulkhead/ledger/nodes/10.0.0.1", entry)).await.unwrap().done().unwrap();
        tokio::spawn(follower.run());
        eventually(|| shared.read(|intent, _| intent.nodes.len() == 1)).await;
        twin.restore(&before);
        eventually(|| shared.read(|_, connection| connection.held.is_some())).await;
        assert_eq!(shared.read(|intent, _| intent.nodes.len()), 1, "the last state stays");
        let raised = CLUSTER.replace("\"epoch\":1", "\"epoch\":2");
        store.commit(Txn::new().put("/p/c/bulkhead/ledger/cluster", raised)).await.unwrap().done().unwrap();
        let record = loop {
            if let Some(Entry { value, .. }) = store.get("/p/c/subnets/10.0.0.1").await.unwrap() {
                break SubnetRecord::parse(&value).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!((record.subnet.as_str(), record.assign), ("10.77.5.0/24", true));
    }

    #[test]
    fn a_restored_etcd_is_held_off_until_the_epoch_rises() {
        let fresh = |epoch: u64| Intent {
            cluster: serde_json::from_str(&CLUSTER.replace("\"epoch\":1", &format!("\"epoch\":{epoch}"))).ok(),
            ..Intent::default()
        };
        let back = Some(Discontinuity::RevisionWentBack { seen: 9, now: 5 });
        assert!(hold_reason(back, 1, &fresh(1)).is_some());
        assert!(hold_reason(back, 1, &fresh(2)).is_none());
        assert!(hold_reason(None, 2, &fresh(1)).is_some());
        assert!(hold_reason(None, 1, &Intent::default()).is_some(), "an emptied etcd");
        assert!(hold_reason(None, 1, &fresh(1)).is_none());
        assert!(hold_reason(None, 0, &Intent::default()).is_none());
    }
}
