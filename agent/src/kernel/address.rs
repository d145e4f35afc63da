//! IP addresses of devices.

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::KernelError;
use super::op::{Op, REPLACE};
use super::reply::{Attributes, Reply, u32_at};
use super::socket::Netlink;

/// `RTM_NEWADDR` of `linux/rtnetlink.h`.
const RTM_NEWADDR: u16 = 20;
/// Length of `struct ifaddrmsg`.
const HEADER_LEN: usize = 8;
/// `IFA_*` of `linux/if_addr.h`.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_TENTATIVE: u32 = 0x40;

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub index: u32,
    /// The address with its prefix length.
    pub network: IpNetwork,
    /// IPv6: not usable yet, duplicate address detection is going on.
    pub tentative: bool,
}

impl Op<'_> {
    /// Gives an address to a device; already having it is success. `nodad`: IPv6 uses it at once, without duplicate address
    /// detection.
    pub fn address_add(index: u32, network: IpNetwork, nodad: bool) -> Self {
        let mut message = message(index, network);
        if nodad && network.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Self::new(format!("add address {network} to link {index}"), RouteNetlinkMessage::NewAddress(message), REPLACE)
    }

    /// Takes an address from a device.
    pub fn address_del(index: u32, network: IpNetwork) -> Self {
        let operation = format!("delete address {network} of link {index}");
        Self::new(operation, RouteNetlinkMessage::DelAddress(message(index, network)), 0)
    }
}

impl Netlink {
    /// The IPv4 and IPv6 addresses of a device.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>, KernelError> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let operation = format!("list addresses of link {index}");
        match self.dump(&operation, &RouteNetlinkMessage::GetAddress(message), parse) {
            Ok(addresses) => Ok(addresses.into_iter().filter(|address| address.index == index).collect()),
            Err(error) => Err(error),
        }
    }
}

fn message(index: u32, network: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(network.is_ipv4());
    message.header.prefix_len = network.prefix();
    message.header.index = index;
    message.attributes.extend([AddressAttribute::Local(network.ip()), AddressAttribute::Address(network.ip())]);
    message
}

pub(super) fn family(ipv4: bool) -> AddressFamily {
    if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn parse(reply: &Reply<'_>) -> Option<Address> {
    if reply.kind != RTM_NEWADDR {
        return None;
    }
    let prefix = *reply.body.get(1)?;
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    // On a point-to-point address IFA_ADDRESS is the other end's.
    let ip = attributes.ip(IFA_LOCAL).or_else(|| attributes.ip(IFA_ADDRESS))?;
    Some(Address {
        index: u32_at(reply.body, 4)?,
        network: IpNetwork::new(ip, prefix).ok()?,
        tentative: attributes.u32(IFA_FLAGS).unwrap_or_default() & IFA_F_TENTATIVE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_netns, json_of, wired_pod};
    use super::*;

    #[test]
    fn both_families_are_added_read_back_and_deleted() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let (v4, v6) = ("10.1.2.3/24".parse().unwrap(), "fd00::3/64".parse().unwrap());
            let index = pod.host_index;
            pod.host.batch(vec![Op::address_add(index, v4, true), Op::address_add(index, v6, true)]).unwrap();
            let listed = pod.host.addresses(index).unwrap();
            assert!(listed.contains(&Address { index, network: v4, tentative: false }), "{listed:?}");
            assert!(listed.contains(&Address { index, network: v6, tentative: false }), "no DAD: {listed:?}");
            let shown = json_of("ip", &["-j", "address", "show", "dev", "vethtest0"]);
            assert!(shown.to_string().contains("\"nodad\":true"), "{shown}");

            // Once more is no error; deleting twice is one, unless it may be absent.
            pod.host.batch(vec![Op::address_add(index, v4, true), Op::address_add(index, v6, true)]).unwrap();
            pod.host.batch(vec![Op::address_del(index, v4), Op::address_del(index, v6)]).unwrap();
            for network in [v4, v6] {
                assert!(pod.host.apply(Op::address_del(index, network)).unwrap_err().is_absent());
                pod.host.apply(Op::address_del(index, network).if_present()).unwrap();
            }
            assert!(!pod.host.addresses(index).unwrap().iter().any(|a| a.network == v4 || a.network == v6));
        });
    }

    #[test]
    fn without_nodad_an_ipv6_address_is_tentative_at_first() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let network = "fd00::3/64".parse().unwrap();
            let index = pod.host_index;
            pod.host.apply(Op::address_add(index, network, false)).unwrap();
            assert!(pod.host.addresses(index).unwrap().contains(&Address { index, network, tentative: true }));
        });
    }
}
