//! From an intent with a subnet of ours to a node at work. Run again after a crash or an upgrade it changes nothing that
//! works: maps are adopted and brought in line before any program is replaced.

use std::net::IpAddr;

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
use crate::pods::wire::WireError;
use crate::pods::{RecordError, Records, Remover};

/// Why the node cannot work yet.
#[derive(Debug, Error)]
pub enum StartError {
    /// The ledger has no cluster entry.
    #[error("the ledger is empty: no controller has taken up this cluster yet; is bulkhead-controller running?")]
    NoCluster,
    /// The ledger has no subnet for this node.
    #[error("this node ({0}) has no subnet yet{1}")]
    NoSubnet(IpAddr, String),
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
    /// A pod's device.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// What the intent says of this node.
fn geometry(
    config: &Config,
    intent: &Intent,
    mtu: u32,
) -> Result<(Geometry, bulkhead_core::cluster::Networks), StartError> {
    let own = IpAddr::V4(config.node_ip);
    let cluster = intent.cluster.as_ref().ok_or(StartError::NoCluster)?;
    let networks = &cluster.networks;
    let ask =
        if config.register { "; it has asked for one" } else { "; start the agent with --register to ask for one" };
    let node = intent.nodes.get(&own).ok_or_else(|| StartError::NoSubnet(own, ask.to_owned()))?;
    let pool = networks.v4();
    if overlap(pool.network(), own.into()) {
        return Err(StartError::OwnAddress(own));
    }
    let ipnetwork::IpNetwork::V4(network) = pool.network() else { return Err(StartError::NoCluster) };
    let local_block = networks.block_of(node.subnets)?;
    let (host_bits, blocks) = (pool.host_bits(), pool.blocks());
    let (node_ip, vxlan_port) = (config.node_ip, config.vxlan_port);
    Ok((Geometry { network, host_bits, blocks, local_block, node_ip, vxlan_port, mtu }, networks.clone()))
}

pub(super) fn overlay_of(config: &Config, live: &Live) -> Overlay {
    let (port, mtu) = (config.vxlan_port, live.geometry.mtu);
    Overlay { port, mtu, node_ip: config.node_ip, gateway: live.gateway() }
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
    // Without a subnet nothing is made: a node that waits looks as it did before.
    geometry(config, &intent, 0)?;
    let (mtu, _) = overlay::pod_mtu(&mut host, config.node_ip, config.mtu)?;
    let (geometry, networks) = geometry(config, &intent, mtu)?;
    let records = Records::open(&config.run_dir, geometry.host_bits, config.address_rest)?;
    let datapath = Datapath::load(&config.bpf_dir, &geometry)?;
    let live = Live::new(geometry, networks, 0, datapath, (records, Remover::start().map_err(StartError::Thread)?));
    let (overlay, changes) = overlay_of(config, &live).ensure(&mut host)?;
    live.set_overlay(overlay);
    for change in changes {
        tracing::info!(change, "set up");
    }

    // Maps first, in the order in which packets depend on them; then programs.
    let bank = locked(&live.datapath.namespaces).bank();
    live.datapath.set_state(StateValue { bank, overlay_ifindex: overlay })?;
    apply_namespaces(&live, &agent.shared)?;
    let mut nodes = tenants::Nodes::of(&intent, &live.networks, &live.geometry);
    nodes.ask_routes(&mut host, mtu + overlay::HEADERS);
    locked(&live.datapath.peers).apply(&nodes.blocks, &nodes.addresses)?;
    pods::spare_strangers(&live, &mut host)?;
    pods::publish_all(&live, true)?;
    firewall_if_needed(&live)?;
    routes_of(&live).apply(&mut host, &nodes.remote_addresses())?;
    underlay::guard(&mut host, &live.datapath.programs, true)?;
    Overlay::attach(&mut host, overlay, &live.datapath.programs)?;
    pods::attach_all(&live, &mut host)?;
    for orphan in pods::remove_orphans(&live, &mut host)? {
        tracing::info!("{orphan}");
    }
    Ok(live)
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
