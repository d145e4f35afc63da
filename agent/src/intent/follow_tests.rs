//! The follower on the in-memory store.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_core::NodeName;
use bulkhead_core::record::{Record, SubnetRecord};
use bulkhead_store::{Entry, Store, Twin, Txn, WriteFault};

use super::follow::Follower;
use super::{Cache, Intent, Shared};

const CLUSTER: &str =
    r#"{"epoch":1,"network":["10.77.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#;

fn follower(store: Store) -> (Follower, Arc<Shared>) {
    let shared = Arc::new(Shared::default());
    let follower = Follower {
        store,
        prefix: "/p".into(),
        node: NodeName::new("n1").unwrap(),
        register: Some("10.0.0.1".parse().unwrap()),
        shared: Arc::clone(&shared),
        cache: None,
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

/// Where the node asks for its subnet.
const ASKED: &str = "/p/c/subnets/10.0.0.1";

/// The entry at a key, once there is one.
async fn written(store: &Store, key: &str) -> Entry {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(entry) = store.get(key).await.unwrap() {
            return entry;
        }
        assert!(Instant::now() < deadline, "nobody wrote {key}");
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
    let record = SubnetRecord::parse(&written(&store, ASKED).await.value).unwrap();
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
    written(&store, ASKED).await;
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
async fn a_ledger_that_is_made_anew_is_followed_when_it_is_whole() {
    let twin = Twin::new();
    let store = twin.store();
    let (cluster, tenants) = ("/p/c/bulkhead/ledger/cluster", "/p/c/bulkhead/ledger/namespaces/");
    let config = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
    let put = async |pairs: &[(&str, &str)]| {
        let txn = pairs.iter().fold(Txn::new(), |txn, (key, value)| txn.put(*key, *value));
        store.commit(txn).await.unwrap().done().unwrap();
    };
    let [a, b] = ["a", "b"].map(|name| format!("{tenants}{name}"));
    let entry = r#"{"vni":10,"netId":10}"#;
    put(&[("/p/config", config), (cluster, CLUSTER), (&a, entry), (&b, entry)]).await;
    let (follower, shared) = follower(twin.store());
    tokio::spawn(follower.run());
    let namespaces = || shared.read(|intent, _| intent.namespaces.len());
    eventually(|| namespaces() == 2).await;
    let held = || shared.read(|_, connection| connection.held.clone().unwrap_or_default());
    store.commit(Txn::new().delete(cluster).delete(a.as_str()).delete(b.as_str())).await.unwrap().done().unwrap();
    eventually(|| held().contains("cluster entry was deleted")).await;
    let anew = CLUSTER.replace("\"epoch\":1", "\"epoch\":2");
    let building = anew.replace('}', ",\"building\":true}");
    put(&[(cluster, &building), (&a, entry)]).await;
    eventually(|| held().contains("making it anew")).await;
    assert_eq!(namespaces(), 2, "a part of it is believed");
    put(&[(&b, r#"{"vni":11,"netId":0}"#)]).await;
    put(&[(cluster, &anew)]).await;
    eventually(|| held().is_empty() && shared.read(|intent, _| intent.epoch() == 2)).await;
    assert_eq!(namespaces(), 2);
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
    let record = SubnetRecord::parse(&written(&store, ASKED).await.value).unwrap();
    assert_eq!((record.subnet.as_str(), record.assign), ("10.77.5.0/24", true));
}

const CONFIG: &str = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
const LEDGER: &str = "/p/c/bulkhead/ledger";

async fn put(store: &Store, entries: &[(&str, &str)]) {
    let txn = entries.iter().fold(Txn::new(), |txn, (key, value)| txn.put(*key, *value));
    store.commit(txn).await.unwrap().done().unwrap();
}

fn cluster(epoch: u64) -> String {
    CLUSTER.replace("\"epoch\":1", &format!("\"epoch\":{epoch}"))
}

fn namespaces(shared: &Shared) -> usize {
    shared.read(|intent, _| intent.namespaces.len())
}

fn is_held(shared: &Shared) -> bool {
    shared.read(|_, connection| connection.held.is_some())
}

#[tokio::test]
async fn a_restore_is_held_off_though_the_revision_passes_the_one_seen_and_agents_start_anew() {
    let twin = Twin::new();
    let store = twin.store();
    let (a, b) = (&*format!("{LEDGER}/namespaces/a"), &*format!("{LEDGER}/namespaces/b"));
    let key = &*format!("{LEDGER}/cluster");
    put(&store, &[("/p/config", CONFIG), (key, CLUSTER), (a, r#"{"vni":10,"netId":10}"#)]).await;
    let before = twin.checkpoint();
    put(&store, &[(b, r#"{"vni":11,"netId":11}"#)]).await;
    let (first, shared) = follower(twin.store());
    let running = tokio::spawn(first.run());
    eventually(|| namespaces(&shared) == 2).await;
    let seen = shared.read(|intent, _| intent.revision);
    twin.restore(&before);
    eventually(|| is_held(&shared)).await;
    // A controller without a memory: an election, a lease that expired, the cluster's entry written as it is.
    while twin.revision() < seen + 3 {
        put(&store, &[("/p/c/bulkhead/election/x", "1")]).await;
    }
    put(&store, &[(key, CLUSTER)]).await;
    twin.cut_watches();
    put(&store, &[(key, CLUSTER)]).await;
    eventually(|| shared.read(|intent, _| intent.must_exceed == Some(1))).await;
    running.abort();

    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    cache.save(&shared.read(|intent, _| intent.clone())).unwrap();
    let (second, shared) = follower(twin.store());
    shared.update(|intent| *intent = cache.load().unwrap().unwrap());
    tokio::spawn(second.run());
    eventually(|| is_held(&shared)).await;
    put(&store, &[(key, CLUSTER)]).await;
    twin.cut_watches();
    put(&store, &[("/p/config", CONFIG), (key, CLUSTER), (a, r#"{"vni":10,"netId":0}"#)]).await;
    // Nothing tells that it has looked and stays as it is: a while has to do.
    tokio::time::timeout(Duration::from_millis(300), eventually(|| !is_held(&shared))).await.unwrap_err();
    assert_eq!(namespaces(&shared), 2, "the last state stays");
    put(&store, &[(key, &cluster(2))]).await;
    eventually(|| !is_held(&shared) && namespaces(&shared) == 1).await;
    assert_eq!(shared.read(|intent, _| (intent.epoch(), intent.must_exceed)), (2, None));
}

#[tokio::test]
async fn a_list_that_failed_is_tried_again() {
    let twin = Twin::new();
    let store = twin.store();
    let key = &*format!("{LEDGER}/cluster");
    put(&store, &[("/p/config", CONFIG), (key, CLUSTER)]).await;
    let faulty = twin.store();
    let faults = faulty.faults().unwrap();
    let (follower, shared) = follower(faulty);
    tokio::spawn(follower.run());
    eventually(|| shared.read(|intent, _| intent.epoch() == 1)).await;
    store.commit(Txn::new().delete(key)).await.unwrap().done().unwrap();
    eventually(|| is_held(&shared)).await;
    faults.fail_reads(true);
    put(&store, &[(key, CLUSTER)]).await;
    put(&store, &[(&*format!("{LEDGER}/namespaces/a"), r#"{"vni":10,"netId":10}"#)]).await;
    // Nothing tells that it has looked and stays as it is: a while has to do.
    tokio::time::timeout(Duration::from_millis(200), eventually(|| !is_held(&shared))).await.unwrap_err();
    faults.fail_reads(false);
    eventually(|| !is_held(&shared) && namespaces(&shared) == 1).await;
}

#[tokio::test]
async fn a_node_that_was_removed_says_so_and_does_not_ask_again() {
    let twin = Twin::new();
    let store = twin.store();
    let node = &*format!("{LEDGER}/nodes/10.0.0.1");
    put(&store, &[("/p/config", CONFIG), (&*format!("{LEDGER}/cluster"), CLUSTER)]).await;
    let (follower, shared) = follower(twin.store());
    tokio::spawn(follower.run());
    written(&store, ASKED).await;
    let removed = || shared.read(|_, connection| connection.removed.is_some());
    assert!(!removed(), "asked and not answered yet");
    let entry = r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["10.77.5.0/24"]}"#;
    put(&store, &[(node, entry)]).await;
    eventually(|| shared.read(|intent, _| intent.nodes.len() == 1)).await;
    store.commit(Txn::new().delete(node).delete(ASKED)).await.unwrap().done().unwrap();
    eventually(removed).await;
    for (hiccup, name) in ["x", "y"].into_iter().enumerate() {
        twin.cut_watches();
        put(&store, &[(&*format!("{LEDGER}/namespaces/{name}"), r#"{"vni":10,"netId":10}"#)]).await;
        eventually(|| namespaces(&shared) == hiccup + 1).await;
    }
    assert_eq!(store.get(ASKED).await.unwrap(), None, "the removal stands");
    assert!(removed());
    put(&store, &[(node, entry)]).await;
    eventually(|| !removed()).await;
}

#[tokio::test]
async fn a_changed_network_is_said_and_not_followed() {
    let twin = Twin::new();
    let store = twin.store();
    put(&store, &[("/p/config", CONFIG), (&*format!("{LEDGER}/cluster"), CLUSTER)]).await;
    let (follower, shared) = follower(twin.store());
    tokio::spawn(follower.run());
    eventually(|| shared.read(|intent, _| intent.epoch() == 1)).await;
    let said = |text: &str| shared.read(|_, c| c.problems().any(|problem| problem.contains(text)));
    put(&store, &[("/p/config", &CONFIG.replace("10.77", "10.99"))]).await;
    eventually(|| said("10.99.0.0/16")).await;
    assert_eq!(shared.read(|intent, _| intent.cluster.clone()), serde_json::from_str(CLUSTER).ok());
    store.commit(Txn::new().delete("/p/config")).await.unwrap().done().unwrap();
    eventually(|| said("is gone")).await;
    put(&store, &[("/p/config", CONFIG)]).await;
    eventually(|| shared.read(|_, c| c.problems().count() == 0)).await;
}

#[test]
fn a_hold_alone_is_saved_too() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let shared = Arc::new(Shared::default());
    let kept = (cache.clone(), Arc::clone(&shared));
    // It ends with the test's process.
    std::thread::spawn(move || kept.0.keep(&kept.1));
    let saved = |must_exceed: Option<u64>| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while cache.load().unwrap().map(|intent| intent.must_exceed) != Some(must_exceed) {
            assert!(Instant::now() < deadline, "not saved: {must_exceed:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    shared.update(|intent| *intent = Intent { cluster_id: 3, revision: 9, ..Intent::default() });
    saved(None);
    shared.update(|intent| intent.must_exceed = Some(4));
    saved(Some(4));
}
