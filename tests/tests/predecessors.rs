//! The defects of K8S-OVS, each a regression test under the number that the list of predecessors gives it.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::cluster::{ROOT, netnamespace_key};
use bulkhead_tests::counters::Drops;
use bulkhead_tests::error::promised;
use bulkhead_tests::probe::{Proto, SILENCE, await_reaches, await_silence, expect_reaches, expect_silence, reaches};
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError, Pod, PodSpec};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_predecessors_defects_stay_away() -> Result<(), LabError> {
    let lab = Lab::builder().agent_flag("--vxlan-port", "8472").start()?;
    lab.create_tenants(&["a", "b"])?;
    d1_the_first_pod_of_a_new_namespace_works(&lab)?;
    d2_a_change_while_the_agent_was_down_reaches_running_pods(&lab)?;
    d3_a_change_under_the_same_name_is_seen_after_a_watch_reset(&lab)?;
    d4_deletions_are_carried_out(&lab)?;
    d5_a_leader_that_lost_its_lease_writes_nothing(&lab)?;
    d6_a_change_deletes_no_pod(&lab)?;
    d8_calls_run_concurrently_and_speak_each_version(&lab)?;
    d7_a_failed_nodes_tunnel_goes(&lab)
}

fn d1_the_first_pod_of_a_new_namespace_works(lab: &Lab) -> Result<(), LabError> {
    println!("1: the first pod of a namespace that is not known yet");
    let foreign = lab.pod(0, "a", "beside")?;
    let early = thread::scope(|scope| {
        // The runtime asks first; the ADD waits for the namespace instead of failing.
        let early = scope.spawn(|| lab.pod(0, "fresh", "early"));
        wait::until("an ADD that waits", SOON, || (lab.node(0).calls() > 0).then_some(()))?;
        lab.create_tenants(&["fresh"])?;
        early.join().map_err(|_| LabError::ThreadGone("ADD".into()))?
    })?;
    let later = lab.pod(1, "fresh", "later")?;
    expect_reaches(later.endpoint(), early.endpoint())?;
    expect_reaches(early.endpoint(), later.endpoint())?;
    expect_silence(early.endpoint(), foreign.endpoint(), later.endpoint())?;
    for number in 0..10 {
        let name = format!("fresh{number}");
        lab.cli().ok(&["tenant", "create", &name])?;
        let pods = [lab.pod(0, &name, "1")?, lab.pod(1, &name, "2")?];
        expect_reaches(pods[0].endpoint(), pods[1].endpoint())?;
        pods.into_iter().try_for_each(Pod::delete)?;
    }
    Ok(())
}

fn d2_a_change_while_the_agent_was_down_reaches_running_pods(lab: &Lab) -> Result<(), LabError> {
    println!("2: a NetID that changed while an agent was down");
    let (a, b) = (lab.pod(0, "a", "d2")?, lab.pod(0, "b", "d2")?);
    lab.node(0).kill_agent()?;
    lab.bulkhead("tenant join b --to a")?;
    lab.node(0).start_agent()?;
    await_reaches(a.endpoint(), b.endpoint(), Proto::Tcp, SOON)?;
    lab.node(0).kill_agent()?;
    lab.bulkhead("tenant isolate b")?;
    lab.node(0).start_agent()?;
    await_silence(a.endpoint(), b.endpoint(), Proto::Tcp, SOON).map(drop)
}

fn d3_a_change_under_the_same_name_is_seen_after_a_watch_reset(lab: &Lab) -> Result<(), LabError> {
    println!(
        "3: a namespace that changed, and one deleted and made anew, while a node's watch was lost to a compaction"
    );
    lab.create_tenants(&["again"])?;
    let (a, b) = (lab.pod(0, "a", "d3")?, lab.pod(1, "b", "d3")?);
    let vni = |lab: &Lab| -> Result<u64, LabError> {
        let entry = lab.etcd().get_json(&format!("{ROOT}/bulkhead/ledger/namespaces/again"))?;
        entry["vni"].as_u64().ok_or_else(|| LabError::Broken(format!("no VNI in {entry}")))
    };
    let first = vni(lab)?;
    lab.node(0).cut_off()?;
    lab.bulkhead("tenant join b --to a")?;
    lab.bulkhead("tenant delete again")?;
    lab.create_tenants(&["again"])?;
    let second = vni(lab)?;
    promised(first != second, || format!("VNI {first} was given out again at once"))?;
    let status = lab.etcd().ctl(&["endpoint", "status", "-w", "json"])?;
    let revision =
        serde_json::from_str::<serde_json::Value>(&status).unwrap_or_default()[0]["Status"]["header"]["revision"]
            .to_string();
    lab.etcd().ctl(&["compact", &revision])?;
    let connected = lab.node(0).status()?.etcd_connected;
    println!("    cut off, the agent says connected: {connected}");
    lab.node(0).reconnect()?;
    await_reaches(a.endpoint(), b.endpoint(), Proto::Tcp, 4 * SOON)?;
    await_reaches(b.endpoint(), a.endpoint(), Proto::Tcp, 4 * SOON)?;
    let pods = [lab.pod(0, "again", "1")?, lab.pod(1, "again", "2")?];
    await_reaches(pods[0].endpoint(), pods[1].endpoint(), Proto::Tcp, SOON)?;
    let known = lab.node(0).pods()?.iter().find(|pod| pod.namespace == "again").map(|pod| u64::from(pod.vni));
    promised(known == Some(second), || format!("n1 knows VNI {known:?}, the ledger says {second}"))?;
    lab.bulkhead("tenant isolate b")?;
    await_silence(a.endpoint(), b.endpoint(), Proto::Tcp, SOON).map(drop)
}

fn d4_deletions_are_carried_out(lab: &Lab) -> Result<(), LabError> {
    println!("4: a deleted namespace is gone from the ledger and every node; its pods reach NetID 0 only");
    lab.create_tenants(&["gone"])?;
    let (one, two) = (lab.pod(0, "gone", "1")?, lab.pod(1, "gone", "2")?);
    expect_reaches(one.endpoint(), two.endpoint())?;
    lab.settle()?;
    lab.bulkhead("tenant delete gone")?;
    promised(lab.etcd().get(&format!("{ROOT}/bulkhead/ledger/namespaces/gone"))?.is_none(), || {
        "still in the ledger".into()
    })?;
    lab.settle()?;
    await_silence(one.endpoint(), two.endpoint(), Proto::Tcp, SOON)?;
    expect_silence(one.endpoint(), two.endpoint(), lab.node(0).host())
}

fn d5_a_leader_that_lost_its_lease_writes_nothing(lab: &Lab) -> Result<(), LabError> {
    println!("5: a leader frozen past its lease, with work before it, writes nothing when it wakes");
    lab.create_tenants(&["lease"])?;
    let freeze = |frozen: bool| {
        let mut controllers = lab.controllers();
        let process = controllers.process(0).ok_or_else(|| LabError::Broken("controller 0 does not run".into()))?;
        if frozen { process.freeze() } else { process.thaw() }
    };
    freeze(true)?;
    lab.etcd().put(&netnamespace_key("lease"), r#"{"NetName":"lease","Action":"global","Namespace":""}"#)?;
    lab.controllers().start(1)?;
    let ledger = format!("{ROOT}/bulkhead/ledger/namespaces/lease");
    let is = |net_id: u64| {
        let value = lab.etcd().get_json(&ledger).unwrap_or_default();
        if value["netId"] == net_id { Ok(()) } else { Err(value.to_string()) }
    };
    wait::until_or("the second controller leading", Duration::from_mins(1), || is(0))?;
    lab.bulkhead("tenant isolate lease")?;
    let settled = lab.etcd().get(&ledger)?;
    freeze(false)?;
    lab.bulkhead("tenant global a")?;
    lab.bulkhead("tenant isolate a")?;
    let after = lab.etcd().get(&ledger)?;
    promised(after == settled, || format!("the ledger was {settled:?}, is {after:?}"))?;
    let ids: Vec<String> = lab.etcd().keys(&format!("{ROOT}/bulkhead/ledger/namespaces/"))?;
    let mut vnis = BTreeSet::new();
    for key in &ids {
        let vni = lab.etcd().get_json(key)?["vni"].as_u64();
        promised(vni.is_some() && vnis.insert(vni), || format!("{key} has VNI {vni:?}, as another has"))?;
    }
    lab.controllers().kill(1)?;
    wait::until("the first controller leading again", Duration::from_mins(1), || {
        lab.bulkhead("tenant global lease").ok()
    })
    .map(drop)
}

fn d6_a_change_deletes_no_pod(lab: &Lab) -> Result<(), LabError> {
    println!("6: a change of a namespace touches none of its pods, running or not");
    let running = lab.pod(0, "b", "running")?;
    let completed = lab.pod(0, "b", "completed")?;
    completed.netns().ip("link set eth0 down")?;
    let before = lab.node(0).pods()?;
    lab.bulkhead("tenant join b --to a")?;
    lab.bulkhead("tenant isolate b")?;
    lab.bulkhead("tenant global b")?;
    lab.bulkhead("tenant isolate b")?;
    let names = |pods: &[bulkhead_core::protocol::PodStatus]| -> BTreeSet<String> {
        pods.iter().map(|pod| pod.container_id.clone()).collect()
    };
    let after = lab.node(0).pods()?;
    promised(names(&before) == names(&after), || format!("before {before:?}, after {after:?}"))?;
    completed.netns().ip("link set eth0 up")?;
    running.check()
}

fn d7_a_failed_nodes_tunnel_goes(lab: &Lab) -> Result<(), LabError> {
    println!("7: a node that is removed is gone from every node's tunnels, and its subnet is released");
    let (here, there) = (lab.pod(0, "a", "d7")?, lab.pod(2, "a", "d7")?);
    expect_reaches(here.endpoint(), there.endpoint())?;
    let failed = lab.node(2);
    failed.kill_agent()?;
    lab.cli().ok(&["node", "remove", "--yes", &failed.address().to_string()])?;
    for node in &lab.nodes()[..2] {
        wait::until_or(&format!("{} forgetting n3", node.name()), SOON, || {
            let nodes = node.status().map_err(|error| error.to_string())?.nodes;
            if nodes == 2 { Ok(()) } else { Err(format!("{nodes} nodes")) }
        })?;
    }
    let drops = Drops::of(lab.node(0))?;
    promised(!reaches(here.endpoint(), there.address(), Proto::Icmp, SILENCE)?, || "its pod is still reached".into())?;
    drops.expect(&["no-node"], 1)?;
    let released = lab.etcd().keys(&format!("{ROOT}/bulkhead/released/"))?;
    promised(released.len() == 1, || format!("released: {released:?}"))?;
    println!("    back, it gets a subnet, and is reached again");
    failed.start_agent()?;
    let back = lab.pod(2, "a", "d7-back")?;
    await_reaches(here.endpoint(), back.endpoint(), Proto::Tcp, SOON).map(drop)
}

fn d8_calls_run_concurrently_and_speak_each_version(lab: &Lab) -> Result<(), LabError> {
    println!("8: one slow call holds up no other; port 8472 is ours; each version in its own form");
    let node = lab.node(0);
    let begin = Instant::now();
    let pods = thread::scope(|scope| {
        let adds: Vec<_> = (0..20).map(|number| scope.spawn(move || node.pod("a", &format!("d8-{number}")))).collect();
        adds.into_iter()
            .map(|add| add.join().map_err(|_| LabError::ThreadGone("ADD".into()))?)
            .collect::<Result<Vec<_>, _>>()
    })?;
    println!("    20 concurrent ADDs took {:?}", begin.elapsed());
    pods.into_iter().try_for_each(Pod::delete)?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = node.pod_with(
            "a",
            &format!("v{}", version.replace('.', "-")),
            &PodSpec { version: version.into(), ..PodSpec::default() },
        )?;
        let result = pod.result();
        promised(result["cniVersion"] == version, || result.to_string())?;
        promised(result["ips"][0]["version"].is_string() == (version < "1.0.0"), || result.to_string())?;
        if version >= "0.4.0" {
            pod.check()?;
        }
        pod.delete()?;
    }
    let mtu = node.status()?.mtu;
    promised(mtu == 1450, || format!("the pods' MTU is {mtu} on an underlay of 1500"))
}
