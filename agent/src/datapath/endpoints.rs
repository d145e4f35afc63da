//! This node's pods in the maps: `endpoints`, `policers` and `ports`.

use std::collections::BTreeSet;

use aya::maps::{Array, HashMap, MapData, MapError};

use super::abi::{EndpointValue, PolicerValue, Port};
use super::{DatapathError, map_error};

/// The maps that say which device and address is whose.
pub struct Endpoints {
    pods: Array<MapData, [u8; EndpointValue::SIZE]>,
    policers: Array<MapData, [u8; PolicerValue::SIZE]>,
    ports: HashMap<MapData, u32, u32>,
}

impl Endpoints {
    pub(super) const fn new(
        pods: Array<MapData, [u8; EndpointValue::SIZE]>,
        policers: Array<MapData, [u8; PolicerValue::SIZE]>,
        ports: HashMap<MapData, u32, u32>,
    ) -> Self {
        Self { pods, policers, ports }
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

    /// Forgets a pod: nothing is delivered to its address any more and nothing from its device counts as anybody's.
    pub fn withdraw(&mut self, host: u32, ifindex: u32) -> Result<(), DatapathError> {
        self.pods.set(host, [0; EndpointValue::SIZE], 0).map_err(map_error("endpoints", "cleared"))?;
        self.policers.set(host, [0; PolicerValue::SIZE], 0).map_err(map_error("policers", "cleared"))?;
        self.clear_port(ifindex)
    }

    /// Says what a device is.
    pub fn set_port(&mut self, ifindex: u32, port: Port) -> Result<(), DatapathError> {
        self.ports.insert(ifindex, port as u32, 0).map_err(map_error("ports", "written"))
    }

    fn clear_port(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        match self.ports.remove(&ifindex) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(map_error("ports", "cleared")(error)),
        }
    }

    /// Clears what no record stands behind: host parts outside `hosts`, devices outside `devices`. Returns how many.
    pub fn prune(&mut self, hosts: &BTreeSet<u32>, devices: &BTreeSet<u32>) -> Result<usize, DatapathError> {
        let mut stale = Vec::new();
        for (host, bytes) in (0u32..).zip(self.pods.iter()) {
            let bytes = bytes.map_err(map_error("endpoints", "read"))?;
            if let Some((ifindex, _)) = EndpointValue::occupant(&bytes).filter(|_| !hosts.contains(&host)) {
                stale.push((host, ifindex));
            }
        }
        let ports: Vec<u32> = self.ports.keys().collect::<Result<_, _>>().map_err(map_error("ports", "read"))?;
        let strangers: Vec<u32> = ports.into_iter().filter(|ifindex| !devices.contains(ifindex)).collect();
        for &(host, _) in &stale {
            self.pods.set(host, [0; EndpointValue::SIZE], 0).map_err(map_error("endpoints", "cleared"))?;
            self.policers.set(host, [0; PolicerValue::SIZE], 0).map_err(map_error("policers", "cleared"))?;
        }
        for &ifindex in &strangers {
            self.clear_port(ifindex)?;
        }
        Ok(stale.len() + strangers.len())
    }

    /// How many pods the map holds.
    pub fn occupied(&self) -> Result<usize, DatapathError> {
        let mut count = 0;
        for bytes in self.pods.iter() {
            let bytes = bytes.map_err(map_error("endpoints", "read"))?;
            count += usize::from(EndpointValue::occupant(&bytes).is_some());
        }
        Ok(count)
    }
}
