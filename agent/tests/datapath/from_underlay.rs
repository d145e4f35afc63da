//! The underlay: the cluster network exists inside the tunnel only; everything else is none of our business.

use std::net::Ipv4Addr;

use super::node::{NOWHERE, OUTSIDE, OWN, PEER, REMOTE_POD, Tenant, on_node};
use super::packet::{PORT, Packet, frame};
use super::run::{Outcome, Skb, Way};
use bulkhead_agent::kernel::Mac;

const ROUTER: Mac = Mac([0x0a, 0x5a, 0, 0, 0, 9]);

#[test]
fn bare_packets_of_the_cluster_network_are_dropped() {
    on_node(|node| {
        let inside = [node.pod(Tenant::A).ip, OWN[0], PEER[0], REMOTE_POD, NOWHERE];
        let edges = [Ipv4Addr::new(10, 41, 255, 255), Ipv4Addr::new(10, 43, 0, 0)];
        let outside = [OUTSIDE, OWN[1], PEER[1], edges[0], edges[1]];
        let all = inside.map(|address| (address, true)).into_iter().chain(outside.map(|address| (address, false)));
        let all: Vec<_> = all.collect();
        for (source, bare_source) in &all {
            for (destination, bare_destination) in &all {
                for packet in [
                    Packet::udp(ROUTER, (*source, PORT), (*destination, 4789)),
                    Packet::ping(ROUTER, *source, *destination).options(&[1; 40]),
                    Packet::udp(ROUTER, (*source, PORT), (*destination, PORT)).fragment(0x2001),
                ] {
                    let mut skb = Skb::received(node.underlay, packet.frame());
                    skb.mark = 0x1234_5678;
                    let bare = *bare_source || *bare_destination;
                    let way = if bare { Way::Dropped("bare") } else { Way::Unjudged };
                    let outcome = node.run("from_underlay", &skb);
                    assert_eq!(outcome, Outcome { way, mark: 0x1234_5678 }, "{source} to {destination}");
                }
            }
        }
    });
}

#[test]
fn what_is_no_ipv4_packet_goes_on() {
    on_node(|node| {
        let whole = Packet::udp(ROUTER, (REMOTE_POD, PORT), (REMOTE_POD, PORT)).sized(64).ip();
        for ether_type in [0x0806, 0x86dd, 0x88cc, 0x8847] {
            let outcome = node.run("from_underlay", &Skb::received(node.underlay, frame(ROUTER, ether_type, &whole)));
            assert_eq!(outcome.way, Way::Unjudged, "{ether_type:#x}");
        }
    });
}
