//! What lists look like, and that hostile records do nothing to a terminal.

use serde_json::json;

use crate::fixture::Cluster;

#[tokio::test]
async fn a_list_tells_every_state_apart() {
    let cluster = Cluster::with(&["alone", "hub", "a", "b", "c", "d", "dns"]).await;
    cluster.run("tenant join a b c d --to hub").await.ok();
    cluster.run("tenant global dns").await.ok();
    cluster.run("tenant join alone --to nowhere --no-wait").await.ok();
    cluster.write("broken", "{").await;
    cluster.write("greedy", r#"{"NetName":"greedy","NetID":10}"#).await;
    while !cluster.run("tenant list").await.ok().contains("taken") {
        tokio::task::yield_now().await;
    }
    insta::assert_snapshot!("tenants", cluster.run("tenant list").await.ok());
}

#[tokio::test]
async fn a_list_for_programs_has_stable_fields() {
    let cluster = Cluster::with(&["blue", "red"]).await;
    cluster.run("tenant join red --to blue").await.ok();
    cluster.write("green", "[]").await;
    let list = cluster.json("tenant ls").await;
    assert_eq!(
        list[0],
        json!({"namespace": "blue", "vni": 10, "netId": 10, "network": "joined", "status": "ok", "detail": ""})
    );
    assert_eq!(list[1]["network"], "none");
    assert_eq!(list[1]["status"], "error");
    assert_eq!(list[1].get("vni"), None);
}

#[tokio::test]
async fn an_empty_list_says_what_to_do_and_is_empty_for_programs() {
    let cluster = Cluster::leaderless().await;
    assert!(cluster.run("tenant list").await.ok().contains("bulkhead tenant create"));
    assert_eq!(cluster.json("tenant list").await, json!([]));
    assert!(cluster.run("node list").await.ok().contains("bulkhead-agent"));
}

#[tokio::test]
async fn records_of_others_do_nothing_to_the_terminal() {
    let cluster = Cluster::leaderless().await;
    cluster
        .write("blue", r#"{"NetName":"blue","Action":"join","Namespace":"\u001b[2J","Error":"\u001b]0;x\u0007"}"#)
        .await;
    let list = cluster.run("tenant list").await.ok();
    assert!(!list.contains('\u{1b}') && !list.contains('\u{7}'), "{list:?}");
}
