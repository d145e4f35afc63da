//! From an intent with a subnet of ours to a node at work. Run again after a crash or an upgrade it changes nothing that
//! works: maps are adopted and brought in line before any program is replaced.

use std::net::{IpAddr, Ipv4Addr};

use bulkhead_core::NodeName;
use bulkhead_core::network::overlap;
use ipnetwork::Ipv4Network;
use thiserror::Error;

use super::{Agent, apply_namespaces, pods, tenants};
use crate::args::Config;
use crate::datapath::abi::StateValue;
use crate::datapath::{Datapath, DatapathError, Geometry};
use crate::intent::Intent;
use crate::kernel::{KernelError, Netlink};
use crate::live::{Live, locked};
use crate::node::firewall::{Firewall, FirewallError};
use crate::node::overlay::{self, Overlay, OverlayError};
use crate::node::routes::{RouteError, Routes};
use crate::node::underlay::{self, UnderlayError};
use crate::node::{local_addresses, own_address};
use crate::pods::{RecordError, Records, Remover};
use crate::preflight::{self, Obstacle};

/// Why the node cannot work yet.
#[derive(Debug, Error)]
pub enum StartError {
    /// Something of the node is in the way; nothing was changed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unfit(Vec<Obstacle>),
    /// The ledger has no cluster entry.
    #[error("the ledger is empty: no controller has taken up this cluster yet; is bulkhead-controller running?")]
    NoCluster,
    /// The ledger has no subnet for this node.
    #[error("this node ({0}) has no subnet yet{1}")]
    NoSubnet(IpAddr, String),
    /// It has none for its name, and no address is given to look at.
    #[error(
        "the ledger has no subnet for the node {0} at an IPv4 address of this machine; does its Node have an InternalIP of IPv4 \
         inside the controller's --node-networks?"
    )]
    Unplaced(NodeName),
    /// Another machine has this one's address.
    #[error(
        "the address {ip} is registered by the node {host}; give this machine its own address, or `bulkhead node remove {ip}`, or start with --node-name {host}"
    )]
    OthersAddress {
        /// This machine's address.
        ip: IpAddr,
        /// Who has it in the ledger.
        host: NodeName,
    },
    /// The subnet does not fit the network.
    #[error("this node's ledger entry cannot be used: {0}")]
    BadSubnet(#[from] bulkhead_core::network::NetworkError),
    /// The node's own address is in the pods' range.
    #[error(
        "this node's address {0} lies in the cluster's Network; give the cluster a Network that shares no address with the nodes'"
    )]
    OwnAddress(IpAddr),
    /// Netlink.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The overlay device.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The programs and maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A thread.
    #[error("a thread cannot be started: {0}; check the limits on threads and memory")]
    Thread(#[source] std::io::Error),
    /// Routes.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Rules for the host's stack.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The underlay.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
}

impl StartError {
    /// Nothing is wrong with the node: it waits for others.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::NoCluster | Self::NoSubnet(..) | Self::Unplaced(_))
    }

    /// What is wrong, one by one.
    pub(super) fn reasons(&self) -> Vec<String> {
        match self {
            Self::Unfit(obstacles) => obstacles.iter().map(ToString::to_string).collect(),
            error => vec![error.to_string()],
        }
    }
}

/// What the intent says of this node, whose address is `node_ip`.
fn geometry(
    config: &Config,
    node_ip: Option<Ipv4Addr>,
    intent: &Intent,
    mtu: u32,
) -> Result<(Geometry, bulkhead_core::cluster::Networks), StartError> {
    let cluster = intent.cluster.as_ref().ok_or(StartError::NoCluster)?;
    let networks = &cluster.networks;
    let node_ip = node_ip.ok_or_else(|| StartError::Unplaced(config.node.clone()))?;
    let own = IpAddr::V4(node_ip);
    let ask = if config.register.is_some() {
        "; it has asked for one"
    } else {
        "; in Kubernetes the controller gives it one, elsewhere start the agent with --register"
    };
    let node = intent.nodes.get(&own).ok_or_else(|| StartError::NoSubnet(own, ask.to_owned()))?;
    if node.host != config.node {
        // Two machines that hand out the addresses of one subnet.
        return Err(StartError::OthersAddress { ip: own, host: node.host.clone() });
    }
    let pool = networks.v4();
    if overlap(pool.network(), own.into()) {
        return Err(StartError::OwnAddress(own));
    }
    let ipnetwork::IpNetwork::V4(network) = pool.network() else { return Err(StartError::NoCluster) };
    let local_block = networks.block_of(node.subnets)?;
    let (host_bits, blocks) = (pool.host_bits(), pool.blocks());
    let vxlan_port = config.vxlan_port;
    Ok((Geometry { network, host_bits, blocks, local_block, node_ip, vxlan_port, mtu }, networks.clone()))
}

pub(super) fn overlay_of(config: &Config, live: &Live) -> Overlay {
    let (port, mtu) = (config.vxlan_port, live.geometry.mtu);
    Overlay { port, mtu, node_ip: live.geometry.node_ip, gateway: live.gateway() }
}

pub(super) fn routes_of(live: &Live) -> Routes {
    Routes { network: live.geometry.network, node_ip: live.geometry.node_ip, overlay: live.overlay() }
}

pub(super) fn firewall_of(live: &Live) -> Firewall {
    let Geometry { network, host_bits, vxlan_port, .. } = live.geometry;
    let gateway = live.gateway();
    // The gateway's own subnet, with as many bits as the network leaves to its nodes.
    let subnet = Ipv4Network::new(gateway, 32 - host_bits).unwrap_or(network);
    Firewall { network, subnet, gateway, vxlan_port }
}

/// Takes the node up. Nothing of it is visible to the runtime yet.
pub(super) fn start(agent: &Agent) -> Result<Live, StartError> {
    let config = &agent.config;
    let intent = agent.shared.read(|intent, _| intent.clone());
    let mut host = Netlink::here()?;
    // Without a subnet, or with something in the way, nothing is made: a node that waits looks as it did before.
    let own = own_address(&config.node, config.node_ip, &intent, || local_addresses(&mut host))?;
    let placed = geometry(config, own, &intent, 0);
    fit(agent, placed.as_ref().ok().map(|(geometry, _)| geometry.network), &mut host)?;
    let (placed, _) = placed?;
    let (mtu, _) = overlay::pod_mtu(&mut host, placed.node_ip, config.mtu)?;
    let (geometry, networks) = geometry(config, own, &intent, mtu)?;
    let records = Records::open(&config.run_dir, geometry.host_bits, config.address_rest)?;
    let datapath = Datapath::load(&config.bpf_dir, &geometry)?;
    let live = Live::new(geometry, networks, 0, datapath, (records, Remover::start().map_err(StartError::Thread)?));
    let (overlay, changes) = overlay_of(config, &live).ensure(&mut host)?;
    live.set_overlay(overlay);
    for change in changes {
        tracing::info!(change, "set up");
    }

    // Maps first, in the order in which packets depend on them; then programs.
    {
        let namespaces = locked(&live.datapath.namespaces);
        let (bank, origin) = (namespaces.bank(), namespaces.origin());
        live.datapath.set_state(StateValue { bank, overlay_ifindex: overlay, origin })?;
        if tenants::is_outdated(&intent, &namespaces) {
            tracing::warn!(
                "the cached state is older than the pinned maps: tenants stay as these have them until etcd answers"
            );
        }
    }
    apply_namespaces(&live, &agent.shared)?;
    let mut nodes = tenants::Nodes::of(&intent, &live.networks, &live.geometry);
    nodes.ask_routes(&mut host, mtu + overlay::HEADERS);
    locked(&live.datapath.peers).apply(&nodes.blocks, &nodes.addresses)?;
    pods::spare_strangers(&live, &mut host)?;
    say(pods::publish_all(&live, true));
    overlay_of(config, &live).open(&mut host, overlay, &live.datapath.programs)?;
    firewall_if_needed(&live)?;
    routes_of(&live).apply(&mut host, &nodes.remote_addresses())?;
    underlay::guard(&mut host, &live.datapath.programs, true)?;
    say(pods::attach_all(&live, &mut host));
    say(pods::remove_orphans(&live, &mut host));
    Ok(live)
}

/// Whether the node may be taken up. What works already goes on, with a warning.
fn fit(agent: &Agent, network: Option<Ipv4Network>, host: &mut Netlink) -> Result<(), StartError> {
    let mut found = preflight::look(&agent.config, network, host)?;
    if found.taken_up {
        agent.doubt(&found.obstacles);
        return Ok(());
    }
    if found.known {
        let (borne, refused) = found.obstacles.into_iter().partition(Obstacle::is_borne);
        found.obstacles = refused;
        if found.obstacles.is_empty() {
            agent.doubt(&borne);
        }
    }
    if found.obstacles.is_empty() {
        found.obstacles = preflight::try_kernel(agent.config.vxlan_port);
    }
    if found.obstacles.is_empty() { Ok(()) } else { Err(StartError::Unfit(found.obstacles)) }
}

/// One pod keeps no node from coming up: the first turn tries again what failed, and shows it.
fn say(looked: pods::Looked) {
    for line in looked.repaired {
        tracing::info!("{line}");
    }
    for line in looked.failed {
        tracing::error!("{line}");
    }
}

/// Writes the rules unless they are in place; returns whether they were not.
pub(super) fn firewall_if_needed(live: &Live) -> Result<bool, FirewallError> {
    let firewall = firewall_of(live);
    if firewall.is_in_place()? {
        return Ok(false);
    }
    firewall.apply()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use bulkhead_core::ledger;
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    fn node(name: &str, host: &str) -> Result<u32, StartError> {
        let args = ["bulkhead-agent", "--node-name", name, "--node-ip", "10.0.0.1", "--etcd-endpoints", "http://e:1"];
        let config = Args::parse_from(args).into_config(|| None).unwrap();
        let cluster =
            br#"{"epoch":1,"network":["10.77.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#;
        let entry = format!(r#"{{"host":"{host}","addresses":["10.0.0.1"],"subnets":["10.77.5.0/24"]}}"#);
        let own = config.node_ip.unwrap();
        let nodes = [(own.into(), ledger::parse(entry.as_bytes()).unwrap())].into();
        let intent = Intent { cluster: Some(ledger::parse(cluster).unwrap()), nodes, ..Intent::default() };
        geometry(&config, Some(own), &intent, 1450).map(|(geometry, _)| geometry.local_block)
    }

    #[test]
    fn a_node_takes_its_own_subnet_and_no_other_machines() {
        assert_eq!(node("n1", "n1").unwrap(), 5);
        let error = node("n2", "n1").unwrap_err().to_string();
        assert!(error.contains("10.0.0.1 is registered by the node n1"), "{error}");
    }
}
