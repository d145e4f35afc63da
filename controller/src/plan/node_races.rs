//! Why each compare is there, for nodes and the cluster's entry: see [`super::races`].

use bulkhead_core::record::{ConfigRecord, Record, SubnetRecord};
use bulkhead_store::Txn;

use super::races::{applied, only_the_compare_of, unseen};
use super::scenes::Scene;

async fn asks_unlooked(scene: &Scene, host: &str, address: &str) {
    let address = address.parse().unwrap();
    unseen(scene, Txn::new().put(scene.keys.subnet(address), SubnetRecord::asking(host, address).to_json())).await;
}

#[tokio::test]
async fn two_leaders_never_give_out_one_subnet() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    asks_unlooked(&scene, "n1", "10.0.0.1").await;
    asks_unlooked(&scene, "n2", "10.0.0.2").await;
    scene.look().await;
    let (mut one, mut two) = (scene.state.clone(), scene.state.clone());
    one.subnets.remove("10.0.0.2");
    two.subnets.remove("10.0.0.1");
    let [first, second] = [one, two].map(|state| super::next(&state, &scene.policy).unwrap());
    assert!(applied(&scene, &first).await);
    let key = scene.keys.numbers();
    only_the_compare_of(&mut scene, &key, &second).await;
    assert_eq!(
        scene.read_subnet("10.0.0.1").await.subnet,
        scene.read_subnet("10.0.0.2").await.subnet,
        "one subnet twice"
    );
}

#[tokio::test]
async fn a_subnet_is_of_the_network_that_is_in_force() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    let config = r#"{"Name":"k8ssdn","Network":"172.12.0.0/16","HostSubnetLength":8}"#;
    asks_unlooked(&scene, "n1", "10.0.0.1").await;
    scene.look().await;
    let late = scene.next().unwrap();
    scene.write(&scene.keys.config(), config).await;
    let follow = scene.next().unwrap();
    assert!(applied(&scene, &follow).await);
    let key = scene.keys.ledger_cluster();
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.0.0/22", "a subnet of a network that is gone");
}

#[tokio::test]
async fn a_node_is_not_admitted_twice_nor_after_it_took_its_record_back() {
    for what in ["ledger", "record"] {
        let mut scene = Scene::empty().await;
        scene.settle().await;
        scene.asks("n1", "10.0.0.1").await;
        let late = scene.next().unwrap();
        let address = "10.0.0.1".parse().unwrap();
        let key = if what == "ledger" {
            let key = scene.keys.ledger_node(address);
            let other = r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["172.11.8.0/22"]}"#;
            unseen(&scene, Txn::new().put(key.as_str(), other)).await;
            key
        } else {
            let key = scene.keys.subnet(address);
            unseen(&scene, Txn::new().delete(key.as_str())).await;
            key
        };
        only_the_compare_of(&mut scene, &key, &late).await;
        assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.0.0/22", "{what}");
    }
}

#[tokio::test]
async fn a_node_that_registers_again_before_its_release_keeps_its_subnet() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    let address = "10.0.0.1".parse().unwrap();
    let key = scene.keys.subnet(address);
    scene.delete(&key).await;
    let late = scene.next().unwrap();
    asks_unlooked(&scene, "n1", "10.0.0.1").await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.text(&scene.keys.ledger_node(address)).await, "", "a live node lost its subnet");
}

#[tokio::test]
async fn a_release_is_of_the_entry_that_was_read() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    let address = "10.0.0.1".parse().unwrap();
    scene.delete(&scene.keys.subnet(address)).await;
    let late = scene.next().unwrap();
    let key = scene.keys.ledger_node(address);
    let other = r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["172.11.8.0/22"]}"#;
    unseen(&scene, Txn::new().put(key.as_str(), other)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.text(&key).await, "", "another subnet than the one that was queued");
}

#[tokio::test]
async fn a_place_in_the_queue_is_taken_once() {
    let small = r#"{"Name":"k8ssdn","Network":"172.11.0.0/30","HostSubnetLength":2}"#;
    let mut scene = Scene::with_config(small).await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    scene.delete(&scene.keys.subnet("10.0.0.1".parse().unwrap())).await;
    scene.settle().await;
    scene.asks("n2", "10.0.0.2").await;
    let late = scene.next().unwrap();
    let key = scene.keys.released_subnet("172.11.0.0/30".parse().unwrap());
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"turn":9}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.text(&key).await, "", "a later place in the queue was lost");
}

#[tokio::test]
async fn the_clusters_entry_is_of_the_config_and_the_entry_that_were_read() {
    let mut scene = Scene::empty().await;
    let late = scene.next().unwrap();
    let key = scene.keys.config();
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"Name":"k8ssdn","Network":"172.12.0.0/16","HostSubnetLength":8}"#))
        .await;
    only_the_compare_of(&mut scene, &key, &late).await;
    let entry = scene.text(&scene.keys.ledger_cluster()).await;
    assert!(entry.contains("172.11.0.0"), "a config that is no more: {entry}");

    let late = scene.next().unwrap();
    let key = scene.keys.ledger_cluster();
    unseen(&scene, Txn::new().put(key.as_str(), entry.replace(r#""epoch":1"#, r#""epoch":7"#))).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert!(scene.text(&key).await.contains(r#""epoch":1"#), "the epoch went back");
}

#[tokio::test]
async fn a_nodes_mirror_is_of_the_entry_and_the_record_that_were_read() {
    let address = "10.0.0.1".parse().unwrap();
    for what in ["ledger", "record"] {
        let mut scene = Scene::empty().await;
        scene.settle().await;
        scene.asks("n1", "10.0.0.1").await;
        scene.settle().await;
        scene.asks("n1", "10.0.0.1").await;
        let late = scene.next().unwrap();
        let (key, value) = if what == "ledger" {
            let other = r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["172.11.8.0/22"]}"#;
            (scene.keys.ledger_node(address), other)
        } else {
            (scene.keys.subnet(address), r#"{"Host":"n1","Rack":7}"#)
        };
        unseen(&scene, Txn::new().put(key.as_str(), value)).await;
        only_the_compare_of(&mut scene, &key, &late).await;
        let record = scene.read_subnet("10.0.0.1").await;
        assert!(
            record.subnet == "172.11.0.0/22" && record.unknown.is_empty(),
            "{what}: overwritten by what is no more"
        );
    }
}

#[tokio::test]
async fn a_place_in_the_queue_that_was_not_read_is_not_overwritten() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    scene.delete(&scene.keys.subnet("10.0.0.1".parse().unwrap())).await;
    let late = scene.next().unwrap();
    let key = scene.keys.released_subnet("172.11.0.0/22".parse().unwrap());
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"turn":9}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.text(&key).await, r#"{"turn":1}"#, "a later place in the queue was lost");
}

#[tokio::test]
async fn a_network_is_not_changed_under_a_node_that_is_being_admitted() {
    let mut scene = Scene::of(&[]).await;
    scene.asks("n1", "10.0.0.1").await;
    let admission = scene.next().unwrap();
    scene.write(&scene.keys.config(), &ConfigRecord::EXAMPLE.replace("172.11.0.0/16", "172.12.0.0/16")).await;
    let late = scene.next().unwrap();
    // Our own, its outcome unknown until now.
    assert!(applied(&scene, &admission).await);
    let key = scene.keys.numbers();
    only_the_compare_of(&mut scene, &key, &late).await;
    let step = scene.next();
    assert!(step.is_none_or(|step| step.notes().is_empty()), "a node holds a subnet of a network that is no more");
}
