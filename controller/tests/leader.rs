//! Whole controllers, two of them, on the in-memory store and on a real etcd: the same scenarios.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod people;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_controller::lead::Tally;
use bulkhead_controller::plan::Policy;
use bulkhead_controller::run::{Options, RunError, run};
use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_core::number::JUMP;
use bulkhead_core::record::{ConfigRecord, NetNamespaceRecord, Record, RestoreRecord};
use bulkhead_core::{Action, keys};
use bulkhead_store::process::Cluster;
use bulkhead_store::{Candidate, Settings, Store, Timeouts, Twin, Txn, WriteFault};
use people::{People, config, ns, within};
use tokio::sync::watch;
use tokio::task::JoinHandle;

struct Controller {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), RunError>>,
    tally: Arc<Tally>,
}

impl Controller {
    fn start(store: Store, identity: &str, config: Option<ConfigRecord>) -> Self {
        let options = Options {
            prefix: keys::DEFAULT_PREFIX.to_owned(),
            identity: identity.to_owned(),
            lease_ttl: Duration::from_secs(2),
            policy: Policy { global_at_birth: [ns("kube-system")].into(), ..Policy::default() },
            config,
            state_dir: None,
        };
        let (stop, stopping) = watch::channel(false);
        let tally = Arc::new(Tally::default());
        let counting = Arc::clone(&tally);
        let task = tokio::spawn(async move { run(&store, &options, &counting, None, stopping).await });
        Self { stop, task, tally }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        within(self.task).await.unwrap().unwrap();
    }
}

/// Where a scenario plays: in memory, or on a real etcd.
enum Stage {
    Memory(Twin),
    Etcd(Cluster),
}

impl Stage {
    fn memory() -> Self {
        Self::Memory(Twin::new())
    }

    fn etcd(members: usize) -> Self {
        Self::Etcd(Cluster::start(members).unwrap())
    }

    /// A client of its own.
    async fn store(&self) -> Store {
        match self {
            Self::Memory(twin) => twin.store(),
            Self::Etcd(cluster) => {
                let settings = Settings::new(&cluster.endpoints(), None, None, Timeouts::default()).unwrap();
                Store::connect(settings).await.unwrap()
            }
        }
    }

    async fn people(&self) -> People {
        People::new(self.store().await)
    }
}

/// A leader whose cluster has the namespace a, with `NetID` 10.
async fn led(people: &People, store: Store) -> Controller {
    let controller = Controller::start(store, "one", Some(config()));
    people.until_leads("one").await;
    people.creates("a").await;
    people.until_net_id("a", 10).await;
    controller
}

/// The same, and another controller that waits to lead.
async fn two_leaders(people: &People, [first, second]: [Store; 2]) -> [Controller; 2] {
    let one = led(people, first).await;
    let two = Controller::start(second, "two", None);
    people.until_candidates(2).await;
    [one, two]
}

fn join(target: &str) -> Action {
    Action::Join(ns(target))
}

/// From an empty etcd to a cluster in use.
async fn people_are_served(stage: &Stage) {
    let people = &stage.people().await;
    let controller = Controller::start(stage.store().await, "one", Some(config()));
    people.until(&people.keys.ledger_cluster(), |value| value.is_some()).await;
    for (name, net_id) in [("a", 10), ("b", 11), ("c", 12), ("kube-system", 0)] {
        people.creates(name).await;
        people.until_net_id(name, net_id).await;
    }
    people.act(&["a", "b"], &join("c")).await;
    people.until_net_id("a", 12).await;
    let [a, b] = ["a", "b"].map(|name| people.keys.ledger_namespace(&ns(name)));
    let [a, b] = [people.store.get(&a).await.unwrap().unwrap(), people.store.get(&b).await.unwrap().unwrap()];
    assert_eq!(a.mod_revision, b.mod_revision, "written together, moved together");
    assert_eq!(people.record("a").await.net_id, Some(12), "the mirror is of the same transaction");
    people.act(&["a"], &Action::Isolate).await;
    people.until_net_id("a", 10).await;

    people.act(&["a"], &join("late")).await;
    people.until_answered("a", "waits").await;
    people.creates("late").await;
    people.until_net_id("a", 14).await;
    people.until_answered("a", "").await;

    people
        .write(&people.keys.netnamespace(&ns("b")), br#"{"NetName":"b","NetID":10,"Action":"","Namespace":""}"#)
        .await;
    people
        .until(&people.keys.netnamespace(&ns("b")), |value| {
            value.is_some_and(|v| v.windows(10).any(|w| w == br#""NetID":12"#))
        })
        .await;
    people.delete(&people.keys.netnamespace(&ns("b"))).await;
    people.until(&people.keys.ledger_namespace(&ns("b")), |value| value.is_none()).await;

    people.asks("n1", "10.0.0.1").await;
    people.until_subnet("10.0.0.1", "172.11.0.0/22").await;
    people.asks("lb", "10.0.0.9").await;
    people.until_subnet("10.0.0.9", "172.11.4.0/22").await;
    let address = "10.0.0.1".parse().unwrap();
    people.delete(&people.keys.subnet(address)).await;
    people.until(&people.keys.ledger_node(address), |value| value.is_none()).await;
    assert_eq!(controller.tally.conflicts.load(Ordering::Relaxed), 0, "a leader alone meets nobody");
    controller.stop().await;
    assert_eq!(Candidate::leader(&people.store, &people.keys.election()).await.unwrap(), None, "it resigned");
}

/// Two controllers: the one that waits takes over with nothing lost, whether the other resigns or dies.
async fn another_takes_over(stage: &Stage) {
    let people = &stage.people().await;
    let [one, two] = two_leaders(people, [stage.store().await, stage.store().await]).await;
    one.stop().await;
    people.until_leads("two").await;
    people.creates("b").await;
    people.until_net_id("b", 11).await;
    people.act(&["b"], &join("a")).await;
    people.until_net_id("b", 10).await;
    // Ended in the middle of its work.
    two.task.abort();
    let three = Controller::start(stage.store().await, "three", None);
    people.act(&["b"], &Action::Global).await;
    people.until_net_id("b", 0).await;
    people.until_leads("three").await;
    three.stop().await;
}

async fn records_of_k8s_ovs_are_taken_over(stage: &Stage) {
    let people = &stage.people().await;
    people.write(&keys::config(keys::DEFAULT_PREFIX), ConfigRecord::EXAMPLE.as_bytes()).await;
    for n in 0..130 {
        let key = people.keys.netnamespace(&ns(&format!("n{n:03}")));
        let json = format!(r#"{{"NetName":"n{n:03}","NetID":{},"Action":"","Namespace":""}}"#, 300_924 + n / 2);
        people.write(&key, json.as_bytes()).await;
    }
    let node = br#"{"Host":"sdn-test1","HostIP":"10.0.0.197","Subnet":"172.11.8.0/22","Assign":false}"#;
    people.write(&people.keys.subnet("10.0.0.197".parse().unwrap()), node).await;
    let before = people.store.list(&people.keys.netnamespaces()).await.unwrap();
    let controller = Controller::start(stage.store().await, "one", None);
    people.until(&people.keys.ledger_node("10.0.0.197".parse().unwrap()), |value| value.is_some()).await;
    let ledger = people.store.list(&people.keys.ledger_namespaces()).await.unwrap();
    assert_eq!(ledger.entries.len(), 130);
    people.until_net_id("n001", 300_924).await;
    people.until_net_id("n129", 300_988).await;
    let after = people.store.list(&people.keys.netnamespaces()).await.unwrap();
    assert_eq!(before.entries, after.entries, "nobody's record was touched");
    controller.stop().await;
}

#[tokio::test]
async fn people_are_served_in_memory() {
    people_are_served(&Stage::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_served_by_etcd() {
    people_are_served(&Stage::etcd(1)).await;
}

#[tokio::test]
async fn another_takes_over_in_memory() {
    another_takes_over(&Stage::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_takes_over_on_etcd() {
    another_takes_over(&Stage::etcd(1)).await;
}

#[tokio::test]
async fn records_of_k8s_ovs_are_taken_over_in_memory() {
    records_of_k8s_ovs_are_taken_over(&Stage::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_k8s_ovs_are_taken_over_on_etcd() {
    records_of_k8s_ovs_are_taken_over(&Stage::etcd(1)).await;
}

async fn epoch_rises(people: &People, epoch: u64) {
    people
        .until(&people.keys.ledger_cluster(), |value| {
            value
                .and_then(|value| ledger::parse::<ClusterEntry>(value).ok())
                .is_some_and(|cluster| cluster.epoch == epoch)
        })
        .await;
}

async fn vni_of(people: &People, name: &str) -> u32 {
    let key = people.keys.ledger_namespace(&ns(name));
    people.until(&key, |value| value.is_some()).await;
    let entry = people.store.get(&key).await.unwrap().unwrap();
    ledger::parse::<bulkhead_core::Tenant>(&entry.value).unwrap().vni.get()
}

/// `bulkhead restore`, as whoever restored etcd types it.
async fn a_restore_that_is_asked_for_is_done(stage: &Stage) {
    let people = &stage.people().await;
    let controller = led(people, stage.store().await).await;
    people.write(&people.keys.restore(), &RestoreRecord::asking("by hand", None).to_json()).await;
    people.until(&people.keys.restore(), |value| value.is_none()).await;
    epoch_rises(people, 2).await;
    people.creates("b").await;
    assert!(vni_of(people, "b").await > 10 + JUMP);
    people.until_net_id("a", 10).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_restore_that_is_asked_for_is_done_in_memory() {
    a_restore_that_is_asked_for_is_done(&Stage::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_asked_for_is_done_on_etcd() {
    a_restore_that_is_asked_for_is_done(&Stage::etcd(1)).await;
}

/// etcd goes back under two controllers, first under its own id, then under another: each time the epoch rises once,
/// and a number that was given out after the snapshot is not given out again.
#[tokio::test]
async fn a_restored_etcd_is_noticed_by_whoever_leads_then() {
    let twin = Twin::new();
    let people = People::new(twin.store());
    let one = led(&people, twin.store()).await;
    let before = twin.checkpoint();
    let two = Controller::start(twin.store(), "two", None);
    people.creates("lost").await;
    people.until_net_id("lost", 11).await;
    twin.restore(&before);
    epoch_rises(&people, 2).await;
    people.creates("b").await;
    let second = vni_of(&people, "b").await;
    assert!(second > 11 + JUMP, "{second}");
    // The snapshot knows nothing of that jump, nor of a leader that is there no more.
    one.task.abort();
    people.until_leads("two").await;
    twin.restore(&before);
    epoch_rises(&people, 3).await;
    people.creates("c").await;
    let third = vni_of(&people, "c").await;
    assert!(third > second + JUMP / 2, "{second} {third}");
    twin.set_cluster_id(7);
    epoch_rises(&people, 4).await;
    people.creates("d").await;
    assert!(vni_of(&people, "d").await > third + JUMP / 2);
    two.stop().await;
}

/// Who only looked on, or led before, does not repeat what another leader has done.
#[tokio::test]
async fn a_restore_is_dealt_with_once() {
    let twin = Twin::new();
    let people = People::new(twin.store());
    let [one, two] = two_leaders(&people, [twin.store(), twin.store()]).await;
    twin.set_cluster_id(9);
    epoch_rises(&people, 2).await;
    one.stop().await;
    people.until_leads("two").await;
    people.creates("b").await;
    let vni = vni_of(&people, "b").await;
    assert!(vni > JUMP && vni < 2 * JUMP, "{vni}");
    epoch_rises(&people, 2).await;
    two.stop().await;
}

/// A minute, whoever leads meanwhile. The clock is the test's own.
#[tokio::test(start_paused = true)]
async fn behind_a_restore_a_machine_that_names_no_subnet_waits_for_a_minute() {
    let twin = Twin::new();
    let people = People::new(twin.store());
    let [one, two] = two_leaders(&people, [twin.store(), twin.store()]).await;
    twin.set_cluster_id(9);
    epoch_rises(&people, 2).await;
    people.asks("new", "10.0.0.9").await;
    people.until_refused("10.0.0.9", "for a minute").await;
    one.stop().await;
    people.until_leads("two").await;
    let key = people.keys.ledger_node("10.0.0.9".parse().unwrap());
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(people.store.get(&key).await.unwrap(), None);
    people.until_subnet("10.0.0.9", "172.11.0.0/22").await;
    two.stop().await;
}

/// A write whose answer is lost is neither lost nor done twice, whether it was applied or not.
#[tokio::test]
async fn a_write_of_unknown_outcome_is_neither_lost_nor_done_twice() {
    let twin = Twin::new();
    let (people, store) = (People::new(twin.store()), twin.store());
    let faults = store.faults().unwrap();
    let controller = led(&people, store).await;
    for (fault, name, number) in [(WriteFault::UnknownApplied, "b", 11), (WriteFault::UnknownLost, "c", 12)] {
        faults.fail_next_write(fault);
        people.creates(name).await;
        people.until_net_id(name, number).await;
        people.until_answered(name, "").await;
    }
    faults.fail_next_write(WriteFault::Unreachable);
    people.act(&["b"], &join("a")).await;
    people.until_net_id("b", 10).await;
    controller.stop().await;
}

/// etcd away: nothing is invented, and what people wrote meanwhile is caught up with.
#[tokio::test]
async fn what_was_written_while_etcd_was_away_is_caught_up_with() {
    let twin = Twin::new();
    let (people, store) = (People::new(twin.store()), twin.store());
    let faults = store.faults().unwrap();
    let controller = led(&people, store).await;
    faults.unreachable(true);
    people.creates("b").await;
    people.delete(&people.keys.netnamespace(&ns("a"))).await;
    twin.compact();
    faults.unreachable(false);
    people.until_net_id("b", 11).await;
    people.until(&people.keys.ledger_namespace(&ns("a")), |value| value.is_none()).await;
    controller.stop().await;
}

/// A leader whose lease etcd dropped runs for leadership again; meanwhile whoever leads is not disturbed.
#[tokio::test]
async fn a_leader_that_lost_its_lease_campaigns_again() {
    let twin = Twin::new();
    let (people, store) = (People::new(twin.store()), twin.store());
    let controller = led(&people, store).await;
    let leader = Candidate::leader(&people.store, &people.keys.election()).await.unwrap().unwrap();
    assert!(twin.expire_lease_of(leader.fence.key()));
    people.creates("b").await;
    people.until_net_id("b", 11).await;
    let next = Candidate::leader(&people.store, &people.keys.election()).await.unwrap().unwrap();
    assert!(next.fence.create_revision() > leader.fence.create_revision());
    // A write of the former lead is refused.
    let late = people.store.commit(Txn::new().fenced(&leader.fence).put("/late", "1")).await.unwrap();
    assert_eq!(late.done(), None);
    controller.stop().await;
}

/// One member of three dies, the leader's work goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_goes_on_when_a_member_of_etcd_dies() {
    let mut stage = Stage::etcd(3);
    let people = stage.people().await;
    let controller = led(&people, stage.store().await).await;
    if let Stage::Etcd(cluster) = &mut stage {
        cluster.kill(0);
    }
    within(async {
        // The people's own write may have to be tried again, too.
        let value = NetNamespaceRecord::asking(&ns("b")).to_json();
        let key = people.keys.netnamespace(&ns("b"));
        while people.store.commit(Txn::new().put(key.as_str(), value.clone())).await.is_err() {
            // Between two tries.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    people.until_net_id("b", 11).await;
    controller.stop().await;
}
