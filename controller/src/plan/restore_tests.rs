//! What the plan does after a restore of etcd, and why each of its compares is there.

use bulkhead_core::Numbers;
use bulkhead_core::ledger::parse;
use bulkhead_core::number::JUMP;
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_store::Txn;

use super::complaints;
use super::races::{only_the_compare_of, unseen};
use super::scenes::Scene;
use crate::objects::NodeObject;
use crate::state::State;

const NAMED: &str = r#"{"Host":"n1","HostIP":"10.0.0.1","Subnet":"172.11.0.0/22","Assign":true}"#;
const ASKED: &str = r#"{"Requested":"restored from a snapshot"}"#;

async fn asked() -> Scene {
    let mut scene = Scene::of(&["a"]).await;
    scene.write(&scene.keys.restore(), ASKED).await;
    scene
}

async fn epoch_and_mark(scene: &Scene) -> (u64, u32) {
    let numbers: Numbers = parse(scene.text(&scene.keys.numbers()).await.as_bytes()).unwrap();
    (scene.state.epoch().unwrap(), numbers.mark())
}

#[tokio::test]
async fn a_restore_raises_the_epoch_and_passes_by_what_may_be_given_out() {
    let mut scene = asked().await;
    scene.record("late", "{}").await;
    let step = scene.next().unwrap();
    assert!(step.writes().keys().all(|key| !key.contains("late")), "before any birth: {step:?}");
    assert!(scene.carry_out(&step).await);
    scene.look().await;
    let (epoch, mark) = epoch_and_mark(&scene).await;
    assert!(epoch == 2 && mark >= 10 + JUMP, "{epoch} {mark}");
    assert_eq!(scene.text(&scene.keys.restore()).await, "");
    scene.settle().await;
    assert_eq!(epoch_and_mark(&scene).await, (2, mark + 1), "once");
    assert_eq!((scene.numbers("a"), scene.numbers("late")), (Some((10, 10)), Some((mark + 1, mark + 1))));
}

#[tokio::test]
async fn a_broken_history_is_dealt_with_once_above_the_epoch_that_was_seen() {
    let mut scene = Scene::of(&["a"]).await;
    scene.state.owe(Some(3), 3);
    assert_eq!(scene.settle().await, 1);
    let (epoch, mark) = epoch_and_mark(&scene).await;
    assert!(epoch == 4 && mark >= 10 + 3 * JUMP, "{epoch} {mark}");
}

/// Agents saw epoch 3, etcd went back to 1, and the controllers were started afterwards.
#[tokio::test]
async fn a_restore_rises_above_the_epoch_that_it_names() {
    for (above, epoch) in [(3, 4), (1, 2), (0, 2)] {
        let mut scene = Scene::of(&["a"]).await;
        scene.write(&scene.keys.restore(), &format!(r#"{{"Requested":"","Above":{above}}}"#)).await;
        assert_eq!(scene.settle().await, 1);
        let (risen, mark) = epoch_and_mark(&scene).await;
        assert!(risen == epoch && mark >= 10 + (u32::try_from(epoch).unwrap() - 1) * JUMP, "{above}: {risen} {mark}");
        assert_eq!(scene.text(&scene.keys.restore()).await, "");
    }
}

#[tokio::test]
async fn a_restore_above_what_no_agent_can_have_seen_is_answered_and_holds_nothing_up() {
    for above in ["4294967296", "18446744073709551615", "-1", "\"3\""] {
        let mut scene = Scene::of(&["a"]).await;
        scene.write(&scene.keys.restore(), &format!(r#"{{"Requested":"","Above":{above}}}"#)).await;
        scene.record("b", "{}").await;
        scene.settle().await;
        assert!(scene.text(&scene.keys.restore()).await.contains("Error"), "{above}");
        assert_eq!((scene.state.epoch(), scene.numbers("b")), (Some(1), Some((11, 11))), "{above}");
        scene.state.owe(Some(1), 1);
        scene.settle().await;
        assert_eq!(scene.state.epoch(), Some(2), "nor what is owed");
        assert!(scene.text(&scene.keys.restore()).await.contains("Error"), "{above}");
    }
}

#[tokio::test]
async fn an_etcd_without_a_ledger_begins_above_what_was_seen() {
    let mut scene = Scene::empty().await;
    scene.record("a", "{}").await;
    scene.state.owe(Some(1), 1);
    scene.settle().await;
    let (epoch, mark) = epoch_and_mark(&scene).await;
    assert!(epoch == 2 && mark > JUMP, "{epoch} {mark}");
    assert_eq!(scene.numbers("a"), Some((mark, mark)));
}

#[tokio::test]
async fn without_a_ledger_it_waits_and_says_so() {
    let mut scene = Scene::with_config("{").await;
    scene.write(&scene.keys.restore(), ASKED).await;
    assert_eq!(scene.settle().await, 1);
    let answer = scene.text(&scene.keys.restore()).await;
    assert!(answer.contains(r#""Requested":"restored"#) && answer.contains("no ledger yet"), "{answer}");
    assert!(complaints(&scene.state).iter().any(|complaint| complaint.key == scene.keys.restore()));
    scene.write(&scene.keys.config(), ConfigRecord::EXAMPLE).await;
    scene.settle().await;
    assert_eq!(scene.text(&scene.keys.restore()).await, "");
    assert_eq!(scene.state.epoch(), Some(2));
}

#[tokio::test]
async fn what_is_no_record_is_answered_and_holds_nothing_up() {
    let mut scene = Scene::of(&["a"]).await;
    scene.write(&scene.keys.restore(), r#"{"Requested":7}"#).await;
    scene.record("b", "{}").await;
    scene.settle().await;
    assert!(scene.text(&scene.keys.restore()).await.contains("Error"));
    assert_eq!((scene.state.epoch(), scene.numbers("b")), (Some(1), Some((11, 11))));
    scene.state.owe(Some(1), 1);
    scene.settle().await;
    assert_eq!(scene.state.epoch(), Some(2), "nor what is owed");
}

#[tokio::test]
async fn numbers_that_cannot_be_read_hold_everything_up() {
    let mut scene = asked().await;
    scene.write(&scene.keys.numbers(), "{").await;
    scene.state.owe(Some(1), 1);
    scene.record("b", "{}").await;
    assert_eq!(scene.settle().await, 1);
    assert!(scene.text(&scene.keys.restore()).await.contains("cannot be read"));
    assert_eq!(scene.state.epoch(), Some(1));
}

#[tokio::test]
async fn a_wish_taken_back_meanwhile_changes_nothing() {
    let mut scene = asked().await;
    let late = scene.next().unwrap();
    let key = scene.keys.restore();
    unseen(&scene, Txn::new().delete(key.as_str())).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.state.epoch(), Some(2), "raised for nobody");
}

#[tokio::test]
async fn a_restore_is_of_the_clusters_entry_that_was_read() {
    let mut scene = asked().await;
    let late = scene.next().unwrap();
    let key = scene.keys.ledger_cluster();
    let other = scene.text(&key).await.replace(r#""epoch":1"#, r#""epoch":7"#);
    unseen(&scene, Txn::new().put(key.as_str(), other)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.state.epoch(), Some(2), "the epoch went back");
}

#[tokio::test]
async fn a_restore_does_not_lose_the_numbers_given_out_meanwhile() {
    let mut scene = asked().await;
    let late = scene.next().unwrap();
    let key = scene.keys.numbers();
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"mark":5000000}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert!(epoch_and_mark(&scene).await.1 < 5_000_000, "the mark went back");
}

#[tokio::test]
async fn behind_a_raised_epoch_those_who_name_their_subnet_come_first_whoever_leads() {
    let mut scene = asked().await;
    scene.settle().await;
    scene.asks("new", "10.0.0.9").await;
    assert_eq!(scene.settle().await, 1, "it waits");
    assert!(scene.read_subnet("10.0.0.9").await.error.contains("for a minute"));
    // Another leader, which knows only what is in etcd.
    scene.state = State::new(scene.keys.clone());
    scene.look().await;
    assert_eq!(scene.next(), None, "it still waits");
    scene.subnet("10.0.0.1", NAMED).await;
    scene.settle().await;
    // The time of an earlier rise is not the time of this one.
    scene.state.settle(Some(1));
    assert_eq!(scene.next(), None);
    scene.state.settle(Some(2));
    scene.settle().await;
    assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.0.0/22");
    assert_eq!(scene.read_subnet("10.0.0.9").await.subnet, "172.11.4.0/22");
    scene.state.settle(None);
    scene.asks("later", "10.0.0.10").await;
    scene.settle().await;
    assert_eq!(scene.read_subnet("10.0.0.10").await.subnet, "172.11.8.0/22", "once");
}

#[tokio::test]
async fn that_they_had_their_time_is_said_of_the_rise_that_was_read() {
    for which in ["cluster", "numbers"] {
        let mut scene = asked().await;
        scene.settle().await;
        scene.state.settle(Some(2));
        let late = scene.next().unwrap();
        let (cluster, numbers) = (scene.keys.ledger_cluster(), scene.keys.numbers());
        let key = if which == "cluster" { cluster } else { numbers };
        let text = scene.text(&key).await;
        unseen(&scene, Txn::new().put(key.as_str(), text)).await;
        only_the_compare_of(&mut scene, &key, &late).await;
    }
}

/// More than one transaction takes, so the leader may be lost between two of them.
#[tokio::test]
async fn a_node_made_anew_since_the_snapshot_keeps_its_subnet_if_the_leader_is_lost_behind_the_rise() {
    let mut scene = Scene::empty().await.with_kubernetes();
    scene.appears("kube-system", "u-kube-system");
    scene.node("n1", "u-first", &["10.0.0.1"]);
    scene.settle().await;
    for number in 0..100 {
        scene.appears(&format!("young{number}"), &format!("u{number}"));
    }
    let addresses = vec!["10.0.0.1".parse().unwrap()];
    let made_anew = NodeObject {
        uid: "u-second".into(),
        addresses,
        shown_subnet: Some("172.11.40.0/22".into()),
        ..NodeObject::default()
    };
    scene.node_object("n1", made_anew);
    scene.state.owe(Some(1), 1);
    let rise = scene.next().unwrap();
    assert!(scene.carry_out(&rise).await);
    assert_eq!(scene.state.epoch(), Some(2));
    assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.0.0/22", "not in the same transaction");
    let shown = scene.state.source().objects().cloned().unwrap();
    scene.state = State::new(scene.keys.clone()).with_kubernetes();
    scene.look().await;
    scene.state.observe(shown);
    scene.settle().await;
    assert_eq!(scene.read_subnet("10.0.0.1").await.subnet, "172.11.40.0/22");
}
