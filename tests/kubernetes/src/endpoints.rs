//! Pods and nodes as endpoints of the lab without Kubernetes: sockets of the test itself in their network namespaces, so that
//! traffic depends on nothing but the network: not on the API server, a kubelet, containerd or `kubectl exec`.
//!
//! A pod has one endpoint at a time (its servers take ports 7 to 9). An endpoint of a pod that is gone stays, unplugged.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::{Endpoint, wait};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::network::CLUSTER_NETWORK;
use crate::pod::Pod;

/// How long a pod may take that is being started.
const START: Duration = Duration::from_mins(3);

/// A pod's endpoint, by the name `namespace/pod`.
pub fn of_pod(pod: &Pod) -> Result<Endpoint, LabError> {
    of_uid(&pod.full_name(), pod.uid())
}

/// The endpoint of a pod of which the UID is known: it needs not be ready, nor known to the API server.
pub fn of_uid(name: &str, uid: &str) -> Result<Endpoint, LabError> {
    let (netns, address) =
        wait::until(&format!("{name} having an address"), START, || inside(uid).transpose()).and_then(|found| found)?;
    Endpoint::start(name, address, netns)
}

/// A node's endpoint, by its name.
pub fn of_node(cluster: &Cluster, name: &str) -> Result<Endpoint, LabError> {
    let netns = Arc::new(Netns::open(&cluster.netns_path(name))?);
    Endpoint::start(name, cluster.node(name)?.address(), netns)
}

/// The processes of a pod, as the host numbers them.
pub fn processes(uid: &str) -> Result<Vec<PathBuf>, LabError> {
    let group = format!("/pod{uid}/");
    let entries = fs::read_dir("/proc").tried(|| "list /proc".into())?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| fs::read_to_string(path.join("cgroup")).is_ok_and(|text| text.contains(&group))).collect())
}

/// A pod's network namespace and address, once its sandbox has both.
fn inside(uid: &str) -> Result<Option<(Arc<Netns>, Ipv4Addr)>, LabError> {
    for process in processes(uid)? {
        // What ends meanwhile is none of the sandbox.
        let Ok(netns) = Netns::open(&process.join("ns/net")) else { continue };
        if let Some(address) = address(&netns)? {
            return Ok(Some((Arc::new(netns), address)));
        }
    }
    Ok(None)
}

/// The address of a pod that is in a network namespace; what a runtime runs before it enters one is in its node's.
fn address(netns: &Netns) -> Result<Option<Ipv4Addr>, LabError> {
    let output = netns.output("ip", &["-j", "-4", "address", "show", "dev", "eth0"], &[])?;
    let links: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let address = links[0]["addr_info"][0]["local"].as_str().and_then(|text| text.parse().ok());
    Ok(address.filter(|&address| is_a_pods(address)))
}

/// Whether an address is of the cluster network.
fn is_a_pods(address: Ipv4Addr) -> bool {
    let Some((network, length)) = CLUSTER_NETWORK.split_once('/') else { return false };
    match (network.parse(), length.parse()) {
        (Ok(network), Ok(length @ 1..=32)) => {
            let host_bits = 32_u32 - length;
            u32::from(address) >> host_bits == Ipv4Addr::to_bits(network) >> host_bits
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_no_pods() {
        assert!(is_a_pods(Ipv4Addr::new(172, 11, 5, 2)));
        assert!(!is_a_pods(Ipv4Addr::new(10, 123, 1, 11)) && !is_a_pods(Ipv4Addr::new(172, 12, 0, 1)));
    }
}
