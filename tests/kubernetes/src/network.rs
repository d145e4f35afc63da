//! The lab's address plan, and the reference network: the bridge plugin with a route to each other node. It makes the lab
//! complete without Bulkhead, and is what Bulkhead is measured beside.

use std::net::Ipv4Addr;

use bulkhead_tests::error::LabError;
use serde_json::json;

use crate::disk::Disk;
use crate::machine::Machine;

/// The pods' network.
pub const CLUSTER_NETWORK: &str = "172.11.0.0/16";
/// The services' network.
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// The API server's service.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The name server's service.
pub const DNS_ADDRESS: &str = "10.96.0.10";

const CONFLIST: &str = "/etc/cni/net.d/10-reference.conflist";

/// What connects the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing yet: nodes stay NotReady until somebody puts a CNI configuration there.
    None,
    /// The bridge plugin, host-local and static routes.
    Reference,
}

/// The pods of the node with this underlay address.
fn subnet(node: Ipv4Addr) -> String {
    format!("172.11.{}.0/24", node.octets()[3])
}

/// Routes a node's pods to the others' and back, and writes its CNI configuration.
pub fn install_reference(disk: &Disk, machine: &Machine, node: Ipv4Addr, others: &[Ipv4Addr]) -> Result<(), LabError> {
    others.iter().try_for_each(|&other| add_route(machine, other))?;
    let conflist = json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet(node)}]], "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    disk.publish(CONFLIST, &conflist.to_string())
}

/// Routes a node's pods to another's.
pub fn add_route(machine: &Machine, other: Ipv4Addr) -> Result<(), LabError> {
    machine.exec(&["ip", "route", "replace", &subnet(other), "via", &other.to_string()], &[]).map(drop)
}

/// Undoes [`add_route`].
pub fn remove_route(machine: &Machine, other: Ipv4Addr) -> Result<(), LabError> {
    machine.exec(&["ip", "route", "del", &subnet(other)], &[]).map(drop)
}
