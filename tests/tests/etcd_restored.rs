//! etcd restored from an older snapshot, or its ledger deleted by hand, under running pods: nobody renumbers, no running
//! connection that should live is cut, and no number that something living shows is given out again.

use std::time::Duration;

use bulkhead_tests::cluster::ROOT;
use bulkhead_tests::error::promised;
use bulkhead_tests::probe::{Proto, await_reaches, await_silence, expect_reaches, expect_silence};
use bulkhead_tests::undisturbed::Undisturbed;
use bulkhead_tests::{Lab, LabError, wait};

const CAUGHT_UP: Duration = Duration::from_mins(1);

/// What a namespace's ledger entry says.
fn numbers(lab: &Lab, namespace: &str) -> Result<(u64, u64), LabError> {
    let entry = lab.etcd().get_json(&format!("{ROOT}/bulkhead/ledger/namespaces/{namespace}"))?;
    Ok((entry["vni"].as_u64().unwrap_or(0), entry["netId"].as_u64().unwrap_or(0)))
}

fn epochs(lab: &Lab) -> Vec<u64> {
    lab.nodes().iter().map(|node| node.status().map_or(0, |status| status.epoch)).collect()
}

#[test]
fn a_restore_that_the_controller_saw_costs_no_connection_and_reuses_no_number() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a", "b"])?;
    let snapshot = lab.id().dir().join("snapshot");
    lab.etcd().save_snapshot(&snapshot)?;
    println!("since the snapshot: a third namespace, and a join");
    lab.create_tenants(&["late"])?;
    lab.bulkhead("tenant join b --to a")?;
    lab.settle()?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "a", "2")?, lab.pod(1, "b", "1")?, lab.pod(0, "late", "1")?];
    let [a1, a2, b1, late1] = [0, 1, 2, 3].map(|index: usize| pods[index].endpoint());
    await_reaches(a1, b1, Proto::Tcp, CAUGHT_UP)?;
    let late = numbers(&lab, "late")?;
    let flows = Undisturbed::start(&[(a1, a2), (lab.node(0).host(), b1), (lab.node(1).host(), late1)])?;

    lab.etcd().restore_snapshot(&snapshot)?;
    wait::until_or("every agent on the raised epoch", CAUGHT_UP, || {
        let epochs = epochs(&lab);
        if epochs.iter().all(|epoch| *epoch == 2) { Ok(()) } else { Err(format!("{epochs:?}")) }
    })?;
    println!("what the snapshot says is in force: b is alone again, and the namespace made since is nobody's");
    await_silence(a1, b1, Proto::Tcp, CAUGHT_UP)?;
    expect_silence(late1, a2, lab.node(1).host())?;
    lab.create_tenants(&["other", "late"])?;
    for namespace in ["other", "late"] {
        let fresh = numbers(&lab, namespace)?;
        promised(fresh.0 > late.0 + (1 << 20), || format!("{namespace} was given {fresh:?}, late had {late:?}"))?;
    }
    lab.settle()?;
    println!("the pod of before is not of the new namespace of its name; a new one is");
    let fresh = lab.pod(1, "late", "2")?;
    expect_silence(fresh.endpoint(), late1, lab.node(0).host())?;
    let more = lab.pod(0, "late", "3")?;
    expect_reaches(fresh.endpoint(), more.endpoint())?;
    flows.expect("etcd restored under a running controller")
}

#[test]
fn a_restore_that_no_controller_saw_is_held_off_until_bulkhead_restore() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a", "b"])?;
    let snapshot = lab.id().dir().join("snapshot");
    lab.etcd().save_snapshot(&snapshot)?;
    lab.bulkhead("tenant join b --to a")?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "b", "1")?];
    let [a1, b1] = [0, 1].map(|index: usize| pods[index].endpoint());
    await_reaches(a1, b1, Proto::Tcp, CAUGHT_UP)?;
    let flows = Undisturbed::start(&[(a1, b1), (b1, lab.node(0).host())])?;
    lab.controllers().kill(0)?;
    lab.etcd().restore_snapshot(&snapshot)?;
    lab.controllers().start(1)?;
    let held = |what: &str| {
        wait::until_or(what, CAUGHT_UP, || {
            for node in lab.nodes() {
                let problems = node.status().map_err(|error| error.to_string())?.problems;
                if !problems.iter().any(|problem| problem.contains("keeps its last state")) {
                    return Err(format!("{}: {problems:?}", node.name()));
                }
            }
            Ok(())
        })
    };
    held("every agent saying that it holds the restored state off")?;
    expect_reaches(a1, b1)?;
    println!("an agent that starts meanwhile holds it off as well");
    lab.node(1).kill_agent()?;
    lab.node(1).start_agent()?;
    held("and after a restart")?;
    expect_reaches(b1, a1)?;
    flows.expect("etcd restored, the agents keep their last state")?;
    lab.bulkhead("restore --yes")?;
    await_silence(a1, b1, Proto::Tcp, CAUGHT_UP)?;
    await_silence(b1, a1, Proto::Tcp, CAUGHT_UP)?;
    expect_reaches(a1, lab.node(1).host())?;
    wait::until_or("every agent without a problem", CAUGHT_UP, || {
        let problems: Vec<_> =
            lab.nodes().iter().filter_map(|node| node.status().ok()).flat_map(|status| status.problems).collect();
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })
}

#[test]
fn a_controller_restarted_with_etcd_knows_what_it_saw_before() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "a", "2")?];
    let flows = Undisturbed::start(&[(pods[0].endpoint(), pods[1].endpoint())])?;
    let snapshot = lab.id().dir().join("snapshot");
    lab.etcd().save_snapshot(&snapshot)?;
    // Enough to be well past the snapshot when the controller looks at it again.
    for number in 0..20 {
        lab.create_tenants(&[&format!("late{number}")])?;
    }
    wait::until("the controller's memory on disk", CAUGHT_UP, || {
        let folder = lab.id().dir().join("controller0.state");
        let files = std::fs::read_dir(folder).ok()?.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
        files.filter_map(|text| serde_json::from_str::<serde_json::Value>(&text).ok()).find(|kept| kept["epoch"] == 1)
    })?;
    lab.controllers().kill(0)?;
    lab.etcd().restore_snapshot(&snapshot)?;
    lab.controllers().start(0)?;
    wait::until_or("every agent on the raised epoch", CAUGHT_UP, || {
        let epochs = epochs(&lab);
        if epochs.iter().all(|epoch| *epoch == 2) { Ok(()) } else { Err(format!("{epochs:?}")) }
    })?;
    flows.expect("etcd restored with its controller")
}

#[test]
fn a_ledger_deleted_by_hand_is_put_back_and_no_connection_notices() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a", "b", "kube-system"])?;
    lab.bulkhead("tenant join b --to a")?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "b", "1")?, lab.pod(1, "kube-system", "1")?];
    let [a1, b1, dns] = [0, 1, 2].map(|index: usize| pods[index].endpoint());
    await_reaches(a1, b1, Proto::Tcp, CAUGHT_UP)?;
    let before = ["a", "b", "kube-system"].map(|namespace| numbers(&lab, namespace).ok());
    let flows = Undisturbed::start(&[(a1, b1), (b1, dns), (dns, a1)])?;
    for (what, prefix) in [("the ledger", "bulkhead/ledger/"), ("all of the controller's keys", "bulkhead/")] {
        println!("{what} deleted");
        lab.etcd().ctl(&["del", "--prefix", &format!("{ROOT}/{prefix}")])?;
        wait::until_or("the ledger as it was", CAUGHT_UP, || {
            let now = ["a", "b", "kube-system"].map(|namespace| numbers(&lab, namespace).ok());
            if now == before { Ok(()) } else { Err(format!("{now:?}, was {before:?}")) }
        })?;
    }
    lab.create_tenants(&["c"])?;
    lab.settle()?;
    let c1 = lab.pod(0, "c", "1")?;
    expect_silence(c1.endpoint(), b1, dns)?;
    flows.expect("the ledger deleted by hand")
}
