//! `tenant join`, `isolate`, `global`.

use serde_json::json;

use crate::fixture::Cluster;

#[tokio::test]
async fn a_join_moves_and_tells_before_and_after() {
    let cluster = Cluster::with(&["blue", "red", "green"]).await;
    assert_eq!(
        cluster.run("tenant join red green --to blue").await.ok(),
        "green: NetID 12 -> 10\nred: NetID 11 -> 10\n"
    );
    assert_eq!(cluster.run("tenant join red --to blue").await.ok(), "red: NetID 10, unchanged\n");
    assert_eq!(cluster.run("tenant isolate red").await.ok(), "red: NetID 10 -> 11\n");
    assert_eq!(cluster.run("tenant isolate red").await.ok(), "red: NetID 11, unchanged\n");
    let moved = cluster.json("tenant global red").await;
    let expected =
        json!([{"namespace": "red", "action": "global", "result": "done", "before": 11, "after": 0, "error": ""}]);
    assert_eq!(moved, expected);
}

#[tokio::test]
async fn namespaces_that_move_together_are_written_in_one_transaction() {
    let cluster = Cluster::with(&["blue", "red", "green"]).await;
    let before = cluster.twin.revision();
    cluster.run("tenant join red green --to blue --no-wait").await.ok();
    let written = before + 1;
    let mut watch = cluster.store.watch(&cluster.keys.netnamespaces());
    let Some(bulkhead_store::Update::Snapshot(snapshot)) = watch.next().await else { panic!() };
    // Either both still lie there as written, or the leader has answered both.
    let at: Vec<i64> = snapshot.entries.iter().skip(1).map(|entry| entry.mod_revision).collect();
    assert!(at.iter().all(|revision| *revision >= written) && at[0] == at[1], "{at:?}");
}

#[tokio::test]
async fn unknown_fields_survive_and_a_stale_error_goes() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":"","Error":"old","Note":[1]}"#).await;
    cluster.run("tenant isolate blue --no-wait").await.ok();
    let record = cluster.record("blue").await.unwrap();
    assert_eq!(record, r#"{"NetName":"blue","NetID":10,"Action":"isolate","Namespace":"","Note":[1]}"#);
}

#[tokio::test]
async fn an_unknown_namespace_is_refused_and_nothing_is_written() {
    let cluster = Cluster::with(&["blue", "red"]).await;
    let before = cluster.twin.revision();
    let errors = cluster.run("tenant join red pink grey --to blue").await.refused();
    assert!(errors.contains("no such namespace: grey, pink"), "{errors}");
    assert_eq!(cluster.twin.revision(), before);
}

#[tokio::test]
async fn a_join_to_an_unknown_target_is_taken_back_unless_nobody_waits() {
    let cluster = Cluster::with(&["blue"]).await;
    let before = cluster.record("blue").await;
    let errors = cluster.run("tenant join blue --to pink").await.refused();
    assert!(errors.contains("pink does not exist yet") && errors.contains("nothing of it is left"), "{errors}");
    assert_eq!(cluster.record("blue").await, before);
    let written = cluster.run("tenant join blue --to pink --no-wait").await.ok();
    assert_eq!(written, "blue: join is written, not waited for\n");
    cluster.run("tenant create pink").await.ok();
    let shown = cluster.json("tenant show blue").await;
    assert_eq!(shown["joinedWith"], json!(["pink"]), "it waited for its target");
}

#[tokio::test]
async fn a_join_to_oneself_is_wrong_usage() {
    let cluster = Cluster::with(&["blue", "red"]).await;
    let answer = cluster.run("tenant join red blue --to blue").await;
    assert_eq!(
        (answer.code, answer.err.as_str()),
        (2, "error: blue cannot join itself; name another namespace with --to\n")
    );
}

#[tokio::test]
async fn somebody_elses_unanswered_action_is_not_overwritten() {
    let cluster = Cluster::leaderless().await;
    let theirs = r#"{"NetName":"blue","NetID":10,"Action":"join","Namespace":"red"}"#;
    cluster.write("blue", theirs).await;
    cluster.write("green", r#"{"NetName":"green","NetID":11}"#).await;
    let errors = cluster.run("tenant isolate blue green").await.refused();
    assert!(errors.contains("nobody has answered yet (join red)"), "{errors}");
    assert_eq!(cluster.record("blue").await.unwrap(), theirs);
    assert_eq!(cluster.record("green").await.unwrap(), r#"{"NetName":"green","NetID":11}"#);
}

#[tokio::test]
async fn an_action_that_was_refused_is_replaced_and_that_is_said() {
    let cluster = Cluster::with(&["blue"]).await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"jion","Namespace":"x"}"#).await;
    cluster.until_written("blue", "Error").await;
    let told = cluster.run("tenant global blue").await.ok();
    let (replaced, moved) = told.split_once('\n').unwrap();
    assert!(replaced.starts_with("blue: replaced the action jion x, which was not carried out: "), "{told}");
    assert!(replaced.contains("is not known"), "{told}");
    assert_eq!(moved, "blue: NetID 10 -> 0\n");
}

#[tokio::test]
async fn without_a_leader_the_action_is_taken_back() {
    let cluster = Cluster::leaderless().await;
    let before = r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":""}"#;
    cluster.write("blue", before).await;
    let errors = cluster.run("tenant global blue --timeout 50ms").await.refused();
    assert_eq!(
        errors,
        "error: blue: global failed: no answer within 50ms: no controller leads; start bulkhead-controller; nothing of it is left\n"
    );
    assert_eq!(cluster.record("blue").await.unwrap(), before);
}

#[tokio::test]
async fn a_leader_that_does_not_answer_is_named() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue"}"#).await;
    let leader = cluster.twin.store();
    let ttl = std::time::Duration::from_secs(10);
    let held = bulkhead_store::Candidate::campaign(&leader, &cluster.keys.election(), "ctl-1", ttl).await.unwrap();
    let errors = cluster.run("tenant global blue --timeout 50ms").await.refused();
    assert!(errors.contains("the controller ctl-1 leads but has not answered"), "{errors}");
    drop(held);
}

#[tokio::test]
async fn a_record_that_is_not_valid_is_refused_by_name() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":"ten"}"#).await;
    let errors = cluster.run("tenant isolate blue").await.refused();
    assert!(errors.contains("blue: the record is not valid"), "{errors}");
}

#[tokio::test]
async fn more_than_one_transaction_takes_moves_in_chunks_and_that_is_said() {
    let cluster = Cluster::led().await;
    cluster.run("tenant create hub").await.ok();
    let names: Vec<String> = (0..300).map(|n| format!("n{n:03}")).collect();
    for name in &names {
        cluster.run(&format!("tenant create {name} --no-wait")).await.ok();
    }
    while cluster.run("tenant list").await.ok().contains("new:") {
        tokio::task::yield_now().await;
    }
    let told = cluster.run(&format!("tenant join {} --to hub", names.join(" "))).await.ok();
    assert!(told.starts_with("300 namespaces are more than one transaction takes: they moved in 5 steps"), "{told}");
    assert_eq!(told.lines().filter(|line| line.ends_with(" -> 10")).count(), 300);
    let list = cluster.run("tenant show n000").await.ok();
    assert!(list.contains("n299"), "{list}");
}
