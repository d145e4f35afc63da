//! This node's pods in the maps: `endpoints`, `policers` and `ports`.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, HashMap, MapData, MapError};

use super::abi::{EndpointValue, PolicerValue, Port};
use super::{DatapathError, map_error, removed};

/// The maps that say which device and address is whose.
pub struct Endpoints {
    pods: Array<MapData, [u8; EndpointValue::SIZE]>,
    policers: Array<MapData, [u8; PolicerValue::SIZE]>,
    ports: HashMap<MapData, u32, u32>,
    /// Namespace index by host part, of every entry that names a pod: whoever acts under it, with a record or without.
    mentioned: BTreeMap<u32, u32>,
}

impl Endpoints {
    /// Reads what the maps hold already.
    pub(super) fn adopt(
        pods: Array<MapData, [u8; EndpointValue::SIZE]>,
        policers: Array<MapData, [u8; PolicerValue::SIZE]>,
        ports: HashMap<MapData, u32, u32>,
    ) -> Result<Self, DatapathError> {
        let mut adopted = Self { pods, policers, ports, mentioned: BTreeMap::new() };
        adopted.mentioned = adopted.occupants()?.into_iter().map(|(host, (_, namespace))| (host, namespace)).collect();
        Ok(adopted)
    }

    /// Host part to device and namespace index, of every entry that names a pod.
    fn occupants(&self) -> Result<BTreeMap<u32, (u32, u32)>, DatapathError> {
        let mut occupants = BTreeMap::new();
        for (host, bytes) in (0u32..).zip(self.pods.iter()) {
            let bytes = bytes.map_err(map_error("endpoints", "read"))?;
            occupants.extend(EndpointValue::occupant(&bytes).map(|occupant| (host, occupant)));
        }
        Ok(occupants)
    }

    /// The namespace indices under which a device may act: none of them may come to mean another namespace.
    pub fn namespaces(&self) -> BTreeSet<u32> {
        self.mentioned.values().copied().collect()
    }

    /// Makes a pod known under the host part of its address. After this returns, its packets are judged as its own. A
    /// policer that is there with the same limit keeps its history.
    pub fn publish(
        &mut self,
        host: u32,
        endpoint: EndpointValue,
        policer: Option<PolicerValue>,
    ) -> Result<(), DatapathError> {
        let wanted = policer.map_or([0; PolicerValue::SIZE], PolicerValue::to_bytes);
        let held = self.policers.get(&host, 0).map_err(map_error("policers", "read"))?;
        if held[8..] != wanted[8..] {
            self.policers.set(host, wanted, 0).map_err(map_error("policers", "written"))?;
        }
        self.set_port(endpoint.ifindex, Port::Pod)?;
        let value = endpoint.to_bytes();
        if self.pods.get(&host, 0).map_err(map_error("endpoints", "read"))? != value {
            self.pods.set(host, value, 0).map_err(map_error("endpoints", "written"))?;
        }
        self.mentioned.insert(host, endpoint.namespace);
        Ok(())
    }

    /// Whether a pod is known as [`Endpoints::publish`] would make it.
    pub fn holds(
        &self,
        host: u32,
        endpoint: EndpointValue,
        policer: Option<PolicerValue>,
    ) -> Result<bool, DatapathError> {
        let limit = policer.map_or([0; PolicerValue::SIZE], PolicerValue::to_bytes);
        let port = match self.ports.get(&endpoint.ifindex, 0) {
            Ok(port) => Some(port),
            Err(MapError::KeyNotFound) => None,
            Err(error) => return Err(map_error("ports", "read")(error)),
        };
        Ok(port == Some(Port::Pod as u32)
            && self.policers.get(&host, 0).map_err(map_error("policers", "read"))?[8..] == limit[8..]
            && self.pods.get(&host, 0).map_err(map_error("endpoints", "read"))? == endpoint.to_bytes())
    }

    /// Whether the entry of a host part names this device.
    pub fn names(&self, host: u32, ifindex: u32) -> Result<bool, DatapathError> {
        let held = self.pods.get(&host, 0).map_err(map_error("endpoints", "read"))?;
        Ok(EndpointValue::occupant(&held).is_some_and(|(occupant, _)| occupant == ifindex))
    }

    /// Forgets a pod: nothing is delivered to its address any more and nothing from its device counts as anybody's.
    pub fn withdraw(&mut self, host: u32, ifindex: u32) -> Result<(), DatapathError> {
        self.clear(host)?;
        self.clear_port(ifindex)
    }

    fn clear(&mut self, host: u32) -> Result<(), DatapathError> {
        self.pods.set(host, [0; EndpointValue::SIZE], 0).map_err(map_error("endpoints", "cleared"))?;
        self.mentioned.remove(&host);
        self.policers.set(host, [0; PolicerValue::SIZE], 0).map_err(map_error("policers", "cleared"))
    }

    /// Says what a device is.
    pub fn set_port(&mut self, ifindex: u32, port: Port) -> Result<(), DatapathError> {
        self.ports.insert(ifindex, port as u32, 0).map_err(map_error("ports", "written"))
    }

    /// A device is nothing to us any more.
    pub fn clear_port(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        removed(self.ports.remove(&ifindex)).map_err(map_error("ports", "cleared"))
    }

    /// Clears what no record stands behind: host parts outside `hosts`, devices outside `devices`. Returns how many.
    pub fn prune(&mut self, hosts: &BTreeSet<u32>, devices: &BTreeSet<u32>) -> Result<usize, DatapathError> {
        let occupants = self.occupants()?;
        self.mentioned = occupants.iter().map(|(host, (_, namespace))| (*host, *namespace)).collect();
        let stale: Vec<u32> = occupants.into_keys().filter(|host| !hosts.contains(host)).collect();
        let ports: Vec<u32> = self.ports.keys().collect::<Result<_, _>>().map_err(map_error("ports", "read"))?;
        let strangers: Vec<u32> = ports.into_iter().filter(|ifindex| !devices.contains(ifindex)).collect();
        for &host in &stale {
            self.clear(host)?;
        }
        for &ifindex in &strangers {
            self.clear_port(ifindex)?;
        }
        Ok(stale.len() + strangers.len())
    }

    /// How many pods the map holds.
    pub fn occupied(&self) -> Result<usize, DatapathError> {
        Ok(self.occupants()?.len())
    }
}
