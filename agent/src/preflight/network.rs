//! What a node has of the cluster's network and of the tunnels' port before Bulkhead has: addresses, routes of the main table,
//! VXLAN devices and UDP sockets of others.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network};

use super::{Obstacle, is_overlay};
use crate::kernel::{KernelError, Link, MAIN_TABLE, Netlink, Route, RouteKind};
use crate::pods::wire::{GROUP, PROTOCOL};

/// How many addresses and routes a message names.
const NAMED: usize = 5;

/// Who else has the tunnels' UDP port: a VXLAN device, or a socket in one of the tables `sockets`.
pub(super) fn port(port: u16, links: &[Link], sockets: &[&Path]) -> Option<Obstacle> {
    let on_port = |link: &&Link| link.vxlan.is_some_and(|vxlan| vxlan.port == port);
    if let Some(other) = links.iter().filter(|link| !is_overlay(link)).find(on_port) {
        return Some(Obstacle::PortTaken { port, holder: format!("the VXLAN device {}", other.name) });
    }
    if links.iter().any(|link| is_overlay(link) && link.up && on_port(&link)) {
        // The kernel lets nobody else have it.
        return None;
    }
    let address = sockets.iter().find_map(|path| bound(&fs::read_to_string(path).ok()?, port))?;
    let holder = format!("a socket at {address} (`ss -ulpn sport = :{port}` names its process)");
    Some(Obstacle::PortTaken { port, holder })
}

/// The address of a socket with this local port in a table as `/proc/net/udp`: its second column is address and port, hexadecimal,
/// the address as words of the machine's byte order.
fn bound(table: &str, port: u16) -> Option<IpAddr> {
    table.lines().skip(1).find_map(|line| {
        let (address, local) = line.split_whitespace().nth(1)?.split_once(':')?;
        if u16::from_str_radix(local, 16) != Ok(port) {
            return None;
        }
        let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
        let mut bytes = [0; 16];
        if address.len() == 8 {
            return word(0).map(|word| Ipv4Addr::from(word).into());
        }
        for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
            chunk.copy_from_slice(&word(8 * at)?);
        }
        Some(IpAddr::from(bytes))
    })
}

/// What a node has without Bulkhead.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// With the device's name.
    addresses: Vec<(IpNetwork, String)>,
    /// Of the main table, with the device's name.
    routes: Vec<(Route, Option<String>)>,
}

pub(super) fn held(host: &mut Netlink, links: &[Link]) -> Result<Held, KernelError> {
    let (ours, theirs): (Vec<&Link>, Vec<&Link>) =
        links.iter().partition(|link| link.group == GROUP || is_overlay(link));
    let ours: BTreeSet<u32> = ours.into_iter().map(|link| link.index).collect();
    let mut held = Held::default();
    for link in &theirs {
        let addresses = host.addresses(link.index)?.into_iter();
        held.addresses.extend(addresses.map(|address| (address.network, link.name.clone())));
    }
    for route in host.routes(MAIN_TABLE, None)? {
        if route.protocol == PROTOCOL || route.index.is_some_and(|index| ours.contains(&index)) {
            continue;
        }
        let device = theirs.iter().find(|link| Some(link.index) == route.index).map(|link| link.name.clone());
        held.routes.push((route, device));
    }
    Ok(held)
}

/// Addresses inside the network, routes to a part of it, and device networks that it lies in. A route of a wider network by a
/// gateway is none: ours is the narrower one.
pub(super) fn clash(network: Ipv4Network, held: &Held) -> Option<Obstacle> {
    let inside = |other: IpNetwork| matches!(other, IpNetwork::V4(other) if other.prefix() >= network.prefix() && network.contains(other.network()));
    let around = |other: IpNetwork| matches!(other, IpNetwork::V4(other) if other.prefix() > 0 && other.contains(network.network()));
    let mut said: Vec<String> = Vec::new();
    let mut connected = BTreeSet::new();
    for (address, device) in &held.addresses {
        let own = matches!(address.ip(), IpAddr::V4(ip) if network.contains(ip));
        if own || around(*address) {
            said.push(format!("the address {address} of {device}"));
            connected.insert((address.network(), address.prefix(), device.clone()));
        }
    }
    for (route, device) in &held.routes {
        let on_link = route.kind == RouteKind::Unicast && route.via.is_none() && route.index.is_some();
        let known = device
            .as_ref()
            .is_some_and(|device| connected.contains(&(route.dst.network(), route.dst.prefix(), device.clone())));
        if !known && (inside(route.dst) || (on_link && around(route.dst))) {
            let by = device.as_ref().map(|device| format!(" by {device}")).unwrap_or_default();
            said.push(format!("the route to {}{by}", route.dst));
        }
    }
    let more = said.len().saturating_sub(NAMED);
    said.truncate(NAMED);
    if more > 0 {
        said.push(format!("{more} more"));
    }
    (!said.is_empty()).then(|| Obstacle::Clash { network, held: said.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixture::in_new_netns;
    use crate::kernel::{Mac, Op, VxlanSpec};

    fn network() -> Ipv4Network {
        "10.77.0.0/16".parse().unwrap()
    }

    #[test]
    fn a_port_is_found_in_the_kernels_table() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        let four = format!("{head}  12: 0100007F:12B5 00000000:0000 07 0:0 0:0 00 0 0 77 2 0 0\n");
        let six = format!("{head} 9: 00000000000000000000000000000000:12B5 0:0 07\n");
        if cfg!(target_endian = "little") {
            assert_eq!(bound(&four, 4789), Some(IpAddr::from([127, 0, 0, 1])));
        }
        assert_eq!(bound(&six, 4789), Some(IpAddr::from([0; 16])));
        assert_eq!((bound(&four, 4790), bound("", 4789), bound("x\ny\nz :\n", 4789)), (None, None, None));
    }

    #[test]
    fn what_is_in_the_cluster_network_already_clashes() {
        in_new_netns(|| {
            let mut host = Netlink::here().expect("this test needs root");
            let name = "old0".parse().unwrap();
            let spec = VxlanSpec { name, mac: Mac([2, 0, 0, 0, 0, 1]), port: 4790, mtu: 1_450 };
            host.apply(Op::vxlan(&spec)).unwrap();
            let index = host.link_by_name(&spec.name).unwrap().unwrap().index;
            host.apply(Op::address_add(index, "10.0.0.1/24".parse().unwrap(), true)).unwrap();
            host.apply(Op::link_up(index)).unwrap();
            let via = Some("10.0.0.9".parse().unwrap());
            let to = |dst: &str| Route { index: Some(index), via, ..Route::to(dst.parse().unwrap(), MAIN_TABLE, 4) };
            for good in ["0.0.0.0/0", "10.64.0.0/10", "10.78.0.0/16"] {
                host.apply(Op::route_add(&to(good))).unwrap();
            }
            let ours = Route { protocol: PROTOCOL, ..to("10.77.0.0/16") };
            host.apply(Op::route_add(&ours)).unwrap();
            let said = |host: &mut Netlink| {
                let links = host.links().unwrap();
                let held = held(host, &links).unwrap();
                clash(network(), &held).map(|obstacle| obstacle.to_string()).unwrap_or_default()
            };
            assert_eq!(said(&mut host), "");
            host.apply(Op::route_add(&to("10.77.200.0/24"))).unwrap();
            let text = said(&mut host);
            assert!(text.contains("10.77.0.0/16 clashes") && text.contains("10.77.200.0/24 by old0"), "{text}");
            host.apply(Op::route_delete(&to("10.77.200.0/24"))).unwrap();
            for address in ["10.77.3.1/24", "10.99.0.1/8"] {
                host.apply(Op::address_add(index, address.parse().unwrap(), true)).unwrap();
                let text = said(&mut host);
                assert!(text.contains(&format!("the address {address} of old0")), "{text}");
                assert!(!text.contains("route"), "once is enough: {text}");
                host.apply(Op::address_del(index, address.parse().unwrap())).unwrap();
            }
            assert_eq!(said(&mut host), "");
        });
    }
}
