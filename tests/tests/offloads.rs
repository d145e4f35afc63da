//! Super-packets and checksums: what is segmented late, or not at all by the underlay, arrives whole.

use bulkhead_tests::error::{Tally, promised};
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{expect_reaches, segmented_datagrams};
use bulkhead_tests::{Endpoint, Lab, LabError, Pod};

const DATAGRAMS: usize = 20;

fn all_arrive(from: &Endpoint, to: &Endpoint, size: u16) -> Result<(), LabError> {
    let arrived = segmented_datagrams(from, to, size, DATAGRAMS)?;
    promised(arrived == DATAGRAMS, || {
        format!("{arrived} of {DATAGRAMS} segmented datagrams of {size} bytes arrive from {from} at {to}")
    })
}

#[test]
fn super_packets_arrive_whole() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(0, "a", "2")?, lab.pod(1, "a", "3")?];
    let [one, near, far] = [0, 1, 2].map(|index: usize| pods[index].endpoint());
    let hosts = [lab.node(0).host(), lab.node(1).host()];
    expect_reaches(one, far)?;
    let failures = Tally::default();
    let round = |what: &str| {
        println!("{what}");
        for (from, to) in [(one, near), (one, far), (far, one), (hosts[0], far), (hosts[0], one), (one, hosts[1])] {
            for size in [512, 1200, 1400] {
                failures.note(all_arrive(from, to, size));
            }
            failures.note(expect_large(from, to, 60_000));
        }
    };
    round("offloads on: the underlay carries super-packets");
    let off = |netns: &bulkhead_tests::netns::Netns| {
        netns.exec("ethtool", &["-K", "eth0", "tso", "off", "gso", "off", "gro", "off", "tx", "off"], &[]).map(drop)
    };
    lab.nodes().iter().try_for_each(|node| off(node.netns()))?;
    round("offloads of the underlay off: every frame is of the wire's size, its checksums made in software");
    pods.iter().map(Pod::netns).try_for_each(|netns| off(netns))?;
    round("offloads of the pods off as well");
    failures.settle()
}
