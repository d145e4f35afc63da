//! Who reaches whom at rest: every pair of tenants and hosts, on one node and across nodes, every protocol, both
//! directions, small and large; what may not pass is counted as `isolated` and nothing else.

use std::collections::BTreeSet;

use bulkhead_tests::counters::Drops;
use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::{Matrix, expect_large};
use bulkhead_tests::probe::{Proto, SILENCE, reaches_with};
use bulkhead_tests::tenancy::Tenancy;
use bulkhead_tests::{Endpoint, Lab, LabError};

#[test]
fn each_pair_of_tenants_and_hosts_passes_or_is_dropped_as_it_must() -> Result<(), LabError> {
    let lab = Lab::builder().start()?;
    lab.create_tenants(&["a", "b", "c", "g"])?;
    lab.bulkhead("tenant join c --to a")?;
    lab.bulkhead("tenant global g")?;
    let mut tenancy = Tenancy::isolated(&["a", "b"]);
    tenancy.join("c", "a");
    tenancy.global("g");
    let wanted = [
        (0, "a", "1"),
        (0, "a", "2"),
        (1, "a", "3"),
        (0, "b", "1"),
        (1, "b", "2"),
        (0, "c", "1"),
        (2, "c", "2"),
        (0, "g", "1"),
        (2, "g", "2"),
    ];
    let pods =
        wanted.iter().map(|(node, namespace, pod)| lab.pod(*node, namespace, pod)).collect::<Result<Vec<_>, _>>()?;
    let mut endpoints: Vec<Endpoint> = pods.iter().map(|pod| pod.endpoint().clone()).collect();
    endpoints.extend(lab.nodes().iter().map(|node| node.host().clone()));
    let counters = lab.nodes().iter().map(Drops::of).collect::<Result<Vec<_>, _>>()?;

    println!("{}", Matrix::expect(&endpoints, |from, to| tenancy.may(from, to))?);

    println!("what did not pass was counted as isolated, and nothing was dropped for another reason");
    for (counter, node) in counters.iter().zip(lab.nodes()) {
        counter.expect(&["isolated"], 10)?;
        // Kernels speak IPv6 on their own: neighbour discovery.
        let allowed = BTreeSet::from(["isolated", "ipv6"]);
        let since = counter.since()?;
        let strange = since.keys().any(|reason| !allowed.contains(reason.as_str()));
        promised(!strange, || format!("{}: {since:?}", node.name()))?;
    }

    println!("large packets: one node, two nodes, a tenant joined, global, the host");
    for target in [1, 2, 6, 8, 10] {
        for size in [1400, 1401, 1473, 4000, 9000] {
            expect_large(&endpoints[0], &endpoints[target], size)?;
            expect_large(&endpoints[target], &endpoints[0], size)?;
        }
    }
    println!("fragments of a foreign tenant are dropped as well");
    for (from, to) in [(3, 0), (3, 2), (4, 0)] {
        for proto in [Proto::Icmp, Proto::Udp] {
            let passed = reaches_with(&endpoints[from], endpoints[to].address(), 7, proto, 4000, SILENCE)?;
            promised(!passed, || format!("{proto} fragments pass from {} to {}", endpoints[from], endpoints[to]))?;
        }
    }
    println!("CHECK passes for every pod, and DEL for every pod");
    pods.iter().try_for_each(bulkhead_tests::Pod::check)?;
    pods.into_iter().try_for_each(bulkhead_tests::Pod::delete)
}
