//! The ledger: what agents obey. Only the leader writes it, and only in fenced transactions (design, section 2).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cluster::{Mode, Networks};
use crate::name::{Namespace, NodeName};
use crate::network::NodeSubnets;
use crate::tenant::Tenant;

/// A ledger value that this version cannot read.
#[derive(Debug, Error)]
#[error(
    "the ledger entry cannot be read: {0}; it is written by the controller only: was it edited, or written by a newer version?"
)]
pub struct LedgerError(#[from] serde_json::Error);

/// `ledger/cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterEntry {
    /// Rises by one at each restore (design, section 2).
    pub epoch: u64,
    /// The address ranges that hold while nodes have subnets of them.
    #[serde(flatten)]
    pub networks: Networks,
    /// Whether namespaces are kept apart.
    pub mode: Mode,
    /// The ledger is being made from the records, and not whole yet: who has a state keeps that until this is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub building: bool,
}

/// `ledger/nodes/<HostIP>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// The node's name.
    pub host: NodeName,
    /// Its underlay addresses; the first is the one that tunnels end at, and the key's.
    pub addresses: Vec<IpAddr>,
    /// Its part of the cluster network.
    pub subnets: NodeSubnets,
    /// The UID of its Kubernetes Node; none of a machine that asked for its subnet by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// `released/<subnet>`: a subnet that a node gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleasedEntry {
    /// Its place in the queue: the lowest is reused first, once no fresh subnet is left.
    pub turn: u64,
}

/// Reads any ledger value.
pub fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, LedgerError> {
    Ok(serde_json::from_slice(value)?)
}

/// Writes any ledger value.
pub fn to_json<T: Serialize>(entry: &T) -> Vec<u8> {
    // The entries above hold strings, numbers and lists only, which cannot fail to serialise.
    serde_json::to_vec(entry).unwrap_or_default()
}

/// What a key below `ledger/` is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerKey {
    /// `cluster`.
    Cluster,
    /// `namespaces/<ns>`: a [`Tenant`].
    Namespace(Namespace),
    /// `nodes/<HostIP>`: a [`NodeEntry`].
    Node(IpAddr),
}

impl LedgerKey {
    /// Reads a key relative to the ledger's prefix; none for keys of a newer version.
    pub fn parse(relative: &str) -> Option<Self> {
        if relative == "cluster" {
            return Some(Self::Cluster);
        }
        let (folder, name) = relative.split_once('/')?;
        match folder {
            "namespaces" => Namespace::new(name).ok().map(Self::Namespace),
            "nodes" => name.parse().ok().map(Self::Node),
            _ => None,
        }
    }
}

/// A namespace's ledger value is its [`Tenant`].
pub type NamespaceEntry = Tenant;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vni::{NetId, Vni};

    #[test]
    fn entries_round_trip() {
        let node: NodeEntry = parse(br#"{"host":"n1","addresses":["10.0.0.1"],"subnets":["172.11.0.0/22"]}"#).unwrap();
        assert_eq!(parse::<NodeEntry>(&to_json(&node)).unwrap(), node);
        let tenant = Tenant { vni: Vni::namespace(10).unwrap(), net_id: NetId::GLOBAL, uid: None };
        assert_eq!(String::from_utf8(to_json(&tenant)).unwrap(), r#"{"vni":10,"netId":0}"#);
        let cluster: ClusterEntry = parse(
            br#"{"epoch":1,"network":["172.11.0.0/16"],"hostSubnetLength":10,"serviceNetwork":[],"mode":"multitenant"}"#,
        )
        .unwrap();
        assert_eq!(parse::<ClusterEntry>(&to_json(&cluster)).unwrap(), cluster);
    }

    #[test]
    fn an_edited_entry_is_refused() {
        assert!(parse::<Tenant>(br#"{"vni":5,"netId":10}"#).is_err());
        assert!(parse::<NodeEntry>(br#"{"host":"n1","addresses":[],"subnets":[]}"#).is_err());
    }

    #[test]
    fn keys_are_read() {
        assert_eq!(LedgerKey::parse("cluster"), Some(LedgerKey::Cluster));
        assert_eq!(LedgerKey::parse("nodes/10.0.0.1"), Some(LedgerKey::Node("10.0.0.1".parse().unwrap())));
        assert_eq!(LedgerKey::parse("future/x"), None);
    }
}
