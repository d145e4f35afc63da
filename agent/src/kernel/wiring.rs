//! The whole wiring of a pod as the agent sends it: one batch in the host's namespace, one in the pod's. Tests only.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::fixture::{in_new_netns, new_netns, veth_spec};
use super::{MAIN_TABLE, Mac, Netlink, Netns, Op, Route, TbfSpec, VethSpec};

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const PROTOCOL: u8 = 180;

/// The address of the pod behind host link `index`.
fn address(index: u32) -> IpAddr {
    Ipv4Addr::from(0x0a01_0000 + index).into()
}

fn wire(host: &mut Netlink, pod: &Netns, index: u32, limited: bool) -> Netlink {
    let name = format!("vethtest{index}");
    let spec =
        VethSpec { host_index: Some(index), peer_index: Some(2), group: Some(9), ..veth_spec(&name, pod.as_fd()) };
    let shaper = |index| TbfSpec { index, bytes_per_second: 12_500_000, burst_bytes: 70_000, limit_bytes: 300_000 };
    let to_pod = Route { index: Some(index), ..Route::to(IpNetwork::from(address(index)), MAIN_TABLE, PROTOCOL) };
    let mut ops = vec![
        Op::veth(&spec),
        Op::clsact(index),
        Op::route_add(&to_pod),
        Op::neighbour(index, address(index), spec.peer_mac),
    ];
    ops.extend(limited.then(|| Op::tbf(&shaper(index))));
    host.batch(ops).unwrap();

    let mut inside = Netlink::within(pod.as_fd()).unwrap();
    let to_gateway = Route { index: Some(2), ..Route::to(IpNetwork::from(GATEWAY), MAIN_TABLE, PROTOCOL) };
    let everywhere: IpNetwork = "0.0.0.0/0".parse().unwrap();
    let default = Route { index: Some(2), via: Some(GATEWAY), ..Route::to(everywhere, MAIN_TABLE, PROTOCOL) };
    let mut ops = vec![
        Op::link_up(1),
        Op::link_up(2),
        Op::address_add(2, IpNetwork::from(address(index)), true),
        Op::neighbour(2, GATEWAY, spec.host_mac),
        Op::route_add(&to_gateway),
        Op::route_add(&default),
    ];
    ops.extend(limited.then(|| Op::tbf(&shaper(2))));
    inside.batch(ops).unwrap();
    inside
}

#[test]
fn a_pod_is_wired_by_one_batch_on_each_side() {
    in_new_netns(|| {
        let mut host = Netlink::here().unwrap();
        let pod = new_netns();
        let mut inside = wire(&mut host, &pod, 1000, true);
        let link = inside.link_by_index(2).unwrap().unwrap();
        assert!(link.up && link.running && link.mac == Some(Mac([0x0a, 0x58, 0, 0, 0, 2])));
        assert_eq!(inside.routes(MAIN_TABLE, Some(PROTOCOL)).unwrap().len(), 2);
        assert_eq!(inside.route_to("192.0.2.1".parse().unwrap()).unwrap().unwrap().gateway, Some(GATEWAY));
        assert_eq!(host.route_to(address(1000)).unwrap().unwrap().index, 1000);
        assert!(host.qdiscs(1000).unwrap().iter().any(|qdisc| qdisc.tbf.is_some()));
        assert!(inside.qdiscs(2).unwrap().iter().any(|qdisc| qdisc.tbf.is_some()));
    });
}

/// A measurement, not a test: it prints how long the wiring takes and holds it to no limit.
/// `cargo test -p bulkhead-agent --lib -- --ignored --nocapture wiring_time`
#[test]
#[ignore = "a measurement; run it by hand"]
fn wiring_time() {
    for limited in [false, true] {
        in_new_netns(|| {
            let mut host = Netlink::here().unwrap();
            let mut times = Vec::new();
            // All live to the end: a namespace that is going away holds the kernel's lock for milliseconds.
            let pods: Vec<Netns> = (0..300).map(|_| new_netns()).collect();
            for (index, pod) in (1000..).zip(&pods) {
                let start = Instant::now();
                wire(&mut host, pod, index, limited);
                times.push(start.elapsed());
            }
            let shown = |times: &mut Vec<Duration>| {
                times.sort_unstable();
                format!("p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100])
            };
            println!("wiring of a pod, limited: {limited}: {}", shown(&mut times));
            let indices: Vec<u32> = (1000..1300).collect();
            let start = Instant::now();
            host.batch(Op::links_delete(&indices, 4711)).unwrap();
            println!("deletion of 300 pods' links together: {:?}", start.elapsed());
        });
    }
}
