//! Annotations: what they do, who wins, what is refused, and why each compare is there.

use bulkhead_core::Action;
use bulkhead_core::annotation::{JoinConsent, Network};
use bulkhead_core::tenant::MOVES_PER_TRANSACTION;
use bulkhead_store::Txn;

use super::Note;
use super::races::{applied, only_the_compare_of, unseen};
use super::scenes::{Scene, ns};
use crate::objects::NamespaceObject;

fn declared(text: &str) -> NamespaceObject {
    let network = (!text.is_empty()).then(|| text.parse::<Network>());
    NamespaceObject { uid: "u".into(), network, ..NamespaceObject::default() }
}

/// A settled cluster of namespaces with their annotations, the first with VNI 10.
async fn cluster(namespaces: &[(&str, &str)]) -> Scene {
    let mut scene = Scene::empty().await.with_kubernetes();
    for (name, _) in namespaces {
        scene.object(name, declared(""));
        scene.settle().await;
    }
    scene.appears("kube-system", "u");
    scene.settle().await;
    for (name, text) in namespaces {
        scene.object(name, declared(text));
    }
    scene.settle().await;
    scene
}

fn net(scene: &Scene, name: &str) -> u32 {
    scene.numbers(name).unwrap().1
}

fn nets(scene: &Scene, names: &[&str]) -> Vec<u32> {
    names.iter().map(|name| net(scene, name)).collect()
}

async fn act(scene: &mut Scene, name: &str, action: Action) {
    scene.act(&[(name, &action)]).await;
    scene.settle().await;
}

fn join(target: &str) -> Action {
    Action::Join(ns(target))
}

#[tokio::test]
async fn a_join_and_its_mirror_are_one_transaction_and_happen_once() {
    let mut scene = cluster(&[("a", ""), ("b", "")]).await;
    scene.object("b", declared("join:a"));
    assert_eq!(scene.settle().await, 1);
    assert_eq!(nets(&scene, &["a", "b"]), [10, 10]);
    assert_eq!(scene.read("b").await.net_id, Some(10));
    scene.object("b", declared("isolated"));
    assert_eq!((scene.settle().await, net(&scene, "b")), (1, 11));
    scene.object("b", declared("global"));
    assert_eq!((scene.settle().await, net(&scene, "b")), (1, 0));
}

#[tokio::test]
async fn a_chain_follows_its_end_in_one_transaction_whatever_moves_it() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "join:b"), ("d", "")]).await;
    assert_eq!(nets(&scene, &["a", "b", "c", "d"]), [10, 10, 10, 13]);
    scene.act(&[("a", &join("d"))]).await;
    assert_eq!(scene.settle().await, 1, "by an action");
    assert_eq!(nets(&scene, &["a", "b", "c"]), [13, 13, 13]);
    assert_eq!(scene.read("c").await.net_id, Some(13));
    scene.object("a", declared("global"));
    assert_eq!(scene.settle().await, 1, "by an annotation");
    assert_eq!(nets(&scene, &["a", "b", "c", "d"]), [0, 0, 0, 13]);
}

#[tokio::test]
async fn when_a_target_isolates_those_by_annotation_follow_and_those_by_action_stay() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "")]).await;
    act(&mut scene, "c", join("a")).await;
    assert_eq!(nets(&scene, &["a", "b", "c"]), [10, 10, 10]);
    scene.act(&[("a", &Action::Isolate)]).await;
    assert_eq!(scene.settle().await, 1);
    assert_eq!(nets(&scene, &["a", "b", "c"]), [14, 14, 10]);
    act(&mut scene, "a", Action::Isolate).await;
    assert_eq!(net(&scene, "a"), 14, "followers are no reason to move again");
    // The same by annotation.
    act(&mut scene, "c", join("a")).await;
    scene.object("a", declared("isolated"));
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "b"]), [10, 10], "its own number is free again");
    assert_eq!(net(&scene, "c"), 14);
}

#[tokio::test]
async fn an_annotation_wins_over_actions_and_says_so() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "isolated"), ("d", ""), ("e", "join:c")]).await;
    for (name, action, says) in [
        ("b", Action::Global, "says join:a, and the annotation wins"),
        ("b", join("d"), "bulkhead.dev/network-"),
        ("c", join("a"), "says isolated"),
        ("d", join("c"), "annotate namespace d bulkhead.dev/network=join:c"),
        ("d", join("e"), "c says isolated, so nobody joins it by an action"),
    ] {
        let before = nets(&scene, &["a", "b", "c", "d", "e"]);
        act(&mut scene, name, action).await;
        let record = scene.read(name).await;
        assert!(record.error.contains(says), "{record:?}");
        assert_eq!(nets(&scene, &["a", "b", "c", "d", "e"]), before);
    }
    // With the annotation gone the same action works, and the namespace stayed where it was until then.
    scene.object("b", declared(""));
    scene.settle().await;
    assert_eq!(net(&scene, "b"), 10, "what was refused does not happen by surprise");
    assert_eq!((scene.read("b").await.action, scene.read("b").await.error), (String::new(), String::new()));
    act(&mut scene, "b", join("d")).await;
    assert_eq!(net(&scene, "b"), 13);
}

#[tokio::test]
async fn without_its_annotation_a_namespace_stays_where_it_is() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a")]).await;
    scene.object("b", declared(""));
    assert_eq!(scene.settle().await, 0);
    act(&mut scene, "a", Action::Global).await;
    assert_eq!(nets(&scene, &["a", "b"]), [0, 10], "and follows nobody");
}

#[tokio::test]
async fn what_cannot_be_followed_moves_nobody() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "join:b")]).await;
    for (name, text) in [("a", "join:c"), ("a", "join:a"), ("a", "merge"), ("a", "join:nobody"), ("b", "x")] {
        scene.object(name, declared(text));
        assert_eq!(scene.settle().await, 0, "{name} {text}");
        assert_eq!(nets(&scene, &["a", "b", "c"]), [10, 10, 10]);
        act(&mut scene, name, Action::Global).await;
        assert!(scene.read(name).await.error.contains("the annotation wins"), "{name} {text}");
        assert_eq!(net(&scene, name), 10);
        scene.object(name, declared(if name == "a" { "" } else { "join:a" }));
        scene.delete(&scene.keys.netnamespace(&ns(name))).await;
        scene.settle().await;
    }
}

#[tokio::test]
async fn whoever_follows_into_a_circle_follows_whom_it_names() {
    let mut scene = cluster(&[("a", "join:b"), ("b", "join:a"), ("c", "join:a")]).await;
    assert_eq!(nets(&scene, &["a", "b", "c"]), [10, 11, 10]);
    scene.object("b", declared("isolated"));
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "b", "c"]), [11, 11, 11]);
}

#[tokio::test]
async fn a_join_waits_for_its_target_and_survives_its_end() {
    let mut scene = cluster(&[("a", "join:late")]).await;
    assert_eq!(net(&scene, "a"), 10);
    scene.appears("late", "u1");
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "late"]), [12, 12]);
    scene.vanishes("late");
    scene.settle().await;
    assert_eq!(net(&scene, "a"), 12, "the last good state");
    scene.appears("late", "u2");
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "late"]), [13, 13]);
}

#[tokio::test]
async fn consent_is_asked_for_where_the_cluster_asks_for_it() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "")]).await;
    scene.policy.require_join_consent = true;
    scene.object("c", declared("join:a"));
    assert_eq!(scene.settle().await, 0);
    assert_eq!(nets(&scene, &["b", "c"]), [10, 12], "b stays where it was when it was welcome");
    let consent = Some(Ok(JoinConsent::Of([ns("c")].into())));
    scene.object("a", NamespaceObject { consent, ..declared("global") });
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "b", "c"]), [0, 10, 0]);
}

#[tokio::test]
async fn isolated_namespaces_part_without_wasting_numbers() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "join:a")]).await;
    for name in ["a", "b", "c"] {
        scene.object(name, declared("isolated"));
    }
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "b", "c"]), [10, 11, 12], "each at home");
}

#[tokio::test]
async fn more_followers_than_fit_move_in_chunks_and_it_is_said() {
    let names: Vec<String> = (0..200).map(|n| format!("n{n:03}")).collect();
    let mut all = vec![("a", ""), ("b", "")];
    all.extend(names.iter().map(|name| (name.as_str(), "join:a")));
    let mut scene = cluster(&all).await;
    for by_action in [true, false] {
        if by_action {
            scene.act(&[("a", &join("b"))]).await;
        } else {
            scene.object("a", declared("global"));
        }
        let (mut steps, mut splits, mut largest) = (0, 0, 0);
        while let Some(step) = scene.next() {
            assert_eq!(step.txn_unfenced().check(), Ok(()));
            splits += step.notes().iter().filter(|note| matches!(note, Note::Split { .. })).count();
            largest = largest.max(step.notes().len());
            assert!(scene.carry_out(&step).await);
            steps += 1;
        }
        assert_eq!((steps, splits), (4, 3), "201 namespaces, the target first");
        assert!(largest >= MOVES_PER_TRANSACTION);
        scene.settle().await;
        assert!(names.iter().all(|name| net(&scene, name) == net(&scene, "a")));
    }
}

#[tokio::test]
async fn a_follower_that_moves_by_an_action_moves_by_it_alone() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "")]).await;
    // The follower's own record bears an action of its own: it is answered, not overwritten.
    scene.act(&[("a", &join("c")), ("b", &Action::Global)]).await;
    scene.settle().await;
    assert_eq!(nets(&scene, &["a", "b"]), [12, 12]);
    let record = scene.read("b").await;
    assert!(record.error.contains("annotation wins") && record.net_id == Some(12), "{record:?}");
}

fn ledger_key(scene: &Scene, name: &str) -> String {
    scene.keys.ledger_namespace(&ns(name))
}

/// A cluster in which b is to follow a.
async fn about_to_follow() -> (Scene, super::Step) {
    let mut scene = cluster(&[("a", ""), ("b", "")]).await;
    scene.object("b", declared("join:a"));
    let step = scene.next().unwrap();
    (scene, step)
}

#[tokio::test]
async fn a_follower_reads_its_target_in_the_same_transaction() {
    let (mut scene, late) = about_to_follow().await;
    let mut other = scene.rival();
    other.object("b", declared(""));
    other.record_alone("a", r#"{"NetName":"a","NetID":10,"Action":"global"}"#).await;
    assert!(applied(&scene, &other.next().unwrap()).await);
    let key = ledger_key(&scene, "a");
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(nets(&scene, &["a", "b"]), [0, 10], "followed to where a was");
}

#[tokio::test]
async fn a_follower_does_not_overwrite_a_ledger_entry_that_was_not_read() {
    let (mut scene, late) = about_to_follow().await;
    let key = ledger_key(&scene, "b");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":99,"netId":99,"uid":"u"}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("b"), Some((11, 10)), "a VNI changed");
}

#[tokio::test]
async fn a_follower_does_not_overwrite_an_action_that_was_not_read() {
    let (mut scene, late) = about_to_follow().await;
    let key = scene.keys.netnamespace(&ns("b"));
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"NetName":"b","NetID":11,"Action":"global"}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.read("b").await.action, "", "it was not answered");
}

#[tokio::test]
async fn a_fresh_number_by_annotation_is_never_shared() {
    let mut scene = cluster(&[("a", ""), ("b", "")]).await;
    act(&mut scene, "b", join("a")).await;
    let mut other = scene.rival();
    scene.object("a", declared("isolated"));
    let late = scene.next().unwrap();
    other.appears("x", "u");
    assert!(applied(&scene, &other.next().unwrap()).await);
    let key = scene.keys.numbers();
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(net(&scene, "a"), net(&scene, "x"), "one number twice");
}

#[tokio::test]
async fn followers_that_an_action_takes_along_are_of_the_entries_that_were_read() {
    let mut scene = cluster(&[("a", ""), ("b", "join:a")]).await;
    scene.act(&[("a", &Action::Global)]).await;
    let late = scene.next().unwrap();
    let key = ledger_key(&scene, "b");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":99,"netId":99,"uid":"u"}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("b"), Some((11, 0)), "a VNI changed");
}

#[tokio::test]
async fn a_tie_is_of_the_entry_that_was_read() {
    let mut scene = Scene::empty().await.with_kubernetes();
    scene.record("a", r#"{"NetName":"a","NetID":20}"#).await;
    scene.settle().await;
    scene.appears("kube-system", "u");
    scene.appears("a", "u");
    let late = scene.next().unwrap();
    let key = ledger_key(&scene, "a");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":20,"netId":0}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("a"), Some((20, 20)), "a move was undone");
}

#[tokio::test]
async fn a_death_by_kubernetes_is_of_the_record_that_was_read() {
    let mut scene = cluster(&[("a", "")]).await;
    scene.vanishes("a");
    let late = scene.next().unwrap();
    let key = scene.keys.netnamespace(&ns("a"));
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"NetName":"a","NetID":10,"Team":"blue"}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.text(&key).await, "", "what a person wrote was deleted unread");
}
