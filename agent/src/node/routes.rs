//! The host's routes: the cluster network by the overlay device, and other nodes' addresses for packets of pods.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};

use crate::kernel::{BatchError, KernelError, MAIN_TABLE, Netlink, Op, Route, Rule};
use crate::pods::wire::{PROTOCOL, host_network};

/// The table of other nodes' addresses: a pod's packet that the stack has translated reaches them by the tunnel too, so
/// that they see the pod's address and no bare pod address appears on the underlay.
pub const NODES_TABLE: u32 = 0x626b;
/// Where its rule stands among the host's.
pub const RULE_PRIORITY: u32 = 180;

/// Why routes cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Listing.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Writing.
    #[error("the host's routes cannot be written: {0}")]
    Batch(#[from] BatchError),
}

/// What the routes are made of.
#[derive(Debug, Clone)]
pub struct Routes {
    /// The pods' network.
    pub network: Ipv4Network,
    /// This node's underlay address: the source of what it sends to pods, so that a server on any of its addresses answers
    /// UDP from the one that pods know.
    pub node_ip: Ipv4Addr,
    /// The overlay device.
    pub overlay: u32,
}

impl Routes {
    fn cluster_route(&self) -> Route {
        let mut route = Route::to(IpNetwork::V4(self.network), MAIN_TABLE, PROTOCOL);
        route.index = Some(self.overlay);
        route.prefsrc = Some(self.node_ip.into());
        route
    }

    fn node_route(&self, address: IpAddr) -> Route {
        let mut route = Route::to(host_network(address), NODES_TABLE, PROTOCOL);
        route.index = Some(self.overlay);
        route.prefsrc = Some(self.node_ip.into());
        route
    }

    /// Packets with a namespace in their mark look into the table of nodes first.
    fn rule() -> Rule {
        Rule {
            priority: RULE_PRIORITY,
            fwmark: 0,
            fwmask: 0xffff_0000,
            invert: true,
            table: NODES_TABLE,
            protocol: PROTOCOL,
            ipv6: false,
        }
    }

    /// Makes the routes and the rule; `nodes` are the other nodes' addresses. Says what had to be changed.
    pub fn apply(&self, netlink: &mut Netlink, nodes: &BTreeSet<IpAddr>) -> Result<Vec<String>, RouteError> {
        let mut changes = Vec::new();
        let mut ops = Vec::new();
        let cluster = self.cluster_route();
        let main = netlink.routes(MAIN_TABLE, Some(PROTOCOL))?;
        if !main.contains(&cluster) {
            changes.push(format!("the route to {} by the overlay device", self.network));
            ops.push(Op::route_replace(&cluster));
        }
        if !netlink.rules()?.contains(&Self::rule()) {
            changes.push("the rule for packets of pods".to_owned());
            ops.push(Op::rule_add(&Self::rule()).unless_present());
        }
        // Sets: there may be thousands of each.
        let held: HashSet<Route> = netlink.routes(NODES_TABLE, Some(PROTOCOL))?.into_iter().collect();
        let wanted: HashSet<Route> = nodes.iter().filter(|ip| ip.is_ipv4()).map(|ip| self.node_route(*ip)).collect();
        for route in held.iter().filter(|route| !wanted.contains(route)) {
            ops.push(Op::route_delete(route).if_present());
        }
        let missing: Vec<&Route> = wanted.iter().filter(|route| !held.contains(route)).collect();
        if !missing.is_empty() {
            changes.push(format!("{} routes to nodes", missing.len()));
        }
        ops.extend(missing.into_iter().map(Op::route_replace));
        if !ops.is_empty() {
            netlink.batch(ops)?;
        }
        Ok(changes)
    }

    /// Removes every route and rule of ours from the host.
    pub fn remove(netlink: &mut Netlink) -> Result<(), RouteError> {
        let mut ops = Vec::new();
        for table in [MAIN_TABLE, NODES_TABLE] {
            let routes = netlink.routes(table, Some(PROTOCOL))?;
            ops.extend(routes.iter().map(|route| Op::route_delete(route).if_present()));
        }
        ops.push(Op::rule_delete(&Self::rule()).if_present());
        Ok(netlink.batch(ops)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::kernel::fixture::{in_new_netns, wired_pod};

    #[test]
    fn thousands_of_nodes_are_routed_and_what_goes_is_removed() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            pod.host.apply(Op::address_add(pod.host_index, "10.0.0.1/8".parse().unwrap(), true)).unwrap();
            let node_ip = Ipv4Addr::new(10, 0, 0, 1);
            let routes = Routes { network: "10.77.0.0/16".parse().unwrap(), node_ip, overlay: pod.host_index };
            let mut nodes: BTreeSet<IpAddr> = (0..5_000_u32).map(|n| Ipv4Addr::from(0x0a10_0000 + n).into()).collect();
            let begin = Instant::now();
            assert_eq!(routes.apply(&mut pod.host, &nodes).unwrap().len(), 3);
            let made = begin.elapsed();
            assert_eq!(routes.apply(&mut pod.host, &nodes).unwrap(), Vec::<String>::new());
            println!("made in {made:?}, made and compared in {:?}", begin.elapsed());
            nodes.pop_first();
            assert_eq!(routes.apply(&mut pod.host, &nodes).unwrap(), Vec::<String>::new());
            assert_eq!(pod.host.routes(NODES_TABLE, Some(PROTOCOL)).unwrap().len(), 4_999);
            Routes::remove(&mut pod.host).unwrap();
            assert_eq!(pod.host.routes(NODES_TABLE, Some(PROTOCOL)).unwrap(), []);
        });
    }
}
