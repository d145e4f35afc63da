//! A host whose firewall drops what it forwards (Docker, firewalld do so): pods and services work all the same, or the agent
//! says what is in the way.

use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{PATIENCE, Proto, expect_reaches, reaches, reaches_with};
use bulkhead_tests::service::{self, Service};
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError};

#[test]
fn a_firewall_that_drops_forwarded_packets_is_passed_or_told() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(0, "a", "2")?, lab.pod(1, "a", "3")?];
    let [one, near, far] = [0, 1, 2].map(|index: usize| pods[index].endpoint());
    let node = lab.node(0);
    let vip = std::net::Ipv4Addr::new(10, 96, 0, 1);
    service::install(node.netns(), &[Service::new(vip, 80, far.address(), 7)])?;
    let slow_path = || -> Result<bool, LabError> {
        let through_service = reaches_with(one, vip, 80, Proto::Tcp, 32, PATIENCE)?;
        Ok(through_service && reaches(one, lab.outside().address(), Proto::Tcp, PATIENCE)?)
    };
    promised(slow_path()?, || "a service and the outside do not work without a firewall".into())?;
    for (what, program, arguments) in [
        ("iptables -P FORWARD DROP", "iptables", &["-P", "FORWARD", "DROP"][..]),
        (
            "an nftables chain with policy drop",
            "nft",
            &["add table inet wall; add chain inet wall f { type filter hook forward priority 0; policy drop; }"],
        ),
    ] {
        println!("{what}");
        node.netns().exec(program, arguments, &[])?;
        expect_reaches(one, near)?;
        expect_reaches(one, far)?;
        expect_reaches(one, node.host())?;
        let outcome = wait::until_or("its being passed or told", std::time::Duration::from_secs(8), || {
            let problems = node.status().map_err(|error| error.to_string())?.problems;
            let named = |text: &String| ["firewall", "forward"].iter().any(|word| text.to_lowercase().contains(word));
            if problems.iter().any(named) {
                return Ok(format!("told: {problems:?}"));
            }
            match slow_path() {
                Ok(true) => Ok("passed".to_owned()),
                Ok(false) => Err(format!("services are dead, problems: {problems:?}")),
                Err(error) => Err(error.to_string()),
            }
        })?;
        println!("    {outcome}");
        if outcome == "passed" {
            expect_large(one, far, 9000)?;
        }
        node.netns().exec(
            "sh",
            &["-c", "iptables -P FORWARD ACCEPT; nft delete table inet wall 2>/dev/null; true"],
            &[],
        )?;
    }
    Ok(())
}
