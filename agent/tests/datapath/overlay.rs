//! The overlay device is up only with its programs on it, whoever made it.

use std::net::UdpSocket;

use bulkhead_agent::kernel::{Hook, Link, Netlink, Op};
use bulkhead_agent::node::overlay::{NAME, Overlay, OverlayError};

use super::live::{on_folders, start};
use super::node::{GEOMETRY, OWN};

const OVERLAY: Overlay =
    Overlay { port: GEOMETRY.vxlan_port, mtu: GEOMETRY.mtu, node_ip: GEOMETRY.node_ip, gateway: OWN[0] };

fn device(host: &mut Netlink) -> Option<Link> {
    host.link_by_name(&NAME.parse().unwrap()).unwrap()
}

fn programs(host: &mut Netlink, index: u32) -> [usize; 2] {
    [Hook::Egress, Hook::Ingress].map(|hook| host.filters(index, hook).unwrap().len())
}

#[test]
fn a_device_is_down_until_its_programs_are_on_it() {
    on_folders(|bpf_dir, run_dir| {
        let live = start(bpf_dir, run_dir);
        let mut host = Netlink::here().unwrap();
        for round in ["made", "deleted and made again"] {
            let (index, _) = OVERLAY.ensure(&mut host).unwrap();
            assert!(!device(&mut host).unwrap().up, "{round}");
            assert_eq!(programs(&mut host, index), [0, 0]);
            let changes = OVERLAY.open(&mut host, index, &live.datapath.programs).unwrap();
            assert!(device(&mut host).unwrap().up, "{round}");
            assert_eq!((programs(&mut host, index), changes.len()), ([1, 1], 2), "{changes:?}");
            // Adopted by the next agent, it stays up all the while.
            assert_eq!(OVERLAY.ensure(&mut host).unwrap().0, index);
            assert!(device(&mut host).unwrap().up);
            assert!(OVERLAY.open(&mut host, index, &live.datapath.programs).unwrap().is_empty());
            // Made by an agent that died before it had taken it up, or set down by somebody.
            host.apply(Op::link_down(index)).unwrap();
            assert_eq!(OVERLAY.ensure(&mut host).unwrap().0, index);
            assert!(!device(&mut host).unwrap().up);
            assert_eq!(OVERLAY.open(&mut host, index, &live.datapath.programs).unwrap().len(), 1);
            assert!(device(&mut host).unwrap().up);
            host.apply(Op::link_delete(index)).unwrap();
        }
    });
}

#[test]
fn a_port_in_use_is_said_and_leaves_no_device() {
    on_folders(|bpf_dir, run_dir| {
        let live = start(bpf_dir, run_dir);
        let mut host = Netlink::here().unwrap();
        let taken = UdpSocket::bind(("0.0.0.0", OVERLAY.port)).unwrap();
        let (index, _) = OVERLAY.ensure(&mut host).unwrap();
        let error = OVERLAY.open(&mut host, index, &live.datapath.programs).unwrap_err();
        assert!(matches!(error, OverlayError::PortTaken(port, _) if port == OVERLAY.port), "{error}");
        assert!(device(&mut host).is_none());
        drop(taken);
        let (index, _) = OVERLAY.ensure(&mut host).unwrap();
        OVERLAY.open(&mut host, index, &live.datapath.programs).unwrap();
        assert!(device(&mut host).unwrap().up);
    });
}
