//! The last gate before a pod, for what the host's stack sends.

use std::net::Ipv4Addr;

use super::node::{NOWHERE, OUTSIDE, OWN, PEER, REMOTE_POD, Tenant, UNASSIGNED, on_node};
use super::packet::{Arp, PORT, Packet, SERVICE_PORT, frame};
use super::run::{Outcome, Skb, Way};

#[test]
fn what_came_in_by_our_devices_needs_an_assigned_index() {
    on_node(|node| {
        let to = node.pod(Tenant::A);
        let packet = Packet::udp(to.mac, (OWN[1], PORT), (to.ip, PORT)).frame();
        for ingress in [node.pod(Tenant::B).ifindex, node.overlay] {
            for mark in [0, 0x4000, 0xffff, UNASSIGNED << 16, 0xffff_0000, u32::MAX] {
                let outcome = node.run("to_pod", &Skb::sent(to.ifindex, ingress, mark, packet.clone()));
                assert_eq!(outcome.way, Way::Dropped("unmarked"), "{mark:#x}");
            }
        }
    });
}

#[test]
fn the_lower_half_of_the_mark_is_not_ours() {
    on_node(|node| {
        let (to, index) = (node.pod(Tenant::A), node.index(Tenant::A));
        let packet = Packet::udp(to.mac, (OWN[1], PORT), (to.ip, PORT)).frame();
        let skb = Skb::sent(to.ifindex, node.overlay, index << 16 | 0xe000, packet);
        assert_eq!(node.run("to_pod", &skb), Outcome { way: Way::Passed, mark: 0xe000 });
    });
}

#[test]
fn the_cluster_network_comes_from_nowhere_else() {
    on_node(|node| {
        let to = node.pod(Tenant::A);
        // Made here or from a device that is not ours; a forged index does not help.
        for ingress in [0, node.underlay, 9999] {
            for mark in [0, node.index(Tenant::A) << 16, node.index(Tenant::Global) << 16] {
                for source in [node.sibling(Tenant::A).ip, to.ip, REMOTE_POD, PEER[0], NOWHERE] {
                    let packet = Packet::udp(to.mac, (source, PORT), (to.ip, PORT)).frame();
                    let outcome = node.run("to_pod", &Skb::sent(to.ifindex, ingress, mark, packet));
                    assert_eq!(outcome.way, Way::Dropped("cluster-source"), "{source} by {ingress}, mark {mark:#x}");
                }
            }
        }
    });
}

#[test]
fn only_the_pods_own_address_is_behind_its_device() {
    on_node(|node| {
        let to = node.pod(Tenant::A);
        for destination in [node.sibling(Tenant::A).ip, OWN[0], OUTSIDE, REMOTE_POD, Ipv4Addr::BROADCAST] {
            let packet = Packet::udp(to.mac, (OWN[0], PORT), (destination, PORT)).frame();
            let outcome = node.run("to_pod", &Skb::sent(to.ifindex, 0, 0, packet));
            assert_eq!(outcome.way, Way::Dropped("no-endpoint"), "{destination}");
        }
    });
}

#[test]
fn fragments_options_and_ports_make_no_difference() {
    on_node(|node| {
        let (to, mark) = (node.pod(Tenant::A), node.index(Tenant::B) << 16);
        let packet = Packet::udp(to.mac, (OWN[1], SERVICE_PORT), (to.ip, SERVICE_PORT));
        for packet in [packet.clone().fragment(0x2000), packet.clone().fragment(0x10), packet.clone().options(&[1; 40])]
        {
            let from_b = Skb::sent(to.ifindex, node.overlay, mark, packet.frame());
            assert_eq!(node.run("to_pod", &from_b).way, Way::Dropped("isolated"));
            let from_node = Skb::sent(to.ifindex, 0, 0, packet.frame());
            assert_eq!(node.run("to_pod", &from_node).way, Way::Passed);
        }
    });
}

#[test]
fn other_protocols() {
    on_node(|node| {
        let to = node.pod(Tenant::A);
        let own = node.pod(Tenant::A);
        let arp = Arp { frame_source: own.mac, sender_mac: own.mac, sender: OWN[0], target: to.ip, operation: 1 };
        let run = |bytes| node.run("to_pod", &Skb::sent(to.ifindex, 0, 0, bytes)).way;
        assert_eq!(run(arp.frame()), Way::Passed, "the stack's own question");
        for ether_type in [0x86dd, 0x8100, 0x88a8, 0x8847] {
            let reason = if ether_type == 0x86dd { "ipv6" } else { "not-ip" };
            assert_eq!(run(frame(own.mac, ether_type, &[0x60; 60])), Way::Dropped(reason), "{ether_type:#x}");
        }
    });
}
