//! Actions that somebody overwrites, undoes or writes over before the CLI has looked: never a false success.

use crate::fixture::{Answer, Cluster};

/// blue and red, which has a network of its own; nobody leads, the test plays the leader.
async fn two(blue: u32, red: u32) -> Cluster {
    let cluster = Cluster::leaderless().await;
    cluster.carry_out("blue", 10, blue).await;
    cluster.carry_out("red", 11, red).await;
    cluster
}

/// Types a command that acts on red, and lets `trouble` come over it once it is written.
async fn typed(cluster: &Cluster, line: &str, trouble: impl Future<Output = ()>) -> Answer {
    let line = format!("{line} --timeout 20s");
    let command = cluster.run(&line);
    let trouble = async {
        while cluster.record("red").await.unwrap().contains(r#""Action":"""#) {
            tokio::task::yield_now().await;
        }
        trouble.await;
    };
    let (answer, ()) = tokio::join!(command, trouble);
    answer
}

const BLANKED: &str = r#"{"NetName":"red","NetID":11,"Action":"","Namespace":""}"#;

#[tokio::test]
async fn an_action_that_somebody_blanks_before_it_was_carried_out_is_no_success() {
    for (line, blue, red) in [
        ("tenant join red --to blue", 10, 11),
        ("tenant isolate red", 10, 10),
        ("tenant isolate red", 10, 0),
        ("tenant global red", 10, 11),
    ] {
        let cluster = two(blue, red).await;
        let errors = typed(&cluster, line, cluster.write("red", BLANKED)).await.refused();
        assert!(errors.contains("somebody overwrote the action before it was carried out"), "{line}: {errors}");
    }
}

#[tokio::test]
async fn an_action_that_was_carried_out_is_a_success_and_so_is_one_that_changes_nothing() {
    for (line, blue, red, after) in [
        ("tenant join red --to blue", 10, 11, 10),
        ("tenant join red --to blue", 10, 10, 10),
        ("tenant isolate red", 10, 10, 11),
        ("tenant isolate red", 10, 11, 11),
        ("tenant global red", 10, 11, 0),
        ("tenant global red", 10, 0, 0),
    ] {
        let cluster = two(blue, red).await;
        let told = typed(&cluster, line, cluster.carry_out("red", 11, after)).await.ok();
        let change = if red == after { format!("{after}, unchanged") } else { format!("{red} -> {after}") };
        assert_eq!(told, format!("red: NetID {change}\n"), "{line}");
    }
}

/// Two commands, one after the other, on one namespace: the first is carried out, and moved on from before it looks.
#[tokio::test]
async fn an_action_that_anothers_follows_at_once_is_still_a_success() {
    let cluster = two(10, 11).await;
    let trouble = async {
        cluster.carry_out("red", 11, 10).await;
        cluster.write("red", r#"{"NetName":"red","NetID":10,"Action":"isolate","Namespace":""}"#).await;
        cluster.carry_out("red", 11, 11).await;
    };
    let told = typed(&cluster, "tenant join red --to blue", trouble).await.ok();
    assert_eq!(told, "red: NetID 11 -> 10\n");

    let cluster = two(10, 11).await;
    let trouble = async {
        cluster.carry_out("red", 11, 10).await;
        cluster.carry_out("blue", 10, 12).await;
    };
    let told = typed(&cluster, "tenant join red --to blue", trouble).await.ok();
    assert_eq!(told, "red: NetID 11 -> 10\n", "the target left afterwards");
}

/// The same unseen, since the watch broke: what cannot be told apart is no success.
#[tokio::test]
async fn an_action_that_anothers_follows_unseen_is_not_taken_for_a_success() {
    let cluster = two(10, 11).await;
    let trouble = async {
        cluster.twin.cut_watches();
        cluster.carry_out("red", 11, 10).await;
        cluster.carry_out("red", 11, 11).await;
    };
    let errors = typed(&cluster, "tenant join red --to blue", trouble).await.refused();
    assert!(errors.contains("somebody else changed the namespace meanwhile, its NetID is 11"), "{errors}");
}
