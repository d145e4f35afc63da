//! Behind a restore of etcd: namespaces and nodes that are younger than the snapshot keep what their objects show.

use std::sync::Arc;

use bulkhead_core::Action;
use bulkhead_core::annotation::Network;
use bulkhead_core::number::JUMP;
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_store::Entry;

use super::scenes::{Scene, ns};
use super::{Policy, statuses, subnets};
use crate::objects::{NamespaceObject, NodeObject, Objects};
use crate::state::State;

/// Four subnets.
pub(super) const SMALL: &str = r#"{"Name":"k8ssdn","Network":"172.11.0.0/28","HostSubnetLength":2,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}"#;

/// An empty cluster of Kubernetes.
pub(super) async fn cluster() -> Scene {
    cluster_of(ConfigRecord::EXAMPLE).await
}

pub(super) async fn cluster_of(config: &str) -> Scene {
    let mut scene = Scene::with_config(config).await.with_kubernetes();
    scene.appears("kube-system", "u-kube-system");
    scene.settle().await;
    scene
}

pub(super) fn objects(scene: &Scene) -> Objects {
    scene.state.source().objects().cloned().unwrap_or_default()
}

/// Settles, and writes into the objects what the controller would.
pub(super) async fn settle(scene: &mut Scene) {
    scene.settle().await;
    let mut objects = objects(scene);
    for (name, status) in statuses(&scene.state, &Policy::default()) {
        if let Some(object) = Arc::make_mut(&mut objects.namespaces).get_mut(&name) {
            object.shown_vni = Some(status.vni);
        }
    }
    for (name, shown) in subnets(&scene.state) {
        if let Some(object) = Arc::make_mut(&mut objects.nodes).get_mut(&name) {
            object.shown_subnet = Some(shown.text);
        }
    }
    scene.state.observe(objects);
    scene.settle().await;
}

pub(super) async fn snapshot(scene: &Scene) -> Vec<Entry> {
    scene.store.list("/").await.unwrap().entries
}

/// An etcd with this snapshot under the same Kubernetes, its epoch to exceed `owed`.
pub(super) async fn restored(entries: &[Entry], objects: Objects, owed: Option<u64>) -> Scene {
    let mut scene = Scene::empty().await.with_kubernetes();
    for entry in entries {
        scene.write(&entry.key, std::str::from_utf8(&entry.value).unwrap()).await;
    }
    scene.state.owe(owed, owed.unwrap_or(0));
    scene.state.observe(objects);
    scene
}

fn vni(scene: &Scene, name: &str) -> u32 {
    scene.numbers(name).unwrap().0
}

pub(super) fn subnet(scene: &Scene, host: &str) -> String {
    let node = scene.state.nodes().find(|(_, node)| node.host.as_str() == host);
    node.map(|(_, node)| node.subnets.v4().unwrap().to_string()).unwrap_or_default()
}

fn shows_vni(uid: &str, vni: &str) -> NamespaceObject {
    NamespaceObject { uid: uid.to_owned(), shown_vni: Some(vni.to_owned()), ..NamespaceObject::default() }
}

fn shows_subnet(uid: &str, address: &str, subnet: &str) -> NodeObject {
    let addresses = vec![address.parse().unwrap()];
    NodeObject { uid: uid.to_owned(), addresses, shown_subnet: Some(subnet.to_owned()), ..NodeObject::default() }
}

#[tokio::test]
async fn who_is_younger_than_the_snapshot_keeps_number_and_subnet() {
    let mut scene = cluster().await;
    scene.appears("old", "u1");
    scene.node("n1", "u-n1", &["10.0.0.1"]);
    settle(&mut scene).await;
    let before = snapshot(&scene).await;
    for name in ["young", "guest"] {
        scene.appears(name, &format!("u-{name}"));
        settle(&mut scene).await;
    }
    let global = NamespaceObject { uid: "u-open".into(), network: Some(Ok(Network::Global)), ..Default::default() };
    scene.object("open", global);
    // Its number is not behind the one of its elder, but of one that is gone.
    scene.appears("gone", "u-gone");
    scene.node("n2", "u-n2", &["10.0.0.2"]);
    settle(&mut scene).await;
    scene.node("n3", "u-n3", &["10.0.0.3"]);
    settle(&mut scene).await;
    scene.vanishes("gone");
    scene.appears("late", "u-late");
    scene.object("guest", {
        let guest = objects(&scene).namespaces[&ns("guest")].clone();
        NamespaceObject { network: Some(Ok(Network::Join(ns("young")))), ..guest }
    });
    settle(&mut scene).await;
    // Born while nothing is written to Kubernetes: nobody knows its number any more.
    scene.appears("unseen", "u-unseen");
    scene.node("n4", "u-n4", &["10.0.0.4"]);
    scene.settle().await;
    let names = ["kube-system", "old", "young", "guest", "open", "late"];
    let numbers = names.map(|name| scene.numbers(name));
    let hosts = ["n1", "n2", "n3"];
    let blocks = hosts.map(|host| subnet(&scene, host));

    let mut scene = restored(&before, objects(&scene), Some(1)).await;
    // Agents obey the new epoch at once: it comes with all who live.
    let step = scene.next().unwrap();
    assert!(scene.carry_out(&step).await);
    assert_eq!(scene.state.epoch(), Some(2));
    assert_eq!(names.map(|name| scene.numbers(name)), numbers);
    assert_eq!(hosts.map(|host| subnet(&scene, host)), blocks);
    settle(&mut scene).await;
    assert_eq!(names.map(|name| scene.numbers(name)), numbers);
    assert_eq!(hosts.map(|host| subnet(&scene, host)), blocks);
    assert!(vni(&scene, "unseen") > JUMP, "a number that nobody may have");
    assert!(!blocks.contains(&subnet(&scene, "n4")));
    scene.appears("next", "u-next");
    scene.node("n5", "u-n5", &["10.0.0.5"]);
    settle(&mut scene).await;
    assert!(vni(&scene, "next") > JUMP);
    assert!(!blocks.contains(&subnet(&scene, "n5")) && subnet(&scene, "n5") != subnet(&scene, "n4"));
}

#[tokio::test]
async fn before_kubernetes_was_listed_the_epoch_does_not_rise_and_nobody_is_served_but_told_so() {
    let mut scene = cluster().await;
    let shown = objects(&scene);
    scene.state = State::new(scene.keys.clone()).with_kubernetes();
    scene.look().await;
    scene.state.owe(Some(1), 1);
    scene.asks("lb", "10.0.0.9").await;
    assert_eq!(scene.settle().await, 1);
    assert!(scene.read_subnet("10.0.0.9").await.error.contains("API server"));
    assert_eq!(scene.state.epoch(), Some(1));
    scene.state.observe(shown);
    scene.settle().await;
    assert_eq!(scene.state.epoch(), Some(2));
    assert!(scene.read_subnet("10.0.0.9").await.error.contains("for a minute"));
    scene.state.settle(Some(2));
    scene.settle().await;
    let record = scene.read_subnet("10.0.0.9").await;
    assert_eq!((record.subnet.as_str(), record.error.as_str()), ("172.11.0.0/22", ""));
}

/// A controller that was started behind a restore learns of it from Kubernetes: until then it may not look like one.
#[tokio::test]
async fn before_kubernetes_was_listed_a_machine_outside_it_gets_only_what_it_names() {
    for state in ["of a snapshot", "lost wholly"] {
        let mut scene = cluster().await;
        let before = if state == "lost wholly" { Vec::new() } else { snapshot(&scene).await };
        scene.node("n1", "u1", &["10.0.0.1"]);
        settle(&mut scene).await;
        let shown = objects(&scene);
        let mut scene = restored(&before, shown.clone(), None).await;
        scene.state = State::new(scene.keys.clone()).with_kubernetes();
        scene.look().await;
        scene.asks("lb", "10.0.0.9").await;
        scene
            .subnet("10.0.0.8", r#"{"Host":"known","HostIP":"10.0.0.8","Subnet":"172.11.80.0/22","Assign":true}"#)
            .await;
        scene.settle().await;
        let record = scene.read_subnet("10.0.0.9").await;
        assert!(record.subnet.is_empty() && record.error.contains("API server"), "{state}: {record:?}");
        // A ledger is not even begun without what Kubernetes shows.
        let served = if state == "lost wholly" { "" } else { "172.11.80.0/22" };
        assert_eq!(subnet(&scene, "known"), served, "{state}");
        scene.state.observe(shown);
        scene.state.settle(Some(1));
        settle(&mut scene).await;
        assert_eq!(subnet(&scene, "known"), "172.11.80.0/22", "{state}");
        assert_eq!(subnet(&scene, "n1"), "172.11.0.0/22", "{state}");
        let record = scene.read_subnet("10.0.0.9").await;
        assert_eq!((record.subnet.as_str(), record.error.as_str()), ("172.11.4.0/22", ""), "{state}");
    }
}

/// More than one transaction takes: the first ones come with the epoch, the others behind it, and nobody renumbers.
/// Settles; what an agent obeys meanwhile, the ledger of a higher epoch that is not being built, has all that lived.
async fn settle_wholly(scene: &mut Scene, had: impl Fn(&Scene) -> bool) -> usize {
    let mut steps = 0;
    while let Some(step) = scene.next() {
        assert!(scene.carry_out(&step).await, "conflict without a rival: {step:?}");
        steps += 1;
        let entry = scene.state.cluster.as_ref().map(|held| held.value.clone().unwrap());
        let obeyed = entry.is_some_and(|entry| entry.epoch > 1 && !entry.building);
        assert!(!obeyed || had(scene), "after {steps} steps");
    }
    steps
}

#[tokio::test]
async fn hundreds_keep_their_numbers() {
    let mut scene = cluster().await;
    let before = snapshot(&scene).await;
    for number in 0..300 {
        scene.appears(&format!("n{number}"), &format!("u{number}"));
    }
    settle(&mut scene).await;
    let had = scene.state.tenants().clone();
    let mut scene = restored(&before, objects(&scene), Some(1)).await;
    assert!(settle_wholly(&mut scene, |scene| *scene.state.tenants() == had).await <= 9);
    assert_eq!(*scene.state.tenants(), had);
}

#[tokio::test]
async fn an_etcd_that_is_lost_wholly_is_made_anew_from_what_is_shown() {
    let mut scene = cluster().await;
    for name in ["a", "b"] {
        scene.appears(name, &format!("u-{name}"));
        scene.node(&format!("n{name}"), &format!("un-{name}"), &[if name == "a" { "10.0.0.1" } else { "10.0.0.2" }]);
        settle(&mut scene).await;
    }
    // The second one is listed first now: without its annotation it would get the first subnet.
    scene.node_leaves("na");
    let numbers = ["a", "b"].map(|name| scene.numbers(name));
    let block = subnet(&scene, "nb");
    let mut scene = restored(&[], objects(&scene), Some(1)).await;
    let had = |scene: &Scene| ["a", "b"].map(|name| scene.numbers(name)) == numbers && subnet(scene, "nb") == block;
    settle_wholly(&mut scene, had).await;
    settle(&mut scene).await;
    assert_eq!(["a", "b"].map(|name| scene.numbers(name)), numbers);
    assert_eq!(subnet(&scene, "nb"), block);
}

#[tokio::test]
async fn a_number_is_believed_behind_a_restore_only_and_only_if_it_was_passed_by() {
    let mut scene = cluster().await;
    scene.object("copied", shows_vni("u", "4711"));
    settle(&mut scene).await;
    assert_eq!(vni(&scene, "copied"), 11, "nothing was lost");
    let wrong =
        [("low", "10"), ("own", "11"), ("far", "16000000"), ("bad", "x"), ("zero", "0"), ("wide", "99999999999")];
    for (name, shown) in wrong.into_iter().chain([("right", "4711")]) {
        scene.object(name, shows_vni("u", shown));
    }
    scene.state.owe(Some(1), 1);
    scene.settle().await;
    for (name, _) in wrong {
        assert!(vni(&scene, name) > JUMP && vni(&scene, name) < 2 * JUMP, "{name}");
    }
    assert_eq!(vni(&scene, "right"), 4711);
    // Who comes later shows what it cannot have had.
    scene.vanishes("right");
    scene.object("late", shows_vni("u", "4711"));
    scene.object("later", shows_vni("u", "4712"));
    scene.settle().await;
    assert!(["late", "later"].iter().all(|name| vni(&scene, name) > JUMP));
}

#[tokio::test]
async fn what_two_objects_show_is_given_to_neither() {
    let mut scene = cluster().await;
    let shown = [("a", "100"), ("b", "100"), ("c", "200")];
    for (name, number) in shown {
        scene.object(name, shows_vni(&format!("u-{name}"), number));
    }
    for (host, address, subnet) in [
        ("n1", "10.0.0.1", "172.11.8.0/22"),
        ("n2", "10.0.0.2", "172.11.8.0/22"),
        ("n3", "10.0.0.3", "172.11.0.0/22"),
        ("n4", "10.0.0.4", "172.11.4.0/23"),
        ("n5", "10.0.0.5", "10.64.0.0/22"),
    ] {
        scene.node_object(host, shows_subnet(&format!("u-{host}"), address, subnet));
    }
    scene.state.owe(Some(1), 1);
    scene.settle().await;
    assert!(vni(&scene, "a") > JUMP && vni(&scene, "b") > JUMP && vni(&scene, "c") == 200);
    assert_eq!(subnet(&scene, "n3"), "172.11.0.0/22");
    for host in ["n1", "n2", "n4", "n5"] {
        assert!(!["", "172.11.8.0/22", "172.11.0.0/22"].contains(&subnet(&scene, host).as_str()), "{host}");
    }
}

#[tokio::test]
async fn what_somebody_has_in_the_ledger_is_not_given_to_who_shows_it() {
    let mut scene = cluster().await;
    scene.node("n1", "u1", &["10.0.0.1"]);
    settle(&mut scene).await;
    let taken = subnet(&scene, "n1");
    scene.node_object("n2", shows_subnet("u2", "10.0.0.2", &taken));
    scene.settle().await;
    assert_eq!(subnet(&scene, "n1"), taken);
    assert_eq!(subnet(&scene, "n2"), "172.11.4.0/22");
    // Nor does who has a subnet get another by showing it, be it free.
    let mut forged = objects(&scene);
    let host = bulkhead_core::NodeName::new("n2").unwrap();
    Arc::make_mut(&mut forged.nodes).get_mut(&host).unwrap().shown_subnet = Some("172.11.40.0/22".into());
    scene.state.observe(forged);
    assert_eq!(scene.settle().await, 0);
    // What a machine outside Kubernetes asks for by its record is its own.
    scene.subnet("10.0.0.7", r#"{"Host":"lb","HostIP":"10.0.0.7","Subnet":"172.11.80.0/22","Assign":true}"#).await;
    scene.node_object("n3", shows_subnet("u3", "10.0.0.3", "172.11.80.0/22"));
    scene.settle().await;
    assert_eq!(scene.read_subnet("10.0.0.7").await.subnet, "172.11.80.0/22");
    assert_eq!(subnet(&scene, "n3"), "172.11.8.0/22");
}

#[tokio::test]
async fn a_node_made_anew_since_the_snapshot_keeps_the_subnet_that_it_has_now() {
    let mut scene = cluster().await;
    scene.node("n1", "u-first", &["10.0.0.1"]);
    settle(&mut scene).await;
    let before = snapshot(&scene).await;
    scene.node_leaves("n1");
    scene.state.expire(["10.0.0.1".parse().unwrap()].into());
    settle(&mut scene).await;
    scene.state.expire([].into());
    scene.node("n1", "u-second", &["10.0.0.1"]);
    settle(&mut scene).await;
    assert_eq!(subnet(&scene, "n1"), "172.11.4.0/22");
    let mut scene = restored(&before, objects(&scene), Some(1)).await;
    settle(&mut scene).await;
    assert_eq!(subnet(&scene, "n1"), "172.11.4.0/22");
    scene.node("n2", "u2", &["10.0.0.2"]);
    settle(&mut scene).await;
    assert_eq!(subnet(&scene, "n2"), "172.11.8.0/22", "the one of before rests");
}

/// Everything of the ledger, the numbers or the records that somebody deletes while nobody leads.
#[tokio::test]
async fn a_ledger_made_anew_gives_nobody_what_somebody_living_shows() {
    for (what, records_too, numbers_too) in
        [("ledger", false, false), ("numbers too", false, true), ("all", true, true)]
    {
        let mut scene = cluster().await;
        for name in ["gone", "z", "b"] {
            scene.appears(name, &format!("u-{name}"));
            settle(&mut scene).await;
        }
        scene.vanishes("gone");
        scene.act(&[("b", &Action::Join(ns("z")))]).await;
        settle(&mut scene).await;
        let names = ["kube-system", "b", "z"];
        let had = names.map(|name| scene.numbers(name));
        assert_eq!(had, [Some((10, 0)), Some((13, 12)), Some((12, 12))]);
        let own = format!("{}bulkhead/", scene.keys.root());
        let lost = |key: &str| match key.strip_prefix(&own) {
            Some("numbers") => numbers_too,
            Some(_) => true,
            None => records_too && key != scene.keys.config(),
        };
        let kept: Vec<_> = snapshot(&scene).await.into_iter().filter(|entry| !lost(&entry.key)).collect();
        // Who is born meanwhile, and is listed first.
        let mut shown = objects(&scene);
        let newborn = NamespaceObject { uid: "u-a".into(), ..NamespaceObject::default() };
        Arc::make_mut(&mut shown.namespaces).insert(ns("a"), newborn);
        let mut scene = restored(&kept, shown.clone(), None).await;
        scene.state = State::new(scene.keys.clone()).with_kubernetes();
        scene.look().await;
        scene.asks("lb", "10.0.0.9").await;
        scene.settle().await;
        assert_eq!(names.map(|name| scene.numbers(name)), [None; 3], "{what}: before Kubernetes was listed");
        assert!(scene.read_subnet("10.0.0.9").await.error.contains("API server"), "{what}");
        scene.state.observe(shown);
        settle(&mut scene).await;
        let has = names.map(|name| scene.numbers(name));
        if records_too {
            assert_eq!(has, [Some((10, 0)), Some((13, 13)), Some((12, 12))], "the join was an action's");
        } else {
            assert_eq!(has, had, "{what}");
        }
        assert!(vni(&scene, "a") > 13, "{what}: {}", vni(&scene, "a"));
    }
}

/// The numbers that were given out before may lie beyond where a new ledger begins.
#[tokio::test]
async fn a_new_ledger_passes_over_what_is_shown_and_not_believed() {
    let mut scene = cluster().await;
    let mut shown = objects(&scene);
    let first = JUMP + 11;
    for (name, number) in [("a", None), ("b", Some(first)), ("c", Some(first + 1)), ("d", Some(11)), ("e", Some(11))] {
        let uid = format!("u-{name}");
        let object = NamespaceObject { uid, shown_vni: number.map(|n| n.to_string()), ..NamespaceObject::default() };
        Arc::make_mut(&mut shown.namespaces).insert(ns(name), object);
    }
    scene = restored(&[], shown, None).await;
    scene.settle().await;
    let given = ["a", "b", "c", "d", "e"].map(|name| vni(&scene, name));
    assert!(given.iter().all(|vni| *vni > first + 1), "{given:?}");
}
