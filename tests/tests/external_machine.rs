//! A machine that is no Kubernetes node asks for a subnet by `Assign: true` and reaches pods of every tenant directly.

use std::time::Duration;

use bulkhead_tests::cluster::ROOT;
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{Proto, await_silence, expect_reaches};
use bulkhead_tests::{Lab, LabError, wait};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_load_balancer_reaches_pods_of_every_tenant() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).external().start()?;
    lab.create_tenants(&["a", "b", "g"])?;
    lab.bulkhead("tenant global g")?;
    let machine = lab.external().ok_or_else(|| LabError::Broken("the lab has no external machine".into()))?;
    // The record follows the ledger, by which the machine is ready.
    wait::until_or("its record being answered", SOON, || {
        let record = lab.etcd().get_json(&format!("{ROOT}/subnets/{}", machine.address()));
        let record = record.map_err(|error| error.to_string())?;
        let subnet = record["Subnet"].as_str().is_some_and(|subnet| subnet.ends_with("/24"));
        if subnet && record["Assign"] == false { Ok(()) } else { Err(record.to_string()) }
    })?;
    for (node, namespace) in [(0, "a"), (1, "a"), (0, "b"), (1, "g")] {
        let pod = lab.pod(node, namespace, "web")?;
        expect_reaches(machine.host(), pod.endpoint())?;
        expect_reaches(pod.endpoint(), machine.host())?;
        expect_large(machine.host(), pod.endpoint(), 9000)?;
    }
    println!("removed, it reaches nobody");
    let pod = lab.pod(0, "a", "late")?;
    machine.kill_agent()?;
    lab.cli().ok(&["node", "remove", "--yes", &machine.address().to_string()])?;
    await_silence(machine.host(), pod.endpoint(), Proto::Tcp, SOON).map(drop)
}
