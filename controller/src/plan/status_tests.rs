//! What users read of their namespaces.

use bulkhead_core::Action;

use super::scenes::{Scene, ns};
use super::{Kind, statuses};
use crate::objects::NamespaceObject;

async fn cluster(namespaces: &[(&str, &str)]) -> Scene {
    let mut scene = Scene::empty().await.with_kubernetes();
    scene.appears("kube-system", "u");
    for (name, text) in namespaces {
        let network = (!text.is_empty()).then(|| text.parse());
        scene.object(name, NamespaceObject { uid: format!("u-{name}"), network, ..NamespaceObject::default() });
        scene.settle().await;
    }
    scene.settle().await;
    scene
}

fn said(scene: &Scene, name: &str) -> (Kind, String) {
    let status = statuses(&scene.state, &scene.policy)[&ns(name)].clone();
    (status.kind, status.text)
}

#[tokio::test]
async fn what_holds_is_said_in_a_few_words() {
    let scene = cluster(&[("a", ""), ("b", "join:a"), ("c", "isolated"), ("d", "global"), ("e", "join:d")]).await;
    for (name, text) in [
        ("a", "joined by others (NetID 10)"),
        ("b", "joined to a (NetID 10)"),
        ("c", "isolated"),
        ("d", "global"),
        ("e", "joined to d (global)"),
        ("kube-system", "global"),
    ] {
        assert_eq!(said(&scene, name), (Kind::InForce, text.to_owned()));
    }
    let all = statuses(&scene.state, &scene.policy);
    assert_eq!((all[&ns("b")].vni.as_str(), all[&ns("b")].uid.as_str()), ("12", "u-b"));
}

#[tokio::test]
async fn an_action_shows_and_so_does_its_refusal() {
    let mut scene = cluster(&[("a", ""), ("b", "")]).await;
    scene.act(&[("b", &Action::Join(ns("a")))]).await;
    scene.settle().await;
    assert_eq!(said(&scene, "b"), (Kind::InForce, "joined to a (NetID 10)".to_owned()));
    scene.act(&[("b", &Action::Join(ns("late")))]).await;
    scene.settle().await;
    let (kind, text) = said(&scene, "b");
    assert_eq!(kind, Kind::Refused);
    assert!(text.starts_with("refused: action join late: ") && text.ends_with("; joined to a (NetID 10)"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_followed_says_why_and_what_holds_instead() {
    let scene = cluster(&[("a", "join:b"), ("b", "join:a"), ("c", "join:late"), ("d", "merge"), ("e", "join:e")]).await;
    for (name, kind, begin, part) in [
        ("a", Kind::Refused, "refused: ", "(a -> b -> a)"),
        ("b", Kind::Refused, "refused: ", "(a -> b -> a)"),
        ("c", Kind::Waits, "waiting: ", "late does not exist yet"),
        ("d", Kind::Refused, "refused: ", "join:<namespace>"),
        ("e", Kind::Refused, "refused: ", "cannot join itself"),
    ] {
        let (is, text) = said(&scene, name);
        assert_eq!(is, kind);
        assert!(text.starts_with(begin) && text.contains(part) && text.ends_with("; isolated"), "{text}");
    }
}
