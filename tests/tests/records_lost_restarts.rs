//! An emptied --run-dir costs no running pod its network, nor its address, whatever number of agents come after.

use std::fs;
use std::time::Duration;

use bulkhead_tests::error::{Tried, promised};
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::{Lab, LabError, wait};

#[test]
fn pods_whose_records_are_lost_outlive_every_restart() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let (old, far) = (lab.pod(0, "a", "old")?, lab.pod(1, "a", "far")?);
    let node = lab.node(0);
    node.kill_agent()?;
    let run = node.dir().join("run");
    fs::remove_dir_all(&run).and_then(|()| fs::create_dir(&run)).tried(|| format!("empty {}", run.display()))?;
    for _ in 0..3 {
        node.start_agent()?;
        expect_reaches(old.endpoint(), far.endpoint())?;
        expect_reaches(node.host(), old.endpoint())?;
        node.kill_agent()?;
    }
    node.start_agent()?;
    let new = (0..5).map(|n| lab.pod(0, "a", &format!("new{n}"))).collect::<Result<Vec<_>, _>>()?;
    promised(new.iter().all(|pod| pod.address() != old.address()), || {
        format!("{} was given out twice", old.address())
    })?;
    expect_reaches(new[0].endpoint(), old.endpoint())?;
    wait::until_or("the lost pods being told", Duration::from_secs(20), || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        if problems.iter().any(|problem| problem.contains("records")) { Ok(()) } else { Err(format!("{problems:?}")) }
    })?;
    println!("once it is deleted, nothing is left of it");
    drop(old);
    wait::until_or("no problem being left", Duration::from_secs(20), || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })?;
    expect_reaches(new[0].endpoint(), far.endpoint())
}
