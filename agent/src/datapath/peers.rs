//! The nodes in the maps: `nodes` by block and `node_addresses` by address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{Array, HashMap, MapData};

use super::abi::{Peer, address_key, address_of_key};
use super::{DatapathError, map_error, removed};

/// The maps that say where each subnet and each node is.
pub struct Peers {
    nodes: Array<MapData, [u8; Peer::NODE_SIZE]>,
    addresses: HashMap<MapData, [u8; 16], [u8; Peer::ADDRESS_SIZE]>,
    blocks: u32,
}

impl Peers {
    pub(super) const fn new(
        nodes: Array<MapData, [u8; Peer::NODE_SIZE]>,
        addresses: HashMap<MapData, [u8; 16], [u8; Peer::ADDRESS_SIZE]>,
        blocks: u32,
    ) -> Self {
        Self { nodes, addresses, blocks }
    }

    /// Makes the maps hold exactly these; returns how many entries changed. What is right is not touched.
    pub fn apply(
        &mut self,
        nodes: &BTreeMap<u32, Peer>,
        addresses: &BTreeMap<IpAddr, Peer>,
    ) -> Result<usize, DatapathError> {
        let mut changed = 0;
        for block in 0..self.blocks {
            let wanted = nodes.get(&block).map_or([0; Peer::NODE_SIZE], |peer| peer.to_node());
            let held = self.nodes.get(&block, 0).map_err(map_error("nodes", "read"))?;
            if held != wanted {
                self.nodes.set(block, wanted, 0).map_err(map_error("nodes", "written"))?;
                changed += 1;
            }
        }
        let mut held = BTreeMap::new();
        for entry in &self.addresses {
            let (key, value) = entry.map_err(map_error("node_addresses", "read"))?;
            held.insert(address_of_key(key), value);
        }
        for (address, peer) in addresses {
            let wanted = peer.to_node_address();
            if held.remove(address) != Some(wanted) {
                let key = address_key(*address);
                self.addresses.insert(key, wanted, 0).map_err(map_error("node_addresses", "written"))?;
                changed += 1;
            }
        }
        for address in held.into_keys() {
            removed(self.addresses.remove(&address_key(address))).map_err(map_error("node_addresses", "cleared"))?;
            changed += 1;
        }
        Ok(changed)
    }
}
