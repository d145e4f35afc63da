//! What the plan does with namespaces.

use bulkhead_core::Action;
use bulkhead_core::record::NetNamespaceRecord;
use bulkhead_core::tenant::MOVES_PER_TRANSACTION;

use super::scenes::{Scene, ns};
use super::{NOTICE, Note};

fn join(target: &str) -> Action {
    Action::Join(ns(target))
}

#[tokio::test]
async fn every_namespace_gets_its_numbers_and_kube_system_is_global() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.record("kube-system", r#"{"NetName":"kube-system"}"#).await;
    scene.record("shop", r#"{"NetName":"shop","NetID":300924,"Action":"","Namespace":""}"#).await;
    scene.record("open", r#"{"NetID":0,"Team":"blue"}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((10, 10)));
    assert_eq!(scene.numbers("b"), Some((11, 11)));
    assert_eq!(scene.numbers("kube-system"), Some((12, 0)));
    assert_eq!(scene.numbers("open"), Some((13, 0)));
    assert_eq!(scene.numbers("shop"), Some((300_924, 300_924)));
    let text = scene.text(&scene.keys.netnamespace(&ns("open"))).await;
    assert_eq!(text, r#"{"NetName":"open","NetID":0,"Action":"","Namespace":"","Team":"blue"}"#);
}

#[tokio::test]
async fn a_record_that_cannot_be_born_is_answered_and_gets_nothing() {
    let mut scene = Scene::of(&["a"]).await;
    for (json, fault) in [
        (r#"{"NetName":"x","NetID":-1}"#, "negative"),
        (r#"{"NetName":"x","NetID":5}"#, "reserved"),
        (r#"{"NetName":"x","NetID":16777216}"#, "24 bits"),
        (r#"{"NetName":"x","NetID":10}"#, "taken"),
        (r#"{"NetName":"y","NetID":50}"#, "differs from x"),
        (r#"{"NetName":"x","NetID":"50","Team":"blue"}"#, "as K8S-OVS does"),
        (r#"{"NetName":"x","NetID":50.5,"Team":"blue"}"#, "as K8S-OVS does"),
    ] {
        scene.record("x", json).await;
        scene.settle().await;
        let text = scene.text(&scene.keys.netnamespace(&ns("x"))).await;
        assert!(text.contains(r#""Error":""#) && text.contains(fault), "{json} -> {text}");
        assert_eq!(json.contains("Team"), text.contains(r#""Team":"blue""#), "{json} -> {text}");
        assert_eq!(scene.numbers("x"), None, "{json}");
        scene.delete(&scene.keys.netnamespace(&ns("x"))).await;
        scene.settle().await;
    }
    // Mended, it is born; what it asked for is free.
    scene.record("x", r#"{"NetName":"x","NetID":-1}"#).await;
    scene.settle().await;
    scene.record("x", r#"{"NetName":"x","NetID":50,"Error":"old"}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("x"), Some((50, 50)));
    assert_eq!(scene.read("x").await.error, "");
}

#[tokio::test]
async fn what_is_not_json_or_not_a_name_is_left_alone_and_complained_of_once_per_revision() {
    let mut scene = Scene::of(&[]).await;
    scene.record("x", "hello").await;
    scene.write(&format!("{}Bad_Name", scene.keys.netnamespaces()), "{}").await;
    assert_eq!(scene.settle().await, 0);
    let complaints = super::complaints(&scene.state);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints.iter().all(|complaint| complaint.revision > 0));
}

#[tokio::test]
async fn join_isolate_and_global_are_carried_out_and_blanked() {
    let mut scene = Scene::of(&["a", "b", "c"]).await;
    for (who, action, net_id) in [
        ("b", join("a"), 10),
        ("c", join("b"), 10),
        ("b", Action::Isolate, 11),
        ("a", Action::Isolate, 13),
        ("b", Action::Global, 0),
        ("a", join("b"), 0),
        ("b", Action::Isolate, 11),
    ] {
        scene.act(&[(who, &action)]).await;
        assert_eq!(scene.settle().await, 1, "one transaction does all");
        let record = scene.read(who).await;
        assert_eq!(scene.numbers(who).unwrap().1, net_id, "{who} {action:?}");
        assert_eq!((record.net_id, record.action.as_str(), record.namespace.as_str()), (Some(net_id.into()), "", ""));
    }
    let vnis: Vec<_> = ["a", "b", "c"].iter().map(|name| scene.numbers(name).unwrap().0).collect();
    assert_eq!(vnis, [10, 11, 12], "a VNI never changes");
}

#[tokio::test]
async fn a_bad_action_stays_beside_its_error_until_it_is_taken_back() {
    let mut scene = Scene::of(&["a", "b"]).await;
    for (action, target, fault) in [
        ("merge", "b", "not known"),
        ("join", "a", "itself"),
        ("join", "B/../c", "not valid"),
        ("join", "", "not valid"),
        ("join", "nobody", "waits"),
    ] {
        let json = format!(r#"{{"NetName":"a","NetID":10,"Action":"{action}","Namespace":"{target}","Team":"blue"}}"#);
        scene.record("a", &json).await;
        assert_eq!(scene.settle().await, 1);
        let record = scene.read("a").await;
        assert!(record.error.contains(fault), "{json} -> {}", record.error);
        assert_eq!((record.action.as_str(), record.namespace.as_str()), (action, target));
        assert!(record.unknown.contains_key("Team"));
        assert_eq!(scene.numbers("a"), Some((10, 10)));
    }
    let record = NetNamespaceRecord { action: String::new(), namespace: String::new(), ..scene.read("a").await };
    scene.record("a", std::str::from_utf8(&bulkhead_core::record::Record::to_json(&record)).unwrap()).await;
    scene.settle().await;
    assert_eq!(scene.read("a").await.error, "");
}

#[tokio::test]
async fn a_join_waits_for_its_target_and_works_when_it_appears() {
    let mut scene = Scene::of(&["a"]).await;
    scene.act(&[("a", &join("late"))]).await;
    scene.settle().await;
    assert!(scene.read("a").await.error.contains("waits"));
    scene.record("late", r#"{"NetName":"late","NetID":77}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((10, 77)));
    assert_eq!(scene.read("a").await.error, "");
}

#[tokio::test]
async fn a_namespace_may_come_with_its_action() {
    let mut scene = Scene::of(&["a"]).await;
    scene.record("b", r#"{"NetName":"b","Action":"join","Namespace":"a"}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("b"), Some((11, 10)));
}

#[tokio::test]
async fn namespaces_written_together_move_together_in_the_order_of_their_keys() {
    let mut scene = Scene::of(&["a", "b", "c", "d"]).await;
    // a takes b's network before b itself moves on.
    scene.act(&[("a", &join("b")), ("b", &join("c")), ("d", &join("nobody"))]).await;
    assert_eq!(scene.settle().await, 1, "the refused one is answered in the same transaction");
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (Some((10, 11)), Some((11, 12))));
    assert!(scene.read("d").await.error.contains("waits"));
}

#[tokio::test]
async fn more_than_fit_one_transaction_move_in_chunks_and_it_is_said() {
    let names: Vec<String> = (0..100).map(|n| format!("n{n:03}")).collect();
    let mut scene = Scene::of(&["target"]).await;
    for name in &names {
        scene.record(name, "{}").await;
    }
    assert!(scene.settle().await <= 3, "births are batched");
    let to = join("target");
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), &to)).collect();

    let (fitting, rest) = all.split_at(MOVES_PER_TRANSACTION);
    scene.act(fitting).await;
    assert_eq!(scene.settle().await, 1);
    scene.act(rest).await;
    assert_eq!(scene.settle().await, 1);

    let isolate = Action::Isolate;
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), &isolate)).collect();
    scene.act(&all).await;
    let first = scene.next().unwrap();
    assert!(first.notes().iter().any(|note| matches!(note, Note::Split { .. })));
    assert_eq!(scene.settle().await, 2);
    assert!(names.iter().all(|name| scene.numbers(name).is_some_and(|(vni, net_id)| vni == net_id)));
}

#[tokio::test]
async fn older_actions_go_first() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.act(&[("b", &Action::Global)]).await;
    scene.act(&[("a", &join("b"))]).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((10, 0)), "b was global already when a joined it");
}

#[tokio::test]
async fn a_mirror_that_was_edited_by_hand_is_restored() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.record("a", r#"{"NetName":"a","NetID":11,"Action":"","Namespace":"b","Team":"blue"}"#).await;
    let step = scene.next().unwrap();
    assert!(matches!(step.notes(), [Note::Restored { .. }]));
    assert_eq!(scene.settle().await, 1);
    let text = scene.text(&scene.keys.netnamespace(&ns("a"))).await;
    assert_eq!(text, r#"{"NetName":"a","NetID":10,"Action":"","Namespace":"","Team":"blue"}"#);
    assert_eq!(scene.numbers("a"), Some((10, 10)));
    // White space and the order of fields are the user's.
    scene.record("a", r#"{ "NetID": 10, "NetName": "a", "Action": "", "Namespace": "" }"#).await;
    assert_eq!(scene.settle().await, 0);
}

#[tokio::test]
async fn a_mirror_that_cannot_be_read_is_restored_with_a_notice_that_stays() {
    let mut scene = Scene::of(&["a"]).await;
    let broken = ["hello", "", r#"{"NetName":"a","NetID":"10","Team":"blue"}"#, r#"{"NetName":"z","NetID":10}"#, "[1]"];
    for json in broken {
        scene.record("a", json).await;
        assert_eq!(scene.settle().await, 1, "{json}");
        let record = scene.read("a").await;
        assert!(record.error.starts_with(NOTICE), "{json} -> {}", record.error);
        assert_eq!((record.net_name.as_str(), record.net_id), ("a", Some(10)));
        assert_eq!(record.unknown.contains_key("Team"), json.contains("Team"));
        assert_eq!(scene.numbers("a"), Some((10, 10)));
    }
    scene.act(&[("a", &Action::Global)]).await;
    scene.settle().await;
    assert_eq!(scene.read("a").await.error, "", "the next action clears it");
}

#[tokio::test]
async fn a_deleted_record_deletes_its_namespace_and_frees_its_number() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.act(&[("b", &join("a"))]).await;
    scene.settle().await;
    scene.delete(&scene.keys.netnamespace(&ns("a"))).await;
    scene.settle().await;
    assert_eq!((scene.numbers("a"), scene.numbers("b")), (None, Some((11, 10))), "b stays in the network it joined");
    scene.record("c", r#"{"NetName":"c","NetID":10}"#).await;
    scene.settle().await;
    assert!(scene.read("c").await.error.contains("taken"));
    scene.act(&[("b", &Action::Global)]).await;
    scene.settle().await;
    assert_eq!(scene.numbers("c"), Some((10, 10)), "free again, and asked for still");
}

#[tokio::test]
async fn a_namespace_re_created_under_its_name_is_a_new_one_while_a_leader_looks_on() {
    let mut scene = Scene::of(&["a"]).await;
    let key = scene.keys.netnamespace(&ns("a"));
    scene.delete(&key).await;
    scene.write(&key, r#"{"NetName":"a"}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((11, 11)));

    // Nobody looked: the new leader takes it for the old one.
    scene.store.commit(bulkhead_store::Txn::new().delete(key.as_str())).await.unwrap().done().unwrap();
    scene.store.commit(bulkhead_store::Txn::new().put(key, r#"{"NetName":"a"}"#)).await.unwrap().done().unwrap();
    scene.state = crate::state::State::new(scene.keys.clone());
    scene.look().await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((11, 11)));
}

#[tokio::test]
async fn k8s_ovs_records_without_a_ledger_are_imported_whole() {
    let mut scene = Scene::empty().await;
    for (name, net_id) in [("a", 12), ("b", 12), ("c", 10), ("d", 0), ("f", 3)] {
        let json = format!(r#"{{"NetName":"{name}","NetID":{net_id},"Action":"","Namespace":""}}"#);
        scene.record(name, &json).await;
    }
    scene.record("e", r#"{"NetName":"e","Action":"join","Namespace":"c"}"#).await;
    scene.record("kube-system", r#"{"NetName":"kube-system","NetID":0,"Action":"","Namespace":""}"#).await;
    scene.settle().await;
    for (name, numbers) in [("a", (12, 12)), ("b", (11, 12)), ("c", (10, 10)), ("d", (13, 0)), ("e", (14, 10))] {
        assert_eq!(scene.numbers(name), Some(numbers), "{name}");
    }
    assert_eq!(scene.numbers("f"), None);
    assert!(scene.read("f").await.error.contains("reserved"));
    // Afterwards an equal number is no join.
    scene.record("g", r#"{"NetName":"g","NetID":12}"#).await;
    scene.settle().await;
    assert_eq!(scene.numbers("g"), None);
}

#[tokio::test]
async fn a_large_import_goes_on_where_a_leader_left_it() {
    let mut scene = Scene::empty().await;
    for n in 0..150 {
        // Pairs that are joined, with numbers that a fresh VNI would meet.
        let json = format!(r#"{{"NetName":"n{n:03}","NetID":{},"Action":"","Namespace":""}}"#, 10 + n / 2);
        scene.record(&format!("n{n:03}"), &json).await;
    }
    for _ in 0..2 {
        let step = scene.next().unwrap();
        assert!(scene.carry_out(&step).await);
    }
    assert!((1..150).contains(&scene.state.tenants().len()), "in the middle");
    scene.state = crate::state::State::new(scene.keys.clone());
    scene.look().await;
    scene.settle().await;
    assert_eq!(scene.state.tenants().len(), 150);
    let vnis: std::collections::BTreeSet<_> = scene.state.tenants().iter().map(|(_, tenant)| tenant.vni).collect();
    assert_eq!(vnis.len(), 150);
    for n in 0..150 {
        assert_eq!(scene.numbers(&format!("n{n:03}")).unwrap().1, 10 + n / 2, "everyone keeps theirs");
    }
}

#[tokio::test]
async fn an_unreadable_ledger_entry_stops_what_could_give_a_number_twice() {
    let mut scene = Scene::of(&["a", "b"]).await;
    scene.write(&scene.keys.ledger_namespace(&ns("a")), "{}").await;
    scene.record("c", r#"{"NetName":"c"}"#).await;
    assert_eq!(scene.settle().await, 0);
    assert_eq!(super::complaints(&scene.state).len(), 1);
}

#[tokio::test]
async fn an_unreadable_allocator_gives_nothing_out_but_mirrors_and_releases_go_on() {
    let mut scene = Scene::of(&["a"]).await;
    scene.asks("n1", "10.0.0.1").await;
    scene.settle().await;
    scene.write(&scene.keys.numbers(), "{}").await;
    scene.record("b", r#"{"NetName":"b"}"#).await;
    scene.asks("n2", "10.0.0.2").await;
    assert_eq!(scene.settle().await, 0);
    assert_eq!(super::complaints(&scene.state).len(), 1);
    scene.record("a", r#"{"NetName":"a","NetID":99}"#).await;
    scene.delete(&scene.keys.subnet("10.0.0.1".parse().unwrap())).await;
    assert_eq!(scene.settle().await, 2);
    assert!(scene.state.nodes.is_empty() && scene.read("a").await.net_id == Some(10));
    // Deleted, it is made anew from the ledger.
    scene.delete(&scene.keys.numbers()).await;
    scene.settle().await;
    assert_eq!(scene.numbers("a"), Some((10, 10)));
    assert_eq!(scene.numbers("b"), Some((11, 11)));
}
