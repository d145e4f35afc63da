//! etcd failing under a command, and others writing the same records.

use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_store::{Compare, Txn, WriteFault};
use serde_json::{Value, json};

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
        cluster.carry_out("blue", 10, 0).await;
    };
    let (answer, ()) = tokio::join!(command, trouble);
    assert_eq!(answer.ok(), "blue: NetID 0\n");
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
    let hint = "kubectl -n bulkhead-system exec deploy/bulkhead-controller -- bulkhead ...";
    let errors = cluster.run("config show --kubeconfig /nowhere").await.refused();
    assert!(errors.contains("no etcd endpoint can be reached") && errors.contains(hint), "{errors}");
    let named = "config show --kubeconfig /nowhere --etcd-endpoints http://10.0.0.1:2379";
    assert!(!cluster.run(named).await.refused().contains("kubectl"), "they know where it is");
}

/// A user whose tool counts in a field of its own, by compare-and-swap, while the CLI writes actions into the same
/// record: a count that goes back is a write that the CLI has undone.
#[tokio::test]
async fn a_write_of_somebody_else_is_never_undone() {
    let cluster = Cluster::leaderless().await;
    cluster.write("blue", r#"{"NetName":"blue","NetID":10,"Action":"","Namespace":"","Count":0}"#).await;
    let (store, key) = (cluster.twin.store(), cluster.keys.netnamespace(&"blue".parse().unwrap()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let entry = runtime.block_on(store.get(&key)).unwrap().unwrap();
                let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
                assert_eq!(record["Count"], count, "a count was undone");
                (record["Count"], record["Action"]) = (json!(count + 1), json!(""));
                let txn = Txn::new().when(Compare::unchanged(&entry)).put(&key, record.to_string());
                count += i32::from(runtime.block_on(store.commit(txn)).unwrap().done().is_some());
                std::thread::yield_now();
            }
            count
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let typist = scope.spawn(move || {
            (0..300).filter(|_| runtime.block_on(cluster.run("tenant isolate blue --no-wait")).code == 0).count()
        });
        let written = typist.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        assert!(counter.join().unwrap() > 0 && written > 0, "{written} of 300 were written");
    });
}

/// 63 namespaces are one more than a transaction takes.
fn many() -> Vec<String> {
    (0..63).map(|n| format!("n{n:02}")).collect()
}

async fn blank(name: &str, cluster: &Cluster) {
    let net_id = 10 + name[1..].parse::<u32>().unwrap();
    cluster.carry_out(name, net_id, net_id).await;
}

#[tokio::test]
async fn what_fails_after_the_first_chunk_leaves_no_action_behind() {
    let cluster = Cluster::leaderless().await;
    let names = many();
    for name in &names {
        blank(name, &cluster).await;
    }
    let faults = cluster.store.faults().unwrap();
    faults.fail_reads_after(1);
    let line = format!("tenant global {} --timeout 300ms", names.join(" "));
    let command = cluster.run(&line);
    let trouble = async {
        cluster.until_written("n61", "global").await;
        faults.fail_reads(false);
    };
    let (answer, ()) = tokio::join!(command, trouble);
    let errors = answer.refused();
    assert_eq!(errors.lines().filter(|line| line.contains("no answer within 300ms")).count(), 62, "{errors}");
    assert!(errors.contains("error: n62: global failed: no etcd endpoint can be reached"), "{errors}");
    for name in &names {
        assert!(!cluster.record(name).await.unwrap().contains("global"), "{name}");
    }
}

#[tokio::test]
async fn what_the_first_chunk_has_done_is_told_though_the_second_fails() {
    let cluster = Cluster::led().await;
    let names = many();
    for name in &names {
        cluster.run(&format!("tenant create {name}")).await.ok();
    }
    cluster.store.faults().unwrap().fail_reads_after(1);
    let answer = cluster.run(&format!("tenant global {} -o json", names.join(" "))).await;
    assert_eq!(answer.code, 1, "{answer:?}");
    let moves = answer.json();
    let count = |result: &str| moves.as_array().unwrap().iter().filter(|moved| moved["result"] == result).count();
    assert_eq!((count("done"), count("refused")), (62, 1), "{moves}");
}

#[tokio::test]
async fn a_write_in_doubt_is_waited_for_and_taken_back_though_nothing_could_be_read_after_it() {
    for fault in [WriteFault::UnknownApplied, WriteFault::UnknownLost] {
        let cluster = Cluster::leaderless().await;
        blank("n00", &cluster).await;
        let (before, read) = (cluster.record("n00").await, cluster.twin.revision());
        let faults = cluster.store.faults().unwrap();
        faults.fail_next_write(fault);
        faults.fail_reads_after(1);
        let command = cluster.run("tenant global n00 --timeout 300ms");
        let trouble = async {
            while !faults.reads_fail() {
                tokio::task::yield_now().await;
            }
            faults.fail_reads(false);
        };
        let (answer, ()) = tokio::join!(command, trouble);
        let errors = answer.refused();
        assert!(errors.contains("no answer within 300ms") && errors.contains("nothing of it is left"), "{errors}");
        assert_eq!(cluster.record("n00").await, before);
        let key = cluster.keys.netnamespace(&"n00".parse().unwrap());
        let now = cluster.twin.store().get(&key).await.unwrap().unwrap().mod_revision;
        assert!(now > read, "a write that is still on its way would be applied");
    }
}

#[tokio::test]
async fn a_write_in_doubt_that_cannot_be_taken_back_is_said_to_be_left() {
    for wait in ["--timeout 300ms", "--no-wait"] {
        let cluster = Cluster::leaderless().await;
        blank("n00", &cluster).await;
        let faults = cluster.store.faults().unwrap();
        faults.fail_next_write(WriteFault::UnknownApplied);
        faults.fail_reads_after(1);
        let errors = cluster.run(&format!("tenant global n00 {wait}")).await.refused();
        assert!(errors.contains("could NOT be taken back and may still be carried out"), "{errors}");
    }
}

#[tokio::test]
async fn a_write_in_doubt_that_was_carried_out_is_a_success() {
    let cluster = Cluster::with(&["blue", "red"]).await;
    let faults = cluster.store.faults().unwrap();
    faults.fail_next_write(WriteFault::UnknownApplied);
    faults.fail_reads_after(1);
    assert_eq!(cluster.run("tenant join red --to blue").await.ok(), "red: NetID 11 -> 10\n");
}
