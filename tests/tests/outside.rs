//! Pods and hosts, and the world: a host to pods of any node and back, pods to hosts under their own address, pods to the
//! outside under their node's.

use bulkhead_tests::error::promised;
use bulkhead_tests::flow::TcpFlow;
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{PATIENCE, Proto, SILENCE, expect_reaches, reaches, seen_as, seen_by};
use bulkhead_tests::underlay::BEYOND;
use bulkhead_tests::{Lab, LabError};

#[test]
fn hosts_see_pods_and_the_outside_sees_nodes() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let (here, there) = (lab.pod(0, "a", "here")?, lab.pod(1, "a", "there")?);
    let (pod, remote) = (here.endpoint(), there.endpoint());
    let (own, other) = (lab.node(0).host(), lab.node(1).host());

    println!("hosts and pods, both ways");
    for host in [own, other] {
        expect_reaches(host, pod)?;
        expect_reaches(pod, host)?;
        expect_reaches(host, remote)?;
        expect_large(host, pod, 5000)?;
        expect_large(pod, host, 5000)?;
    }
    println!("a host sees the pod's address, a pod sees an address of the host");
    for proto in [Proto::Tcp, Proto::Udp] {
        for host in [own, other] {
            let seen = seen_by(pod, host, proto)?;
            promised(seen == pod.address(), || format!("{proto}: {host} sees {seen}, not {}", pod.address()))?;
        }
        let seen = seen_by(own, remote, proto)?;
        let gateway = lab.node(0).netns().source_towards(remote.address())?;
        promised(Some(seen) == gateway, || format!("{proto}: {remote} sees {seen}, the route says {gateway:?}"))?;
    }
    println!("the outside sees the node, for an address on its link and for one behind it");
    for target in [lab.outside().address(), BEYOND] {
        for (pod, node) in [(pod, own), (remote, other)] {
            for proto in [Proto::Tcp, Proto::Udp] {
                let seen = seen_as(pod, target, 8, proto)?;
                promised(seen.ip() == node.address(), || format!("{proto}: {target} sees {seen}, not {node}"))?;
            }
            promised(reaches(pod, target, Proto::Icmp, PATIENCE)?, || format!("{pod} cannot ping {target}"))?;
        }
    }
    println!("the outside reaches no pod, whatever its routes");
    lab.outside().netns().ip(&format!("route add 10.77.0.0/16 via {}", lab.node(0).address()))?;
    for proto in Proto::ALL {
        let passed = reaches(lab.outside(), pod.address(), proto, SILENCE)?;
        promised(!passed, || format!("{proto} from the outside reaches {pod}"))?;
    }
    println!("a transfer to the outside runs while a node's own goes on");
    let flow = TcpFlow::start_at(pod, BEYOND, 7)?;
    expect_large(own, remote, 60_000)?;
    let progress = flow.stop();
    promised(progress.broken.is_none() && progress.bytes > 0, || progress.to_string())
}
