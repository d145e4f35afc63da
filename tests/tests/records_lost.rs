//! The agent's records of its pods are lost, damaged or cannot be written while the pods run: they keep their network and their
//! addresses, and the agent says so. Nothing is removed on one source's word.

use std::fs;
use std::time::Duration;

use bulkhead_tests::error::{Tried, promised};
use bulkhead_tests::flow::PacketFlow;
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::wait::{until, until_or};
use bulkhead_tests::{Lab, LabError, Node, Pod};
use rustix::mount::{MountFlags, mount};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn pods_without_a_record_keep_their_network_and_address() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(0, "a", "2")?, lab.pod(1, "a", "3")?];
    let [one, near, far] = [0, 1, 2].map(|index: usize| pods[index].endpoint());
    let node = lab.node(0);
    let flows = [PacketFlow::ping(one, near.address())?, PacketFlow::ping(far, one.address())?];
    node.kill_agent()?;
    let records = node.dir().join("run/pods.redb");
    promised(fs::remove_file(&records).is_ok(), || format!("{} is not there", records.display()))?;
    node.start_agent()?;
    until("the agent saying that it lost records", SOON, || {
        let problems = node.status().ok()?.problems.join("; ");
        problems.contains("the records of 2 pods are lost").then_some(())
    })?;
    let fresh = lab.pod(0, "a", "4")?;
    let taken = pods.iter().any(|pod| pod.address() == fresh.address());
    promised(!taken, || format!("the new pod has {}, which a running one has", fresh.address()))?;
    expect_reaches(fresh.endpoint(), one)?;
    for flow in flows {
        let name = flow.name().to_owned();
        let loss = flow.stop();
        promised(loss.is_none(), || format!("{name}: {loss}"))?;
    }
    Ok(())
}

#[test]
fn damaged_records_are_put_aside_and_cost_no_pod_its_network() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(0, "a", "2")?];
    let far = lab.pod(1, "a", "far")?;
    let node = lab.node(0);
    let flow = PacketFlow::ping(far.endpoint(), pods[0].endpoint().address())?;
    node.kill_agent()?;
    let records = node.dir().join("run/pods.redb");
    fs::write(&records, b"no database").tried(|| format!("damage {}", records.display()))?;
    node.start_agent()?;
    until_or("the agent saying that its records were damaged", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems.join("; ");
        let told = problems.contains("the records of 2 pods are lost") && problems.contains("pods.redb.damaged");
        if told { Ok(()) } else { Err(problems) }
    })?;
    let kept = fs::read(records.with_file_name("pods.redb.damaged")).tried(|| "read what was put aside".into())?;
    promised(kept == b"no database", || "another file was put aside".into())?;
    let new = (0..5).map(|number| lab.pod(0, "a", &format!("new{number}"))).collect::<Result<Vec<_>, _>>()?;
    let taken = new.iter().find(|new| pods.iter().any(|pod| pod.address() == new.address()));
    promised(taken.is_none(), || format!("{} was given twice", taken.map_or(node.address(), Pod::address)))?;
    expect_reaches(new[0].endpoint(), pods[0].endpoint())?;
    expect_reaches(pods[1].endpoint(), far.endpoint())?;
    node.restart_agent()?;
    new.iter().try_for_each(Pod::check)?;
    let loss = flow.stop();
    promised(loss.is_none(), || format!("a running pod lost packets: {loss}"))?;
    println!("once those pods are gone, nothing is wrong any more");
    drop(pods);
    no_problem(node)
}

fn no_problem(node: &Node) -> Result<(), LabError> {
    until_or("no problem being left", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })
}

#[test]
fn a_run_dir_emptied_under_a_running_agent_is_filled_again() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    let stays = lab.pod(0, "a", "stays")?;
    let run = node.dir().join("run");
    fs::remove_dir_all(&run).and_then(|()| fs::create_dir(&run)).tried(|| format!("empty {}", run.display()))?;
    until_or("the agent being there again", SOON, || {
        let missing = ["agent.sock", "pods.redb"].into_iter().find(|name| !run.join(name).exists());
        missing.map_or(Ok(()), |name| Err(format!("no {name}")))
    })?;
    let new = lab.pod(0, "a", "new")?;
    node.restart_agent()?;
    stays.check()?;
    new.check()?;
    expect_reaches(new.endpoint(), stays.endpoint())?;
    no_problem(node)
}

#[test]
fn a_full_run_dir_is_told_and_heals_without_a_restart() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    node.stop_agent()?;
    let run = node.dir().join("run");
    // The lab unmounts whatever is below its directory.
    mount("tmpfs", &run, "tmpfs", MountFlags::empty(), Some(c"size=1m"))
        .tried(|| format!("mount {}", run.display()))?;
    node.start_agent()?;
    let stays = lab.pod(0, "a", "stays")?;
    let mut status = node.cni().call("STATUS");
    status.with("cniVersion", "1.1.0".into()).run()?.ok("STATUS")?;
    let filler = run.join("filler");
    drop(fs::write(&filler, vec![1; 2 << 20]));
    let mut sandboxes = Vec::new();
    let refused = loop {
        let (netns, container) = node.sandbox("a", &format!("p{}", sandboxes.len()), "eth0")?;
        let answer = node.cni().call_for("ADD", &container).run()?;
        sandboxes.push((netns, container));
        if answer.exit != 0 {
            break answer;
        }
        promised(sandboxes.len() < 250, || "the disk is full and every ADD succeeds".into())?;
    };
    println!("after {} pods: {}", sandboxes.len() - 1, refused.stdout);
    // One pod runs: its node stays ready for it.
    status.run()?.ok("STATUS of a node with a pod")?;
    until_or("the full disk being told", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems.join("; ");
        if problems.contains("pods.redb") { Ok(()) } else { Err(problems) }
    })?;
    println!("DEL works, and once there is room everything");
    for (_, container) in &sandboxes {
        node.cni().call_for("DEL", container).run()?.ok("DEL")?;
    }
    fs::remove_file(&filler).tried(|| "make room".into())?;
    status.run()?.ok("STATUS with room")?;
    let new = lab.pod(0, "a", "new")?;
    node.restart_agent()?;
    let pods: Vec<String> = node.pods()?.into_iter().map(|pod| pod.pod).collect();
    promised(pods == ["new", "stays"], || format!("the next agent knows {pods:?}"))?;
    new.check()?;
    stays.check()
}
