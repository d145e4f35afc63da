//! A node that has its subnet and its datapath: what CNI calls and the reconciler work on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cluster::Networks;
use bulkhead_core::network::GATEWAY;

use crate::datapath::abi::EndpointValue;
use crate::datapath::{Datapath, DatapathError, Endpoints, Geometry};
use crate::pods::wire::GATEWAY_MAC;
use crate::pods::{Record, Records, Remover};

/// The node at work.
pub struct Live {
    /// What the programs were told.
    pub geometry: Geometry,
    /// The cluster's address ranges.
    pub networks: Networks,
    /// Maps and programs.
    pub datapath: Datapath,
    /// The pods.
    pub records: Records,
    /// Removes their devices.
    pub remover: Remover,
    /// Pods whose devices may still run an earlier agent's programs.
    pub unattached: Mutex<BTreeSet<AttachmentId>>,
    overlay: AtomicU32,
    busy: Mutex<BTreeMap<AttachmentId, Arc<Mutex<()>>>>,
}

/// A lock, whoever panicked holding it: what it guards is compared with the kernel at every resync.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Puts the parts together.
    pub fn new(
        geometry: Geometry,
        networks: Networks,
        overlay: u32,
        datapath: Datapath,
        (records, remover): (Records, Remover),
    ) -> Self {
        Self {
            geometry,
            networks,
            unattached: Mutex::default(),
            overlay: AtomicU32::new(overlay),
            datapath,
            records,
            remover,
            busy: Mutex::new(BTreeMap::new()),
        }
    }

    /// The overlay device.
    pub fn overlay(&self) -> u32 {
        self.overlay.load(Ordering::Acquire)
    }

    /// The overlay device is another one now: something deleted the old one.
    pub fn set_overlay(&self, ifindex: u32) {
        self.overlay.store(ifindex, Ordering::Release);
    }

    /// The pods' gateway: this node's own address on the overlay device.
    pub fn gateway(&self) -> Ipv4Addr {
        match self.networks.v4().address(self.geometry.local_block, GATEWAY) {
            Some(IpAddr::V4(v4)) => v4,
            _ => Ipv4Addr::UNSPECIFIED,
        }
    }

    /// The pods' gateway, and this node's underlay address.
    pub fn own_addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.gateway(), self.geometry.node_ip)
    }

    /// The addresses of a host part: IPv4, and IPv6 in a dual-stack cluster.
    pub fn addresses(&self, host: u32) -> Vec<IpAddr> {
        // IPv6 has its place in every record and map; pods are given IPv4 only until the programs judge it.
        self.networks.v4().address(self.geometry.local_block, host).into_iter().collect()
    }

    /// Runs `work` while no other call for the same attachment runs. Calls for different ones never wait for each other.
    pub fn exclusively<T>(&self, id: &AttachmentId, work: impl FnOnce() -> T) -> T {
        let own = Arc::clone(locked(&self.busy).entry(id.clone()).or_default());
        let guard = locked(&own);
        let answer = work();
        drop(guard);
        let mut busy = locked(&self.busy);
        // The map's and ours: nobody waits.
        if Arc::strong_count(&own) <= 2 {
            busy.remove(id);
        }
        answer
    }

    /// Whether a pod's address is of this node's subnet as it is now: with another one, the maps have no place for it.
    pub fn is_here(&self, record: &Record) -> bool {
        self.addresses(record.host).contains(&record.ip4().into())
    }

    /// Writes a pod into the maps. After this returns its packets are judged as its own. A pod of another subnet is left out.
    pub fn publish(&self, record: &Record) -> Result<(), DatapathError> {
        if !self.is_here(record) {
            return Ok(());
        }
        // Held over both: the index must not become another namespace's in between.
        let namespaces = locked(&self.datapath.namespaces);
        let mut endpoints = locked(&self.datapath.endpoints);
        if namespaces.are_as_adopted() && endpoints.names(record.host, record.ifindex)? {
            // Whose a VNI is was known better when this was written.
            return Ok(());
        }
        let endpoint = endpoint(record, namespaces.index_of(&record.namespace, record.vni));
        endpoints.publish(record.host, endpoint, record.limits.policer())
    }

    /// Writes a pod anew under `namespace`, an index that the caller, who holds the indices' lock, found. One that a DEL has
    /// taken out of the books meanwhile stays out of the maps.
    pub fn republish(&self, record: &Record, namespace: u32) -> Result<(), DatapathError> {
        let mut endpoints = locked(&self.datapath.endpoints);
        let Some(held) = self.records.get(&record.id).filter(|held| self.is_here(held)) else { return Ok(()) };
        endpoints.publish(held.host, endpoint(&held, namespace), held.limits.policer())
    }

    /// Whether the maps hold a pod as its record says.
    pub fn is_published(&self, record: &Record) -> Result<bool, DatapathError> {
        if !self.is_here(record) {
            return Ok(false);
        }
        let namespaces = locked(&self.datapath.namespaces);
        let endpoint = endpoint(record, namespaces.index_of(&record.namespace, record.vni));
        locked(&self.datapath.endpoints).holds(record.host, endpoint, record.limits.policer())
    }

    /// Removes a pod from the maps: from here nothing reaches its address and nothing leaves its device. It stays in the books.
    pub fn withdraw(&self, record: &Record) -> Result<(), DatapathError> {
        self.withdraw_from(&mut locked(&self.datapath.endpoints), record)
    }

    fn withdraw_from(&self, endpoints: &mut Endpoints, record: &Record) -> Result<(), DatapathError> {
        if self.is_here(record) {
            endpoints.withdraw(record.host, record.ifindex)
        } else {
            endpoints.clear_port(record.ifindex)
        }
    }

    /// Removes a pod from the maps and its record from the books, as one step: its address cannot be given out while the
    /// maps still know it.
    pub fn forget(&self, record: &Record) -> Result<(), ForgetError> {
        let mut endpoints = locked(&self.datapath.endpoints);
        self.withdraw_from(&mut endpoints, record)?;
        self.records.remove(&record.id);
        Ok(())
    }
}

fn endpoint(record: &Record, namespace: u32) -> EndpointValue {
    EndpointValue {
        ip4: record.ip4(),
        ip6: None,
        ifindex: record.ifindex,
        namespace,
        mac: record.mac(),
        gateway_mac: GATEWAY_MAC,
        shaped: record.limits.ingress.is_some(),
        policed: record.limits.egress.is_some(),
    }
}

/// Why a pod cannot be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The maps.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}
