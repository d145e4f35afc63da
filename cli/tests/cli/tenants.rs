//! `tenant create`, `delete`, `show`.

use serde_json::json;

use crate::fixture::Cluster;

#[tokio::test]
async fn a_namespace_is_created_with_numbers_and_deleted_with_them() {
    let cluster = Cluster::led().await;
    let made = cluster.run("tenant create blue").await.ok();
    insta::assert_snapshot!("create", made);
    assert_eq!(cluster.run("tenant delete blue").await.ok(), "blue: deleted, VNI 10 released\n");
    assert_eq!(cluster.record("blue").await, None);
    assert!(cluster.run("tenant show blue").await.refused().contains("no such namespace: blue"));
}

#[tokio::test]
async fn a_namespace_is_born_global_or_with_a_number_of_its_own() {
    let cluster = Cluster::led().await;
    assert_eq!(cluster.json("tenant create dns --global").await["netId"], 0);
    assert_eq!(cluster.json("tenant create blue --net-id 300924").await["netId"], 300_924);
}

#[tokio::test]
async fn a_taken_number_is_refused_and_nothing_is_left() {
    let cluster = Cluster::with(&["blue"]).await;
    let errors = cluster.run("tenant create red --net-id 10").await.refused();
    assert!(errors.contains("NetID 10 is taken"), "{errors}");
    assert_eq!(cluster.record("red").await, None);
}

#[tokio::test]
async fn a_namespace_that_exists_is_not_created_again() {
    let cluster = Cluster::with(&["blue"]).await;
    let before = cluster.record("blue").await;
    let errors = cluster.run("tenant create blue").await.refused();
    assert!(errors.contains("exists already"), "{errors}");
    assert_eq!(cluster.record("blue").await, before);
}

#[tokio::test]
async fn without_a_leader_a_creation_is_taken_back() {
    let cluster = Cluster::leaderless().await;
    let errors = cluster.run("tenant create blue --timeout 50ms").await.refused();
    assert!(errors.contains("no controller leads; start bulkhead-controller"), "{errors}");
    assert_eq!(cluster.record("blue").await, None);
    let shown = cluster.run("tenant create blue --no-wait").await.ok();
    assert!(shown.contains("new: waits for its numbers"), "{shown}");
}

#[tokio::test]
async fn a_deletion_touches_all_or_none() {
    let cluster = Cluster::with(&["blue"]).await;
    assert!(cluster.run("tenant delete blue pink").await.refused().contains("pink"));
    assert!(cluster.record("blue").await.is_some());
    let deleted = cluster.json("tenant delete blue blue").await;
    assert_eq!(deleted, json!([{"namespace": "blue", "vni": 10, "released": true}]));
}

#[tokio::test]
async fn a_deletion_that_nobody_completes_says_so() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue"}"#).await;
    let ledger = cluster.keys.ledger_namespace(&"blue".parse().unwrap());
    let txn = bulkhead_store::Txn::new().put(ledger, r#"{"vni":10,"netId":10}"#);
    assert!(cluster.store.commit(txn).await.unwrap().done().is_some());
    let errors = cluster.run("tenant delete blue --timeout 50ms").await.refused();
    assert!(errors.contains("not released") && errors.contains("no controller leads"), "{errors}");
    let list = cluster.run("tenant list").await.ok();
    assert!(list.contains("leaving"), "{list}");
    let errors = cluster.run("tenant create blue --timeout 50ms").await.refused();
    assert!(errors.contains("is being deleted"), "{errors}");
}

#[tokio::test]
async fn show_names_the_members_of_its_network() {
    let cluster = Cluster::with(&["blue", "red", "green"]).await;
    cluster.run("tenant join red green --to blue").await.ok();
    insta::assert_snapshot!("show", cluster.run("tenant show red").await.ok());
    let shown = cluster.json("tenant show red").await;
    assert_eq!(shown["joinedWith"], json!(["blue", "green"]));
    assert_eq!((&shown["network"], &shown["vni"], &shown["netId"]), (&json!("joined"), &json!(11), &json!(10)));
}

#[tokio::test]
async fn a_namespace_of_kubernetes_is_deleted_there() {
    let cluster = Cluster::with(&["blue", "red"]).await;
    let key = cluster.keys.ledger_namespace(&bulkhead_core::Namespace::new("red").unwrap());
    cluster.put(&key, r#"{"vni":11,"netId":11,"uid":"u"}"#).await;
    let before = cluster.record("red").await;
    let errors = cluster.run("tenant delete blue red").await.refused();
    assert!(errors.contains("`kubectl delete namespace red`"), "{errors}");
    assert_eq!(cluster.record("red").await, before);
    assert!(cluster.record("blue").await.is_some(), "nothing half-applied");
    cluster.run("tenant delete blue").await.ok();
}
