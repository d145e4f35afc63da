//! Whole controllers between the in-memory store and a small API server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod api;
mod people;

use std::sync::Arc;
use std::time::Duration;

use api::Api;
use bulkhead_controller::kubernetes::{self, KubernetesOptions};
use bulkhead_controller::lead::{Outside, Tally};
use bulkhead_controller::plan::Policy;
use bulkhead_controller::run::{Options, RunError, run};
use bulkhead_core::annotation::{NETWORK, NETWORK_STATUS, SUBNET, VNI};
use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_core::number::JUMP;
use bulkhead_core::{Action, keys};
use bulkhead_store::{Store, Twin};
use people::{People, config, ns, within};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

struct Controller {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), RunError>>,
    _beside: JoinSet<()>,
}

impl Controller {
    fn start(store: Store, api: &Api, identity: &str) -> Self {
        let options = Options {
            prefix: keys::DEFAULT_PREFIX.to_owned(),
            identity: identity.to_owned(),
            lease_ttl: Duration::from_secs(2),
            policy: Policy { global_at_birth: [ns("kube-system")].into(), ..Policy::default() },
            state_dir: None,
            config: Some(config()),
        };
        let outside = KubernetesOptions {
            kubeconfig: None,
            agent_namespace: "bulkhead-system".to_owned(),
            agent_selector: "agent=yes".to_owned(),
            node_release_after: Duration::from_millis(300),
            node_networks: Vec::new(),
        };
        let client = api.client();
        let following = kubernetes::follow(&client, &outside);
        let objects = following.objects();
        let (reports, to_report) = watch::channel(None);
        let mut beside = JoinSet::new();
        let shown = objects.clone();
        beside.spawn(async move { kubernetes::report(client, "bulkhead-system", to_report, shown).await });
        let outside = Outside { objects, node_release_after: outside.node_release_after, reports };
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(async move {
            let _following = following;
            run(&store, &options, &Arc::new(Tally::default()), Some(&outside), stopping).await
        });
        Self { stop, task, _beside: beside }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        within(self.task).await.unwrap().unwrap();
    }
}

async fn status(api: &Api, namespace: &str, text: &str) {
    api.until(&format!("{namespace} is {text}"), |api| api.annotation(namespace, NETWORK_STATUS).starts_with(text))
        .await;
}

fn node(address: &str) -> Value {
    json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

#[tokio::test]
async fn users_of_kubernetes_are_served_and_answered() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let controller = Controller::start(twin.store(), &api, "one");
    api.put("namespaces", "a", json!({}));
    people.until_net_id("a", 10).await;
    api.put("namespaces", "b", json!({}));
    people.until_net_id("b", 12).await;
    status(&api, "b", "isolated").await;
    status(&api, "kube-system", "global").await;
    assert_eq!(api.annotation("b", VNI), "12");

    api.annotate("b", NETWORK, &json!("join:a"));
    people.until_net_id("b", 10).await;
    status(&api, "b", "joined to a (NetID 10)").await;
    api.annotate("b", NETWORK, &json!("merge"));
    status(&api, "b", "refused: ").await;
    api.annotate("b", NETWORK, &Value::Null);
    status(&api, "b", "joined to a (NetID 10)").await;
    people.act(&["b"], &Action::Global).await;
    status(&api, "b", "global").await;
    api.until("five Events", |api| api.events("b").len() == 5).await;
    let reasons: Vec<_> = api.events("b").into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["NetworkReady", "NetworkChanged", "NetworkRefused", "NetworkChanged", "NetworkChanged"]);
    assert_eq!(api.events("b")[4].1, "VNI 12: global");

    api.delete("namespaces", "b");
    people.until(&people.keys.ledger_namespace(&ns("b")), |value| value.is_none()).await;
    people.until(&people.keys.netnamespace(&ns("b")), |value| value.is_none()).await;
    controller.stop().await;
}

#[tokio::test]
async fn nothing_is_written_for_nothing_nor_by_who_does_not_lead() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let one = Controller::start(twin.store(), &api, "one");
    people.until_leads("one").await;
    let two = Controller::start(twin.store(), &api, "two");
    api.put("namespaces", "a", json!({}));
    status(&api, "a", "isolated").await;
    status(&api, "kube-system", "global").await;
    assert_eq!(api.patches(), 2);
    // Another leads: it finds everything as it should be, and mends what somebody breaks.
    one.stop().await;
    people.until_leads("two").await;
    api.annotate("a", VNI, &json!("99"));
    api.until("the VNI is mended", |api| api.annotation("a", VNI) == "10").await;
    assert_eq!(api.patches(), 3);
    two.stop().await;
}

#[tokio::test]
async fn while_the_api_server_is_away_nobody_dies_and_then_what_happened_is_caught_up_with() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let controller = Controller::start(twin.store(), &api, "one");
    for name in ["a", "b"] {
        api.put("namespaces", name, json!({}));
    }
    people.until_net_id("b", 11).await;
    api.away(true);
    api.delete("namespaces", "a");
    api.put("namespaces", "c", json!({}));
    // etcd's users are served meanwhile, with what was known.
    people.act(&["b"], &Action::Join(ns("a"))).await;
    people.until_net_id("b", 10).await;
    people.delete(&people.keys.netnamespace(&ns("a"))).await;
    people.until_answered("a", "").await;
    api.forget();
    api.away(false);
    people.until(&people.keys.ledger_namespace(&ns("c")), |value| value.is_some()).await;
    people.until(&people.keys.ledger_namespace(&ns("a")), |value| value.is_none()).await;
    people.until_net_id("b", 10).await;
    controller.stop().await;
}

/// Takes as long as a watch does.
#[tokio::test]
async fn an_api_server_that_lost_its_power_does_not_blind_the_leader() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let controller = Controller::start(twin.store(), &api, "one");
    api.put("namespaces", "a", json!({}));
    people.until(&people.keys.ledger_namespace(&ns("a")), |value| value.is_some()).await;
    api.silence();
    api.put("namespaces", "b", json!({}));
    people.until(&people.keys.ledger_namespace(&ns("b")), |value| value.is_some()).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_controller_that_starts_without_an_api_server_takes_nothing_for_gone() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let one = Controller::start(twin.store(), &api, "one");
    api.put("namespaces", "a", json!({}));
    people.until_net_id("a", 10).await;
    one.stop().await;
    api.away(true);
    let two = Controller::start(twin.store(), &api, "two");
    people.until_leads("two").await;
    // Its Nodes may have subnets that this etcd knows nothing of: only who names one is served.
    people.asks("lb", "10.0.0.9").await;
    people.until_refused("10.0.0.9", "API server").await;
    let named = br#"{"Host":"lb2","HostIP":"10.0.0.8","Subnet":"172.11.80.0/22","Assign":true}"#;
    people.write(&people.keys.subnet("10.0.0.8".parse().unwrap()), named).await;
    people.until(&people.keys.ledger_node("10.0.0.8".parse().unwrap()), |value| value.is_some()).await;
    people.until_net_id("a", 10).await;
    api.away(false);
    people.until_subnet("10.0.0.9", "172.11.0.0/22").await;
    api.put("namespaces", "b", json!({}));
    people.until(&people.keys.ledger_namespace(&ns("b")), |value| value.is_some()).await;
    people.until_net_id("a", 10).await;
    two.stop().await;
}

#[tokio::test]
async fn nodes_come_move_and_go_and_their_condition_follows_their_agent() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let controller = Controller::start(twin.store(), &api, "one");
    api.put("nodes", "n1", node("10.0.0.1"));
    api.put("nodes", "n2", node("10.0.0.2"));
    people.until_subnet("10.0.0.2", "172.11.4.0/22").await;
    let pod = |ready: &str| json!({"spec": {"nodeName": "n1", "containers": []}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
    let condition = |api: &Api, name: &str| {
        let condition = api.get("nodes", name)["status"]["conditions"][0].clone();
        (
            condition["status"].as_str().unwrap_or_default().to_owned(),
            condition["reason"].as_str().unwrap_or_default().to_owned(),
        )
    };
    for (ready, status, reason) in [("True", "False", "BulkheadReady"), ("False", "True", "BulkheadNotReady")] {
        api.put("pods", "agent", pod(ready));
        api.until(reason, |api| condition(api, "n1") == (status.into(), reason.into())).await;
        api.until("n2 has no agent", |api| condition(api, "n2") == ("True".into(), "BulkheadNotReady".into())).await;
    }
    // A Node whose agent cannot be ready, and why; the Event is told when the API server takes it.
    api.refuse_events(3);
    api.put("nodes", "n3", node("172.11.9.9"));
    api.until("n3 has no subnet", |api| condition(api, "n3") == ("True".into(), "BulkheadNoSubnet".into())).await;
    api.until("an Event says why", |api| !api.events("n3").is_empty()).await;
    let told = api.events("n3");
    assert!(told.len() == 1 && told[0].0 == "BulkheadNoSubnet" && told[0].1.contains("172.11.0.0/16"), "{told:?}");
    api.put("nodes", "n1", node("10.0.0.7"));
    people.until_subnet("10.0.0.7", "172.11.0.0/22").await;
    api.delete("nodes", "n2");
    people.until(&people.keys.ledger_node("10.0.0.2".parse().unwrap()), |value| value.is_none()).await;
    people.until(&people.keys.subnet("10.0.0.2".parse().unwrap()), |value| value.is_none()).await;
    controller.stop().await;
}

#[tokio::test]
async fn a_controller_started_after_a_restore_raises_the_epoch_by_itself() {
    let (twin, api) = (Twin::new(), Api::start().await);
    let people = People::new(twin.store());
    let one = Controller::start(twin.store(), &api, "one");
    api.put("namespaces", "a", json!({}));
    people.until_net_id("a", 10).await;
    let before = twin.checkpoint();
    api.put("namespaces", "b", json!({}));
    people.until_net_id("b", 12).await;
    // The first to be listed is not the first that came.
    api.put("nodes", "n2", node("10.0.0.2"));
    people.until_subnet("10.0.0.2", "172.11.0.0/22").await;
    api.put("nodes", "n1", node("10.0.0.1"));
    let shows =
        |api: &Api, name: &str, subnet: &str| api.get("nodes", name)["metadata"]["annotations"][SUBNET] == subnet;
    api.until("the nodes show it", |api| shows(api, "n2", "172.11.0.0/22") && shows(api, "n1", "172.11.4.0/22")).await;
    api.until("b shows its number", |api| api.annotation("b", VNI) == "12").await;
    api.until("the epoch is kept", |api| api.get("configmaps", "bulkhead-epoch")["data"]["epoch"] == "1").await;
    one.stop().await;
    twin.restore(&before);
    twin.set_cluster_id(7);
    let two = Controller::start(twin.store(), &api, "two");
    let raised = |value: Option<&[u8]>| {
        value.and_then(|value| ledger::parse::<ClusterEntry>(value).ok()).is_some_and(|cluster| cluster.epoch == 2)
    };
    people.until(&people.keys.ledger_cluster(), raised).await;
    api.until("the new epoch is kept", |api| api.get("configmaps", "bulkhead-epoch")["data"]["epoch"] == "2").await;
    // Who is younger than the snapshot keeps what is shown; who is new gets what nobody had.
    people.until_net_id("b", 12).await;
    people.until_subnet("10.0.0.2", "172.11.0.0/22").await;
    people.until_subnet("10.0.0.1", "172.11.4.0/22").await;
    api.put("namespaces", "c", json!({}));
    api.until("c has a number", |api| !api.annotation("c", VNI).is_empty()).await;
    assert!(api.annotation("c", VNI).parse::<u32>().unwrap() > JUMP);
    two.stop().await;
}
