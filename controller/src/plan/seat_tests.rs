//! Nodes that Kubernetes has: their subnets, addresses that change, nodes made anew, nodes that leave.

use std::net::IpAddr;
use std::sync::Arc;

use bulkhead_core::NodeName;

use super::nodes::LOOKS;
use super::races::{only_the_compare_of, unseen};
use super::scenes::Scene;
use super::{complaints, without_subnet};
use crate::objects::{NodeObject, Objects};
use bulkhead_store::Txn;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A settled cluster with these nodes.
async fn cluster(nodes: &[(&str, &str)]) -> Scene {
    let mut scene = Scene::empty().await.with_kubernetes();
    scene.appears("kube-system", "u");
    for (host, address) in nodes {
        scene.node(host, &format!("u-{host}"), &[address]);
        scene.settle().await;
    }
    scene.settle().await;
    scene
}

async fn ledger(scene: &Scene, address: &str) -> String {
    scene.text(&scene.keys.ledger_node(ip(address))).await
}

async fn subnet(scene: &Scene, address: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(&ledger(scene, address).await).unwrap_or_default();
    value["subnets"][0].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_node_gets_a_subnet_by_its_internal_address_and_both_families_are_kept() {
    let mut scene = cluster(&[]).await;
    scene.node("n1", "u1", &["10.0.0.1", "fd00::1"]);
    assert_eq!(scene.settle().await, 1);
    let text = ledger(&scene, "10.0.0.1").await;
    let whole = r#"{"host":"n1","addresses":["10.0.0.1","fd00::1"],"subnets":["172.11.0.0/22"],"uid":"u1"}"#;
    assert_eq!(text, whole);
    let record = scene.text(&scene.keys.subnet(ip("10.0.0.1"))).await;
    assert_eq!(record, r#"{"Host":"n1","HostIP":"10.0.0.1","Subnet":"172.11.0.0/22","Assign":false}"#);
    scene.node("n1", "u1", &["10.0.0.1"]);
    assert_eq!(scene.settle().await, 1);
    assert!(!ledger(&scene, "10.0.0.1").await.contains("fd00"));
}

#[tokio::test]
async fn an_address_that_is_no_hosts_or_anothers_is_not_believed() {
    let mut scene = cluster(&[("n1", "10.0.0.1"), ("n2", "10.0.0.2")]).await;
    scene.node("n2", "u-n2", &["10.0.0.2", "192.0.2.2"]);
    scene.subnet("10.0.0.9", r#"{"Host":"lb","HostIP":"10.0.0.9","Assign":true}"#).await;
    scene.settle().await;
    let of = async |scene: &Scene, address: &str| {
        let value: serde_json::Value = serde_json::from_str(&ledger(scene, address).await).unwrap();
        value["addresses"].as_array().unwrap().iter().map(|ip| ip.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Pods' and services' ranges, no host's, another Node's, a machine's outside Kubernetes.
    let stolen = ["172.11.200.9", "10.96.0.1", "127.0.0.1", "224.0.0.1", "10.0.0.2", "192.0.2.2", "10.0.0.9"];
    let claimed = [&["10.0.0.1"][..], &stolen, &["192.0.2.1", "fd00::1"]].concat();
    scene.node("n1", "u-n1", &claimed);
    scene.settle().await;
    assert_eq!(of(&scene, "10.0.0.1").await, ["10.0.0.1", "192.0.2.1", "fd00::1"]);
    assert_eq!(of(&scene, "10.0.0.2").await, ["10.0.0.2", "192.0.2.2"]);
    let said = complaints(&scene.state);
    for address in stolen {
        assert!(said.iter().any(|complaint| complaint.key == format!("Node/n1/{address}")), "{address}: {said:?}");
    }
    // Nor by being its first.
    scene.node("thief", "u-thief", &["192.0.2.2"]);
    scene.settle().await;
    assert_eq!(ledger(&scene, "192.0.2.2").await, "");
    assert!(complaints(&scene.state).iter().any(|complaint| complaint.key == "Node/thief"));
    scene.node_leaves("thief");
    // Its owner gave it up: then it may be had.
    scene.node("n2", "u-n2", &["10.0.0.2"]);
    scene.settle().await;
    assert_eq!(of(&scene, "10.0.0.1").await, ["10.0.0.1", "192.0.2.2", "192.0.2.1", "fd00::1"]);
}

#[tokio::test]
async fn a_changed_address_keeps_the_subnet_in_one_transaction() {
    let mut scene = cluster(&[("n1", "10.0.0.1"), ("n2", "10.0.0.2")]).await;
    scene
        .write(
            &scene.keys.subnet(ip("10.0.0.1")),
            r#"{"Host":"n1","HostIP":"10.0.0.1","Subnet":"172.11.0.0/22","Assign":false,"Rack":7}"#,
        )
        .await;
    scene.node("n1", "u-n1", &["10.0.0.9"]);
    assert_eq!(scene.settle().await, 1);
    assert_eq!(
        (ledger(&scene, "10.0.0.1").await, subnet(&scene, "10.0.0.9").await),
        (String::new(), "172.11.0.0/22".into())
    );
    assert_eq!(scene.text(&scene.keys.subnet(ip("10.0.0.1"))).await, "");
    let record = scene.text(&scene.keys.subnet(ip("10.0.0.9"))).await;
    assert!(record.contains(r#""Rack":7"#), "unknown fields move along: {record}");
}

#[tokio::test]
async fn nodes_that_swap_addresses_swap_in_one_transaction() {
    let mut scene = cluster(&[("n1", "10.0.0.1"), ("n2", "10.0.0.2"), ("n3", "10.0.0.3")]).await;
    scene.node("n1", "u-n1", &["10.0.0.2"]);
    scene.node("n2", "u-n2", &["10.0.0.3"]);
    scene.node("n3", "u-n3", &["10.0.0.1"]);
    assert_eq!(scene.settle().await, 1);
    let subnets =
        [subnet(&scene, "10.0.0.2").await, subnet(&scene, "10.0.0.3").await, subnet(&scene, "10.0.0.1").await];
    assert_eq!(subnets, ["172.11.0.0/22", "172.11.4.0/22", "172.11.8.0/22"]);
}

#[tokio::test]
async fn a_node_made_anew_keeps_the_subnet_of_its_name() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    for address in ["10.0.0.1", "10.0.0.7"] {
        scene.node_leaves("n1");
        scene.settle().await;
        scene.node("n1", &format!("again-{address}"), &[address]);
        assert_eq!(scene.settle().await, 1);
        assert!(ledger(&scene, address).await.contains(&format!("again-{address}")));
        assert_eq!(subnet(&scene, address).await, "172.11.0.0/22");
    }
}

#[tokio::test]
async fn a_machine_under_another_name_keeps_the_subnet_of_its_address() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.node_leaves("n1");
    scene.node("renamed", "u2", &["10.0.0.1"]);
    assert_eq!(scene.settle().await, 1);
    assert!(ledger(&scene, "10.0.0.1").await.contains(r#""host":"renamed""#));
    assert_eq!(subnet(&scene, "10.0.0.1").await, "172.11.0.0/22");
}

#[tokio::test]
async fn who_takes_the_address_of_a_node_that_moved_gets_a_subnet_of_its_own() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.node("n1", "u-n1", &["10.0.0.2"]);
    scene.node("n2", "u-n2", &["10.0.0.1"]);
    scene.settle().await;
    assert_eq!(
        (subnet(&scene, "10.0.0.2").await.as_str(), subnet(&scene, "10.0.0.1").await.as_str()),
        ("172.11.0.0/22", "172.11.4.0/22")
    );
}

#[tokio::test]
async fn a_node_that_moves_onto_one_that_left_gives_that_subnet_back() {
    let mut scene = cluster(&[("n1", "10.0.0.1"), ("n2", "10.0.0.2")]).await;
    scene.node_leaves("n2");
    scene.node("n1", "u-n1", &["10.0.0.2"]);
    scene.settle().await;
    assert_eq!(
        (ledger(&scene, "10.0.0.1").await, subnet(&scene, "10.0.0.2").await),
        (String::new(), "172.11.0.0/22".into())
    );
    assert_eq!(scene.state.released.keys().collect::<Vec<_>>(), ["172.11.4.0-22"]);
}

#[tokio::test]
async fn a_node_that_left_keeps_its_subnet_for_the_grace_period_only() {
    let mut scene = cluster(&[("n1", "10.0.0.1"), ("n2", "10.0.0.2")]).await;
    scene.node_leaves("n1");
    assert_eq!(scene.settle().await, 0);
    scene.state.expire([ip("10.0.0.1")].into());
    assert_eq!(scene.settle().await, 1);
    assert_eq!(
        (ledger(&scene, "10.0.0.1").await, scene.text(&scene.keys.subnet(ip("10.0.0.1"))).await),
        (String::new(), String::new())
    );
    assert_eq!(scene.state.released.len(), 1);
    assert_eq!(subnet(&scene, "10.0.0.2").await, "172.11.4.0/22");
}

#[tokio::test]
async fn a_node_that_is_back_is_not_released() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.state.expire([ip("10.0.0.1")].into());
    assert_eq!(scene.settle().await, 0);
    assert_eq!(subnet(&scene, "10.0.0.1").await, "172.11.0.0/22");
}

#[tokio::test]
async fn a_machine_outside_kubernetes_asks_and_stays_and_goes_with_its_record() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.asks("lb", "10.0.0.9").await;
    scene.settle().await;
    assert_eq!(subnet(&scene, "10.0.0.9").await, "172.11.4.0/22");
    scene.state.expire([ip("10.0.0.9")].into());
    assert_eq!(scene.settle().await, 0, "no Node says nothing of it");
    scene.delete(&scene.keys.subnet(ip("10.0.0.9"))).await;
    scene.settle().await;
    assert_eq!(ledger(&scene, "10.0.0.9").await, "");
}

#[tokio::test]
async fn a_node_whose_record_is_deleted_by_hand_gets_it_again() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.delete(&scene.keys.subnet(ip("10.0.0.1"))).await;
    assert_eq!(scene.settle().await, 1);
    assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.0.0/22");
}

#[tokio::test]
async fn an_agent_that_asked_before_kubernetes_was_listed_keeps_what_it_got() {
    let mut scene = Scene::empty().await.with_kubernetes();
    scene.settle().await;
    scene.subnet("10.0.0.1", r#"{"Host":"n1","HostIP":"10.0.0.1","Subnet":"172.11.8.0/22","Assign":false}"#).await;
    scene.settle().await;
    scene.appears("kube-system", "u");
    scene.node("n1", "u1", &["10.0.0.1"]);
    scene.settle().await;
    assert!(ledger(&scene, "10.0.0.1").await.contains(r#""subnets":["172.11.8.0/22"],"uid":"u1""#));
}

#[tokio::test]
async fn a_node_that_asked_under_its_new_address_first_gives_the_old_subnet_back() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.asks("n1", "10.0.0.2").await;
    scene.settle().await;
    scene.node("n1", "u-n1", &["10.0.0.2"]);
    scene.settle().await;
    assert_eq!(
        (ledger(&scene, "10.0.0.1").await, subnet(&scene, "10.0.0.2").await),
        (String::new(), "172.11.4.0/22".into())
    );
}

#[tokio::test]
async fn a_node_that_cannot_have_a_subnet_is_complained_of() {
    let small = r#"{"Name":"k8ssdn","Network":"172.11.0.0/30","HostSubnetLength":2,"ServiceNetwork":"10.96.0.0/12"}"#;
    let mut scene = Scene::with_config(small).await.with_kubernetes();
    scene.appears("kube-system", "u");
    scene.node("n1", "u1", &["10.0.0.1"]);
    scene.node("n2", "u2", &["10.0.0.2"]);
    scene.node("n3", "u3", &[]);
    scene.node("n4", "u4", &["172.11.0.2"]);
    scene.node("n5", "u5", &["10.0.0.1"]);
    scene.settle().await;
    assert_eq!(scene.state.nodes.len(), 1);
    let all: Vec<_> = complaints(&scene.state).into_iter().map(|complaint| (complaint.key, complaint.text)).collect();
    for (node, fault) in
        [("n2", "in use"), ("n3", "no InternalIP"), ("n4", "a range of pods"), ("n5", "that of the node n1")]
    {
        assert!(all.iter().any(|(key, text)| key.ends_with(node) && text.contains(fault)), "{node}: {all:?}");
    }
}

#[tokio::test]
async fn a_move_is_of_the_entries_and_records_that_were_read() {
    // What happens in between, by the key that tells of it.
    let other = r#"{"host":"x","addresses":["10.0.0.9"],"subnets":["172.11.8.0/22"]}"#;
    for which in ["old ledger", "new ledger", "old record", "new record", "numbers"] {
        let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
        scene.node("n1", "u-n1", &["10.0.0.9"]);
        let late = scene.next().unwrap();
        let (old, new) = (ip("10.0.0.1"), ip("10.0.0.9"));
        let (key, value) = match which {
            "old ledger" => (scene.keys.ledger_node(old), other),
            "new ledger" => (scene.keys.ledger_node(new), other),
            "old record" => (scene.keys.subnet(old), r#"{"Host":"n1","Rack":7}"#),
            "new record" => (scene.keys.subnet(new), r#"{"Host":"x","HostIP":"10.0.0.9","Assign":true}"#),
            _ => (scene.keys.numbers(), r#"{"mark":99}"#),
        };
        unseen(&scene, Txn::new().put(key.as_str(), value)).await;
        only_the_compare_of(&mut scene, &key, &late).await;
        assert_ne!(scene.text(&key).await, value, "{which}: overwritten");
    }
}

#[tokio::test]
async fn a_release_of_a_node_that_left_is_of_the_record_that_was_read() {
    let mut scene = cluster(&[("n1", "10.0.0.1")]).await;
    scene.node_leaves("n1");
    scene.state.expire([ip("10.0.0.1")].into());
    let late = scene.next().unwrap();
    let key = scene.keys.subnet(ip("10.0.0.1"));
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"Host":"n1","HostIP":"10.0.0.1","Assign":true}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.text(&key).await, "", "a machine's request was lost");
}

/// A wholly lost etcd has no entry of any of them.
#[tokio::test]
async fn why_thousands_have_no_subnet_is_worked_out_at_once_for_all() {
    const FOUR: &str = r#"{"Name":"k8ssdn","Network":"172.11.0.0/28","HostSubnetLength":2,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}"#;
    let mut scene = Scene::with_config(FOUR).await.with_kubernetes();
    let nodes = (0..5000_u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        let addresses = vec![IpAddr::from([10, 1, high, low])];
        let object = NodeObject { uid: format!("u{number}"), addresses, ..NodeObject::default() };
        (NodeName::new(format!("n{number:04}")).unwrap(), object)
    });
    scene.state.observe(Objects { nodes: Arc::new(nodes.collect()), ..Objects::default() });
    scene.settle().await;
    assert_eq!(scene.state.nodes().count(), 4);
    let before = LOOKS.get();
    let problems = without_subnet(&scene.state);
    assert_eq!(LOOKS.get() - before, 1);
    assert_eq!(problems.len(), 4996);
    assert!(problems.values().all(|problem| problem.contains("all 4 subnets")));
    assert_eq!(complaints(&scene.state).len(), 4996);
    assert_eq!(LOOKS.get() - before, 2);
}
