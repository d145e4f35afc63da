//! Namespaces and nodes: the intent's part that is maps and routes only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bulkhead_core::Mode;

use crate::datapath::abi::{Peer, StateValue};
use crate::datapath::{DatapathError, Network};
use crate::intent::{Intent, Shared};
use crate::live::{Live, locked};
use crate::sys;

/// VNI to network, as the intent has it; in a flat network every `NetID` reads as 0.
fn networks(intent: &Intent) -> (BTreeMap<u32, Network>, Network) {
    let flat = intent.cluster.as_ref().is_some_and(|cluster| cluster.mode == Mode::Flat);
    let of = |net_id: u32| Network::Id(if flat { 0 } else { net_id });
    let known = intent.namespaces.values().map(|tenant| (tenant.vni.get(), of(tenant.net_id.get()))).collect();
    (known, if flat { Network::Id(0) } else { Network::None })
}

/// Brings the namespaces' maps in line, by one switch of the bank. Also called by an ADD whose namespace has just become
/// known, so that the pod need not wait for the reconciler.
pub fn apply_namespaces(live: &Live, shared: &Shared) -> Result<(), DatapathError> {
    let mut namespaces = locked(&live.datapath.namespaces);
    let (known, unknown) = shared.read(|intent, _| networks(intent));
    let keep: BTreeSet<u32> = live.records.all().iter().map(|record| record.vni).collect();
    if let Some(bank) = namespaces.prepare(&known, unknown, Network::Id(0), &keep)? {
        live.datapath.set_state(StateValue { bank, overlay_ifindex: live.overlay() })?;
        namespaces.switched(bank);
        // A program that read the old bank's number may still be running; the bank is written again only after it ended.
        sys::wait_for_running_programs();
    }
    Ok(())
}

/// The other nodes, as the intent has them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nodes {
    pub blocks: BTreeMap<u32, Peer>,
    pub addresses: BTreeMap<IpAddr, Peer>,
    /// Entries that cannot be used, in words.
    pub unusable: Vec<String>,
}

impl Nodes {
    /// Reads the intent. Two entries that claim one block are both unusable but for the one that is this node.
    pub fn of(intent: &Intent, live: &Live) -> Self {
        let own = IpAddr::V4(live.geometry.node_ip);
        let (mut blocks, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        let mut unusable = Vec::new();
        for (ip, node) in &intent.nodes {
            let peer = Peer { remote: *ip, local: *ip == own };
            match live.networks.block_of(node.subnets) {
                Ok(block) if !blocks.contains_key(&block) || peer.local => drop(blocks.insert(block, peer)),
                Ok(_) => unusable.push(format!("node {} ({ip}): its subnet is another node's too", node.host)),
                Err(error) => {
                    unusable.push(format!("node {} ({ip}): {error}", node.host));
                    continue;
                }
            }
            addresses.extend(node.addresses.iter().chain([ip]).map(|address| (*address, peer)));
        }
        // Our own block is ours whatever the ledger says of it now: pods live in it.
        let local = Peer { remote: own, local: true };
        blocks.insert(live.geometry.local_block, local);
        addresses.insert(own, local);
        Self { blocks, addresses, unusable }
    }

    /// The other nodes' addresses.
    pub fn remote_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().filter(|(_, peer)| !peer.local).map(|(address, _)| *address).collect()
    }
}
