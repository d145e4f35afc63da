//! `node` and `config`.

use bulkhead_core::record::{Record, SubnetRecord};
use bulkhead_store::{Store, Txn};
use serde_json::json;

use crate::fixture::{Cluster, type_at};

#[tokio::test]
async fn an_external_machine_gets_a_subnet_and_gives_it_back() {
    let cluster = Cluster::led().await;
    insta::assert_snapshot!("add_external", cluster.run("node add-external lb1 --ip 10.0.0.9").await.ok());
    let shown = cluster.json("node show lb1").await;
    assert_eq!(shown["subnets"], json!(["172.11.0.0/22"]));
    assert_eq!(cluster.run("node remove lb1 --yes").await.ok(), "lb1 (10.0.0.9): removed, 172.11.0.0/22 released\n");
    assert_eq!(cluster.json("node list").await, json!([]));
}

#[tokio::test]
async fn an_external_machine_is_not_added_twice() {
    let cluster = Cluster::led().await;
    cluster.run("node add-external lb1 --ip 10.0.0.9").await.ok();
    assert!(cluster.run("node add-external lb2 --ip 10.0.0.9").await.refused().contains("exists already"));
}

#[tokio::test]
async fn a_machine_that_gets_no_subnet_leaves_nothing_behind() {
    let cluster = Cluster::leaderless().await;
    let errors = cluster.run("node add-external lb1 --ip 10.0.0.9 --timeout 50ms").await.refused();
    assert!(errors.contains("no controller leads"), "{errors}");
    assert_eq!(cluster.json("node list").await, json!([]));
}

#[tokio::test]
async fn a_name_with_two_addresses_must_be_told_apart() {
    let cluster = Cluster::led().await;
    for ip in ["10.0.0.9", "10.0.0.10"] {
        cluster.run(&format!("node add-external lb1 --ip {ip}")).await.ok();
    }
    let errors = cluster.run("node remove lb1 --yes").await.refused();
    assert!(errors.contains("10.0.0.9, 10.0.0.10"), "{errors}");
    cluster.run("node remove 10.0.0.9 --yes").await.ok();
    cluster.run("node remove lb1 --yes").await.ok();
    assert!(cluster.run("node remove lb1 --yes").await.refused().contains("no such node"));
}

#[tokio::test]
async fn a_list_shows_what_waits_and_what_is_wrong() {
    let cluster = Cluster::led().await;
    cluster.run("node add-external n1 --ip 10.0.0.1").await.ok();
    let mut refused = SubnetRecord::asking("n2", "172.11.0.1".parse().unwrap());
    refused.error = "the address lies in the cluster's network".into();
    let txn = Txn::new()
        .put(cluster.keys.subnet("172.11.0.1".parse().unwrap()), refused.to_json())
        .put(cluster.keys.subnet("10.0.0.3".parse().unwrap()), "{");
    assert!(cluster.store.commit(txn).await.unwrap().done().is_some());
    insta::assert_snapshot!("nodes", cluster.run("node list").await.ok());
}

#[tokio::test]
async fn a_config_is_written_once() {
    let store = Store::in_memory();
    let errors = type_at(&store, "tenant list").await.refused();
    assert!(errors.contains("bulkhead config init"), "{errors}");
    let init = "config init --name k8ssdn --network 172.11.0.0/16 --service-network 10.96.0.0/12";
    insta::assert_snapshot!("config", type_at(&store, init).await.ok());
    let key = "/k8s.ovs.com/ovs/network/config";
    let written = store.get(key).await.unwrap().unwrap().value;
    let expected = r#"{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}"#;
    assert_eq!(String::from_utf8(written).unwrap(), expected);
    type_at(&store, init).await.ok();
    let errors = type_at(&store, &format!("{init} --mode flat")).await.refused();
    assert!(errors.contains("never overwritten"), "{errors}");
    assert_eq!(store.get(key).await.unwrap().unwrap().value, expected.as_bytes());
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused_before_it_is_written() {
    let store = Store::in_memory();
    for (flags, word) in [
        ("--name a/b --network 172.11.0.0/16", "cluster name"),
        ("--name k --network 172.11.0.0/33", "Network"),
        ("--name k --network 10.0.0.0/8 --host-subnet-length 16 --service-network 10.96.0.0/12", "overlap"),
        ("--name k --network 172.11.0.0/16 --host-subnet-length 20", "Network"),
    ] {
        let answer = type_at(&store, &format!("config init {flags}")).await;
        assert_eq!(answer.code, 2, "{flags}");
        assert!(answer.err.contains(word), "{flags}: {}", answer.err);
    }
    assert!(store.list("").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_config_that_does_not_hold_is_told_apart_from_what_does() {
    let cluster = Cluster::leaderless().await;
    let changed = r#"{"Name":"k8ssdn","Network":"172.12.0.0/16","HostSubnetLength":8,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}"#;
    assert!(cluster.store.commit(Txn::new().put(cluster.keys.config(), changed)).await.unwrap().done().is_some());
    let shown = cluster.json("config show").await;
    let problem = shown["problem"].as_str().unwrap();
    assert!(problem.contains("172.11.0.0/16, host subnet length 10"), "{problem}");
}

#[tokio::test]
async fn a_node_of_kubernetes_is_removed_there() {
    let cluster = Cluster::led().await;
    cluster.run("node add-external lb1 --ip 10.0.0.9").await.ok();
    cluster.run("node add-external n1 --ip 10.0.0.1").await.ok();
    let entry = r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["172.11.4.0/22"],"uid":"u"}"#;
    cluster.put(&cluster.keys.ledger_node("10.0.0.1".parse().unwrap()), entry).await;
    for name in ["n1", "10.0.0.1"] {
        let errors = cluster.run(&format!("node remove {name}")).await.refused();
        assert!(errors.contains("`kubectl delete node n1`"), "{errors}");
    }
    assert_eq!(cluster.json("node show n1").await["subnets"], json!(["172.11.4.0/22"]));
    cluster.run("node remove lb1 --yes").await.ok();
}
