//! `bulkhead backup` and `bulkhead restore FILE`, in memory and on a real etcd.

use bulkhead_core::number::JUMP;
use bulkhead_store::{Settings, Store, Timeouts, Twin, Txn, process};
use tempfile::TempDir;

use crate::fixture::{Cluster, type_at};
use crate::leader::Leader;

async fn saved(cluster: &Cluster) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup.json").display().to_string();
    let said = cluster.run(&format!("backup {path}")).await.ok();
    assert!(said.contains("keys of revision"), "{said}");
    (folder, path)
}

/// All that lasts, as lines.
async fn contents(store: &Store) -> Vec<String> {
    let entries = store.list("/").await.unwrap().entries;
    let lasting = entries.iter().filter(|entry| !entry.key.contains("/election/") && !entry.key.ends_with("/restore"));
    lasting.map(|entry| format!("{} {}", entry.key, String::from_utf8_lossy(&entry.value))).collect()
}

#[tokio::test]
async fn a_backup_is_put_back_into_an_empty_etcd_and_the_epoch_rises() {
    let cluster = Cluster::with(&["blue", "red", "green"]).await;
    cluster.run("tenant join red --to blue").await.ok();
    let (_folder, path) = saved(&cluster).await;
    let before = contents(&cluster.store).await;
    let twin = Twin::new();
    let store = twin.store();
    let said = type_at(&store, &format!("restore {path} --yes")).await.ok();
    assert!(said.contains("start the controllers"), "{said}");
    let lowered: Vec<String> = before.iter().map(|line| line.replace(r#""epoch":1,"#, r#""epoch":0,"#)).collect();
    assert_eq!(contents(&store).await, lowered, "agents obey no epoch that went back");
    let leader = Leader::start(&store, &cluster.keys);
    type_at(&store, "tenant create black --timeout 20s").await.ok();
    let black = type_at(&store, "tenant show black -o json").await.json();
    assert!(black["vni"].as_u64().unwrap() > JUMP.into(), "{black}");
    assert_eq!(type_at(&store, "config show -o json").await.json()["epoch"], 2);
    assert_eq!(type_at(&store, "tenant show red -o json").await.json()["netId"], 10);
    drop(leader);
}

#[tokio::test]
async fn a_prefix_with_keys_takes_force_and_keeps_the_higher_epoch() {
    let cluster = Cluster::with(&["blue"]).await;
    let (_folder, path) = saved(&cluster).await;
    cluster.run("restore --yes").await.ok();
    cluster.run("tenant create red").await.ok();
    let other = Cluster::leaderless().await;
    let refused = other.run(&format!("restore {path} --yes")).await.refused();
    assert!(refused.contains("--force") && refused.contains("nothing was changed"), "{refused}");
    let current = saved(&cluster).await;
    other.run(&format!("restore {} --yes --force", current.1)).await.ok();
    assert_eq!(other.json("config show").await["epoch"], 1, "below what agents have seen");
    let said = other.run(&format!("restore {path} --yes --force")).await.ok();
    assert!(said.contains("removed"), "{said}");
    let wish = other.store.get(&other.keys.restore()).await.unwrap().unwrap();
    let wish = String::from_utf8(wish.value).unwrap();
    assert!(wish.contains(r#""Above":2"#), "{wish}");
    let names = other.json("tenant list").await;
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
}

#[tokio::test]
async fn while_a_controller_leads_nothing_is_put_back() {
    let etcd = process::Cluster::start(1).unwrap();
    let settings = Settings::new(&etcd.endpoints(), None, None, Timeouts::default()).unwrap();
    let store = Store::connect(settings).await.unwrap();
    let cluster = Cluster::with(&["blue"]).await;
    let (_folder, path) = saved(&cluster).await;
    let ttl = std::time::Duration::from_secs(10);
    let leading = bulkhead_store::Candidate::campaign(&store, &cluster.keys.election(), "c1", ttl).await.unwrap();
    let refused = type_at(&store, &format!("restore {path} --yes")).await.refused();
    assert!(refused.contains("c1 leads"), "{refused}");
    drop(leading);
}

#[tokio::test]
async fn hundreds_of_namespaces_go_through_a_real_etcd() {
    let etcd = process::Cluster::start(1).unwrap();
    let settings = Settings::new(&etcd.endpoints(), None, None, Timeouts::default()).unwrap();
    let store = Store::connect(settings).await.unwrap();
    let cluster = Cluster::led().await;
    for number in 0..150 {
        cluster.write(&format!("n{number}"), &format!(r#"{{"NetName":"n{number}","Action":"","Namespace":""}}"#)).await;
    }
    cluster.run("tenant create last --timeout 30s").await.ok();
    while cluster.json("tenant list").await.as_array().unwrap().iter().any(|row| row["status"] != "ok") {
        tokio::task::yield_now().await;
    }
    let (_folder, path) = saved(&cluster).await;
    type_at(&store, &format!("restore {path} --yes --etcd-prefix /elsewhere")).await.ok();
    let there = contents(&store).await;
    let here: Vec<String> = contents(&cluster.store)
        .await
        .iter()
        .map(|line| line.replace("/k8s.ovs.com/ovs/network/", "/elsewhere/").replace(r#""epoch":1,"#, r#""epoch":0,"#))
        .collect();
    assert_eq!(there, here);
    let stream = type_at(&store, "backup - --etcd-prefix /elsewhere").await.json();
    assert_eq!(stream["entries"].as_array().unwrap().len(), there.len());
}

#[tokio::test]
async fn a_file_that_is_no_backup_is_refused() {
    let cluster = Cluster::led().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x").display().to_string();
    let missing = cluster.run(&format!("restore {path} --yes")).await.refused();
    assert!(missing.contains(&path), "{missing}");
    std::fs::write(&path, "{}").unwrap();
    let bad = cluster.run(&format!("restore {path} --yes")).await;
    assert!(bad.code == 2 && bad.err.contains("no backup"), "{bad:?}");
    assert_eq!(cluster.run("restore --force").await.code, 2);
}

#[tokio::test]
async fn a_purge_leaves_nothing_below_the_prefix_and_is_refused_while_a_controller_stands() {
    let cluster = Cluster::leaderless().await;
    let beside = "/k8s.ovs.com/ovs/networks/x";
    let mut txn = Txn::new().put(beside, "theirs");
    for number in 0..100 {
        txn = txn.put(format!("{}n{number}", cluster.keys.netnamespaces()), "{}");
    }
    assert!(cluster.store.commit(txn).await.unwrap().done().is_some());
    let candidate = format!("{}01", cluster.keys.election());
    let stands = Txn::new().put(&candidate, "controller");
    assert!(cluster.store.commit(stands).await.unwrap().done().is_some());
    let refused = cluster.run("purge --yes").await.refused();
    assert!(refused.contains("stop all controllers") && refused.contains("nothing was changed"), "{refused}");
    assert_eq!(cluster.store.list("/").await.unwrap().entries.len(), 104);
    assert!(cluster.store.commit(Txn::new().delete(candidate)).await.unwrap().done().is_some());
    assert_eq!(cluster.json("purge --yes").await["removed"], 102);
    let left: Vec<String> = cluster.store.list("/").await.unwrap().entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(left, [beside]);
    assert_eq!(cluster.json("purge --yes").await["removed"], 0);
}
