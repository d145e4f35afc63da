//! Neighbour entries: which MAC an IP address has behind a device.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::address::family;
use super::error::KernelError;
use super::mac::Mac;
use super::op::{Op, REPLACE};
use super::reply::{Attributes, Reply, u16_at, u32_at};
use super::socket::Netlink;

/// `RTM_NEWNEIGH` of `linux/rtnetlink.h`.
const RTM_NEWNEIGH: u16 = 28;
/// Length of `struct ndmsg`.
const HEADER_LEN: usize = 12;
/// `NDA_*` and `NUD_*` of `linux/neighbour.h`.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;
const NUD_PERMANENT: u16 = 0x80;

/// A neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The device.
    pub index: u32,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its MAC; none while it is being asked for or did not answer.
    pub mac: Option<Mac>,
    /// Set by hand, never asked for.
    pub permanent: bool,
}

impl Op<'_> {
    /// Sets a permanent entry, in place of whatever is there.
    pub fn neighbour(index: u32, ip: IpAddr, mac: Mac) -> Self {
        let mut message = message(index, ip);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let operation = format!("set neighbour {ip} to {mac} on link {index}");
        Self::new(operation, RouteNetlinkMessage::NewNeighbour(message), REPLACE)
    }

    /// Deletes an entry.
    pub fn neighbour_delete(index: u32, ip: IpAddr) -> Self {
        let operation = format!("delete neighbour {ip} of link {index}");
        Self::new(operation, RouteNetlinkMessage::DelNeighbour(message(index, ip)), 0)
    }
}

impl Netlink {
    /// The IPv4 and IPv6 neighbours behind a device.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<Neighbour>, KernelError> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(index));
        let operation = format!("list neighbours of link {index}");
        let listed = self.dump(&operation, &RouteNetlinkMessage::GetNeighbour(message), parse)?;
        Ok(listed.into_iter().filter(|neighbour| neighbour.index == index).collect())
    }
}

fn message(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip.is_ipv4());
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(ip)));
    message
}

fn parse(reply: &Reply<'_>) -> Option<Neighbour> {
    if reply.kind != RTM_NEWNEIGH {
        return None;
    }
    let state = u16_at(reply.body, 8)?;
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    let known = state & (NUD_INCOMPLETE | NUD_FAILED) == 0;
    Some(Neighbour {
        index: u32_at(reply.body, 4)?,
        ip: attributes.ip(NDA_DST)?,
        mac: attributes.bytes(NDA_LLADDR).filter(|_| known).and_then(Mac::from_bytes),
        permanent: state & NUD_PERMANENT != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_netns, wired_pod};
    use super::*;

    #[test]
    fn entries_of_both_families_are_set_replaced_and_deleted() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            for ip in ["169.254.1.1", "fe80::1"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
                for mac in [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])] {
                    pod.host.apply(Op::neighbour(index, ip, mac)).unwrap();
                    let wanted = Neighbour { index, ip, mac: Some(mac), permanent: true };
                    let listed = pod.host.neighbours(index).unwrap();
                    assert_eq!(listed.iter().filter(|n| n.ip == ip).collect::<Vec<_>>(), [&wanted]);
                }
                pod.host.apply(Op::neighbour_delete(index, ip)).unwrap();
                assert!(pod.host.neighbours(index).unwrap().iter().all(|n| n.ip != ip || n.mac.is_none()));
                pod.host.apply(Op::neighbour_delete(index, ip).if_present()).unwrap();
            }
        });
    }
}
