//! What the plan does with nodes and with the cluster's config.

use bulkhead_core::record::{Record, SubnetRecord};
use bulkhead_core::{Action, Mode};

use super::scenes::Scene;
use super::{NOTICE, complaints};

/// Four subnets of four addresses.
const SMALL: &str = r#"{"Name":"k8ssdn","Network":"172.11.0.0/28","HostSubnetLength":2,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}"#;

async fn small() -> Scene {
    let mut scene = Scene::with_config(SMALL).await;
    scene.settle().await;
    scene
}

async fn subnet_of(scene: &Scene, address: &str) -> String {
    scene.read_subnet(address).await.subnet
}

#[tokio::test]
async fn a_machine_that_asks_gets_the_next_subnet_in_one_transaction() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.subnet("10.0.0.2", r#"{"Host":"lb","HostIP":"10.0.0.2","Subnet":"","Assign":true,"Rack":7}"#).await;
    assert_eq!(scene.settle().await, 1);
    let text = scene.text(&scene.keys.subnet("10.0.0.2".parse().unwrap())).await;
    assert_eq!(text, r#"{"Host":"lb","HostIP":"10.0.0.2","Subnet":"172.11.4.0/22","Assign":false,"Rack":7}"#);
    let entry = scene.text(&scene.keys.ledger_node("10.0.0.1".parse().unwrap())).await;
    assert_eq!(entry, r#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["172.11.0.0/22"]}"#);
}

#[tokio::test]
async fn k8s_ovs_subnets_are_adopted_and_their_blocks_not_given_away() {
    let mut scene = Scene::empty().await;
    scene.asks("new", "10.0.0.1").await;
    for (address, subnet) in
        [("10.0.0.2", "172.11.0.0/22"), ("10.0.0.3", "172.11.8.0/22"), ("10.0.0.9", "172.11.4.0/24")]
    {
        let json = format!(r#"{{"Host":"n","HostIP":"{address}","Subnet":"{subnet}","Assign":false}}"#);
        scene.subnet(address, &json).await;
    }
    scene.settle().await;
    assert_eq!(subnet_of(&scene, "10.0.0.2").await, "172.11.0.0/22");
    assert_eq!(subnet_of(&scene, "10.0.0.3").await, "172.11.8.0/22");
    assert!(scene.read_subnet("10.0.0.9").await.error.contains("not one of the subnets"));
    assert_eq!(subnet_of(&scene, "10.0.0.1").await, "172.11.12.0/22", "what a refused record names is not given away");
}

#[tokio::test]
async fn a_dual_stack_node_gets_the_same_block_of_both_families() {
    let config = r#"{"Name":"k8ssdn","Network":"172.11.0.0/16,fd00:77::/112","HostSubnetLength":10}"#;
    let mut scene = Scene::with_config(config).await;
    scene.settle().await;
    scene.asks("n1", "fd00::1").await;
    scene.settle().await;
    assert_eq!(subnet_of(&scene, "fd00::1").await, "172.11.0.0/22,fd00:77::/118");
    let half = r#"{"Host":"n2","HostIP":"10.0.0.2","Subnet":"172.11.4.0/22","Assign":false}"#;
    scene.subnet("10.0.0.2", half).await;
    scene.settle().await;
    assert!(scene.read_subnet("10.0.0.2").await.error.contains("one of each address family"));
}

#[tokio::test]
async fn a_node_record_that_cannot_be_is_answered_and_gets_nothing() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    for (segment, json, fault) in [
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.6","Assign":true}"#, "differs from 10.0.0.5"),
        ("10.0.0.5", r#"{"Host":"../n","HostIP":"10.0.0.5","Assign":true}"#, "node name"),
        ("10.0.0.5", r#"{"Host":"","HostIP":"10.0.0.5","Assign":true}"#, "node name"),
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.5","Subnet":"","Assign":false}"#, "set Assign to true"),
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.5","Subnet":"172.11.0.0/22"}"#, "10.0.0.1 has it"),
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.5","Subnet":"172.11.0.0/21"}"#, "not one of the subnets"),
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.5","Subnet":"10.96.0.0/22"}"#, "not one of the subnets"),
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.5","Subnet":"172.11.5.0/22"}"#, "host bits"),
        ("10.0.0.5", r#"{"Host":"n","HostIP":"10.0.0.5","Assign":"yes"}"#, "as K8S-OVS does"),
        ("172.11.0.9", r#"{"Host":"n","HostIP":"172.11.0.9","Assign":true}"#, "lies in 172.11.0.0/16"),
        ("10.96.0.9", r#"{"Host":"n","HostIP":"10.96.0.9","Assign":true}"#, "lies in 10.96.0.0/12"),
        ("127.0.0.1", r#"{"Host":"n","Assign":true}"#, "other nodes reach"),
        ("0.0.0.0", r#"{"Host":"n","Assign":true}"#, "other nodes reach"),
        ("224.0.0.5", r#"{"Host":"n","Assign":true}"#, "other nodes reach"),
        ("node7", r#"{"Host":"n","Assign":true}"#, "not an IP address"),
        ("fd00::0001", r#"{"Host":"n","Assign":true}"#, "must be written fd00::1"),
        ("::ffff:10.0.0.1", r#"{"Host":"n","Assign":true}"#, "must be written 10.0.0.1"),
    ] {
        scene.subnet(segment, json).await;
        assert_eq!(scene.settle().await, 1, "{json}");
        let key = format!("{}{segment}", scene.keys.subnets());
        let text = scene.text(&key).await;
        assert!(text.contains(r#""Error":""#) && text.contains(fault), "{segment} {json} -> {text}");
        assert_eq!(scene.state.nodes.len(), 1);
        scene.delete(&key).await;
        scene.settle().await;
    }
}

#[tokio::test]
async fn fresh_subnets_come_first_then_the_longest_released() {
    let mut scene = small().await;
    for n in 1..=3 {
        scene.asks(&format!("n{n}"), &format!("10.0.0.{n}")).await;
        scene.settle().await;
    }
    for gone in ["10.0.0.2", "10.0.0.1"] {
        scene.delete(&scene.keys.subnet(gone.parse().unwrap())).await;
        scene.settle().await;
        assert_eq!(scene.text(&scene.keys.ledger_node(gone.parse().unwrap())).await, "");
    }
    for (n, subnet) in [(4, "172.11.0.12/30"), (5, "172.11.0.4/30"), (6, "172.11.0.0/30")] {
        let address = format!("10.0.0.{n}");
        scene.asks(&format!("n{n}"), &address).await;
        scene.settle().await;
        assert_eq!(subnet_of(&scene, &address).await, subnet);
    }
    assert!(scene.state.released.is_empty());
    scene.asks("n7", "10.0.0.7").await;
    scene.settle().await;
    let error = scene.read_subnet("10.0.0.7").await.error;
    assert!(error.contains("all 4 subnets of 172.11.0.0/28 are in use"), "{error}");
    // The next that is released goes to who waits.
    scene.delete(&scene.keys.subnet("10.0.0.3".parse().unwrap())).await;
    scene.settle().await;
    assert_eq!(scene.read_subnet("10.0.0.7").await.subnet, "172.11.0.8/30");
    assert_eq!(scene.read_subnet("10.0.0.7").await.error, "");
}

#[tokio::test]
async fn a_node_keeps_its_subnet_whatever_is_written_into_its_record() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    let right = scene.read_subnet("10.0.0.1").await;
    for (json, notice) in [
        (r#"{"Host":"n1","HostIP":"10.0.0.1","Subnet":"","Assign":true}"#, ""),
        (r#"{"Host":"n1","HostIP":"10.0.0.1","Subnet":"172.11.8.0/22","Assign":false}"#, ""),
        (r#"{"Host":"other","HostIP":"10.0.0.1","Subnet":"","Assign":true}"#, "remove that node first"),
        (r#"{"Host":"n1","HostIP":"10.0.0.7","Subnet":"","Assign":true}"#, "differs from 10.0.0.1"),
        ("hello", "not valid"),
        (r#"{"Host":1}"#, "not valid"),
    ] {
        scene.subnet("10.0.0.1", json).await;
        assert_eq!(scene.settle().await, 1, "{json}");
        let record = scene.read_subnet("10.0.0.1").await;
        assert!(record.error.contains(notice), "{json} -> {}", record.error);
        assert_eq!(record.error.starts_with(NOTICE), !notice.is_empty());
        assert_eq!(SubnetRecord { error: String::new(), ..record }, right);
    }
}

#[tokio::test]
async fn one_host_under_two_addresses_keeps_both_and_it_is_said() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.asks("n1", "10.0.0.2").await;
    scene.settle().await;
    assert_ne!(subnet_of(&scene, "10.0.0.1").await, subnet_of(&scene, "10.0.0.2").await);
    assert!(complaints(&scene.state).iter().any(|complaint| complaint.text.contains("registered as")));
}

#[tokio::test]
async fn a_network_is_not_changed_under_nodes_but_services_and_mode_are_followed() {
    let mut scene = Scene::empty().await;
    scene.settle().await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    let changed = r#"{"Name":"k8ssdn","Network":"172.12.0.0/16","HostSubnetLength":8,"ServiceNetwork":"10.112.0.0/12","PluginName":"k8s-ovs-subnet"}"#;
    scene.write(&scene.keys.config(), changed).await;
    assert_eq!(scene.settle().await, 1);
    let ledger = scene.state.cluster.clone().unwrap().value.unwrap();
    assert_eq!(ledger.networks.v4().network().to_string(), "172.11.0.0/16");
    assert_eq!(ledger.networks.services()[0].to_string(), "10.112.0.0/12");
    assert_eq!((ledger.mode, ledger.epoch), (Mode::Flat, 1));
    assert!(complaints(&scene.state)[0].text.contains("not followed"));
    // Work goes on with the ledger's copy.
    scene.asks("n2", "10.0.0.2").await;
    scene.settle().await;
    assert_eq!(subnet_of(&scene, "10.0.0.2").await, "172.11.4.0/22");
    // With no node left it is followed, and the queue of the former network is cleared.
    for gone in ["10.0.0.1", "10.0.0.2"] {
        scene.delete(&scene.keys.subnet(gone.parse().unwrap())).await;
    }
    scene.settle().await;
    assert!(complaints(&scene.state).is_empty() && scene.state.released.is_empty());
    scene.asks("n3", "10.0.0.3").await;
    scene.settle().await;
    assert_eq!(subnet_of(&scene, "10.0.0.3").await, "172.12.0.0/24");
}

#[tokio::test]
async fn a_bad_or_renamed_or_deleted_config_is_complained_of_and_the_last_one_serves_on() {
    let mut scene = Scene::of(&["a", "b"]).await;
    let renamed = r#"{"Name":"other","Network":"172.12.0.0/16","HostSubnetLength":8}"#;
    for (config, fault) in
        [("{", "not used"), (r#"{"Name":"k8ssdn","Network":"x","HostSubnetLength":8}"#, "not used"), (renamed, "other")]
    {
        scene.write(&scene.keys.config(), config).await;
        assert_eq!(scene.settle().await, 0);
        assert!(complaints(&scene.state)[0].text.contains(fault));
    }
    scene.delete(&scene.keys.config()).await;
    assert_eq!(scene.settle().await, 0);
    assert!(complaints(&scene.state)[0].text.contains("deleted"));
    scene.act(&[("a", &Action::Global)]).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((10, 0)));
}

#[tokio::test]
async fn nothing_is_done_without_a_valid_config_or_with_an_unreadable_ledger_entry_of_the_cluster() {
    let mut scene = Scene::with_config("{").await;
    scene.record("a", "{}").await;
    scene.asks("n1", "10.0.0.1").await;
    assert_eq!(scene.settle().await, 0);
    scene.write(&scene.keys.config(), SMALL).await;
    assert!(scene.settle().await > 0);
    scene.write(&scene.keys.ledger_cluster(), "{}").await;
    scene.record("b", "{}").await;
    assert_eq!(scene.settle().await, 0);
}

#[tokio::test]
async fn five_hundred_nodes_that_ask_at_once_are_served_in_few_transactions() {
    let config = r#"{"Name":"k8ssdn","Network":"172.16.0.0/12","HostSubnetLength":8}"#;
    let mut scene = Scene::with_config(config).await;
    scene.settle().await;
    let mut txn = bulkhead_store::Txn::new();
    for n in 0..500_u32 {
        let address = std::net::Ipv4Addr::from((10 << 24) + 256 + n).into();
        let record = SubnetRecord::asking(&format!("n{n}"), address);
        txn = txn.put(scene.keys.subnet(address), record.to_json());
        if n % 100 == 99 {
            scene.commit(std::mem::take(&mut txn)).await;
        }
    }
    let steps = scene.settle().await;
    assert!(steps <= 9, "{steps}");
    let subnets: std::collections::BTreeSet<_> =
        scene.state.nodes.values().map(|held| held.value.as_ref().unwrap().subnets).collect();
    assert_eq!(subnets.len(), 500);
}

#[tokio::test]
async fn a_record_that_names_the_whole_network_keeps_nobody_out() {
    let mut scene = Scene::of(&[]).await;
    scene.subnet("10.0.0.5", r#"{"Host":"x","HostIP":"10.0.0.5","Subnet":"172.11.0.0/16","Assign":true}"#).await;
    // A part of a block keeps that block for its owner.
    scene.subnet("10.0.0.6", r#"{"Host":"y","HostIP":"10.0.0.6","Subnet":"172.11.1.0/24","Assign":true}"#).await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    assert!(scene.read_subnet("10.0.0.5").await.error.contains("Subnet"));
    assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.4.0/22");
}
