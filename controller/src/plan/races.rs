//! Why each compare is there: what happens in between, and what would come of it without that compare.
//!
//! Each test plans a step, lets something happen that the plan did not see, and shows that the step is refused, and
//! that without the one compare it would be carried out with a wrong result. What the plan did not see can be a
//! person's write, or an own write whose outcome was unknown and that arrives late: then the fence does not help.

use bulkhead_core::Action;
use bulkhead_store::{Outcome, Txn};

use super::Step;
use super::scenes::{Scene, ns};

fn join(target: &str) -> Action {
    Action::Join(ns(target))
}

pub(super) async fn applied(scene: &Scene, step: &Step) -> bool {
    matches!(scene.store.commit(step.txn_unfenced()).await.unwrap(), Outcome::Done { .. })
}

/// The step is refused for this key alone; carried out without its compare, it leaves the scene as it should not be.
pub(super) async fn only_the_compare_of(scene: &mut Scene, key: &str, late: &Step) {
    assert!(!applied(scene, late).await, "carried out in spite of {key}: {late:?}");
    assert!(applied(scene, &late.without(key)).await, "another compare refuses it too: {late:?}");
    scene.look().await;
}

/// Writes something that the state does not see yet.
pub(super) async fn unseen(scene: &Scene, txn: Txn) {
    assert!(matches!(scene.store.commit(txn).await.unwrap(), Outcome::Done { .. }));
}

fn record_key(scene: &Scene, name: &str) -> String {
    scene.keys.netnamespace(&ns(name))
}

fn ledger_key(scene: &Scene, name: &str) -> String {
    scene.keys.ledger_namespace(&ns(name))
}

#[tokio::test]
async fn an_action_rewritten_meanwhile_is_not_lost() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.act(&[("a", &join("b"))]).await;
    let late = scene.next().unwrap();
    let key = record_key(&scene, "a");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"NetName":"a","NetID":10,"Action":"global"}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((10, 11)), "the user's `global` was overwritten");
}

#[tokio::test]
async fn a_join_reads_its_target_in_the_same_transaction() {
    let mut scene = Scene::of(&["a", "b"]).await;
    let mut other = scene.rival();
    scene.act(&[("a", &join("b"))]).await;
    let late = scene.next().unwrap();
    // The target moves on by a write of ours that arrives first.
    other.record_alone("b", r#"{"NetName":"b","NetID":11,"Action":"global"}"#).await;
    assert!(applied(&scene, &other.next().unwrap()).await);
    let key = ledger_key(&scene, "b");
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 11)), Some((11, 0))), "joined to where b was");
}

#[tokio::test]
async fn a_join_to_a_target_that_dies_meanwhile_does_not_happen() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.act(&[("a", &join("b"))]).await;
    let late = scene.next().unwrap();
    let mut other = scene.rival();
    other.delete(&record_key(&scene, "b")).await;
    let death = other.next().unwrap();
    assert!(applied(&scene, &death).await);
    let key = ledger_key(&scene, "b");
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 11)), None), "in a network of nobody");
}

#[tokio::test]
async fn a_move_does_not_overwrite_a_ledger_entry_that_it_did_not_read() {
    let mut scene = Scene::of(&["a"]).await;
    scene.act(&[("a", &Action::Global)]).await;
    let late = scene.next().unwrap();
    // The namespace died and was born again under another number; its record bytes are made equal by the test.
    let key = ledger_key(&scene, "a");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":99,"netId":99}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("a"), Some((10, 0)), "a VNI changed");
}

#[tokio::test]
async fn two_leaders_never_give_out_one_number() {
    let mut scene = Scene::of(&["a"]).await;
    let mut other = scene.rival();
    scene.record_alone("x", "{}").await;
    other.record_alone("y", "{}").await;
    let (first, second) = (scene.next().unwrap(), other.next().unwrap());
    assert!(applied(&scene, &first).await);
    let key = scene.keys.numbers();
    only_the_compare_of(&mut scene, &key, &second).await;
    assert_eq!(scene.numbers("x"), scene.numbers("y"), "one number twice");
}

#[tokio::test]
async fn a_number_chosen_by_hand_and_one_given_out_are_not_the_same() {
    let mut scene = Scene::of(&["a"]).await;
    let mut other = scene.rival();
    scene.record_alone("chosen", r#"{"NetName":"chosen","NetID":11}"#).await;
    other.record_alone("x", "{}").await;
    let chosen = scene.next().unwrap();
    let given = other.next().unwrap();
    // In either order: a birth with a chosen number touches the numbers' key, too.
    assert!(applied(&scene, &chosen).await);
    let key = scene.keys.numbers();
    only_the_compare_of(&mut scene, &key, &given).await;
    assert_eq!((scene.numbers("x"), scene.numbers("chosen")), (Some((11, 11)), Some((11, 11))), "one number twice");
}

#[tokio::test]
async fn a_namespace_is_not_born_twice() {
    let mut scene = Scene::of(&["a"]).await;
    scene.record("x", "{}").await;
    let late = scene.next().unwrap();
    // An earlier write arrives that gave numbers to x; neither the record nor the numbers tell of it.
    let key = ledger_key(&scene, "x");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":50,"netId":50}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("x"), Some((11, 11)), "a VNI changed");
}

#[tokio::test]
async fn a_namespace_that_is_deleted_while_it_is_born_does_not_come_back() {
    let mut scene = Scene::of(&["a"]).await;
    scene.record("x", "{}").await;
    let late = scene.next().unwrap();
    let key = record_key(&scene, "x");
    unseen(&scene, Txn::new().delete(key.as_str())).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_ne!(scene.text(&key).await, "", "the record that a person deleted is back");
}

#[tokio::test]
async fn a_namespace_put_back_before_it_was_removed_keeps_its_numbers() {
    let mut scene = Scene::of(&["a"]).await;
    let key = record_key(&scene, "a");
    let text = scene.text(&key).await;
    scene.delete(&key).await;
    let late = scene.next().unwrap();
    unseen(&scene, Txn::new().put(key.as_str(), text)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("a"), None, "a live namespace lost its numbers");
}

#[tokio::test]
async fn a_death_is_of_the_entry_that_was_read() {
    let mut scene = Scene::of(&["a"]).await;
    scene.delete(&record_key(&scene, "a")).await;
    let late = scene.next().unwrap();
    let key = ledger_key(&scene, "a");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":50,"netId":50}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("a"), None, "another entry than the one whose numbers were released");
}

#[tokio::test]
async fn a_mirror_is_of_the_entry_that_was_read_and_does_not_overwrite_an_action() {
    let mut scene = Scene::of(&["a"]).await;
    let key = record_key(&scene, "a");
    scene.write(&key, r#"{"NetName":"a","NetID":99}"#).await;
    let late = scene.next().unwrap();
    let ledger = ledger_key(&scene, "a");
    let before = scene.text(&ledger).await;
    unseen(&scene, Txn::new().put(ledger.as_str(), r#"{"vni":10,"netId":0}"#)).await;
    only_the_compare_of(&mut scene, &ledger, &late).await;
    assert_eq!(scene.read("a").await.net_id, Some(10), "the mirror shows what is no more");

    unseen(&scene, Txn::new().put(ledger, before)).await;
    scene.write(&key, r#"{"NetName":"a","NetID":99}"#).await;
    let late = scene.next().unwrap();
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"NetName":"a","NetID":10,"Action":"global"}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.read("a").await.action, "", "the user's action was overwritten");
}

#[tokio::test]
async fn an_answer_does_not_overwrite_what_a_person_mended_meanwhile() {
    let mut scene = Scene::of(&["a"]).await;
    for (name, json) in [("a", r#"{"NetName":"a","NetID":10,"Action":"merge"}"#), ("x", r#"{"NetName":"x","NetID":5}"#)]
    {
        let key = record_key(&scene, name);
        scene.write(&key, json).await;
        let late = scene.next().unwrap();
        unseen(&scene, Txn::new().put(key.as_str(), r#"{"Action":"isolate"}"#)).await;
        only_the_compare_of(&mut scene, &key, &late).await;
        assert_ne!(scene.read(name).await.action, "isolate", "the mended record was overwritten");
        scene.delete(&key).await;
        scene.settle().await;
    }
}

#[tokio::test]
async fn an_import_happens_once() {
    let mut scene = Scene::empty().await;
    let cluster = scene.next().unwrap();
    assert!(scene.carry_out(&cluster).await);
    scene.record("a", "{}").await;
    let late = scene.next().unwrap();
    // Another import is done and a number given out since.
    let key = scene.keys.numbers();
    let txn = Txn::new().put(key.as_str(), r#"{"mark":10}"#).put(ledger_key(&scene, "z"), r#"{"vni":10,"netId":10}"#);
    unseen(&scene, txn).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("a"), scene.numbers("z"), "one number twice");
}

#[tokio::test]
async fn an_isolate_that_needs_a_fresh_number_never_shares_it() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.act(&[("b", &join("a"))]).await;
    scene.settle().await;
    let mut other = scene.rival();
    scene.act(&[("a", &Action::Isolate)]).await;
    let late = scene.next().unwrap();
    other.record_alone("x", "{}").await;
    assert!(applied(&scene, &other.next().unwrap()).await);
    let key = scene.keys.numbers();
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("a").unwrap().1, scene.numbers("x").unwrap().1, "one number twice");
}

#[tokio::test]
async fn a_release_of_a_number_does_not_undo_a_later_allocation() {
    let mut scene = Scene::of(&["a"]).await;
    scene.record("b", r#"{"NetName":"b","NetID":100}"#).await;
    scene.settle().await;
    let mut other = scene.rival();
    scene.delete(&record_key(&scene, "b")).await;
    let late = scene.next().unwrap();
    other.record_alone("x", "{}").await;
    assert!(applied(&scene, &other.next().unwrap()).await);
    let key = scene.keys.numbers();
    let mark = scene.text(&key).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_ne!(scene.text(&key).await.get(..10), mark.get(..10), "the mark went back");
}

#[tokio::test]
async fn an_answer_shows_the_net_id_of_the_entry_that_was_read() {
    let mut scene = Scene::of(&["a"]).await;
    scene.record("a", r#"{"NetName":"a","NetID":10,"Action":"merge"}"#).await;
    let late = scene.next().unwrap();
    let key = ledger_key(&scene, "a");
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":10,"netId":0}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.read("a").await.net_id, Some(10), "the mirror shows what is no more");
}
