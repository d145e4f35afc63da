//! Tenants in Kubernetes: what is typed, written, answered and taken back.

use std::ffi::OsString;

use bulkhead_store::Store;

use crate::api::{Api, obliging};
use crate::fixture::{Answer, type_at};

async fn run(api: &Api, line: &str) -> Answer {
    type_at(&Store::in_memory(), &format!("{line} --kubeconfig {}", api.kubeconfig().display())).await
}

fn shop() -> Api {
    Api::start(&[("a", &[("team", "shop")]), ("b", &[("team", "shop")]), ("c", &[])], &["kube-system"], obliging)
}

#[tokio::test]
async fn the_three_verbs_write_the_annotation_and_wait() {
    let api = shop();
    assert_eq!(run(&api, "tenant join a --to c").await.ok(), "a: joined to c (NetID 10)\n");
    assert_eq!(api.declared("a").unwrap(), "join:c");
    assert_eq!(run(&api, "tenant global a b").await.ok(), "a: global\nb: global\n");
    assert_eq!(run(&api, "tenant isolate b").await.ok(), "b: isolated\n");
    assert_eq!((api.declared("b").unwrap(), api.declared("c")), ("isolated".into(), None));
    let json = run(&api, "tenant join b --to a -o json").await.json();
    assert_eq!((&json[0]["declared"], &json[0]["result"]), (&"join:a".into(), &"done".into()), "{json}");
}

#[tokio::test]
async fn a_selector_names_several() {
    let api = shop();
    assert_eq!(run(&api, "tenant global -l team=shop").await.ok(), "a: global\nb: global\n");
    assert_eq!(run(&api, "tenant join --selector team=shop --to b").await.ok(), "a: joined to b (NetID 10)\n");
    assert_eq!((api.declared("a").unwrap(), api.declared("b").unwrap()), ("join:b".into(), "global".into()));
    let list = run(&api, "tenant list -l team=shop").await.ok();
    assert!(list.contains("join:b") && !list.contains("\nc"), "{list}");
    assert!(run(&api, "tenant isolate -l team=none").await.refused().contains("team=none"));
    let etcd = type_at(&Store::in_memory(), "tenant isolate -l team=shop").await;
    assert!(etcd.code == 2 && etcd.err.contains("--kubernetes"), "{etcd:?}");
    assert_eq!(type_at(&Store::in_memory(), "tenant list -l team=shop").await.code, 2);
    assert_eq!(run(&api, "tenant isolate").await.code, 2);
    assert_eq!(run(&api, "tenant isolate a -l team=shop").await.code, 2);
}

#[tokio::test]
async fn lists_show_what_is_declared_and_how_it_stands() {
    let api = shop();
    run(&api, "tenant join a --to c").await.ok();
    insta::assert_snapshot!("kubernetes_list", run(&api, "tenant list").await.ok());
    insta::assert_snapshot!("kubernetes_show", run(&api, "tenant show a").await.ok());
    let json = run(&api, "tenant list -o json").await.json();
    assert_eq!((&json[0]["vni"], &json[0]["declared"]), (&10.into(), &"join:c".into()), "{json}");
    assert!(run(&api, "tenant show nowhere").await.refused().contains("no such namespace"));
}

#[tokio::test]
async fn what_is_refused_is_taken_back() {
    let refusing = |_: &str, declared: &str| match declared {
        "join:b" => Some("refused: a cycle: b -> a -> b".to_owned()),
        declared => obliging("", declared),
    };
    let api = Api::start(&[("a", &[]), ("b", &[])], &[], refusing);
    run(&api, "tenant global a").await.ok();
    let errors = run(&api, "tenant join a --to b").await.refused();
    assert!(errors.contains("a cycle") && errors.contains("nothing of it is left"), "{errors}");
    assert_eq!(api.declared("a").unwrap(), "global");
    run(&api, "tenant join a --to b --no-wait").await.ok();
    assert_eq!(api.declared("a").unwrap(), "join:b");
}

#[tokio::test]
async fn what_nobody_answers_in_time_is_taken_back_with_the_reason() {
    let waiting = |_: &str, declared: &str| {
        declared.starts_with("join:").then(|| "waiting: b does not exist; isolated".to_owned())
    };
    let api = Api::start(&[("a", &[])], &[], waiting);
    api.bind(&["a"]); // so that nobody but the controller can tell
    let errors = run(&api, "tenant join a --to b --timeout 300ms").await.refused();
    assert!(errors.contains("within 300ms") && errors.contains("b does not exist"), "{errors}");
    assert_eq!(api.declared("a"), None);
    let silent = Api::start(&[("a", &[])], &[], |_, _| None);
    let errors = run(&silent, "tenant global a --timeout 300ms").await.refused();
    assert!(errors.contains("isolated") && silent.declared("a").is_none(), "{errors}");
}

#[tokio::test]
async fn a_refused_action_in_a_record_is_in_nobodys_way() {
    let left = |name: &str, declared: &str| {
        let holds = obliging(name, declared)?;
        Some(format!("refused: action isolate: bulkhead.dev/network of the namespace a says so; {holds}"))
    };
    let api = Api::start(&[("a", &[]), ("b", &[])], &[], left);
    assert_eq!(run(&api, "tenant join a --to b").await.ok(), "a: joined to b (NetID 10)\n");
    assert_eq!(run(&api, "tenant global a").await.ok(), "a: global\n");
    assert_eq!(api.declared("a").unwrap(), "global");
}

#[tokio::test]
async fn a_slip_in_the_targets_name_is_refused_before_anything_is_written() {
    let api = shop();
    run(&api, "tenant join a --to b").await.ok();
    let writes = api.writes();
    let errors = run(&api, "tenant join a --to d").await.refused();
    assert!(errors.contains("no such namespace to join: d") && errors.contains("nothing was changed"), "{errors}");
    assert_eq!((api.declared("a").unwrap(), api.writes()), ("join:b".into(), writes));
    run(&api, "tenant join a --to d --no-wait").await.ok();
    assert_eq!(api.declared("a").unwrap(), "join:d");
}

#[tokio::test]
async fn what_is_told_is_how_all_stand_in_the_end() {
    let joined =
        |name: &str, _: &str| Some(if name == "b" { "joined by others (NetID 10)" } else { "isolated" }.to_owned());
    let api = Api::start(&[("a", &[]), ("b", &[]), ("c", &[])], &[], joined);
    let controller = async {
        while api.declared("c").is_none() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await; // the status that passes is read meanwhile
        api.say("b", "isolated");
    };
    let (answer, ()) = tokio::join!(run(&api, "tenant isolate b c"), controller);
    assert_eq!(answer.ok(), "b: isolated\nc: isolated\n");
    assert_eq!(run(&api, "tenant isolate a b").await.ok(), "a: isolated\nb: joined by others (NetID 10)\n");
}

#[tokio::test]
async fn role_bindings_are_enough_to_wait() {
    let api = shop();
    api.bind(&["a", "b"]);
    assert_eq!(run(&api, "tenant isolate a b").await.ok(), "a: isolated\nb: isolated\n");
    assert_eq!(run(&api, "tenant join a --to b").await.ok(), "a: joined to b (NetID 10)\n");
    assert!(run(&api, "tenant isolate c").await.refused().contains("forbidden"));
    assert!(run(&api, "tenant list").await.refused().contains("forbidden"));
}

#[tokio::test]
async fn what_cannot_be_read_any_more_says_why() {
    let api = Api::start(&[("a", &[])], &[], |_, _| None);
    let lose = async {
        while api.declared("a").is_none() {
            tokio::task::yield_now().await;
        }
        api.bind(&[]);
    };
    let (answer, ()) = tokio::join!(run(&api, "tenant global a --timeout 500ms"), lose);
    let errors = answer.refused();
    assert!(errors.contains("not in force within 500ms: Kubernetes: namespaces is forbidden"), "{errors}");
    assert!(errors.contains("could NOT be taken back"), "{errors}");
}

#[tokio::test]
async fn what_admission_refuses_for_one_changes_none() {
    let api = Api::start(&[("a", &[]), ("b", &[])], &["b"], obliging);
    let errors = run(&api, "tenant global a b").await.refused();
    assert!(errors.contains("bulkhead-network-annotations"), "{errors}");
    assert_eq!((api.declared("a"), api.declared("b")), (None, None));
    assert!(run(&api, "tenant global a nowhere").await.refused().contains("nowhere"));
    assert_eq!(api.declared("a"), None);
    assert!(run(&api, "tenant join a --to a").await.code == 2);
}

#[tokio::test]
async fn kubectls_plugin_means_kubernetes_and_says_so() {
    let api = shop();
    let config = api.kubeconfig().display().to_string();
    let type_plugin = async |line: &str| {
        let words = std::iter::once("/usr/bin/kubectl-bulkhead").chain(line.split_whitespace()).map(OsString::from);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = bulkhead_cli::run(words, Some(Store::in_memory()), &mut out, &mut err).await;
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    };
    let (_, help, _) = type_plugin("tenant join -h").await;
    assert!(help.contains("kubectl bulkhead tenant join"), "{help}");
    let (code, _, err) = type_plugin("tenant list --etcd").await;
    assert!(code == 1 && err.contains("no cluster is configured"), "{err}");
    let (code, out, err) = type_plugin(&format!("tenant isolate a --kubeconfig {config}")).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "a: isolated\n", ""));
    assert_eq!(type_plugin(&format!("tenant list --etcd --kubeconfig {config}")).await.0, 2);
    assert_eq!(run(&api, "tenant create d").await.code, 2);
    assert_eq!(run(&api, "tenant delete a").await.code, 2);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let missing = type_at(&Store::in_memory(), &format!("tenant list --kubeconfig {}", path.display())).await.refused();
    assert!(missing.contains("no way to the API server"), "{missing}");
    let config = r#"{"apiVersion":"v1","kind":"Config","current-context":"x","clusters":[{"name":"x","cluster":{"server":"http://127.0.0.1:1"}}],"users":[{"name":"x","user":{}}],"contexts":[{"name":"x","context":{"cluster":"x","user":"x"}}]}"#;
    std::fs::write(&path, config).unwrap();
    let away = type_at(&Store::in_memory(), &format!("tenant list --kubeconfig {}", path.display())).await.refused();
    assert!(away.contains("does the API server answer"), "{away}");
}

#[tokio::test]
async fn a_node_without_a_network_says_why() {
    let api = shop();
    api.node("n2", "10.0.0.2", Some(["True", "BulkheadNoSubnet", "the node has no subnet: all 64 are in use"]));
    api.node("n1", "10.0.0.1", Some(["False", "BulkheadReady", "the node's bulkhead-agent is ready"]));
    api.node("n3", "10.0.0.3", None);
    insta::assert_snapshot!("kubernetes_nodes", run(&api, "node list").await.ok());
    let json = run(&api, "node list -o json").await.json();
    assert_eq!((&json[1]["ready"], &json[1]["reason"]), (&false.into(), &"BulkheadNoSubnet".into()), "{json}");
    assert_eq!(run(&api, "node list --etcd").await.code, 2, "one or the other");
}
