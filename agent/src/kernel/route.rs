//! Routes of both families: added, replaced without a gap, deleted, listed.
//!
//! [`Route`] is what is asked for and what is read back alike, so that wanted and actual routes compare.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::error::KernelError;
use super::op::{CREATE, Op, REPLACE};
use super::reply::{Attributes, Reply, ip, u32_at};
use super::socket::Netlink;

/// The routing table that `ip route` shows.
pub const MAIN_TABLE: u32 = 254;
/// `RTM_NEWROUTE` of `linux/rtnetlink.h`.
const RTM_NEWROUTE: u16 = 24;
/// Length of `struct rtmsg`.
pub(super) const HEADER_LEN: usize = 12;
/// `RTA_*`, `RTN_*`, `RTAX_*`, `RTNH_F_*` and `RTM_F_*` of `linux/rtnetlink.h`.
const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
pub(super) const RTA_PREFSRC: u16 = 7;
pub(super) const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
pub(super) const RTAX_MTU: u16 = 2;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Drops it without a word.
    Blackhole,
    /// Drops it and tells the sender that the destination cannot be reached.
    Unreachable,
    /// Drops it and tells the sender that this is forbidden.
    Prohibit,
    /// Any other `RTN_*` kind; only read, never asked for by the agent.
    Other(u8),
}

/// A route, wanted or read back. `None` in a wanted route leaves the choice to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where to.
    pub dst: IpNetwork,
    /// The gateway; an IPv4 route may have an IPv6 one.
    pub via: Option<IpAddr>,
    /// The gateway is behind the device although no other route says so.
    pub onlink: bool,
    /// The device.
    pub index: Option<u32>,
    /// The source address of packets that are made here.
    pub prefsrc: Option<IpAddr>,
    /// The path's MTU in bytes; none is the device's.
    pub mtu: Option<u32>,
    /// The routing table, [`MAIN_TABLE`] or another.
    pub table: u32,
    /// Who made it (`RTPROT_*` of `linux/rtnetlink.h`): by this number its owner knows it again.
    pub protocol: u8,
    /// What it does.
    pub kind: RouteKind,
}

impl Route {
    /// A unicast route with everything but its destination, table and maker left open.
    pub fn to(dst: IpNetwork, table: u32, protocol: u8) -> Self {
        Self {
            dst,
            via: None,
            onlink: false,
            index: None,
            prefsrc: None,
            mtu: None,
            table,
            protocol,
            kind: RouteKind::Unicast,
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.dst.is_ipv4()),
            destination_prefix_length: self.dst.prefix(),
            // Larger tables go by the attribute alone.
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: RouteProtocol::from(self.protocol),
            scope: if self.kind == RouteKind::Unicast && self.via.is_none() {
                RouteScope::Link
            } else {
                RouteScope::Universe
            },
            kind: RouteType::from(u8::from(self.kind)),
            flags: if self.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        message.attributes.extend([
            RouteAttribute::Destination(RouteAddress::from(self.dst.network())),
            RouteAttribute::Table(self.table),
        ]);
        message.attributes.extend(self.via.map(|via| match via {
            IpAddr::V6(via) if self.dst.is_ipv4() => RouteAttribute::Via(RouteVia::Inet6(via)),
            via => RouteAttribute::Gateway(RouteAddress::from(via)),
        }));
        message.attributes.extend(self.index.map(RouteAttribute::Oif));
        message.attributes.extend(self.prefsrc.map(|ip| RouteAttribute::PrefSource(RouteAddress::from(ip))));
        message.attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.kind, self.dst)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(index) = self.index {
            write!(f, " on link {index}")?;
        }
        write!(f, " in table {}", self.table)
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => 1,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Prohibit => 8,
            RouteKind::Other(kind) => kind,
        }
    }
}

impl From<u8> for RouteKind {
    fn from(kind: u8) -> Self {
        match kind {
            1 => Self::Unicast,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            other => Self::Other(other),
        }
    }
}

impl Op<'_> {
    /// Adds a route; `EEXIST` if its table has one to that destination.
    pub fn route_add(route: &Route) -> Self {
        Self::new(format!("add route {route}"), RouteNetlinkMessage::NewRoute(route.message()), CREATE)
    }

    /// Adds a route, or puts it in the place of the one to that destination; no packet finds neither.
    pub fn route_replace(route: &Route) -> Self {
        Self::new(format!("replace route {route}"), RouteNetlinkMessage::NewRoute(route.message()), REPLACE)
    }

    /// Deletes the route to that destination, of that table, maker, and (if given) gateway and device.
    pub fn route_delete(route: &Route) -> Self {
        let mut message = route.message();
        message.header.scope = RouteScope::NoWhere;
        message
            .attributes
            .retain(|attribute| !matches!(attribute, RouteAttribute::Metrics(_) | RouteAttribute::PrefSource(_)));
        Self::new(format!("delete route {route}"), RouteNetlinkMessage::DelRoute(message), 0)
    }
}

impl Netlink {
    /// The IPv4 and IPv6 routes of a table, by any maker or by that one. A table that nobody ever used is empty.
    pub fn routes(&mut self, table: u32, protocol: Option<u8>) -> Result<Vec<Route>, KernelError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::from(protocol.unwrap_or_default());
            message.attributes.push(RouteAttribute::Table(table));
            let request = RouteNetlinkMessage::GetRoute(message);
            match self
                .dump(&format!("list the {family:?} routes of table {table}"), &request, |reply| parse(reply, family))
            {
                Ok(listed) => routes.extend(listed),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        routes.retain(|route| route.table == table && protocol.is_none_or(|protocol| route.protocol == protocol));
        Ok(routes)
    }
}

fn parse(reply: &Reply<'_>, wanted: AddressFamily) -> Option<Route> {
    let &[family, prefix, _, _, table, protocol, _, kind, ..] = reply.body else { return None };
    let flags = u32_at(reply.body, 8)?;
    // A kernel without IPv6 answers with other families; cached exceptions are no routes.
    if reply.kind != RTM_NEWROUTE || family != u8::from(wanted) || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    let any =
        if wanted == AddressFamily::Inet { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    Some(Route {
        dst: IpNetwork::new(attributes.ip(RTA_DST).unwrap_or(any), prefix).ok()?,
        via: gateway(&attributes),
        onlink: flags & RTNH_F_ONLINK != 0,
        index: attributes.u32(RTA_OIF),
        prefsrc: attributes.ip(RTA_PREFSRC),
        mtu: attributes.nest(RTA_METRICS).u32(RTAX_MTU),
        table: attributes.u32(RTA_TABLE).unwrap_or(u32::from(table)),
        protocol,
        kind: RouteKind::from(kind),
    })
}

pub(super) fn gateway(attributes: &Attributes<'_>) -> Option<IpAddr> {
    // struct rtvia: a family of two bytes, then the address.
    attributes.ip(RTA_GATEWAY).or_else(|| ip(attributes.bytes(RTA_VIA)?.get(2..)?))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_netns, json_of, wired_pod};
    use super::*;
    use rustix::io::Errno;

    const OURS: u8 = 98;

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_route_reads_back_as_it_was_asked_for() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = Some(pod.host_index);
            for own in ["10.1.0.1/24", "fd00:1::1/64"] {
                pod.host.apply(Op::address_add(pod.host_index, network(own), true)).unwrap();
            }
            let to = |dst: &str, table| Route::to(network(dst), table, OURS);
            for table in [MAIN_TABLE, 100, 70_000] {
                let routes = [
                    Route { index, ..to("10.2.0.5/32", table) },
                    Route {
                        index,
                        mtu: Some(1400),
                        prefsrc: Some("10.1.0.1".parse().unwrap()),
                        ..to("10.3.0.0/16", table)
                    },
                    Route { index, via: Some("10.1.0.9".parse().unwrap()), ..to("10.4.0.0/16", table) },
                    Route { index, via: Some("169.254.1.1".parse().unwrap()), onlink: true, ..to("0.0.0.0/0", table) },
                    Route { index, via: Some("fd00:1::9".parse().unwrap()), ..to("10.5.0.0/16", table) },
                    Route { kind: RouteKind::Blackhole, ..to("10.6.0.0/16", table) },
                    Route { kind: RouteKind::Unreachable, ..to("10.7.0.0/16", table) },
                    Route { index, ..to("fd00:2::5/128", table) },
                    Route {
                        index,
                        via: Some("fd00:1::9".parse().unwrap()),
                        mtu: Some(1300),
                        ..to("fd00:3::/64", table)
                    },
                ];
                pod.host.batch(routes.iter().map(Op::route_add).collect()).unwrap();
                let listed = pod.host.routes(table, Some(OURS)).unwrap();
                assert_eq!(listed.len(), routes.len(), "{listed:#?}");
                for route in &routes {
                    assert!(listed.contains(route), "{route:?} is not in {listed:#?}");
                }
                assert_eq!(pod.host.routes(table, Some(OURS + 1)).unwrap(), []);
                assert_eq!(pod.host.apply(Op::route_add(&routes[0])).unwrap_err().errno(), Some(Errno::EXIST));
                pod.host.apply(Op::route_add(&routes[0]).unless_present()).unwrap();
                pod.host.batch(routes.iter().map(Op::route_delete).collect()).unwrap();
                assert_eq!(pod.host.routes(table, Some(OURS)).unwrap(), []);
                assert!(pod.host.apply(Op::route_delete(&routes[0])).unwrap_err().is_absent());
                pod.host.apply(Op::route_delete(&routes[0]).if_present()).unwrap();
            }
        });
    }

    #[test]
    fn replacing_changes_the_route_in_place() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let before = Route { index: Some(pod.host_index), ..Route::to(network("10.2.0.0/24"), MAIN_TABLE, OURS) };
            let after = Route { mtu: Some(1280), ..before };
            pod.host.batch(vec![Op::route_replace(&before), Op::route_replace(&after)]).unwrap();
            assert_eq!(pod.host.routes(MAIN_TABLE, Some(OURS)).unwrap(), [after]);
            let shown = json_of("ip", &["-j", "route", "show", "10.2.0.0/24"]);
            assert_eq!(shown[0]["metrics"][0]["mtu"], 1280, "{shown}");
        });
    }

    #[test]
    fn an_unused_table_is_empty() {
        in_new_netns(|| assert_eq!(Netlink::here().unwrap().routes(4711, None).unwrap(), []));
    }

    #[test]
    fn a_gateway_that_is_nowhere_is_refused_in_the_kernels_words() {
        in_new_netns(|| {
            let via = Some("192.0.2.1".parse().unwrap());
            let route = Route { via, ..Route::to(network("10.2.0.0/24"), MAIN_TABLE, OURS) };
            let error = Netlink::here().unwrap().apply(Op::route_add(&route)).unwrap_err();
            assert!(matches!(&error, KernelError::Refused { text: Some(_), .. }), "{error}");
            assert!(
                error.to_string().starts_with("add route Unicast 10.2.0.0/24 via 192.0.2.1 in table 254: "),
                "{error}"
            );
        });
    }
}
