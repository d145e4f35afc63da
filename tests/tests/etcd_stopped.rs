//! etcd away, for any time: running pods run, new pods of known namespaces start, nothing is invented; etcd back: changes
//! are caught up.

use std::time::Duration;

use bulkhead_tests::error::promised;
use bulkhead_tests::probe::{Proto, await_reaches, await_silence, expect_reaches, expect_silence};
use bulkhead_tests::undisturbed::Undisturbed;
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError};

const CAUGHT_UP: Duration = Duration::from_mins(1);

#[test]
fn pods_run_and_start_without_etcd_and_changes_are_caught_up() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "a", "2")?, lab.pod(0, "b", "1")?, lab.pod(1, "b", "2")?];
    let [a1, a2, b1, b2] = [0, 1, 2, 3].map(|index: usize| pods[index].endpoint());
    let flows = Undisturbed::start(&[(a1, a2), (b2, b1), (lab.node(0).host(), a2)])?;
    lab.etcd().stop_all()?;
    wait::until("the agents saying that etcd does not answer", CAUGHT_UP, || {
        lab.nodes().iter().all(|node| node.status().is_ok_and(|status| !status.etcd_connected)).then_some(())
    })?;
    println!("new pods of known namespaces start and are isolated as ever");
    let late = lab.pod(1, "a", "late")?;
    expect_reaches(late.endpoint(), a1)?;
    expect_silence(late.endpoint(), b1, a2)?;
    println!("an agent restarted without etcd knows what it knew");
    lab.node(1).kill_agent()?;
    lab.node(1).start_agent()?;
    let later = lab.pod(1, "b", "later")?;
    expect_reaches(later.endpoint(), b1)?;
    expect_silence(later.endpoint(), a1, b2)?;
    println!("a pod of a namespace that nobody knows is to be tried again: nothing is invented");
    let (_netns, unknown) = lab.node(0).sandbox("new", "1", "eth0")?;
    let answer = lab.node(0).cni().call_for("ADD", &unknown).run()?;
    promised(answer.code() == Some(11), || format!("{answer:?}"))?;
    println!("the command line tool says that etcd does not answer, and changes nothing");
    let refused = lab.cli().run(&["tenant", "join", "a", "--to", "b"])?;
    promised(refused.exit != 0 && !refused.stderr.is_empty(), || format!("{refused:?}"))?;
    println!("DEL works");
    late.delete()?;
    lab.etcd().start_all()?;
    println!("etcd is back: changes are caught up");
    wait::until("a change", CAUGHT_UP, || lab.bulkhead("tenant join b --to a").ok())?;
    lab.create_tenants(&["new"])?;
    let more = [lab.pod(0, "new", "1")?, lab.pod(1, "new", "2")?];
    for (from, to) in [(a1, b2), (b1, a2), (more[0].endpoint(), more[1].endpoint())] {
        await_reaches(from, to, Proto::Tcp, CAUGHT_UP)?;
    }
    lab.bulkhead("tenant isolate b")?;
    await_silence(a1, b2, Proto::Tcp, CAUGHT_UP)?;
    flows.expect("etcd stopped and started")
}
