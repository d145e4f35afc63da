//! Out of the tunnel. The tunnel's metadata (VNI, peer) cannot be given to a test run, so `bpf_skb_get_tunnel_key` fails and
//! every IPv4 packet is malformed: that drop is tested here, and that nothing passes without metadata. Peers, VNIs and
//! their reasons (`unknown-peer`, `wrong-peer`, `vni-zero`, `not-here`) are the lab's.

use super::node::{OWN, PEER, REMOTE_POD, Tenant, on_node};
use super::packet::{PORT, Packet, frame};
use super::run::{Skb, Way};

#[test]
fn a_packet_without_tunnel_metadata_is_dropped() {
    on_node(|node| {
        let to = node.pod(Tenant::A);
        let receive = |mark, bytes| {
            let mut skb = Skb::received(node.overlay, bytes);
            skb.mark = mark;
            node.run("from_overlay", &skb).way
        };
        for mark in [0, node.index(Tenant::A) << 16, u32::MAX] {
            for source in [REMOTE_POD, PEER[1], OWN[0], to.ip] {
                for destination in [to.ip, OWN[0], OWN[1], REMOTE_POD] {
                    let packet = Packet::udp(to.mac, (source, PORT), (destination, PORT)).frame();
                    assert_eq!(receive(mark, packet), Way::Dropped("malformed"), "{source} to {destination}");
                }
            }
            for ether_type in [0x0806, 0x86dd, 0x8100, 0x88a8] {
                let reason = if ether_type == 0x86dd { "ipv6" } else { "not-ip" };
                assert_eq!(receive(mark, frame(to.mac, ether_type, &[0x45; 60])), Way::Dropped(reason));
            }
        }
    });
}
