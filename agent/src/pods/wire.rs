//! A pod's wiring: one netlink batch on the host, one in the pod's netns.
//!
//! Host: the veth (its peer born in the pod's netns), the two programs, a host route and a permanent neighbour, the shaper
//! towards the pod. Pod: address, routes by the gateway, a permanent neighbour for it, the shaper from the pod. Nothing
//! asks anybody's address by ARP.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

use ipnetwork::{IpNetwork, Ipv4Network};
use thiserror::Error;

use super::limit::Shaper;
use super::record::Record;
use crate::datapath::{DatapathError, Programs};
use crate::kernel::{
    BatchError, BpfFilterSpec, Hook, InterfaceName, InterfaceNameError, KernelError, MAIN_TABLE, Mac, Neighbour,
    Netlink, Op, Route, TbfSpec, VethSpec,
};

/// The MAC address that every pod's gateway has, on every node: the host's side of each veth.
pub const GATEWAY_MAC: Mac = Mac([0x0a, 0x58, 0, 0, 0, 1]);
/// Marks our routes and rules (rtnetlink(7), `rtm_protocol`): nobody else's are ever touched.
pub const PROTOCOL: u8 = 180;
/// The device group of pods' veths on the host.
pub const GROUP: u32 = 0x626b;
/// Place of our filter among others of a device.
pub const FILTER_PRIORITY: u16 = 1;
/// Handle of our filter.
pub const FILTER_HANDLE: u32 = 1;

/// Why a pod cannot be wired.
#[derive(Debug, Error)]
pub enum WireError {
    /// The device in the pod exists.
    #[error("the interface {0} exists in the pod's netns already")]
    InterfaceExists(String),
    /// A batch.
    #[error("the kernel refused a part of the pod's wiring: {0}")]
    Batch(#[from] BatchError),
    /// Anything else of netlink.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The programs.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A device's name.
    #[error(transparent)]
    Name(#[from] InterfaceNameError),
}

/// A /32 or /128.
pub fn host_network(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

fn v4(address: Ipv4Addr) -> IpNetwork {
    IpNetwork::V4(Ipv4Network::from(address))
}

/// The two filters of a pod's device.
pub fn pod_filters(programs: &Programs, ifindex: u32) -> Result<[Op<'_>; 2], DatapathError> {
    Ok([filter(programs, ifindex, Hook::Ingress, "from_pod")?, filter(programs, ifindex, Hook::Egress, "to_pod")?])
}

/// One filter: made, or put in the place of the one that is there without a gap.
pub fn filter<'fd>(
    programs: &'fd Programs,
    index: u32,
    hook: Hook,
    name: &'static str,
) -> Result<Op<'fd>, DatapathError> {
    let program = programs.fd(name)?;
    let (priority, handle) = (FILTER_PRIORITY, FILTER_HANDLE);
    Ok(Op::bpf_filter(&BpfFilterSpec { index, hook, priority, handle, name: format!("bulkhead_{name}"), program }))
}

fn pod_route(record: &Record, node_ip: Ipv4Addr) -> Route {
    let mut route = Route::to(v4(record.ip4()), MAIN_TABLE, PROTOCOL);
    route.index = Some(record.ifindex);
    route.prefsrc = Some(node_ip.into());
    route
}

/// The route and the neighbour by which the host reaches a pod.
pub fn host_side(record: &Record, node_ip: Ipv4Addr) -> Vec<Op<'static>> {
    vec![
        Op::route_replace(&pod_route(record, node_ip)),
        Op::neighbour(record.ifindex, record.ip4().into(), record.mac()),
    ]
}

/// The shaper on a device.
pub fn shaper(index: u32, shaper: Shaper) -> TbfSpec {
    TbfSpec { index, bytes_per_second: shaper.rate, burst_bytes: shaper.burst, limit_bytes: shaper.limit }
}

/// The device index in the pod: the odd one behind the host's.
pub const fn peer_index(record: &Record) -> u32 {
    record.ifindex + 1
}

/// Makes a pod's devices, addresses, routes and shapers, on a thread that ends with its call. The two namespaces are the pod's
/// and the thread's own. The two addresses are the pod's gateway and the node's own on the
/// underlay.
pub fn connect(
    record: &Record,
    (netns, home): (BorrowedFd<'_>, BorrowedFd<'_>),
    (gateway, node_ip): (Ipv4Addr, Ipv4Addr),
    programs: &Programs,
) -> Result<(), WireError> {
    let peer = peer_index(record);
    let veth = Op::veth(&VethSpec {
        host_name: InterfaceName::try_from(record.host_interface().as_str())?,
        host_index: Some(record.ifindex),
        host_mac: GATEWAY_MAC,
        mtu: record.mtu,
        group: Some(GROUP),
        peer_name: InterfaceName::try_from(record.id.interface())?,
        peer_index: Some(peer),
        peer_mac: record.mac(),
        peer_netns: netns,
        peer_gso_max_size: record.limits.egress.map(|limit| Shaper::of(limit).segment()),
    });
    // Opened first: whatever becomes of the visit below, this socket is the host's.
    let mut outside = Netlink::here()?;
    let mut inside = Netlink::visiting(netns, home)?;
    let interface = InterfaceName::try_from(record.id.interface())?;
    if inside.link_by_name(&interface)?.is_some() {
        return Err(WireError::InterfaceExists(interface.to_string()));
    }
    let mut host = vec![veth, Op::clsact(record.ifindex)];
    host.extend(pod_filters(programs, record.ifindex)?);
    host.extend(host_side(record, node_ip));
    host.extend(record.limits.ingress.map(|limit| Op::tbf(&shaper(record.ifindex, Shaper::of(limit)))));
    outside.batch(host)?;

    let mut to_gateway = Route::to(v4(gateway), MAIN_TABLE, PROTOCOL);
    to_gateway.index = Some(peer);
    let mut default = Route::to(default_of(Ipv4Addr::UNSPECIFIED.into()), MAIN_TABLE, PROTOCOL);
    default.index = Some(peer);
    default.via = Some(gateway.into());
    let mut pod = vec![Op::address_add(peer, v4(record.ip4()), true)];
    // Before the device is up, so that not one packet leaves unshaped.
    pod.extend(record.limits.egress.map(|limit| Op::tbf(&shaper(peer, Shaper::of(limit)))));
    pod.extend([
        Op::link_up(peer),
        Op::route_replace(&to_gateway),
        Op::route_replace(&default),
        Op::neighbour(peer, gateway.into(), GATEWAY_MAC),
    ]);
    inside.batch(pod)?;
    Ok(())
}

fn default_of(unspecified: IpAddr) -> IpNetwork {
    // A prefix of 0 is valid for both families.
    IpNetwork::new(unspecified, 0).unwrap_or(IpNetwork::from(unspecified))
}

/// What of a pod's wiring is missing or changed, in words; empty if nothing is.
pub fn differences(
    record: &Record,
    netns: BorrowedFd<'_>,
    (gateway, node_ip): (Ipv4Addr, Ipv4Addr),
) -> Result<Vec<String>, WireError> {
    let mut host = Netlink::here()?;
    let routes = host.routes(MAIN_TABLE, Some(PROTOCOL))?;
    let mut wrong = host_differences(record, node_ip, &routes, &mut host)?;
    let mut inside = Netlink::within(netns)?;
    let interface = InterfaceName::try_from(record.id.interface())?;
    let Some(link) = inside.link_by_name(&interface)? else {
        wrong.push(format!("{interface} is gone from the pod"));
        return Ok(wrong);
    };
    let mut expect = |fine: bool, what: String| {
        if !fine {
            wrong.push(what);
        }
    };
    expect(link.up, format!("{interface} is down in the pod"));
    expect(link.mac == Some(record.mac()), format!("{interface} has lost its MAC address"));
    let addresses = inside.addresses(link.index)?;
    for address in &record.addresses {
        let held = addresses.iter().any(|held| held.network.ip() == *address);
        expect(held, format!("{address} is missing on {interface}"));
    }
    let routes = inside.routes(MAIN_TABLE, None)?;
    let by_gateway = |route: &Route| route.dst.prefix() == 0 && route.via == Some(gateway.into());
    expect(routes.iter().any(by_gateway), format!("the default route by {gateway} is missing in the pod"));
    if let Some(limit) = record.limits.egress {
        let wanted = shaper(link.index, Shaper::of(limit));
        let held = inside.qdiscs(link.index)?.iter().any(|qdisc| qdisc.tbf.as_ref().is_some_and(|tbf| tbf.is(&wanted)));
        expect(held, format!("the egress shaper is missing on {interface}"));
    }
    Ok(wrong)
}

/// As [`differences`], the host's side only. `routes` are all of ours in the host's main table.
pub fn host_differences(
    record: &Record,
    node_ip: Ipv4Addr,
    routes: &[Route],
    host: &mut Netlink,
) -> Result<Vec<String>, WireError> {
    let name = record.host_interface();
    let Some(link) = host.link_by_index(record.ifindex)?.filter(|link| link.name == name) else {
        return Ok(vec![format!("the device {name} is gone")]);
    };
    let mut wrong = Vec::new();
    if !link.up {
        wrong.push(format!("{name} is down"));
    }
    if link.mtu != record.mtu {
        wrong.push(format!("{name} has an MTU of {}, not {}", link.mtu, record.mtu));
    }
    if !routes.contains(&pod_route(record, node_ip)) {
        wrong.push(format!("the route to {} is missing", record.ip4()));
    }
    let known = |neighbour: &Neighbour| neighbour.ip == record.ip4() && neighbour.mac == Some(record.mac());
    if !host.neighbours(record.ifindex)?.iter().any(known) {
        wrong.push(format!("the neighbour entry of {} is missing", record.ip4()));
    }
    for (hook, program) in [(Hook::Ingress, "bulkhead_from_pod"), (Hook::Egress, "bulkhead_to_pod")] {
        let filters = host.filters(record.ifindex, hook)?;
        if !filters.iter().any(|filter| filter.name.as_deref() == Some(program)) {
            wrong.push(format!("the program {program} is missing on {name}"));
        }
    }
    if let Some(limit) = record.limits.ingress {
        let wanted = shaper(record.ifindex, Shaper::of(limit));
        let qdiscs = host.qdiscs(record.ifindex)?;
        if !qdiscs.iter().any(|qdisc| qdisc.tbf.as_ref().is_some_and(|tbf| tbf.is(&wanted))) {
            wrong.push(format!("the ingress shaper is missing on {name}"));
        }
    }
    Ok(wrong)
}
