//! What others break, a resync repairs, and says what it was; what a reboot takes away is forgotten; what runs is kept.

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_tests::error::{Tally, promised};
use bulkhead_tests::probe::{Proto, await_reaches, expect_reaches, expect_silence};
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_resync_repairs_what_others_broke() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "a", "2")?, lab.pod(0, "b", "1")?, lab.pod(0, "a", "3")?];
    let [one, far, foreign, near] = [0, 1, 2, 3].map(|index: usize| pods[index].endpoint());
    let node = lab.node(0);
    let device = pods[0].host_interface();
    // The first namespace's entry: no VNI, global, and nobody's.
    let maps = node.dir().join("bpf/bulkhead").display().to_string();
    let cleared = vec!["0"; 16].join(" ");
    let tamper = format!("bpftool map update pinned {maps}/v*/namespaces key 3 0 0 0 value {cleared}");
    let failures = Tally::default();
    for (what, program, arguments) in [
        ("the pod's filters", "tc", &["qdisc", "del", "dev", device, "clsact"][..]),
        ("the underlay's filters", "tc", &["qdisc", "del", "dev", "eth0", "clsact"]),
        ("the overlay's filters", "tc", &["qdisc", "del", "dev", "bulkhead0", "clsact"]),
        ("the nftables table", "nft", &["flush", "ruleset"]),
        ("the pod's route", "ip", &["route", "del", &one.address().to_string()]),
        ("the overlay's route", "ip", &["route", "del", "10.77.0.0/16"]),
        ("the overlay's address", "ip", &["address", "flush", "dev", "bulkhead0"]),
        ("the rules", "ip", &["rule", "flush"]),
        ("the pod's device, down", "ip", &["link", "set", device, "down"]),
        ("the overlay device, down", "ip", &["link", "set", "bulkhead0", "down"]),
        ("the overlay device", "ip", &["link", "del", "bulkhead0"]),
        ("a namespace's entry in the maps", "sh", &["-c", &tamper]),
        ("forwarding", "sh", &["-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]),
    ] {
        println!("{what}");
        let before = node.status()?.repairs;
        // Programs that fail here have found another's repair in the way, or a device that detaches another way.
        if let Err(error) = node.netns().exec(program, arguments, &[]) {
            println!("    not broken: {error}");
            continue;
        }
        if arguments == ["rule", "flush"] {
            node.netns().ip("rule add priority 32766 lookup main\nrule add priority 32767 lookup default")?;
        }
        let told = wait::until_or(&format!("the repair of {what}"), SOON, || {
            let repairs = node.status().map_err(|error| error.to_string())?.repairs;
            if repairs == before { Err(format!("no new one in {repairs:?}")) } else { Ok(repairs) }
        });
        let works = || -> Result<(), LabError> {
            for (from, to) in
                [(one, far), (far, one), (one, near), (node.host(), far), (far, node.host()), (one, node.host())]
            {
                for proto in Proto::ALL {
                    await_reaches(from, to, proto, SOON)?;
                }
            }
            expect_silence(one, foreign, near)?;
            expect_silence(foreign, far, node.host())?;
            pods[0].check()
        };
        if let Err(error) = works() {
            failures.note(Err(LabError::Broken(format!("after {what} was broken: {error}"))));
            // The next is judged by itself, if a restart at least repairs this.
            node.restart_agent()?;
            failures.note(works().map_err(|error| LabError::Broken(format!("even after a restart: {error}"))));
        }
        match told {
            Ok(repairs) => println!("    {}", repairs.last().cloned().unwrap_or_default()),
            Err(error) => failures.note(Err(error)),
        }
    }
    failures.settle()
}

#[test]
fn a_reboot_leaves_no_record_and_no_address_twice() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    let pods = (0..5).map(|number| lab.pod(0, "a", &format!("{number}"))).collect::<Result<Vec<_>, _>>()?;
    let stays = lab.pod(1, "a", "stays")?;
    let subnet = node.status()?.subnets;
    let addresses: Vec<_> = pods.iter().map(bulkhead_tests::Pod::address).collect();
    println!("power off: processes, devices, pinned maps and /run go; the disk stays");
    node.kill_agent()?;
    drop(pods);
    node.power_cycle()?;
    node.start_agent()?;
    promised(node.status()?.subnets == subnet, || "the node has another subnet".into())?;
    wait::until_or("records of pods that are gone being gone", SOON, || {
        let pods = node.pods().map_err(|error| error.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    })?;
    let new = (0..5).map(|number| lab.pod(0, "a", &format!("new{number}"))).collect::<Result<Vec<_>, _>>()?;
    let again = new.iter().filter(|pod| addresses.contains(&pod.address())).count();
    println!("{again} of 5 new pods have an address that a pod had before the power went");
    let distinct: BTreeSet<_> = new.iter().map(bulkhead_tests::Pod::address).collect();
    promised(distinct.len() == new.len(), || format!("an address twice: {distinct:?}"))?;
    for pod in &new {
        expect_reaches(pod.endpoint(), stays.endpoint())?;
        expect_reaches(stays.endpoint(), pod.endpoint())?;
    }
    println!("DELs of the pods of before succeed and harm nobody");
    new.iter().try_for_each(bulkhead_tests::Pod::check)
}
