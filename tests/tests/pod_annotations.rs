//! An agent that watches its node's pods: limits follow the annotations of running pods, bad ones are told where users look,
//! records of pods that are gone for everybody go, and an API server that is away is missed by nobody.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bulkhead_core::protocol::PodStatus;
use bulkhead_tests::error::promised;
use bulkhead_tests::flow::PacketFlow;
use bulkhead_tests::goodput::{self, rate};
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::undisturbed::Undisturbed;
use bulkhead_tests::{Endpoint, Lab, LabError, Node, PodSpec, wait};
use serde_json::{Value, json};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// How soon a loaded machine brings a thing to pass.
const SOON: Duration = Duration::from_secs(20);
/// How often a rate is measured at most.
const WINDOWS: usize = 4;

fn status(node: &Node, pod: &str) -> Result<Option<PodStatus>, LabError> {
    Ok(node.pods()?.into_iter().find(|status| status.pod == pod))
}

fn await_limits(node: &Node, pod: &str, ingress: Option<u64>, egress: Option<u64>) -> Result<(), LabError> {
    wait::until_or(&format!("limits {ingress:?} and {egress:?} of {pod}"), SOON, || {
        let held = status(node, pod).map_err(|error| error.to_string())?.ok_or("no such pod")?;
        let held = (held.ingress_bandwidth, held.egress_bandwidth);
        if held == (ingress, egress) { Ok(()) } else { Err(format!("{held:?}")) }
    })
}

/// What passes, in bits per second.
fn measured(from: &Endpoint, to: &Endpoint, limit: f64) -> Result<(), LabError> {
    // Never much faster. What a machine that stood still has not delivered is missing in one window, and too much in the next:
    // it is measured again.
    let mut seen = 0.0;
    for _ in 0..WINDOWS {
        seen = goodput::tcp(from, to, Duration::from_secs(2), Duration::from_secs(3))?;
        println!("    {from} -> {to}: {} of {}", rate(seen), rate(limit));
        if seen > 1.1 * limit || (0.85 * limit..=1.02 * limit).contains(&seen) {
            break;
        }
    }
    promised((0.85 * limit..=1.02 * limit).contains(&seen), || {
        format!("{from} -> {to}: {} where {} is the limit", rate(seen), rate(limit))
    })
}

#[test]
fn limits_follow_the_annotations_of_running_pods() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).api_servers().start()?;
    lab.create_tenants(&["a"])?;
    let (node, api) = (lab.node(0), lab.node(0).api()?);
    let annotate = |uid: &str, annotations: Value| api.put(uid, "a", uid.trim_end_matches("-uid"), &annotations);
    let limited = lab.pod_with(0, "a", "limited", &PodSpec::limited(20_000_000, 20_000_000))?;
    let free = lab.pod(0, "a", "free")?;
    let (near, far) = (lab.pod(0, "a", "near")?, lab.pod(1, "a", "far")?);
    let pod = limited.endpoint();

    println!("what the runtime said at ADD holds until the API server has spoken");
    await_limits(node, "limited", Some(20_000_000), Some(20_000_000))?;
    println!("limits that change, up and down and away: not one packet is lost");
    let flows = Undisturbed::start(&[(pod, far.endpoint()), (near.endpoint(), pod), (far.endpoint(), pod)])?;
    for (ingress, egress) in [("10M", "10M"), ("50M", "1M"), ("1M", "100M"), ("300M", "300M")] {
        annotate("limited-uid", json!({INGRESS: ingress, EGRESS: egress, "other": "x"}));
        let bits = |text: &str| text.trim_end_matches('M').parse::<u64>().ok().map(|mega| mega * 1_000_000);
        await_limits(node, "limited", bits(ingress), bits(egress))?;
        limited.check()?;
    }
    annotate("limited-uid", json!({}));
    await_limits(node, "limited", None, None)?;
    limited.check()?;
    flows.expect("changes of limits")?;
    let fast = goodput::tcp(pod, near.endpoint(), Duration::from_secs(1), Duration::from_secs(1))?;
    promised(fast > 400_000_000.0, || format!("a removed limit still holds: {}", rate(fast)))?;

    println!("the rates are what was asked for, on one node and across");
    annotate("limited-uid", json!({INGRESS: "30M", EGRESS: "20M"}));
    await_limits(node, "limited", Some(30_000_000), Some(20_000_000))?;
    let share = goodput::share_of_payload(node.status()?.mtu);
    measured(pod, far.endpoint(), 20_000_000.0 * share)?;
    measured(near.endpoint(), pod, 30_000_000.0 * share)?;

    println!("a pod that had none gets limits while it runs");
    let towards = PacketFlow::ping(far.endpoint(), free.address())?;
    annotate("free-uid", json!({INGRESS: "10M", EGRESS: "10M"}));
    await_limits(node, "free", Some(10_000_000), Some(10_000_000))?;
    let loss = towards.stop();
    println!("    {loss}");
    promised(loss.lost <= 1, || format!("more than the moment of a new qdisc was lost: {loss}"))?;
    free.check()?;
    measured(free.endpoint(), near.endpoint(), 10_000_000.0 * share)?;
    measured(far.endpoint(), free.endpoint(), 10_000_000.0 * share)?;

    println!("a bad value: an Event, and the last limit stays; the good one beside it holds");
    annotate("free-uid", json!({INGRESS: "10X", EGRESS: "5M"}));
    await_limits(node, "free", Some(10_000_000), Some(5_000_000))?;
    let event = wait::until_or("an Event", SOON, || api.events().first().cloned().ok_or_else(|| "none".to_owned()))?;
    let text = event["note"].as_str().unwrap_or_default();
    println!("    {}: {text}", event["reason"]);
    promised(
        event["reason"] == "InvalidBandwidth"
            && event["type"] == "Warning"
            && event["regarding"]["name"] == "free"
            && event["regarding"]["uid"] == "free-uid"
            && [INGRESS, "10X", "10M, 1.5G", "still 10M"].iter().all(|word| text.contains(word)),
        || event.to_string(),
    )?;

    println!("an agent that starts again has the annotations' limits at once, without a packet lost");
    let flows = Undisturbed::start(&[(free.endpoint(), far.endpoint())])?;
    node.restart_agent()?;
    await_limits(node, "free", Some(10_000_000), Some(5_000_000))?;
    await_limits(node, "limited", Some(30_000_000), Some(20_000_000))?;
    flows.expect("a restart")?;
    promised(api.refused().is_empty(), || format!("the agent asked for more than it may: {:?}", api.refused()))
}

#[test]
fn an_api_server_that_is_away_is_missed_by_nobody() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).api_servers().agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let (node, api) = (lab.node(0), lab.node(0).api()?);
    api.put("one-uid", "a", "one", &json!({EGRESS: "10M"}));
    let one = lab.pod(0, "a", "one")?;
    await_limits(node, "one", None, Some(10_000_000))?;
    api.set_away(true);
    node.restart_agent()?;
    let two = lab.pod(0, "a", "two")?;
    expect_reaches(one.endpoint(), two.endpoint())?;
    await_limits(node, "one", None, Some(10_000_000))?;
    wait::until_or("the status saying so", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        if problems.iter().any(|text| text.contains("API server")) { Ok(()) } else { Err(format!("{problems:?}")) }
    })?;
    promised(node.status()?.ready, || "not ready without an API server".into())?;
    api.put("one-uid", "a", "one", &json!({EGRESS: "20M"}));
    api.set_away(false);
    wait::until_or("the change being caught up", Duration::from_mins(2), || {
        let held = status(node, "one").map_err(|error| error.to_string())?.and_then(|pod| pod.egress_bandwidth);
        if held == Some(20_000_000) { Ok(()) } else { Err(format!("{held:?}")) }
    })
}

#[test]
fn only_what_two_sources_call_gone_is_removed() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).api_servers().agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let (node, api) = (lab.node(0), lab.node(0).api()?);
    for name in ["api-only", "stays"] {
        api.put(&format!("{name}-uid"), "a", name, &json!({}));
    }
    let stays = lab.pod(0, "a", "stays")?;
    // Its deletion was not seen: the API server has forgotten it, its netns is where it was.
    let terminating = lab.pod(0, "a", "terminating")?;
    // The runtime gave up their netns without a DEL; a process keeps the namespace, and so the device, alive.
    let names = || -> Result<Vec<String>, LabError> { Ok(node.pods()?.into_iter().map(|pod| pod.pod).collect()) };
    let hold = |name: &str| -> Result<OwnedFd, LabError> {
        let pod = lab.pod(0, "a", name)?;
        // Now: the next resync may remove what is gone.
        promised(names()?.iter().any(|known| known == name), || format!("{name} is not known: {:?}", names()))?;
        let path = pod.netns().path().to_owned();
        let file =
            std::fs::File::open(&path).map_err(|source| LabError::Io { what: format!("open {name}"), source })?;
        Ok(file.into())
    };
    let _api_only = hold("api-only")?;
    let _gone = hold("gone")?;
    wait::until_or("the pod that is gone for both being gone", SOON, || {
        let names = names().map_err(|error| error.to_string())?;
        if names.iter().any(|name| name == "gone") { Err(format!("{names:?}")) } else { Ok(()) }
    })?;
    let repairs = node.status()?.repairs;
    promised(repairs.iter().any(|text| text.contains("a/gone")), || format!("not said: {repairs:?}"))?;
    // Two more resyncs: everything that was to go has gone.
    let before = node.status()?.repairs.len();
    node.netns().exec("ip", &["route", "del", &stays.address().to_string()], &[])?;
    wait::until_or("another resync", SOON, || {
        let now = node.status().map_err(|error| error.to_string())?.repairs.len();
        if now > before { Ok(()) } else { Err("none".into()) }
    })?;
    promised(names()? == ["api-only", "stays", "terminating"], || format!("{:?}", names()))?;
    expect_reaches(terminating.endpoint(), stays.endpoint())?;
    terminating.check()?;
    terminating.delete()
}
