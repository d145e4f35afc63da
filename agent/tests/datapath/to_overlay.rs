//! From the host's stack into the tunnel. Which VNI and peer a packet gets is in its tunnel metadata, which a test run does
//! not give back: the lab covers that.

use std::net::Ipv4Addr;

use super::node::{NOWHERE, OUTSIDE, OWN, PEER, REMOTE_POD, Tenant, UNASSIGNED, on_node};
use super::packet::{PORT, Packet, frame};
use super::run::{Outcome, Skb, Way};

#[test]
fn sources_and_destinations() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        let foreign = Way::Dropped("foreign-source");
        let no_node = Way::Dropped("no-node");
        for (source, destination, way) in [
            (pod.ip, REMOTE_POD, Way::Passed),
            (OWN[0], REMOTE_POD, Way::Passed),
            (OWN[1], PEER[0], Way::Passed),
            (OWN[2], PEER[1], Way::Passed),
            (pod.ip, PEER[2], Way::Passed),
            // The peer would not believe these.
            (OUTSIDE, REMOTE_POD, foreign.clone()),
            (PEER[1], REMOTE_POD, foreign.clone()),
            (REMOTE_POD, PEER[0], foreign.clone()),
            (NOWHERE, REMOTE_POD, foreign),
            // No peer has these.
            (pod.ip, NOWHERE, no_node.clone()),
            (pod.ip, OUTSIDE, no_node.clone()),
            (pod.ip, node.sibling(Tenant::A).ip, no_node.clone()),
            (pod.ip, OWN[0], no_node.clone()),
            (pod.ip, OWN[1], no_node.clone()),
            (pod.ip, Ipv4Addr::BROADCAST, no_node),
        ] {
            let packet = Packet::udp(pod.mac, (source, PORT), (destination, PORT)).frame();
            let skb = Skb::sent(node.overlay, pod.ifindex, node.index(Tenant::A) << 16, packet);
            assert_eq!(node.run("to_overlay", &skb).way, way, "{source} to {destination}");
        }
    });
}

#[test]
fn what_came_in_by_our_devices_needs_an_assigned_index() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        let packet = Packet::udp(pod.mac, (pod.ip, PORT), (REMOTE_POD, PORT)).frame();
        for ingress in [pod.ifindex, node.overlay] {
            for mark in [0, 1, 0x4000, 0xffff, UNASSIGNED << 16, u32::MAX] {
                let outcome = node.run("to_overlay", &Skb::sent(node.overlay, ingress, mark, packet.clone()));
                assert_eq!(outcome.way, Way::Dropped("unmarked"), "{mark:#x}");
            }
        }
    });
}

#[test]
fn the_node_speaks_under_its_own_addresses_only() {
    on_node(|node| {
        for (ingress, mark) in [(0, 0), (node.underlay, 0), (0, node.index(Tenant::A) << 16)] {
            for (source, way) in [
                (OWN[0], Way::Passed),
                (OWN[1], Way::Passed),
                (OUTSIDE, Way::Dropped("foreign-source")),
                (node.pod(Tenant::A).ip, Way::Dropped("cluster-source")),
                (REMOTE_POD, Way::Dropped("cluster-source")),
            ] {
                let packet = Packet::udp(node.pod(Tenant::A).mac, (source, PORT), (REMOTE_POD, PORT)).frame();
                let outcome = node.run("to_overlay", &Skb::sent(node.overlay, ingress, mark, packet));
                assert_eq!(outcome.way, way, "{source}, mark {mark:#x}");
                assert!(outcome.way != Way::Passed || outcome.index() == 0);
            }
        }
    });
}

#[test]
fn our_bits_of_the_mark_end_here() {
    on_node(|node| {
        let (pod, index) = (node.pod(Tenant::A), node.index(Tenant::A));
        for (mark, left) in [(0, 0), (1, 1), (0x4000, 0x4000), (0xe001, 0xe001)] {
            for fragment in [0, 0x4000, 0x2000, 0x0010] {
                let packet = Packet::udp(pod.mac, (pod.ip, PORT), (REMOTE_POD, PORT)).fragment(fragment).frame();
                let outcome = node.run("to_overlay", &Skb::sent(node.overlay, pod.ifindex, index << 16 | mark, packet));
                assert_eq!(outcome, Outcome { way: Way::Passed, mark: left });
            }
        }
    });
}

#[test]
fn nothing_but_ipv4() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        for ether_type in [0x0806, 0x86dd, 0x8100, 0x8847] {
            let bytes = frame(pod.mac, ether_type, &[0x60; 60]);
            let skb = Skb::sent(node.overlay, pod.ifindex, node.index(Tenant::A) << 16, bytes);
            let reason = if ether_type == 0x86dd { "ipv6" } else { "not-ip" };
            assert_eq!(node.run("to_overlay", &skb).way, Way::Dropped(reason), "{ether_type:#x}");
        }
    });
}
