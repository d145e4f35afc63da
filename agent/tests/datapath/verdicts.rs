//! The table: every source by every destination, by every path that a test can run, against the rule said a second time.

use super::node::{OUTSIDE, OWN, Tenant, first_networks, may_talk, on_node};
use super::packet::{PORT, Packet, SERVICE_PORT};
use super::run::{Skb, Way};
use bulkhead_agent::datapath::abi::{EndpointValue, NS_UNKNOWN};
use bulkhead_agent::live::locked;

#[test]
fn from_pod_to_pod_on_this_node() {
    on_node(|node| {
        for from in Tenant::ALL.map(|tenant| node.pod(tenant)) {
            for to in &node.pods {
                let allowed = may_talk(from.tenant.network(), to.tenant.network());
                for (port, straight) in [(PORT, true), (SERVICE_PORT, false)] {
                    let packet = Packet::udp(from.mac, (from.ip, PORT), (to.ip, port));
                    let outcome = node.run("from_pod", &Skb::received(from.ifindex, packet.frame()));
                    let case = format!("{:?} to {:?} {}, port {port}", from.tenant, to.tenant, to.ip);
                    match (allowed, straight) {
                        (false, _) => assert_eq!(outcome.way, Way::Dropped("isolated"), "{case}"),
                        (true, true) => {
                            assert!(matches!(outcome.way, Way::Delivered(_)), "{case}: {outcome:?}");
                            assert_eq!(outcome.mark, 0, "{case}: the mark must not reach the pod");
                        }
                        (true, false) => {
                            assert_eq!(outcome.way, Way::Passed, "{case}");
                            assert_eq!(outcome.mark, node.index(from.tenant) << 16, "{case}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn from_the_stack_to_pod() {
    on_node(|node| {
        let came_in_by = [("a pod's device", node.pod(Tenant::B).ifindex), ("the overlay", node.overlay)];
        for (from, index, network) in node.sources() {
            for to in &node.pods {
                let expected =
                    if may_talk(network, to.tenant.network()) { Way::Passed } else { Way::Dropped("isolated") };
                for (device, ingress) in came_in_by {
                    // Whatever the addresses became in the stack, the mark says who it is.
                    for source in [node.pod(Tenant::A).ip, OUTSIDE, OWN[1]] {
                        let packet = Packet::udp(to.mac, (source, PORT), (to.ip, PORT)).frame();
                        let skb = Skb::sent(to.ifindex, ingress, index << 16 | 0x4000, packet);
                        let outcome = node.run("to_pod", &skb);
                        let case = format!("{from} by {device} as {source} to {:?}", to.tenant);
                        assert_eq!(outcome.way, expected, "{case}");
                        assert!(
                            outcome.way != Way::Passed || outcome.index() == 0,
                            "{case}: the mark must not reach the pod"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn the_node_and_the_outside_to_pod() {
    on_node(|node| {
        for to in &node.pods {
            // Made here, or come in by a device that is not ours; a mark of somebody else's changes nothing.
            for (ingress, mark) in
                [(0, 0), (node.underlay, 0), (0, node.index(Tenant::B) << 16), (node.underlay, 0x8000)]
            {
                for source in OWN.into_iter().chain([OUTSIDE]) {
                    let packet = Packet::udp(to.mac, (source, PORT), (to.ip, PORT)).frame();
                    let outcome = node.run("to_pod", &Skb::sent(to.ifindex, ingress, mark, packet));
                    assert_eq!(outcome.way, Way::Passed, "{source} to {:?}", to.tenant);
                    assert_eq!(outcome.index(), 0);
                }
            }
        }
    });
}

/// What leaves by the tunnel is judged where it arrives: every namespace with a VNI may send, none is mistaken.
#[test]
fn from_the_stack_into_the_tunnel() {
    on_node(|node| {
        for (from, index, _) in node.sources() {
            for destination in super::node::PEER.into_iter().chain([super::node::REMOTE_POD]) {
                let source = node.pod(Tenant::A);
                let packet = Packet::udp(source.mac, (source.ip, PORT), (destination, PORT)).frame();
                let outcome = node.run("to_overlay", &Skb::sent(node.overlay, source.ifindex, index << 16, packet));
                let known = index != NS_UNKNOWN;
                let expected = if known { Way::Passed } else { Way::Dropped("unmarked") };
                assert_eq!(outcome.way, expected, "{from} to {destination}");
                assert!(!known || outcome.mark == 0, "{from}: our mark must not go on");
            }
        }
    });
}

#[test]
fn a_flat_network_lets_everybody_talk() {
    on_node(|node| {
        let flat = |_| bulkhead_agent::datapath::Network::Id(0);
        let all = first_networks().into_iter().chain(Tenant::ALL.map(|t| (t.vni(), t.network())));
        node.apply(&all.map(|(vni, network)| (vni, flat(network))).collect());
        for from in Tenant::ALL.map(|tenant| node.pod(tenant)) {
            for to in &node.pods {
                let packet = Packet::udp(from.mac, (from.ip, PORT), (to.ip, PORT));
                let outcome = node.run("from_pod", &Skb::received(from.ifindex, packet.frame()));
                assert!(matches!(outcome.way, Way::Delivered(_)), "{:?} to {:?}: {outcome:?}", from.tenant, to.tenant);
            }
        }
    });
}

/// An entry whose index nobody has is of no namespace: it reaches nobody, a global namespace included, and nobody reaches it.
#[test]
fn an_index_that_is_not_assigned_is_not_global() {
    on_node(|node| {
        let lost = node.pod(Tenant::A);
        for namespace in [0, super::node::UNASSIGNED] {
            let value = EndpointValue {
                ip4: lost.ip,
                ip6: None,
                ifindex: lost.ifindex,
                namespace,
                mac: lost.mac,
                gateway_mac: super::node::GATEWAY_MAC,
                shaped: false,
                policed: false,
            };
            locked(&node.datapath.endpoints).publish(lost.host, value, None).unwrap();
            for other in Tenant::ALL.map(|tenant| node.sibling(tenant)) {
                for (from, to) in [(lost, other), (other, lost)] {
                    let packet = Packet::udp(from.mac, (from.ip, PORT), (to.ip, PORT)).frame();
                    let way = node.run("from_pod", &Skb::received(from.ifindex, packet)).way;
                    assert_eq!(way, Way::Dropped("isolated"), "{namespace}: {:?} to {:?}", from.tenant, to.tenant);
                }
            }
            for (ingress, mark) in [(0, 0), (node.overlay, NS_UNKNOWN << 16)] {
                let packet = Packet::udp(lost.mac, (OWN[1], PORT), (lost.ip, PORT)).frame();
                let outcome = node.run("to_pod", &Skb::sent(lost.ifindex, ingress, mark, packet));
                assert_eq!(outcome.way, Way::Dropped("isolated"), "{namespace}, from the stack");
            }
        }
        // Its own again, it reaches its like.
        node.publish(&lost, false, None);
        let like = node.sibling(Tenant::A);
        let packet = Packet::udp(lost.mac, (lost.ip, PORT), (like.ip, PORT)).frame();
        assert!(matches!(node.run("from_pod", &Skb::received(lost.ifindex, packet)).way, Way::Delivered(_)));
    });
}
