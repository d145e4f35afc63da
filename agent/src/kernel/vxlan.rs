//! The overlay's VXLAN device: one for all tenants, each packet bringing its VNI and peer along (collect-metadata).

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::interface_name::InterfaceName;
use super::mac::Mac;
use super::op::{CREATE, Op};

/// A VXLAN device that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec {
    /// The name.
    pub name: InterfaceName,
    /// The hardware address; nodes with the same one lose each other's packets.
    pub mac: Mac,
    /// The UDP port, 4789 by RFC 7348.
    pub port: u16,
    /// The MTU in bytes.
    pub mtu: u32,
}

impl Op<'_> {
    /// Creates a VXLAN device as `ip link add NAME type vxlan external dstport PORT nolearning` does, without ARP and down.
    ///
    /// Outer UDP checksums are neither made nor asked for, in IPv6 as in IPv4: the inner packet has its own. The port is only
    /// taken when the device goes up, and a port in use shows there (`EADDRINUSE`); another VXLAN device with the same port and
    /// kind is `EEXIST` here.
    pub fn vxlan(spec: &VxlanSpec) -> Self {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes.extend([
            LinkAttribute::IfName(spec.name.to_string()),
            LinkAttribute::Address(spec.mac.0.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::CollectMetadata(true),
                    InfoVxlan::Learning(false),
                    InfoVxlan::Port(spec.port),
                    InfoVxlan::UDPCsum(false),
                    InfoVxlan::UDPZeroCsumTX(true),
                    InfoVxlan::UDPZeroCsumRX(true),
                ])),
            ]),
        ]);
        let operation = format!("create VXLAN device {} on UDP port {}", spec.name, spec.port);
        Self::new(operation, RouteNetlinkMessage::NewLink(message), CREATE)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::io::Errno;

    use super::super::fixture::{in_new_netns, json_of};
    use super::super::{Netlink, VxlanState};
    use super::*;

    fn spec(name: &str, port: u16) -> VxlanSpec {
        VxlanSpec { name: name.parse().unwrap(), mac: Mac([0x0a, 0x59, 10, 0, 0, 1]), port, mtu: 1450 }
    }

    #[test]
    fn the_device_is_as_asked_here_and_in_ip() {
        in_new_netns(|| {
            let mut netlink = Netlink::here().unwrap();
            netlink.apply(Op::vxlan(&spec("bulkhead0", 4789))).unwrap();
            let link = netlink.link_by_name(&"bulkhead0".parse().unwrap()).unwrap().unwrap();
            assert_eq!(link.vxlan, Some(VxlanState { port: 4789, external: true, learning: false }));
            assert_eq!((link.mac, link.mtu, link.noarp, link.up), (Some(spec("x", 1).mac), 1450, true, false));
            netlink.apply(Op::link_up(link.index)).unwrap();
            assert!(netlink.link_by_index(link.index).unwrap().unwrap().up);

            let shown = json_of("ip", &["-d", "-j", "link", "show", "bulkhead0"]);
            let data = &shown[0]["linkinfo"]["info_data"];
            for (key, value) in [("external", true), ("learning", false), ("udp_csum", false)] {
                assert_eq!(data[key], value, "{key}: {shown}");
            }
            assert_eq!((&data["port"], &data["udp_zero_csum6_rx"]), (&4789.into(), &true.into()), "{shown}");
            assert!(data.get("remote").is_none() && data.get("group").is_none(), "{shown}");
        });
    }

    #[test]
    fn a_taken_port_shows_and_a_second_device_is_refused() {
        in_new_netns(|| {
            let mut netlink = Netlink::here().unwrap();
            netlink.apply(Op::vxlan(&spec("bulkhead0", 4789))).unwrap();
            let error = netlink.apply(Op::vxlan(&spec("bulkhead1", 4789))).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EXIST), "{error}");

            // Any address of the namespace; loopback is up.
            netlink.apply(Op::link_up(1)).unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            netlink.apply(Op::vxlan(&spec("bulkhead2", socket.local_addr().unwrap().port()))).unwrap();
            let index = netlink.link_by_name(&"bulkhead2".parse().unwrap()).unwrap().unwrap().index;
            assert_eq!(netlink.apply(Op::link_up(index)).unwrap_err().errno(), Some(Errno::ADDRINUSE));
        });
    }
}
