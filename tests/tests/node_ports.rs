//! Ports of nodes that lead to pods: `NodePort` with both traffic policies, hostPort by `portmap`, from the outside, from pods and
//! hosts of every node, and from foreign tenants; services whose backend changes under a socket that stays.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use bulkhead_tests::error::{Tally, promised};
use bulkhead_tests::flow::TcpFlow;
use bulkhead_tests::probe::{PATIENCE, Proto, SILENCE, reaches_with, seen_as};
use bulkhead_tests::service::{self, Service};
use bulkhead_tests::{Endpoint, Lab, LabError};

const WITH_PORTS: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const PODS: &str = "10.77.0.0/16";

fn works(failures: &Tally, from: &Endpoint, to: Ipv4Addr, port: u16) {
    for proto in WITH_PORTS {
        for size in [32, 1400] {
            let passed = reaches_with(from, to, port, proto, size, PATIENCE);
            failures.note(passed.and_then(|passed| {
                promised(passed, || format!("{proto} of {size} bytes from {from} to {to}:{port} does not work"))
            }));
        }
    }
}

fn silent(failures: &Tally, from: &Endpoint, to: Ipv4Addr, port: u16) {
    for proto in WITH_PORTS {
        let passed = reaches_with(from, to, port, proto, 32, SILENCE);
        failures
            .note(passed.and_then(|passed| promised(!passed, || format!("{proto} from {from} passes to {to}:{port}"))));
    }
}

fn at(endpoint: &Endpoint, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(endpoint.address(), port)
}

#[test]
fn ports_of_nodes_lead_to_pods_and_launder_nobody() -> Result<(), LabError> {
    let lab = Lab::builder().start()?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [
        lab.pod(0, "a", "0")?,
        lab.pod(0, "a", "client")?,
        lab.pod(1, "a", "1")?,
        lab.pod(2, "a", "2")?,
        lab.pod(0, "b", "0")?,
        lab.pod(1, "b", "1")?,
    ];
    let [backend, near, one, two, foreign, foreign_far] = [0, 1, 2, 3, 4, 5].map(|index: usize| pods[index].endpoint());
    let host = |index: usize| lab.node(index).host();
    let address = |index: usize| host(index).address();
    let outside = lab.outside();
    let failures = Tally::default();

    println!("NodePort, externalTrafficPolicy Cluster: from every place, by every node");
    for node in lab.nodes() {
        let cluster = Service { masquerade: true, ..Service::new(node.address(), 30080, backend.address(), 7) };
        service::install(node.netns(), &[cluster])?;
    }
    for by in 0..3 {
        for from in [outside, near, one, two, host(0), host(1), host(2), backend] {
            works(&failures, from, address(by), 30080);
        }
        for from in [foreign, foreign_far] {
            silent(&failures, from, address(by), 30080);
        }
    }

    println!("NodePort, externalTrafficPolicy Local: endpoints on the first two nodes");
    for (index, own) in [(0, Some(backend)), (1, Some(one)), (2, None)] {
        let any = at(if index == 0 { one } else { backend }, 7);
        service::install_local_node_port(lab.node(index).netns(), PODS, 30090, any, own.map(|own| at(own, 7)))?;
    }
    for by in 0..2 {
        for from in [outside, near, one, two, host(0), host(1), host(2)] {
            works(&failures, from, address(by), 30090);
        }
    }
    silent(&failures, outside, address(2), 30090);
    println!("    pods and the node itself reach it by a node without an endpoint as well");
    for from in [near, one, two, host(2)] {
        works(&failures, from, address(2), 30090);
    }
    for by in 0..3 {
        for from in [foreign, foreign_far] {
            silent(&failures, from, address(by), 30090);
        }
    }
    println!("    the pod sees the client's own address");
    service::install_local_node_port(lab.node(0).netns(), PODS, 30091, at(backend, 8), Some(at(backend, 8)))?;
    for proto in WITH_PORTS {
        let seen = seen_as(outside, address(0), 30091, proto)?;
        failures.note(promised(seen.ip() == outside.address(), || format!("{proto}: seen as {seen}")));
    }

    println!("hostPort by portmap: from every place; hairpin; nobody foreign");
    for index in 0..3 {
        service::install_host_port(lab.node(index).netns(), 8080, at([backend, one, two][index], 7))?;
    }
    for by in 0..3 {
        for from in [outside, near, backend, one, two, host(0), host(1), host(2)] {
            works(&failures, from, address(by), 8080);
        }
        for from in [foreign, foreign_far] {
            silent(&failures, from, address(by), 8080);
        }
    }
    println!("    the pod sees an outside client's own address");
    service::install_host_port(lab.node(0).netns(), 8080, at(backend, 8))?;
    for proto in WITH_PORTS {
        let seen = seen_as(outside, address(0), 8080, proto)?;
        failures.note(promised(seen.ip() == outside.address(), || format!("{proto}: seen as {seen}")));
    }
    failures.settle()
}

#[test]
fn a_socket_follows_its_service_to_another_backend() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "client")?, lab.pod(0, "a", "near")?, lab.pod(1, "a", "far")?];
    let [client, near, far] = [0, 1, 2].map(|index: usize| pods[index].endpoint());
    let netns = lab.node(0).netns();
    let vip = Ipv4Addr::new(10, 96, 0, 1);
    // The echo's port, so that the same client may talk to the backend and to the service with one tuple but for the address.
    let lead_to = |backend: &Endpoint| service::install(netns, &[Service::new(vip, 7, backend.address(), 7)]);
    let ask = |socket: &UdpSocket, to: Ipv4Addr| -> Result<bool, LabError> {
        let socket = socket.try_clone().map_err(|source| LabError::Io { what: "clone a socket".into(), source })?;
        client.netns().aside(move || {
            let mut buffer = [0; 64];
            (0..100).any(|_| {
                drop(socket.send_to(b"who is there", (to, 7)));
                matches!(socket.recv_from(&mut buffer), Ok((12, peer)) if peer == SocketAddr::from((to, 7)))
            })
        })
    };
    let socket = client.netns().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).map(|()| socket)
    })?;
    let socket = socket.map_err(|source| LabError::Io { what: "bind a socket".into(), source })?;
    println!("one UDP socket, backends that change on this node and across");
    for backend in [near, far, near, far] {
        lead_to(backend)?;
        // As kube-proxy does when an endpoint is gone.
        netns.output("conntrack", &["-D", "-p", "udp", "--orig-dst", &vip.to_string()], &[])?;
        promised(ask(&socket, vip)?, || format!("the service behind {backend} does not answer the old socket"))?;
        println!(
            "    a direct conversation of the same socket with the backend does it no harm, nor the other way round"
        );
        promised(ask(&socket, backend.address())?, || format!("{backend} does not answer directly"))?;
        promised(ask(&socket, vip)?, || format!("the service behind {backend} is dead after a direct conversation"))?;
    }
    println!("session affinity: a connection a second for the same client, and a long one beside them");
    lead_to(far)?;
    let long = TcpFlow::start_at(client, vip, 7)?;
    for _ in 0..50 {
        promised(reaches_with(client, vip, 7, Proto::Tcp, 32, PATIENCE)?, || "a connection failed".into())?;
        promised(reaches_with(client, far.address(), 7, Proto::Tcp, 32, PATIENCE)?, || "a direct one failed".into())?;
    }
    let progress = long.stop();
    promised(progress.broken.is_none() && progress.bytes > 0, || progress.to_string())
}
