//! The kernel's own answer to which way a packet to some address would take.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rustix::io::Errno;

use super::address::family;
use super::error::KernelError;
use super::reply::{Attributes, Reply};
use super::route::{HEADER_LEN, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTAX_MTU, gateway};
use super::socket::Netlink;

/// `RTN_LOCAL` of `linux/rtnetlink.h`.
const RTN_LOCAL: u8 = 2;
/// No route, or a route that says no (unreachable, blackhole, prohibit).
const NO_WAY: [Errno; 4] = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::INVAL, Errno::ACCESS];

/// Which way a packet would leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The device.
    pub index: u32,
    /// The gateway; none if the destination is a neighbour.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would choose.
    pub prefsrc: Option<IpAddr>,
    /// The path's MTU in bytes where it differs from the device's: by the route, or by what was learned of the path.
    pub mtu: Option<u32>,
    /// The destination is an address of this namespace.
    pub local: bool,
}

impl Netlink {
    /// Which way a packet of this namespace to `ip` would take. `Ok(None)`: there is no way.
    pub fn route_to(&mut self, ip: IpAddr) -> Result<Option<NextHop>, KernelError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(ip.is_ipv4());
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(ip)));
        match self.ask(&format!("look up the route to {ip}"), &RouteNetlinkMessage::GetRoute(message), parse_next_hop) {
            Err(KernelError::Refused { errno, .. }) if NO_WAY.contains(&errno) => Ok(None),
            answer => answer,
        }
    }
}

fn parse_next_hop(reply: &Reply<'_>) -> Option<NextHop> {
    let kind = *reply.body.get(7)?;
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    Some(NextHop {
        index: attributes.u32(RTA_OIF)?,
        gateway: gateway(&attributes),
        prefsrc: attributes.ip(RTA_PREFSRC),
        mtu: attributes.nest(RTA_METRICS).u32(RTAX_MTU),
        local: kind == RTN_LOCAL,
    })
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;

    use super::super::fixture::{in_new_netns, wired_pod};
    use super::super::{MAIN_TABLE, Op, Route, RouteKind};
    use super::*;

    const OURS: u8 = 98;

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn the_way_to_an_address_is_told() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let (index, source) = (pod.host_index, "10.1.0.1".parse::<IpAddr>().unwrap());
            let gateway = "10.1.0.9".parse().unwrap();
            let far = Route {
                index: Some(index),
                via: Some(gateway),
                mtu: Some(1400),
                ..Route::to(network("10.9.0.0/16"), MAIN_TABLE, OURS)
            };
            let closed = Route { kind: RouteKind::Unreachable, ..Route::to(network("10.8.0.0/16"), MAIN_TABLE, OURS) };
            pod.host
                .batch(vec![
                    Op::address_add(index, network("10.1.0.1/24"), true),
                    Op::address_add(index, network("fd00:1::1/64"), true),
                    Op::route_add(&far),
                    Op::route_add(&closed),
                ])
                .unwrap();
            let mut way = |ip: &str| pod.host.route_to(ip.parse().unwrap()).unwrap();
            let next = NextHop { index, gateway: Some(gateway), prefsrc: Some(source), mtu: Some(1400), local: false };
            assert_eq!(way("10.9.1.1"), Some(next));
            assert_eq!(way("10.1.0.7"), Some(NextHop { gateway: None, mtu: None, ..next }));
            assert!(way("10.1.0.1").unwrap().local);
            let v6 = way("fd00:1::7").unwrap();
            assert_eq!((v6.index, v6.gateway, v6.local), (index, None, false));
            for nowhere in ["10.8.1.1", "192.0.2.1", "2001:db8::1"] {
                assert_eq!(way(nowhere), None, "{nowhere}");
            }
        });
    }
}
