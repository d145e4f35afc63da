//! etcd failing under a command, and others writing the same records.

use bulkhead_store::WriteFault;

use crate::fixture::Cluster;

#[tokio::test]
async fn an_action_of_unknown_outcome_is_found_out() {
    for fault in [WriteFault::UnknownApplied, WriteFault::UnknownLost] {
        let cluster = Cluster::with(&["blue", "red"]).await;
        cluster.store.faults().unwrap().fail_next_write(fault);
        cluster.run("tenant join red --to blue").await.ok();
        assert_eq!(cluster.json("tenant show red").await["netId"], 10);
    }
}

#[tokio::test]
async fn a_take_back_of_unknown_outcome_is_no_success() {
    for fault in [WriteFault::UnknownApplied, WriteFault::UnknownLost] {
        let cluster = Cluster::leaderless().await;
        cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":""}"#).await;
        let faults = cluster.store.faults().unwrap();
        let command = cluster.run("tenant global blue --timeout 300ms");
        let trouble = async {
            while !cluster.record("blue").await.unwrap().contains("global") {
                tokio::task::yield_now().await;
            }
            faults.fail_next_write(fault);
        };
        let (answer, ()) = tokio::join!(command, trouble);
        let errors = answer.refused();
        assert!(errors.contains("nothing of it is left"), "{errors}");
        assert!(!cluster.record("blue").await.unwrap().contains("global"));
    }
}

#[tokio::test]
async fn an_action_that_cannot_be_taken_back_is_said_to_be_left() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":""}"#).await;
    let faults = cluster.store.faults().unwrap();
    let command = cluster.run("tenant global blue --timeout 300ms");
    let trouble = async {
        while !cluster.record("blue").await.unwrap().contains("global") {
            tokio::task::yield_now().await;
        }
        faults.fail_writes(WriteFault::Unreachable);
    };
    let (answer, ()) = tokio::join!(command, trouble);
    let errors = answer.refused();
    assert!(errors.contains("could NOT be taken back"), "{errors}");
}

#[tokio::test]
async fn a_watch_that_breaks_under_the_wait_is_healed() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":""}"#).await;
    let command = cluster.run("tenant global blue --timeout 20s");
    let trouble = async {
        while !cluster.record("blue").await.unwrap().contains("global") {
            tokio::task::yield_now().await;
        }
        cluster.twin.cut_watches();
        cluster.write("blue", r#"{"NetName":"blue","NetID":0,"Action":"","Namespace":""}"#).await;
    };
    let (answer, ()) = tokio::join!(command, trouble);
    assert_eq!(answer.ok(), "blue: done\n");
}

#[tokio::test]
async fn an_action_that_somebody_replaces_under_the_wait_is_theirs() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":""}"#).await;
    let theirs = r#"{"NetName":"blue","NetID":10,"Action":"isolate","Namespace":""}"#;
    let command = cluster.run("tenant global blue --timeout 20s");
    let trouble = async {
        while !cluster.record("blue").await.unwrap().contains("global") {
            tokio::task::yield_now().await;
        }
        cluster.write("blue", theirs).await;
    };
    let (answer, ()) = tokio::join!(command, trouble);
    assert!(answer.refused().contains("somebody else asked for isolate meanwhile"));
    assert_eq!(cluster.record("blue").await.unwrap(), theirs);
}

#[tokio::test]
async fn an_unreachable_etcd_is_said() {
    let cluster = Cluster::with(&["blue"]).await;
    cluster.store.faults().unwrap().unreachable(true);
    let errors = cluster.run("tenant list").await.refused();
    assert!(errors.contains("no etcd endpoint can be reached"), "{errors}");
}
