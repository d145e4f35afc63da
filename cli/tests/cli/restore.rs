//! `bulkhead restore`.

use bulkhead_core::number::JUMP;
use bulkhead_store::{Txn, WriteFault};

use crate::fixture::Cluster;

async fn request(cluster: &Cluster) -> Option<String> {
    let entry = cluster.twin.store().get(&cluster.keys.restore()).await.unwrap();
    entry.map(|entry| String::from_utf8(entry.value).unwrap())
}

async fn put(cluster: &Cluster, json: &str) {
    let txn = Txn::new().put(cluster.keys.restore(), json);
    assert!(cluster.twin.store().commit(txn).await.unwrap().done().is_some());
}

#[tokio::test]
async fn the_epoch_rises_and_the_numbers_jump() {
    let cluster = Cluster::with(&["blue"]).await;
    let said = cluster.run("restore --yes").await.ok();
    assert!(said.starts_with("epoch 1 -> 2, the next VNI is past 10"), "{said}");
    let json = cluster.json("restore --yes").await;
    assert_eq!((&json["result"], &json["before"], &json["after"]), (&"done".into(), &2.into(), &3.into()), "{json}");
    assert_eq!(request(&cluster).await, None);
    cluster.run("tenant create red").await.ok();
    assert!(cluster.json("tenant show red").await["vni"].as_u64().unwrap() > (2 * JUMP).into());
    assert_eq!(cluster.json("config show").await["epoch"], 3);
}

#[tokio::test]
async fn the_epoch_rises_above_the_one_that_agents_have_seen() {
    let cluster = Cluster::with(&["blue"]).await;
    let said = cluster.run("restore --yes --above 3").await.ok();
    assert!(said.starts_with("epoch 1 -> 4, the next VNI is past"), "{said}");
    let said = cluster.run("restore --yes --above 2").await.ok();
    assert!(said.starts_with("epoch 4 -> 5"), "{said}");
}

#[tokio::test]
async fn a_controller_that_does_not_know_above_is_said_to_be_too_old() {
    let cluster = Cluster::leaderless().await;
    let command = cluster.run("restore --yes --above 3 --timeout 20s");
    let old_leader = async {
        while request(&cluster).await.is_none() {
            tokio::task::yield_now().await;
        }
        assert!(request(&cluster).await.unwrap().contains(r#""Above":3"#));
        let key = cluster.keys.ledger_cluster();
        let entry = cluster.store.get(&key).await.unwrap().unwrap();
        let raised = String::from_utf8(entry.value).unwrap().replace(r#""epoch":1"#, r#""epoch":2"#);
        let txn = Txn::new().put(key, raised).delete(cluster.keys.restore());
        assert!(cluster.twin.store().commit(txn).await.unwrap().done().is_some());
    };
    let (answer, ()) = tokio::join!(command, old_leader);
    assert_eq!((answer.code, answer.out.as_str()), (1, "epoch 1 -> 2\n"));
    assert!(answer.err.contains("not above 3"), "{}", answer.err);
}

#[tokio::test]
async fn one_that_is_under_way_is_left_alone() {
    let cluster = Cluster::leaderless().await;
    put(&cluster, r#"{"Requested":"by hand"}"#).await;
    let errors = cluster.run("restore --yes").await.refused();
    assert!(errors.contains("under way already (by hand)") && errors.contains("nothing was changed"), "{errors}");
    assert_eq!(request(&cluster).await.unwrap(), r#"{"Requested":"by hand"}"#);
}

#[tokio::test]
async fn what_nobody_answers_is_taken_back() {
    let cluster = Cluster::leaderless().await;
    let errors = cluster.run("restore --yes --timeout 200ms").await.refused();
    assert!(errors.contains("no controller leads") && errors.contains("nothing was changed"), "{errors}");
    assert_eq!(request(&cluster).await, None);
    cluster.run("restore --yes --no-wait").await.ok();
    assert!(request(&cluster).await.unwrap().contains("bulkhead restore"));
}

#[tokio::test]
async fn what_the_leader_refuses_or_somebody_removes_is_said() {
    for removed in [false, true] {
        let cluster = Cluster::leaderless().await;
        let command = cluster.run("restore --yes --timeout 20s");
        let trouble = async {
            let record = loop {
                if let Some(record) = request(&cluster).await {
                    break record;
                }
                tokio::task::yield_now().await;
            };
            if removed {
                let txn = Txn::new().delete(cluster.keys.restore());
                assert!(cluster.twin.store().commit(txn).await.unwrap().done().is_some());
            } else {
                put(&cluster, &record.replace('}', r#","Error":"no ledger yet"}"#)).await;
            }
        };
        let (answer, ()) = tokio::join!(command, trouble);
        let errors = answer.refused();
        assert!(errors.contains(if removed { "somebody removed" } else { "no ledger yet" }), "{errors}");
        assert_eq!(request(&cluster).await, None);
    }
}

#[tokio::test]
async fn a_request_of_unknown_outcome_is_found_out() {
    let cluster = Cluster::with(&["blue"]).await;
    cluster.store.faults().unwrap().fail_next_write(WriteFault::UnknownApplied);
    cluster.run("restore --yes").await.ok();
    cluster.store.faults().unwrap().fail_next_write(WriteFault::UnknownLost);
    cluster.run("restore --yes").await.refused();
    assert_eq!(cluster.json("config show").await["epoch"], 2);
}
