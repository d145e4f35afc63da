//! The agent's records of its pods are lost while the pods run: they keep their network and their addresses, and the agent
//! says so. Nothing is removed on one source's word.

use std::time::Duration;

use bulkhead_tests::error::promised;
use bulkhead_tests::flow::PacketFlow;
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::wait::until;
use bulkhead_tests::{Lab, LabError};

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
    promised(std::fs::remove_file(&records).is_ok(), || format!("{} is not there", records.display()))?;
    node.start_agent()?;
    until("the agent saying that it lost records", Duration::from_secs(5), || {
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
