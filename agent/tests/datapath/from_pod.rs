//! What a pod sends: its own name or nothing, then the shortest way.

use std::net::Ipv4Addr;
use std::process::Command;

use super::node::{GATEWAY_MAC, NOWHERE, Node, OUTSIDE, OWN, PEER, REMOTE_POD, Tenant, on_node, on_node_alone};
use super::packet::{Arp, ETH_IPV4, ICMP, PORT, Packet, SERVICE_PORT, TCP, UDP, checksum, frame};
use super::run::{Outcome, Skb, Way};
use bulkhead_agent::kernel::{Mac, Netlink, Op, sysctl};

fn send(node: &Node, bytes: Vec<u8>) -> Outcome {
    node.run("from_pod", &Skb::received(node.pod(Tenant::A).ifindex, bytes))
}

/// UDP from A's pod.
fn udp(node: &Node, to: Ipv4Addr, source_port: u16, destination_port: u16) -> Packet {
    let pod = node.pod(Tenant::A);
    Packet::udp(pod.mac, (pod.ip, source_port), (to, destination_port))
}

#[test]
fn delivery_writes_the_mac_addresses_and_takes_the_mark_off() {
    on_node(|node| {
        let to = node.sibling(Tenant::A);
        let outcome = send(node, udp(node, to.ip, PORT, PORT).frame());
        let addresses = [to.mac.0, GATEWAY_MAC.0].concat();
        assert_eq!(outcome, Outcome { way: Way::Delivered(addresses.try_into().unwrap()), mark: 0 });
        // What has a shaper goes through the device's egress hook, which needs the mark to judge again.
        node.publish(&to, true, None);
        let outcome = send(node, udp(node, to.ip, PORT, PORT).frame());
        assert!(matches!(outcome.way, Way::Delivered(_)));
        assert_eq!(outcome.mark, node.index(Tenant::A) << 16);
        let again =
            Skb::sent(to.ifindex, node.pod(Tenant::A).ifindex, outcome.mark, udp(node, to.ip, PORT, PORT).frame());
        assert_eq!(node.run("to_pod", &again), Outcome { way: Way::Passed, mark: 0 });
    });
}

#[test]
fn every_destination_has_its_way() {
    on_node(|node| {
        let mark = node.index(Tenant::A) << 16;
        let broadcast = Ipv4Addr::BROADCAST;
        let cases = [
            (OWN[0], Way::Passed),
            (OWN[1], Way::Passed),
            (OWN[2], Way::Passed),
            (OUTSIDE, Way::Passed),
            (broadcast, Way::Passed),
            (Ipv4Addr::new(224, 0, 0, 1), Way::Passed),
            (PEER[0], Way::Tunnelled),
            (PEER[1], Way::Tunnelled),
            (PEER[2], Way::Tunnelled),
            (REMOTE_POD, Way::Tunnelled),
            (NOWHERE, Way::Dropped("no-node")),
            (Ipv4Addr::new(10, 42, 200, 1), Way::Dropped("no-node")),
            // Addresses of this node's subnet that no pod has; its first and last too.
            (Ipv4Addr::new(10, 42, 7, 0), Way::Dropped("no-endpoint")),
            (Ipv4Addr::new(10, 42, 7, 99), Way::Dropped("no-endpoint")),
            (Ipv4Addr::new(10, 42, 7, 255), Way::Dropped("no-endpoint")),
            // Just outside the cluster's network.
            (Ipv4Addr::new(10, 41, 255, 255), Way::Passed),
            (Ipv4Addr::new(10, 43, 0, 0), Way::Passed),
        ];
        for (to, way) in cases {
            // A foreign mark changes nothing.
            for foreign in [0, u32::MAX, node.index(Tenant::B) << 16 | 0x4000] {
                let mut skb = Skb::received(node.pod(Tenant::A).ifindex, udp(node, to, PORT, PORT).frame());
                skb.mark = foreign;
                let outcome = node.run("from_pod", &skb);
                assert_eq!(outcome.way, way, "{to}");
                assert!(matches!(way, Way::Dropped(_)) || outcome.mark == mark, "{to}: {:#x}", outcome.mark);
            }
        }
    });
}

#[test]
fn a_name_that_is_not_its_own_is_dropped() {
    on_node(|node| {
        let (pod, other) = (node.pod(Tenant::A), node.pod(Tenant::B));
        let to = node.sibling(Tenant::B);
        // The sibling of the same tenant is another too.
        for source in [other.ip, node.sibling(Tenant::A).ip, REMOTE_POD, NOWHERE, OUTSIDE, Ipv4Addr::UNSPECIFIED]
            .into_iter()
            .chain(OWN)
            .chain(PEER)
            .chain([Ipv4Addr::new(10, 42, 8, pod.ip.octets()[3]), Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST])
        {
            for to in [to.ip, REMOTE_POD, OWN[0], OUTSIDE] {
                let packet = Packet::udp(pod.mac, (source, PORT), (to, PORT));
                assert_eq!(send(node, packet.frame()).way, Way::Dropped("spoofed-ip"), "{source} to {to}");
                let fragment = packet.fragment(0x2000);
                assert_eq!(send(node, fragment.frame()).way, Way::Dropped("spoofed-ip"), "{source} to {to}");
            }
        }
        for mac in [other.mac, GATEWAY_MAC, Mac([0; 6]), Mac([0xff; 6])] {
            let packet = Packet::udp(mac, (pod.ip, PORT), (OWN[0], PORT));
            assert_eq!(send(node, packet.frame()).way, Way::Dropped("spoofed-mac"));
        }
        // Everything right, from another pod's device.
        let stolen = Packet::udp(pod.mac, (pod.ip, PORT), (OWN[0], PORT)).frame();
        let outcome = node.run("from_pod", &Skb::received(other.ifindex, stolen));
        assert_eq!(outcome.way, Way::Dropped("spoofed-ip"));
    });
}

#[test]
fn arp_speaks_for_the_pod_alone() {
    on_node(|node| {
        let (pod, other) = (node.pod(Tenant::A), node.pod(Tenant::B));
        let own = Arp { frame_source: pod.mac, sender_mac: pod.mac, sender: pod.ip, target: OWN[0], operation: 1 };
        let probe = Arp { sender: Ipv4Addr::UNSPECIFIED, target: pod.ip, ..own };
        let spoofed = Way::Dropped("spoofed-arp");
        for (what, arp, way) in [
            ("a request", own, Way::Passed),
            ("a reply", Arp { operation: 2, ..own }, Way::Passed),
            ("an announcement", Arp { target: pod.ip, ..own }, Way::Passed),
            ("a probe for its own", probe, Way::Passed),
            ("a probe for another's", Arp { target: other.ip, ..probe }, spoofed.clone()),
            ("another's address", Arp { sender: other.ip, operation: 2, ..own }, spoofed.clone()),
            ("the gateway's address", Arp { sender: OWN[0], operation: 2, ..own }, spoofed.clone()),
            ("an address of the outside", Arp { sender: OUTSIDE, ..own }, spoofed.clone()),
            ("another MAC address inside", Arp { sender_mac: other.mac, ..own }, spoofed.clone()),
            ("another MAC address outside", Arp { frame_source: other.mac, ..own }, spoofed.clone()),
        ] {
            let outcome = send(node, arp.frame());
            assert_eq!((outcome.way, outcome.mark), (way, 0), "{what}");
        }
        let outcome = node.run("from_pod", &Skb::received(other.ifindex, own.frame()));
        assert_eq!(outcome.way, spoofed, "from another's device");
        let whole = own.frame();
        for length in 14..whole.len() {
            assert_eq!(send(node, whole[..length].to_vec()).way, Way::Dropped("malformed"), "{length} bytes");
        }
    });
}

#[test]
fn a_port_of_the_translated_range_takes_the_stack() {
    on_node(|node| {
        let mark = node.index(Tenant::A) << 16;
        let pod = node.pod(Tenant::A);
        let local = node.sibling(Tenant::A).ip;
        for (source_port, destination_port, to_local, to_remote) in [
            (60_999, 60_999, false, false),
            (SERVICE_PORT, PORT, true, true),
            (u16::MAX, PORT, true, true),
            // The destination is the local pod, or one whose own node looks at it.
            (PORT, SERVICE_PORT, true, false),
            (PORT, u16::MAX, true, false),
        ] {
            for protocol in [TCP, UDP] {
                for options in [&[][..], &[1, 1, 1, 0]] {
                    for (to, stack) in [(local, to_local), (REMOTE_POD, to_remote), (PEER[1], to_remote)] {
                        let ends = ((pod.ip, source_port), (to, destination_port));
                        let packet = if protocol == TCP {
                            Packet::tcp(pod.mac, ends.0, ends.1)
                        } else {
                            Packet::udp(pod.mac, ends.0, ends.1)
                        };
                        let outcome = send(node, packet.options(options).frame());
                        let case = format!("protocol {protocol}, {ends:?}, options {options:?}: {outcome:?}");
                        assert_eq!(outcome.way == Way::Passed, stack, "{case}");
                        assert!(!matches!(outcome.way, Way::Dropped(_) | Way::Vanished(_)), "{case}");
                        assert!(!stack || outcome.mark == mark, "{case}");
                    }
                }
            }
        }
    });
}

#[test]
fn an_icmp_error_goes_the_way_of_the_flow_that_it_quotes() {
    on_node(|node| {
        let (pod, to) = (node.pod(Tenant::A), node.sibling(Tenant::A));
        let service = Way::Passed;
        // The quoted packet went the other way: its destination is the pod that sends the error.
        let quoted = |from: u16, to_port: u16| Packet::udp(to.mac, (to.ip, from), (pod.ip, to_port));
        let error = |kind, about: &Packet, bytes| {
            send(node, Packet::icmp_error(pod.mac, kind, (pod.ip, to.ip), about, bytes).frame()).way
        };
        for kind in [3, 4, 11, 12] {
            assert!(matches!(error(kind, &quoted(PORT, PORT), 28), Way::Delivered(_)), "type {kind}");
            assert_eq!(error(kind, &quoted(SERVICE_PORT, PORT), 28), service, "type {kind}");
            assert_eq!(error(kind, &quoted(PORT, SERVICE_PORT), 28), service, "type {kind}");
            // Behind IP options.
            assert_eq!(error(kind, &quoted(PORT, SERVICE_PORT).options(&[1; 40]), 68), service, "type {kind}");
            // Cut before the ports: nothing is known of the flow.
            for bytes in [0, 19, 20, 23] {
                assert!(matches!(error(kind, &quoted(SERVICE_PORT, PORT), bytes), Way::Delivered(_)), "{bytes} bytes");
            }
        }
        // Types that quote nothing, and a quoted protocol without ports.
        assert!(matches!(error(5, &quoted(SERVICE_PORT, PORT), 28), Way::Delivered(_)));
        let mut other = quoted(SERVICE_PORT, PORT);
        other.protocol = 47;
        assert!(matches!(error(3, &other, 28), Way::Delivered(_)));
        // The verdict comes first.
        let stranger = node.pod(Tenant::B).ip;
        let packet = Packet::icmp_error(pod.mac, 3, (pod.ip, stranger), &quoted(SERVICE_PORT, PORT), 28);
        assert_eq!(send(node, packet.frame()).way, Way::Dropped("isolated"));
    });
}

#[test]
fn fragments_take_the_stack_once_they_are_allowed() {
    on_node(|node| {
        let (own, other) = (node.sibling(Tenant::A).ip, node.pod(Tenant::B).ip);
        // More fragments; an offset; both. "Don't fragment" and the reserved bit make none.
        for (bits, stack) in [(0x2000, true), (0x0001, true), (0x3fff, true), (0x4000, false), (0x8000, false)] {
            let outcome = send(node, udp(node, own, PORT, PORT).fragment(bits).frame());
            assert_eq!(outcome.way == Way::Passed, stack, "{bits:#x}: {outcome:?}");
            let outcome = send(node, udp(node, REMOTE_POD, PORT, PORT).fragment(bits).frame());
            assert_eq!(outcome.way, if stack { Way::Passed } else { Way::Tunnelled }, "{bits:#x}");
            assert_eq!(outcome.index(), node.index(Tenant::A));
            let outcome = send(node, udp(node, other, PORT, PORT).fragment(bits).frame());
            assert_eq!(outcome.way, Way::Dropped("isolated"), "{bits:#x}");
        }
        // The bytes where ports would be are no ports: a later fragment to a node is not VXLAN.
        assert_eq!(send(node, udp(node, PEER[1], PORT, 4789).fragment(0x00b9).frame()).way, Way::Passed);
    });
}

#[test]
fn no_vxlan_leaves_a_pod_for_anything_but_a_pod() {
    on_node(|node| {
        for to in OWN.into_iter().chain(PEER).chain([OUTSIDE, Ipv4Addr::new(10, 42, 200, 1)]) {
            for options in [&[][..], &[1, 1, 1, 0]] {
                let packet = udp(node, to, PORT, 4789).options(options);
                assert_eq!(send(node, packet.frame()).way, Way::Dropped("pod-vxlan"), "{to}");
            }
            let pod = node.pod(Tenant::A);
            let tcp = Packet::tcp(pod.mac, (pod.ip, PORT), (to, 4789));
            assert_ne!(send(node, tcp.frame()).way, Way::Dropped("pod-vxlan"), "{to}");
        }
        let to = node.sibling(Tenant::A).ip;
        assert!(matches!(send(node, udp(node, to, PORT, 4789).frame()).way, Way::Delivered(_)));
        assert_eq!(send(node, udp(node, REMOTE_POD, PORT, 4789).frame()).way, Way::Tunnelled);
    });
}

#[test]
fn what_does_not_fit_the_tunnel_takes_the_stack() {
    on_node_alone(|node| {
        sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
        let mut netlink = Netlink::here().unwrap();
        netlink.apply(Op::link_up(node.underlay)).unwrap();
        netlink.apply(Op::address_add(node.underlay, "192.0.2.1/24".parse().unwrap(), true)).unwrap();
        netlink.apply(Op::address_add(node.pod(Tenant::A).ifindex, "169.254.7.7/32".parse().unwrap(), true)).unwrap();
        // IP bytes, with 14 of Ethernet in front.
        let whole = |to, bytes: usize| send(node, udp(node, to, PORT, PORT).sized(14 + bytes).frame()).way;
        assert_eq!(whole(REMOTE_POD, 1450), Way::Tunnelled);
        assert_eq!(whole(REMOTE_POD, 1451), Way::Passed);
        assert_eq!(whole(PEER[1], 1451), Way::Passed);
        assert!(matches!(whole(node.sibling(Tenant::A).ip, 1500), Way::Delivered(_)), "no tunnel on this node");
        let segments = |size: u32, segments: u32| {
            let pod = node.pod(Tenant::A);
            let frame = Packet::tcp(pod.mac, (pod.ip, PORT), (REMOTE_POD, PORT)).sized(3000).frame();
            let mut skb = Skb::received(pod.ifindex, frame);
            (skb.gso_size, skb.gso_segs) = (size, segments);
            node.run("from_pod", &skb).way
        };
        assert_eq!(segments(1410, 3), Way::Tunnelled, "each of its segments fits");
        assert_eq!(segments(1411, 3), Way::Passed);
        // A path whose MTU is smaller than the device's.
        // Locked: the kernel lets a forwarded packet see a plain one only with ip_forward_use_pmtu.
        let narrow = format!("route add 192.0.2.2/32 dev vethtest{} mtu lock 1400", node.underlay);
        let status = Command::new("ip").args(narrow.split(' ')).status().expect("this test needs `ip`");
        assert!(status.success(), "{narrow}");
        assert_eq!(whole(REMOTE_POD, 1350), Way::Tunnelled);
        assert_eq!(whole(REMOTE_POD, 1351), Way::Passed, "to be cut by the stack");
        assert_eq!(whole(Ipv4Addr::new(10, 42, 9, 20), 1351), Way::Tunnelled, "another path");
        // What must not be cut is answered, in the gateway's name; the pod's own egress hook lets the answer in. Pods of
        // a namespace that is gone reach nodes and global namespaces, so they are answered too.
        for tenant in Tenant::ALL {
            too_big_is_answered(node, tenant);
        }
    });
}

fn too_big_is_answered(node: &Node, tenant: Tenant) {
    let pod = node.pod(tenant);
    let sent = Packet::udp(pod.mac, (pod.ip, PORT), (PEER[1], PORT)).fragment(0x4000).sized(14 + 1351);
    let outcome = node.run("from_pod", &Skb::received(pod.ifindex, sent.frame()));
    let Way::Answered(answer) = outcome.way else { panic!("{tenant:?}: {outcome:?}") };
    let mut body = vec![3, 4, 0, 0, 0, 0, 5, 0x46];
    body.extend(&sent.ip()[..28]);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut expected = Packet::new(GATEWAY_MAC, OWN[0], pod.ip, ICMP, body).frame();
    expected[..6].copy_from_slice(&pod.mac.0);
    // TOS, no identification; the header's checksum with them.
    expected[15] = 0xc0;
    expected[18..20].fill(0);
    expected[24..26].fill(0);
    let sum = checksum(&expected[14..34]);
    expected[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(answer, expected, "{tenant:?}: an MTU of 1350 = 1400 - 50");
    let back = node.run("to_pod", &Skb::sent(pod.ifindex, pod.ifindex, outcome.mark, answer));
    assert_eq!(back, Outcome { way: Way::Passed, mark: 0 }, "{tenant:?}");
}

#[test]
fn frames_that_are_neither_ipv4_nor_arp_are_dropped() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        let inner = udp(node, node.sibling(Tenant::A).ip, PORT, PORT).sized(64).ip();
        let nested = [&[0, 5], &ETH_IPV4.to_be_bytes()[..], &inner].concat();
        // IPv6, RARP, LLDP, EAPOL, 802.1Q, 802.1ad, QinQ, MPLS, PPPoE, Transparent Ethernet Bridging, 802.3 with LLC.
        for ether_type in
            [0x86dd, 0x8035, 0x88cc, 0x888e, 0x8100, 0x88a8, 0x9100, 0x8847, 0x8864, 0x6558, 0x0026, 0x0000, 0xffff]
        {
            for payload in [&inner, &nested] {
                let outcome = send(node, frame(pod.mac, ether_type, payload));
                let reason = if ether_type == 0x86dd { "ipv6" } else { "not-ip" };
                assert_eq!((outcome.way, outcome.mark), (Way::Dropped(reason), 0), "{ether_type:#06x}");
            }
        }
    });
}

#[test]
fn a_pod_reaches_itself() {
    on_node(|node| {
        let own = node.pod(Tenant::A).ip;
        assert!(matches!(send(node, udp(node, own, PORT, PORT).frame()).way, Way::Delivered(_)));
        // The hairpin of a service: translated, so by the stack.
        assert_eq!(send(node, udp(node, own, PORT, SERVICE_PORT).frame()).way, Way::Passed);
    });
}

#[test]
fn a_pod_that_was_withdrawn_is_nobody() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        bulkhead_agent::live::locked(&node.datapath.endpoints).withdraw(pod.host, pod.ifindex).unwrap();
        assert_eq!(send(node, udp(node, OWN[0], PORT, PORT).frame()).way, Way::Dropped("spoofed-ip"));
        let sibling = node.sibling(Tenant::A);
        let to_it = Packet::udp(sibling.mac, (sibling.ip, PORT), (pod.ip, PORT)).frame();
        let outcome = node.run("from_pod", &Skb::received(sibling.ifindex, to_it.clone()));
        assert_eq!(outcome.way, Way::Dropped("no-endpoint"));
        // What was under way in the stack, by its address or to it.
        let mark = node.index(Tenant::A) << 16;
        let from_it = Packet::udp(pod.mac, (pod.ip, PORT), (sibling.ip, PORT)).frame();
        let outcome = node.run("to_pod", &Skb::sent(sibling.ifindex, pod.ifindex, mark, from_it));
        assert_eq!(outcome.way, Way::Dropped("cluster-source"));
        let outcome = node.run("to_pod", &Skb::sent(pod.ifindex, sibling.ifindex, mark, to_it));
        assert_eq!(outcome.way, Way::Dropped("no-endpoint"));
    });
}
