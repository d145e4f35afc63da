//! Frames that a hostile pod makes: whatever the bytes, nothing passes under a name that is not the pod's own.
//!
//! Two kinds the kernel refuses to a test run, and they are the lab's: VLAN tags, which lie beside the frame when the hook
//! sees it, and IP frames that are shorter than an IP header.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::node::{Node, OUTSIDE, OWN, PEER, REMOTE_POD, Tenant, may_talk, on_node};
use super::packet::{Arp, ETH_ARP, ETH_IPV4, ETH_IPV6, PORT, Packet, SERVICE_PORT};
use super::run::{Skb, Way};

const CASES: u32 = 2000;

/// Whole frames that pass, to be broken.
fn seeds(node: &Node) -> Vec<Vec<u8>> {
    let pod = node.pod(Tenant::A);
    let own = (pod.ip, PORT);
    let targets = [node.sibling(Tenant::A).ip, node.pod(Tenant::B).ip, REMOTE_POD, OWN[0], PEER[1], OUTSIDE];
    let mut seeds = Vec::new();
    for to in targets {
        let udp = Packet::udp(pod.mac, own, (to, PORT));
        seeds.push(udp.frame());
        seeds.push(udp.clone().options(&[131, 7, 4, 10, 42, 7, 12]).frame());
        seeds.push(udp.clone().fragment(0x2000).frame());
        seeds.push(Packet::tcp(pod.mac, own, (to, SERVICE_PORT)).frame());
        let quoted = Packet::udp(pod.mac, (to, SERVICE_PORT), own).options(&[1; 40]);
        seeds.push(Packet::icmp_error(pod.mac, 3, (pod.ip, to), &quoted, 68).frame());
    }
    seeds
        .push(Arp { frame_source: pod.mac, sender_mac: pod.mac, sender: pod.ip, target: OWN[0], operation: 1 }.frame());
    seeds
}

/// A change of a frame: bytes written somewhere, another length.
fn changes() -> impl Strategy<Value = (prop::sample::Index, Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)>
{
    let writes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (any::<prop::sample::Index>(), writes, proptest::option::weighted(0.3, any::<prop::sample::Index>()))
}

/// Runs `test` on many frames: broken ones of `seeds`, and random bytes behind a type that is looked at.
fn for_many_frames(seeds: &[Vec<u8>], test: impl Fn(Vec<u8>)) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let random = (0..3usize, prop::collection::vec(any::<u8>(), 14..100));
    TestRunner::new(config)
        .run(&(changes(), random, 0..8u8), |((seed, writes, length), (kind, random), which)| {
            let mut frame = if which == 0 { random } else { seed.get(seeds).clone() };
            if which == 0 {
                let ether_type = [ETH_IPV4, ETH_ARP, u16::from_be_bytes([frame[12], frame[13]])][kind];
                frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
            }
            for (at, byte) in writes {
                // The headers, mostly: what is behind them is not looked at.
                let end = frame.len().min(60);
                frame[at.index(end)] = byte;
            }
            if let Some(length) = length {
                frame.truncate(14 + length.index(frame.len() - 13));
            }
            if runs(&frame) {
                test(frame);
            }
            Ok(())
        })
        .unwrap();
}

/// Whether the kernel takes the frame for a test run.
fn runs(frame: &[u8]) -> bool {
    let header = match u16::from_be_bytes([frame[12], frame[13]]) {
        ETH_IPV4 => 20,
        ETH_IPV6 => 40,
        _ => 0,
    };
    frame.len() >= 14 + header
}

fn ip_at(frame: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = frame.get(offset..offset + 4)?.try_into().ok()?;
    Some(bytes.into())
}

#[test]
fn no_frame_leaves_a_pod_under_another_name() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        for_many_frames(&seeds(node), |frame| {
            let outcome = node.run("from_pod", &Skb::received(pod.ifindex, frame.clone()));
            let case = format!("{outcome:?} of {frame:02x?}");
            if let Way::Dropped(_) = outcome.way {
                return;
            }
            assert!(frame[6..12] == pod.mac.0, "the frame's source: {case}");
            match u16::from_be_bytes([frame[12], frame[13]]) {
                ETH_ARP => {
                    let (mac, sender, target) = (&frame[22..28], ip_at(&frame, 28), ip_at(&frame, 38));
                    let probe = sender == Some(Ipv4Addr::UNSPECIFIED) && target == Some(pod.ip);
                    assert!(mac == pod.mac.0 && (sender == Some(pod.ip) || probe), "{case}");
                    assert_eq!((outcome.way, outcome.mark), (Way::Passed, 0), "{case}");
                }
                ETH_IPV4 => {
                    assert!(frame[14] >> 4 == 4 && frame[14] & 0xf >= 5, "{case}");
                    assert_eq!(ip_at(&frame, 26), Some(pod.ip), "{case}");
                    let destination = ip_at(&frame, 30).unwrap();
                    let to = node.pods.iter().find(|to| to.ip == destination);
                    let allowed = to.is_none_or(|to| may_talk(pod.tenant.network(), to.tenant.network()));
                    assert!(allowed, "{case}");
                    if let Way::Delivered(addresses) = outcome.way {
                        assert_eq!(addresses[..6], to.expect("a pod").mac.0, "{case}");
                        assert_eq!(outcome.mark, 0, "{case}");
                    } else {
                        assert_eq!(outcome.index(), node.index(pod.tenant), "{case}");
                    }
                }
                other => panic!("type {other:#x}: {case}"),
            }
        });
    });
}

#[test]
fn no_frame_enters_a_pod_past_the_verdict() {
    on_node(|node| {
        let (to, from) = (node.pod(Tenant::A), node.pod(Tenant::B));
        let stranger = Packet::udp(from.mac, (from.ip, PORT), (to.ip, PORT));
        let seeds = [stranger.frame(), stranger.clone().options(&[1; 8]).frame(), stranger.fragment(0x2000).frame()];
        for_many_frames(&seeds, |frame| {
            let mark = node.index(Tenant::B) << 16;
            let outcome = node.run("to_pod", &Skb::sent(to.ifindex, from.ifindex, mark, frame.clone()));
            let arp = frame[12..14] == ETH_ARP.to_be_bytes();
            assert!(arp || matches!(outcome.way, Way::Dropped(_)), "{outcome:?} of {frame:02x?}");
            // Unmarked, made by the stack: only what is this node's or the outside's, and only to the pod itself.
            let outcome = node.run("to_pod", &Skb::sent(to.ifindex, 0, 0, frame.clone()));
            if !arp && outcome.way == Way::Passed {
                let (source, destination) = (ip_at(&frame, 26).unwrap(), ip_at(&frame, 30).unwrap());
                assert!(destination == to.ip && (source == OWN[0] || source.octets()[..2] != [10, 42]), "{frame:02x?}");
            }
        });
    });
}

#[test]
fn no_frame_enters_the_tunnel_under_a_foreign_name() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        for_many_frames(&seeds(node), |frame| {
            let mark = node.index(Tenant::A) << 16;
            let outcome = node.run("to_overlay", &Skb::sent(node.overlay, pod.ifindex, mark, frame.clone()));
            if outcome.way == Way::Passed {
                let source = ip_at(&frame, 26).unwrap();
                assert!(OWN.contains(&source) || source.octets()[..3] == [10, 42, 7], "{frame:02x?}");
                assert_eq!(outcome.mark, 0, "{frame:02x?}");
            }
        });
    });
}

#[test]
fn short_and_lying_headers() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        let own = Packet::udp(pod.mac, (pod.ip, PORT), (node.sibling(Tenant::A).ip, PORT));
        let send = |bytes| node.run("from_pod", &Skb::received(pod.ifindex, bytes)).way;
        let malformed = Way::Dropped("malformed");
        let whole = own.frame();
        // Up to the ports; a packet without all of its UDP header says enough to be judged, and its receiver drops it.
        for length in 34..38 {
            assert_eq!(send(whole[..length].to_vec()), malformed, "{length} bytes");
        }
        assert!(matches!(send(whole[..38].to_vec()), Way::Delivered(_)));
        for version in [0, 3, 5, 6, 15] {
            assert_eq!(send(Packet { version, ..own.clone() }.frame()), malformed, "version {version}");
        }
        for words in 0..5 {
            assert_eq!(send(Packet { words: Some(words), ..own.clone() }.frame()), malformed, "{words} words");
        }
        // The header reaches beyond the packet.
        assert_eq!(send(Packet { words: Some(15), ..own.clone() }.frame()), malformed);
        // Ports are read behind the header that is claimed: here the payload says VXLAN to a node.
        let mut hidden = Packet::udp(pod.mac, (pod.ip, PORT), (OWN[1], PORT));
        hidden.body = vec![0; 64];
        hidden.body[22..24].copy_from_slice(&4789u16.to_be_bytes());
        assert_eq!(send(Packet { words: Some(10), ..hidden }.frame()), Way::Dropped("pod-vxlan"));
        // The length in the header decides nothing.
        for length in [0, 1, 20, 27, 1500, u16::MAX] {
            let packet = Packet { length: Some(length), ..own.clone() };
            assert!(matches!(send(packet.frame()), Way::Delivered(_)), "a length of {length}");
            let stranger = Packet { destination: node.pod(Tenant::B).ip, ..packet };
            assert_eq!(send(stranger.frame()), Way::Dropped("isolated"), "a length of {length}");
        }
        // ICMP needs its type.
        let ping = Packet::ping(pod.mac, pod.ip, OWN[0]).frame();
        assert_eq!(send(ping[..34].to_vec()), malformed);
        assert_eq!(send(ping[..35].to_vec()), Way::Passed);
    });
}
