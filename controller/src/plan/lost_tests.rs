//! A ledger that somebody deletes is put back as it was, and what ends on purpose is not.

use bulkhead_core::Action;
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_store::Txn;

use super::races::{only_the_compare_of, unseen};
use super::scenes::{Scene, ns};

/// a alone, b joined to it, kube-system global, and a node with a subnet.
async fn cluster() -> Scene {
    let mut scene = Scene::of(&["a", "b", "kube-system"]).await;
    scene.act(&[("b", &Action::Join(ns("a")))]).await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    scene
}

fn all(scene: &Scene) -> [Option<(u32, u32)>; 3] {
    ["a", "b", "kube-system"].map(|name| scene.numbers(name))
}

const WHOLE: [Option<(u32, u32)>; 3] = [Some((10, 10)), Some((11, 10)), Some((12, 0))];

/// Every key of ours, as the state knows it.
async fn ours(scene: &Scene) -> Vec<String> {
    let own = format!("{}bulkhead/", scene.keys.root());
    scene.store.list(&own).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn a_ledger_deleted_by_hand_is_put_back_with_every_number() {
    let mut scene = cluster().await;
    let (node, keys) = (scene.state.nodes.clone(), ours(&scene).await);
    scene.delete_watched(&keys).await;
    assert_eq!(all(&scene), [None; 3]);
    let epoch = scene.text(&scene.keys.ledger_cluster()).await;
    assert_eq!(epoch, "");
    scene.settle().await;
    assert_eq!((all(&scene), scene.state.epoch()), (WHOLE, Some(1)));
    assert!(scene.state.nodes.keys().eq(node.keys()));
    assert_eq!(scene.read("b").await.net_id, Some(10));
    scene.record("c", "{}").await;
    scene.settle().await;
    assert_eq!(scene.numbers("c"), Some((13, 13)), "the mark was not lost");
}

#[tokio::test]
async fn a_deletion_that_came_while_the_watch_was_down_is_put_back_too() {
    let mut scene = cluster().await;
    let keys = ours(&scene).await;
    scene.commit(keys.iter().fold(Txn::new(), |txn, key| txn.delete(key.as_str()))).await;
    scene.settle().await;
    assert_eq!(all(&scene), WHOLE);
}

#[tokio::test]
async fn the_clusters_entry_comes_back_last() {
    let mut scene = Scene::of(&[]).await;
    for number in 0..130 {
        scene.record(&format!("n{number}"), "{}").await;
    }
    scene.settle().await;
    let keys = ours(&scene).await;
    for some in keys.chunks(100) {
        scene.delete_watched(some).await;
    }
    let mut steps = 0;
    while scene.state.ledger.len() < 130 {
        assert!(scene.state.cluster.is_none(), "agents would believe a part of it");
        let step = scene.next().unwrap();
        assert!(scene.carry_out(&step).await);
        steps += 1;
    }
    assert!(steps > 1);
    scene.settle().await;
    assert_eq!(scene.state.epoch(), Some(1));
}

#[tokio::test]
async fn one_entry_deleted_by_hand_is_put_back() {
    let mut scene = cluster().await;
    let key = scene.keys.ledger_namespace(&ns("b"));
    scene.delete_watched(&[key]).await;
    scene.settle().await;
    assert_eq!(all(&scene), WHOLE);
    let key = scene.keys.ledger_node("10.0.0.1".parse().unwrap());
    scene.delete_watched(&[key]).await;
    scene.settle().await;
    assert_eq!(scene.state.nodes.len(), 1);
}

#[tokio::test]
async fn a_namespace_that_ends_is_not_put_back() {
    let mut scene = cluster().await;
    let (record, entry) = (scene.keys.netnamespace(&ns("b")), scene.keys.ledger_namespace(&ns("b")));
    scene.delete_watched(&[entry.clone(), record.clone()]).await;
    assert_eq!(scene.next(), None);
    scene.record("b", "{}").await;
    scene.settle().await;
    assert_eq!(scene.numbers("b"), Some((13, 13)), "a new one");
    // Deleted and made anew between two lists: another namespace.
    let gone = Txn::new().delete(record.as_str()).delete(entry.as_str());
    unseen(&scene, gone).await;
    scene.record("b", "{}").await;
    scene.settle().await;
    assert_eq!(scene.numbers("b"), Some((14, 14)));
}

#[tokio::test]
async fn a_cluster_that_ends_with_its_config_is_not_put_back() {
    let mut scene = cluster().await;
    let mut keys = ours(&scene).await;
    keys.push(scene.keys.config());
    scene.delete_watched(&keys).await;
    assert_eq!(scene.next(), None);
    scene.write(&scene.keys.config(), ConfigRecord::EXAMPLE).await;
    scene.settle().await;
    assert_eq!(all(&scene), WHOLE);
}

#[tokio::test]
async fn a_ledger_deleted_while_nobody_led_is_made_anew_from_the_records() {
    let mut scene = cluster().await;
    let keys: Vec<_> = ours(&scene).await.into_iter().filter(|key| key.contains("/ledger/")).collect();
    let txn = keys.iter().fold(Txn::new(), |txn, key| txn.delete(key.as_str()));
    scene.state = crate::state::State::new(scene.keys.clone());
    scene.commit(txn).await;
    scene.settle().await;
    assert_eq!(
        all(&scene),
        [Some((10, 10)), Some((13, 10)), Some((14, 0))],
        "who was joined still is, as was the global one"
    );
    assert_eq!(scene.state.nodes.len(), 1, "the node has the subnet that its record names");
    let numbers = scene.text(&scene.keys.numbers()).await;
    assert_eq!(numbers, r#"{"mark":14}"#);
}

#[tokio::test]
async fn one_that_is_made_anew_says_so_until_it_is_whole() {
    let mut scene = Scene::of(&[]).await;
    for number in 0..130 {
        scene.record(&format!("n{number}"), "{}").await;
    }
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    let keys: Vec<_> = ours(&scene).await.into_iter().filter(|key| key.contains("/ledger/")).collect();
    for some in keys.chunks(100) {
        unseen(&scene, some.iter().fold(Txn::new(), |txn, key| txn.delete(key.as_str()))).await;
    }
    scene.state = crate::state::State::new(scene.keys.clone());
    scene.look().await;
    let (mut steps, mut building) = (0, false);
    while let Some(step) = scene.next() {
        assert!(scene.carry_out(&step).await);
        let cluster = scene.text(&scene.keys.ledger_cluster()).await;
        let whole = scene.state.ledger.len() == 130 && scene.state.nodes.len() == 1;
        building |= cluster.contains(r#""building":true"#);
        assert!(whole || cluster.contains(r#""building":true"#), "agents would believe a part of it");
        steps += 1;
    }
    assert!(building && steps > 2, "{steps}");
    assert!(!scene.text(&scene.keys.ledger_cluster()).await.contains("building"));
}

#[tokio::test]
async fn what_is_put_back_is_of_the_record_that_was_read() {
    let mut scene = cluster().await;
    let key = scene.keys.ledger_namespace(&ns("b"));
    scene.delete_watched(&[key]).await;
    let late = scene.next().unwrap();
    let record = scene.keys.netnamespace(&ns("b"));
    unseen(&scene, Txn::new().delete(record.as_str())).await;
    only_the_compare_of(&mut scene, &record, &late).await;
    assert!(scene.state.ledger.contains_key(&ns("b")), "numbers of nobody");
}

#[tokio::test]
async fn what_is_there_again_is_not_overwritten() {
    let mut scene = cluster().await;
    let key = scene.keys.ledger_namespace(&ns("b"));
    scene.delete_watched(std::slice::from_ref(&key)).await;
    let late = scene.next().unwrap();
    unseen(&scene, Txn::new().put(key.as_str(), r#"{"vni":11,"netId":0}"#)).await;
    only_the_compare_of(&mut scene, &key, &late).await;
    assert_eq!(scene.numbers("b"), Some((11, 10)), "a later change was undone");
}

#[tokio::test]
async fn numbers_that_are_gone_begin_beyond_all_that_the_ledger_shows() {
    let mut scene = cluster().await;
    let key = scene.keys.numbers();
    scene.state = crate::state::State::new(scene.keys.clone());
    scene.commit(Txn::new().delete(key.as_str())).await;
    scene.record("c", "{}").await;
    scene.settle().await;
    let (vni, _) = scene.numbers("c").unwrap();
    assert!(vni > 12 + bulkhead_core::number::JUMP, "{vni}: those of namespaces that died lately are not used again");
    assert_eq!(all(&scene), WHOLE);
}

#[tokio::test]
async fn a_lost_cluster_entry_is_begun_above_the_epoch_that_was_seen() {
    let mut scene = cluster().await;
    let key = scene.keys.ledger_cluster();
    scene.state = crate::state::State::new(scene.keys.clone());
    scene.state.owe(None, 3);
    scene.commit(Txn::new().delete(key.as_str())).await;
    scene.settle().await;
    assert_eq!((scene.state.epoch(), all(&scene)), (Some(4), WHOLE));
}

#[tokio::test]
async fn an_entry_overwritten_with_what_cannot_be_read_comes_back_when_that_is_deleted() {
    let mut scene = cluster().await;
    let key = scene.keys.ledger_namespace(&ns("b"));
    scene.write(&key, "{").await;
    scene.record("c", "{}").await;
    assert_eq!(scene.next(), None, "a newer version may have written it");
    assert!(super::complaints(&scene.state).iter().any(|complaint| complaint.text.contains("Delete the key")));
    scene.delete(&key).await;
    scene.settle().await;
    assert_eq!((all(&scene), scene.numbers("c")), (WHOLE, Some((13, 13))));
}

#[tokio::test]
async fn a_number_in_a_record_that_cannot_be_followed_is_kept_for_it() {
    let mut scene = Scene::empty().await;
    scene.record("a", "{}").await;
    scene.record("b", r#"{"NetName":"b","NetID":"10"}"#).await;
    scene.record("c", r#"{"NetName":"other","NetID":11}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((12, 12)));
    scene.record("b", r#"{"NetName":"b","NetID":10}"#).await;
    scene.record("c", r#"{"NetName":"c","NetID":11}"#).await;
    scene.settle().await;
    assert_eq!((scene.numbers("b"), scene.numbers("c")), (Some((10, 10)), Some((11, 11))));
}
