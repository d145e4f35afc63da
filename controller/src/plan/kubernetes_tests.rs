//! Namespaces that Kubernetes has: when they are born, what they keep, when they die.

use bulkhead_core::annotation::Network;

use super::scenes::{Scene, ns};
use super::{NOTICE, Policy};
use crate::objects::{NamespaceObject, Objects};
use crate::state::State;

/// A settled cluster whose namespaces are these of Kubernetes, beside kube-system.
async fn cluster(names: &[&str]) -> Scene {
    let mut scene = Scene::empty().await.with_kubernetes();
    scene.appears("kube-system", "u-kube-system");
    for name in names {
        scene.appears(name, &format!("u-{name}"));
    }
    scene.settle().await;
    scene
}

async fn uid(scene: &Scene, name: &str) -> String {
    let text = scene.text(&scene.keys.ledger_namespace(&ns(name))).await;
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    value["uid"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_namespace_has_its_numbers_and_its_record_as_soon_as_it_is_seen() {
    let mut scene = cluster(&["a", "b"]).await;
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 10)), Some((11, 11))));
    assert_eq!(scene.numbers("kube-system"), Some((12, 0)), "global at birth");
    let text = scene.text(&scene.keys.netnamespace(&ns("b"))).await;
    assert_eq!(text, r#"{"NetName":"b","NetID":11,"Action":"","Namespace":""}"#);
    assert_eq!(uid(&scene, "b").await, "u-b");
    scene.appears("c", "u-c");
    assert_eq!(scene.settle().await, 1, "one transaction");
}

#[tokio::test]
async fn both_go_when_it_is_gone() {
    let mut scene = cluster(&["a", "b"]).await;
    scene.vanishes("b");
    assert_eq!(scene.settle().await, 1);
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 10)), None));
    assert_eq!(scene.text(&scene.keys.netnamespace(&ns("b"))).await, "");
}

#[tokio::test]
async fn one_made_anew_under_its_name_is_another_one() {
    let mut scene = cluster(&["a"]).await;
    scene.appears("a", "u-other");
    let death = scene.next().unwrap();
    assert!(scene.carry_out(&death).await);
    assert_eq!(scene.numbers("a"), None, "death comes first");
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((12, 12)));
    assert_eq!(uid(&scene, "a").await, "u-other");
}

#[tokio::test]
async fn nothing_is_born_and_nothing_dies_until_kubernetes_was_listed() {
    let mut scene = cluster(&["a"]).await;
    // A new leader that knows nothing of Kubernetes yet.
    scene.state = State::new(scene.keys.clone()).with_kubernetes();
    scene.look().await;
    let record = scene.keys.netnamespace(&ns("b"));
    scene.write(&record, r#"{"NetName":"b"}"#).await;
    assert_eq!(scene.settle().await, 0);
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 10)), None));
    // Nor is anybody moved: its annotation may say otherwise.
    scene.act(&[("a", &bulkhead_core::Action::Global)]).await;
    assert_eq!(scene.settle().await, 0);
    scene.appears("kube-system", "u-kube-system");
    scene.appears("a", "u-a");
    scene.settle().await;
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 0)), None));
}

#[tokio::test]
async fn a_record_deleted_by_hand_is_made_anew_and_nobody_dies() {
    let mut scene = cluster(&["a"]).await;
    scene.act(&[("a", &bulkhead_core::Action::Global)]).await;
    scene.settle().await;
    let key = scene.keys.netnamespace(&ns("a"));
    let text = scene.text(&key).await;
    scene.delete_watched(std::slice::from_ref(&key)).await;
    assert_eq!(scene.settle().await, 1);
    assert_eq!((scene.text(&key).await, scene.numbers("a")), (text, Some((10, 0))));
}

#[tokio::test]
async fn a_ledger_entry_deleted_by_hand_is_put_back_with_or_without_its_record() {
    for with_record in [false, true] {
        let mut scene = cluster(&["a", "b"]).await;
        scene.act(&[("b", &bulkhead_core::Action::Join(ns("a")))]).await;
        scene.settle().await;
        let mut keys = vec![scene.keys.ledger_namespace(&ns("b"))];
        if with_record {
            keys.push(scene.keys.netnamespace(&ns("b")));
        }
        scene.delete_watched(&keys).await;
        scene.settle().await;
        assert_eq!(scene.numbers("b"), Some((11, 10)));
        assert_eq!(scene.read("b").await.net_id, Some(10));
        // One that is gone from Kubernetes by then is not.
        scene.delete_watched(&keys).await;
        scene.vanishes("b");
        scene.settle().await;
        assert_eq!(scene.numbers("b"), None);
    }
}

#[tokio::test]
async fn a_record_of_no_namespace_is_answered_and_used_when_it_appears() {
    let mut scene = cluster(&["a"]).await;
    scene.record("b", r#"{"NetName":"b","NetID":300924}"#).await;
    assert_eq!(scene.settle().await, 1);
    assert!(scene.read("b").await.error.contains("create it there"));
    assert_eq!(scene.numbers("b"), None);
    scene.appears("b", "u-b");
    scene.settle().await;
    assert_eq!(scene.numbers("b"), Some((300_924, 300_924)));
    assert_eq!(scene.read("b").await.error, "");
}

#[tokio::test]
async fn a_namespace_is_born_whatever_its_record_says() {
    let mut scene = cluster(&["a"]).await;
    for (name, json, number, fault) in [
        ("b", r#"{"NetName":"b","NetID":-1}"#, 12, "negative"),
        ("c", r#"{"NetName":"c","NetID":10}"#, 13, "taken"),
        ("d", r#"{"NetName":"d","NetID":"x","Team":"blue"}"#, 14, "as K8S-OVS does"),
    ] {
        scene.record(name, json).await;
        scene.appears(name, "u");
        scene.settle().await;
        assert_eq!(scene.numbers(name), Some((number, number)), "{json}");
        let error = scene.read(name).await.error;
        assert!(error.starts_with(NOTICE) && error.contains(fault), "{json}: {error}");
    }
}

#[tokio::test]
async fn k8s_ovs_records_are_imported_then_tied_to_living_namespaces() {
    let mut scene = Scene::empty().await.with_kubernetes();
    for (name, number) in [("a", 20), ("b", 20), ("gone", 30)] {
        scene.record(name, &format!(r#"{{"NetName":"{name}","NetID":{number},"Action":"","Namespace":""}}"#)).await;
    }
    scene.settle().await;
    assert_eq!(scene.numbers("a"), None, "nobody knows yet what living namespaces show");
    for name in ["kube-system", "a", "b", "c"] {
        scene.appears(name, &format!("u-{name}"));
    }
    scene.settle().await;
    assert_eq!((scene.numbers("a"), scene.numbers("b").map(|n| n.1)), (Some((20, 20)), Some(20)));
    assert_eq!((uid(&scene, "a").await, uid(&scene, "b").await), ("u-a".into(), "u-b".into()));
    assert_eq!(scene.numbers("gone"), None, "Kubernetes does not have it");
    assert!(scene.numbers("c").is_some());
}

#[tokio::test]
async fn an_annotation_decides_at_birth() {
    let mut scene = cluster(&["a"]).await;
    scene.policy = Policy { global_at_birth: [ns("g"), ns("i")].into(), ..Policy::default() };
    let declared = |network| NamespaceObject { uid: "u".into(), network, ..NamespaceObject::default() };
    scene.object("g", declared(None));
    scene.object("i", declared(Some(Ok(Network::Isolated))));
    scene.object("o", declared(Some(Ok(Network::Global))));
    let birth = scene.next().unwrap();
    assert!(scene.carry_out(&birth).await);
    assert_eq!((scene.numbers("g"), scene.numbers("i")), (Some((12, 0)), Some((13, 13))));
    assert_eq!(scene.numbers("o"), Some((14, 0)));
}

#[tokio::test]
async fn five_hundred_namespaces_are_born_in_few_transactions() {
    let mut scene = cluster(&[]).await;
    let mut objects = Objects::clone(scene.state.source().objects().unwrap());
    let map = std::sync::Arc::make_mut(&mut objects.namespaces);
    map.extend(
        (0..500).map(|n| (ns(&format!("n{n}")), NamespaceObject { uid: format!("u{n}"), ..Default::default() })),
    );
    scene.state.observe(objects);
    assert!(scene.settle().await <= 9);
    assert_eq!(scene.state.tenants().len(), 501);
}
