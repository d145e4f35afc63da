//! Services as kube-proxy makes them: replies are un-NATed on one node, across nodes and in hairpin; a tenant is judged by
//! its own VNI whatever NAT it passes; the overlay's own packets are caught by no rule.

use std::net::Ipv4Addr;

use bulkhead_tests::error::{Tally, promised};
use bulkhead_tests::flow::TcpFlow;
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{PATIENCE, Proto, SILENCE, expect_reaches, reaches_with, seen_as};
use bulkhead_tests::service::{self, Service};
use bulkhead_tests::{Endpoint, Lab, LabError, wait};

const PORT: u16 = 80;
const WITH_PORTS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

fn vip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, last)
}

fn works(from: &Endpoint, to: Ipv4Addr, port: u16, size: usize) -> Result<(), LabError> {
    for proto in WITH_PORTS {
        let passed = reaches_with(from, to, port, proto, size, PATIENCE)?;
        promised(passed, || format!("{proto} of {size} bytes from {from} to the service {to}:{port} does not work"))?;
    }
    Ok(())
}

fn silent(from: &Endpoint, to: Ipv4Addr, port: u16) -> Result<(), LabError> {
    for proto in WITH_PORTS {
        let passed = reaches_with(from, to, port, proto, 32, SILENCE)?;
        promised(!passed, || format!("{proto} from {from} passes through the service {to}:{port}"))?;
    }
    Ok(())
}

#[test]
fn services_work_and_launder_nobody() -> Result<(), LabError> {
    let lab = Lab::builder().start()?;
    lab.create_tenants(&["a", "b", "g"])?;
    lab.bulkhead("tenant global g")?;
    let pods = [
        lab.pod(0, "a", "client")?,
        lab.pod(0, "a", "near")?,
        lab.pod(1, "a", "far")?,
        lab.pod(0, "b", "client")?,
        lab.pod(2, "b", "far")?,
        lab.pod(2, "g", "dns")?,
    ];
    let [client, near, far, foreign, foreign_far, dns] = [0, 1, 2, 3, 4, 5].map(|index: usize| pods[index].endpoint());
    let node = |index: usize| lab.node(index).host();
    let services = [
        Service::new(vip(1), PORT, near.address(), 7),
        Service::new(vip(2), PORT, far.address(), 7),
        Service::new(vip(3), PORT, client.address(), 7),
        Service::new(vip(4), PORT, dns.address(), 7),
        Service { masquerade: true, ..Service::new(vip(5), PORT, far.address(), 7) },
        Service { masquerade: true, ..Service::new(vip(6), PORT, near.address(), 7) },
        // NodePorts: node addresses as destinations.
        Service { masquerade: true, ..Service::new(node(0).address(), 30080, far.address(), 7) },
        Service { masquerade: true, ..Service::new(node(0).address(), 30081, near.address(), 7) },
        Service::new(vip(9), PORT, far.address(), 8),
        // What a hostile tenant would make: a node's address and the VXLAN port lead into its pod.
        Service::new(node(0).address(), 4789, foreign.address(), 4789),
        Service::new(node(1).address(), 4789, foreign.address(), 4789),
        Service::new(node(2).address(), 4789, foreign.address(), 4789),
    ];
    lab.nodes().iter().try_for_each(|node| service::install(node.netns(), &services))?;

    let failures = Tally::default();
    println!("a namespace's own services: on one node, across nodes, hairpin; small and large");
    for size in [32, 1400, 9000] {
        for number in [1, 2, 3, 5, 6] {
            failures.note(works(client, vip(number), PORT, size));
        }
    }
    failures.note(works(far, vip(1), PORT, 1400));
    failures.note(works(far, vip(2), PORT, 1400));
    println!("a global namespace's service for everybody, everybody's for a global one and for hosts");
    for from in [client, foreign, foreign_far, far, node(0), node(1)] {
        failures.note(works(from, vip(4), PORT, 1400));
    }
    for number in [1, 2, 5, 6] {
        failures.note(works(dns, vip(number), PORT, 32));
        failures.note(works(node(0), vip(number), PORT, 32));
        failures.note(works(node(2), vip(number), PORT, 32));
    }
    println!("through a NodePort, from a pod, another node and the outside");
    for port in [30080, 30081] {
        failures.note(works(client, node(0).address(), port, 32));
        failures.note(works(node(2), node(0).address(), port, 32));
        failures.note(works(lab.outside(), node(0).address(), port, 32));
    }
    println!("a foreign tenant passes through none of them, masqueraded or not");
    for number in [1, 2, 3, 5, 6] {
        failures.note(silent(foreign, vip(number), PORT));
        failures.note(silent(foreign_far, vip(number), PORT));
    }
    failures.note(silent(foreign, node(0).address(), 30080));
    failures.note(silent(foreign, node(0).address(), 30081));
    println!("the pod behind a service sees the client's own address");
    for proto in WITH_PORTS {
        let seen = seen_as(client, vip(9), PORT, proto)?;
        failures.note(promised(seen.ip() == client.address(), || {
            format!("{proto}: seen as {seen}, not as {}", client.address())
        }));
    }
    println!("the overlay is not caught by rules for nodes' addresses and its port: fast path and host's stack");
    failures.note(expect_reaches(client, far));
    failures.note(expect_reaches(foreign, foreign_far));
    failures.note(expect_reaches(node(0), far));
    failures.note(expect_large(client, far, 9000));
    failures.note(expect_large(node(0), far, 9000));
    many_connections(client, vip(2))?;
    println!("an established connection through a service lives as long as its pods");
    let flow = TcpFlow::start_at(client, vip(2), PORT)?;
    works(client, vip(1), PORT, 32)?;
    let before = flow.echoed();
    wait::until_or("the connection going on", PATIENCE, || match flow.echoed() {
        now if now > before + (1 << 20) => Ok(()),
        now => Err(format!("{} bytes", now - before)),
    })?;
    let progress = flow.stop();
    promised(progress.broken.is_none() && progress.bytes > 0, || progress.to_string())?;
    failures.settle()
}

/// Ports are chosen anew for each connection: none of many may fail.
fn many_connections(from: &Endpoint, to: Ipv4Addr) -> Result<(), LabError> {
    println!("two hundred connections in a row through one service");
    for number in 0..200 {
        let passed = reaches_with(from, to, PORT, Proto::Tcp, 32, PATIENCE)?;
        promised(passed, || format!("connection {number} from {from} to {to} failed"))?;
    }
    Ok(())
}
