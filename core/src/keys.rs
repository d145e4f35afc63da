//! Where everything is in etcd.
//!
//! | key below the prefix | holds | written by |
//! |---|---|---|
//! | `config` | the cluster's config | people |
//! | `<Name>/subnets/<HostIP>` | a node's subnet: mailbox and mirror | people, agents that ask for a subnet, the leader |
//! | `<Name>/netnamespaces/<ns>` | a namespace's `NetID` and action: mailbox and mirror | people, the CLI, the leader |
//! | `<Name>/restore` | the wish that etcd's restore be dealt with: mailbox, gone once it is | people, the CLI, the leader |
//! | `<Name>/bulkhead/ledger/cluster` | the cluster's networks, mode and epoch | the leader |
//! | `<Name>/bulkhead/ledger/namespaces/<ns>` | VNI and `NetID` that agents obey | the leader |
//! | `<Name>/bulkhead/ledger/nodes/<HostIP>` | subnets and addresses that agents obey | the leader |
//! | `<Name>/bulkhead/numbers` | the allocator's mark | the leader |
//! | `<Name>/bulkhead/released/<subnet>` | a released subnet and its turn | the leader |
//! | `<Name>/bulkhead/election/` | candidates for leadership | controllers |
//!
//! The first three are K8S-OVS' keys to the letter.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use thiserror::Error;

use crate::name::{ClusterName, Namespace};

/// The prefix that K8S-OVS uses, and ours unless configured.
pub const DEFAULT_PREFIX: &str = "/k8s.ovs.com/ovs/network";

/// Why a text cannot be the prefix of all keys.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the etcd prefix {0:?} is not valid: start it with '/', end it without one, and use no empty segment, white space or control character"
)]
pub struct PrefixError(String);

/// Checks a prefix: `/a/b`.
pub fn check_prefix(text: &str) -> Result<&str, PrefixError> {
    let sane = text.len() <= 255
        && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|segment| !segment.is_empty()))
        && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if sane { Ok(text) } else { Err(PrefixError(text.chars().take(80).collect())) }
}

/// The key of the config, which names the cluster.
pub fn config(prefix: &str) -> String {
    format!("{prefix}/config")
}

/// The keys of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
    root: String,
}

impl Keys {
    /// Keys of the cluster `name` below `prefix`.
    pub fn new(prefix: &str, name: &ClusterName) -> Result<Self, PrefixError> {
        let prefix = check_prefix(prefix)?.to_owned();
        let root = format!("{prefix}/{name}");
        Ok(Self { prefix, root })
    }

    /// The config's key.
    pub fn config(&self) -> String {
        config(&self.prefix)
    }

    /// Everything of this cluster but its config, with the final slash.
    pub fn root(&self) -> String {
        format!("{}/", self.root)
    }

    /// All nodes' mailbox records.
    pub fn subnets(&self) -> String {
        format!("{}/subnets/", self.root)
    }

    /// One node's mailbox record.
    pub fn subnet(&self, host_ip: IpAddr) -> String {
        format!("{}/subnets/{host_ip}", self.root)
    }

    /// All namespaces' mailbox records.
    pub fn netnamespaces(&self) -> String {
        format!("{}/netnamespaces/", self.root)
    }

    /// One namespace's mailbox record.
    pub fn netnamespace(&self, namespace: &Namespace) -> String {
        format!("{}/netnamespaces/{namespace}", self.root)
    }

    /// The mailbox of `bulkhead restore`.
    pub fn restore(&self) -> String {
        format!("{}/restore", self.root)
    }

    /// All that agents obey: one prefix, so that one list and one watch see whole transactions.
    pub fn ledger(&self) -> String {
        format!("{}/bulkhead/ledger/", self.root)
    }

    /// The cluster's ledger entry.
    pub fn ledger_cluster(&self) -> String {
        format!("{}/bulkhead/ledger/cluster", self.root)
    }

    /// All namespaces' ledger entries.
    pub fn ledger_namespaces(&self) -> String {
        format!("{}/bulkhead/ledger/namespaces/", self.root)
    }

    /// One namespace's ledger entry.
    pub fn ledger_namespace(&self, namespace: &Namespace) -> String {
        format!("{}/bulkhead/ledger/namespaces/{namespace}", self.root)
    }

    /// All nodes' ledger entries.
    pub fn ledger_nodes(&self) -> String {
        format!("{}/bulkhead/ledger/nodes/", self.root)
    }

    /// One node's ledger entry.
    pub fn ledger_node(&self, host_ip: IpAddr) -> String {
        format!("{}/bulkhead/ledger/nodes/{host_ip}", self.root)
    }

    /// The number allocator's state.
    pub fn numbers(&self) -> String {
        format!("{}/bulkhead/numbers", self.root)
    }

    /// All released subnets.
    pub fn released_subnets(&self) -> String {
        format!("{}/bulkhead/released/", self.root)
    }

    /// One released subnet, its `/` written as `-`.
    pub fn released_subnet(&self, subnet: IpNetwork) -> String {
        format!("{}/bulkhead/released/{}-{}", self.root, subnet.ip(), subnet.prefix())
    }

    /// The election's prefix.
    pub fn election(&self) -> String {
        format!("{}/bulkhead/election/", self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_of_k8s_ovs() {
        let keys = Keys::new(DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
        assert_eq!(keys.config(), "/k8s.ovs.com/ovs/network/config");
        assert_eq!(keys.subnet("10.0.0.197".parse().unwrap()), "/k8s.ovs.com/ovs/network/k8ssdn/subnets/10.0.0.197");
        let namespace = Namespace::new("helloworld1").unwrap();
        assert_eq!(keys.netnamespace(&namespace), "/k8s.ovs.com/ovs/network/k8ssdn/netnamespaces/helloworld1");
        assert!(keys.ledger_namespace(&namespace).starts_with(&keys.ledger()));
        assert!(!keys.election().starts_with(&keys.ledger()));
        assert_eq!(keys.restore(), "/k8s.ovs.com/ovs/network/k8ssdn/restore");
    }

    #[test]
    fn a_prefix_is_checked() {
        for bad in ["", "/", "a/b", "/a/", "/a//b", "/a b", "/a\n"] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
    }
}
