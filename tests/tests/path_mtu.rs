//! A path with a smaller MTU than the nodes': the sending pod is told, and nothing large is lost in silence.

use std::time::Duration;

use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{expect_reaches, learned_mtu};
use bulkhead_tests::{Lab, LabError};

/// VXLAN over IPv4.
const OVERHEAD: u32 = 50;

#[test]
fn a_pod_learns_the_mtu_of_a_narrow_path() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(3).far_mtu(1400).start()?;
    lab.create_tenants(&["a"])?;
    let (near, beside, far) = (lab.pod(0, "a", "near")?, lab.pod(1, "a", "beside")?, lab.pod(2, "a", "far")?);
    let (near, beside, far) = (near.endpoint(), beside.endpoint(), far.endpoint());
    expect_reaches(near, far)?;
    println!("a datagram that must not be fragmented and does not fit is answered with the MTU that does");
    for (from, to) in [(near, far), (far, near)] {
        let learned = learned_mtu(from, to.address(), 1380, Duration::from_secs(15))?;
        promised(learned.is_some_and(|mtu| (1200..=1400 - OVERHEAD).contains(&mtu)), || {
            format!("{from} learned {learned:?} towards {to}, the path takes {}", 1400 - OVERHEAD)
        })?;
    }
    println!("TCP, and fragments of UDP and ICMP, pass; the wide path keeps its MTU");
    expect_large(near, far, 60_000)?;
    expect_large(far, near, 60_000)?;
    let learned = learned_mtu(near, beside.address(), 1400, Duration::from_millis(500))?;
    promised(learned.is_none(), || format!("{near} learned {learned:?} towards {beside}, on a path of 1500"))?;
    println!("hosts too");
    expect_large(lab.node(0).host(), far, 60_000)?;
    expect_large(far, lab.node(0).host(), 60_000)?;
    println!("the path narrows while they talk");
    lab.underlay().set_far_mtu(1300)?;
    expect_large(near, far, 60_000)?;
    let learned = learned_mtu(near, far.address(), 1280, Duration::from_secs(15))?;
    promised(learned.is_some_and(|mtu| mtu <= 1300 - OVERHEAD), || format!("after narrowing: {learned:?}"))
}
