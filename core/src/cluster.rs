//! The cluster's config: what a [`ConfigRecord`] says, checked as a whole.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::name::{ClusterName, NameError};
use crate::network::{AddressPool, NetworkError, NodeSubnets, overlap, parse_network};
use crate::record::ConfigRecord;

/// Why a config cannot be used. Nothing of it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// `Name` is not one path segment.
    #[error(transparent)]
    Name(#[from] NameError),
    /// `Network` or `HostSubnetLength` is wrong.
    #[error("Network: {0}")]
    Network(#[source] NetworkError),
    /// `ServiceNetwork` is wrong.
    #[error("ServiceNetwork: {0}")]
    ServiceNetwork(#[source] NetworkError),
    /// Two networks of one family.
    #[error("{0} names more than one network of the same address family; give one of each at most")]
    FamilyTwice(&'static str),
    /// The two networks share addresses.
    #[error("Network {network} and ServiceNetwork {service} overlap; choose ranges that share no address")]
    Overlap {
        /// The pods' network.
        network: IpNetwork,
        /// The services' network.
        service: IpNetwork,
    },
    /// `PluginName` is neither of the two.
    #[error("PluginName {0:?} is not known; use k8s-ovs-multitenant or k8s-ovs-subnet")]
    PluginName(String),
    /// There is no IPv4 network.
    #[error("Network has no IPv4 range; this version needs one (an IPv6 range may stand beside it)")]
    NoIpv4,
}

/// Whether namespaces are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `k8s-ovs-multitenant`: each namespace is a network of its own.
    #[default]
    Multitenant,
    /// `k8s-ovs-subnet`: one flat network; every `NetID` reads as 0.
    Flat,
}

impl Mode {
    /// Its `PluginName`.
    pub const fn plugin_name(self) -> &'static str {
        match self {
            Self::Multitenant => "k8s-ovs-multitenant",
            Self::Flat => "k8s-ovs-subnet",
        }
    }
}

/// A valid cluster config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    name: ClusterName,
    networks: Networks,
    mode: Mode,
}

/// The cluster's address ranges; also what the ledger keeps of the config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "RawNetworks", into = "RawNetworks")]
pub struct Networks {
    v4: AddressPool,
    v6: Option<AddressPool>,
    services: Vec<IpNetwork>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawNetworks {
    network: Vec<IpNetwork>,
    host_subnet_length: u64,
    service_network: Vec<IpNetwork>,
}

impl From<Networks> for RawNetworks {
    fn from(networks: Networks) -> Self {
        Self {
            network: networks.pools().map(|pool| pool.network()).collect(),
            host_subnet_length: networks.v4.host_bits().into(),
            service_network: networks.services,
        }
    }
}

impl TryFrom<RawNetworks> for Networks {
    type Error = ConfigError;

    fn try_from(raw: RawNetworks) -> Result<Self, ConfigError> {
        Self::new(&raw.network, raw.host_subnet_length, raw.service_network)
    }
}

fn one_of_each_family(what: &'static str, networks: &[IpNetwork]) -> Result<(), ConfigError> {
    let v4 = networks.iter().filter(|network| network.is_ipv4()).count();
    if v4 > 1 || networks.len() - v4 > 1 { Err(ConfigError::FamilyTwice(what)) } else { Ok(()) }
}

impl Networks {
    /// Checks the ranges alone and against each other.
    pub fn new(network: &[IpNetwork], host_bits: u64, services: Vec<IpNetwork>) -> Result<Self, ConfigError> {
        one_of_each_family("Network", network)?;
        one_of_each_family("ServiceNetwork", &services)?;
        let pool = |range: &IpNetwork| AddressPool::new(*range, host_bits).map_err(ConfigError::Network);
        let v4 = network.iter().find(|range| range.is_ipv4()).map(pool).transpose()?.ok_or(ConfigError::NoIpv4)?;
        let v6 = network.iter().find(|range| range.is_ipv6()).map(pool).transpose()?;
        for &network in network {
            if let Some(&service) = services.iter().find(|service| overlap(**service, network)) {
                return Err(ConfigError::Overlap { network, service });
            }
        }
        Ok(Self { v4, v6, services })
    }

    /// The IPv4 range.
    pub const fn v4(&self) -> AddressPool {
        self.v4
    }

    /// The IPv6 range, in a dual-stack cluster.
    pub const fn v6(&self) -> Option<AddressPool> {
        self.v6
    }

    /// Every family's range, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = AddressPool> + use<> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }

    /// The services' ranges.
    pub fn services(&self) -> &[IpNetwork] {
        &self.services
    }

    /// How many nodes fit: the fewest blocks of any family.
    pub fn blocks(&self) -> u32 {
        self.pools().map(|pool| pool.blocks()).min().unwrap_or(0)
    }

    /// The subnets of block number `block`, one of each family.
    pub fn node_subnets(&self, block: u32) -> Option<NodeSubnets> {
        self.pools().map(|pool| pool.subnet(block)).collect::<Option<Vec<_>>>()?.try_into().ok()
    }

    /// The block that a node's subnets are: the same one in every family.
    pub fn block_of(&self, subnets: NodeSubnets) -> Result<u32, NetworkError> {
        let mut found = None;
        for pool in self.pools() {
            let of_pool = subnets.iter().find(|subnet| subnet.is_ipv4() == pool.network().is_ipv4());
            let subnet = of_pool.ok_or(NetworkError::Missing)?;
            let block = pool.block_of(subnet)?;
            if *found.get_or_insert(block) != block {
                return Err(NetworkError::NotABlock(subnet));
            }
        }
        found.ok_or(NetworkError::Missing)
    }
}

fn parse_list(text: &str) -> Result<Vec<IpNetwork>, NetworkError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse_network).collect()
}

impl ClusterConfig {
    /// The cluster's name.
    pub const fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Its address ranges.
    pub const fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Whether namespaces are kept apart.
    pub const fn mode(&self) -> Mode {
        self.mode
    }
}

impl TryFrom<&ConfigRecord> for ClusterConfig {
    type Error = ConfigError;

    fn try_from(record: &ConfigRecord) -> Result<Self, ConfigError> {
        let name = ClusterName::new(record.name.clone())?;
        let mode = [Mode::Multitenant, Mode::Flat]
            .into_iter()
            .find(|mode| record.plugin_name == mode.plugin_name())
            .or_else(|| record.plugin_name.is_empty().then(Mode::default))
            .ok_or_else(|| ConfigError::PluginName(record.plugin_name.chars().take(80).collect()))?;
        let network = parse_list(&record.network).map_err(ConfigError::Network)?;
        if network.is_empty() {
            return Err(ConfigError::Network(NetworkError::NotCidr(record.network.chars().take(80).collect())));
        }
        let services = parse_list(&record.service_network).map_err(ConfigError::ServiceNetwork)?;
        Ok(Self { name, networks: Networks::new(&network, record.host_subnet_length, services)?, mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    fn config(change: impl FnOnce(&mut ConfigRecord)) -> Result<ClusterConfig, ConfigError> {
        let mut record = ConfigRecord::parse(ConfigRecord::EXAMPLE.as_bytes()).unwrap();
        change(&mut record);
        ClusterConfig::try_from(&record)
    }

    #[test]
    fn the_example_is_valid() {
        let config = config(|_| ()).unwrap();
        assert_eq!(config.networks().blocks(), 64);
        assert_eq!(config.mode(), Mode::Multitenant);
    }

    #[test]
    fn each_fault_is_named() {
        assert!(matches!(config(|c| c.name = "a/b".into()), Err(ConfigError::Name(_))));
        assert!(matches!(config(|c| c.network = "x".into()), Err(ConfigError::Network(_))));
        assert!(matches!(config(|c| c.network = String::new()), Err(ConfigError::Network(_))));
        assert!(matches!(config(|c| c.host_subnet_length = 20), Err(ConfigError::Network(_))));
        assert!(matches!(config(|c| c.service_network = "10.96.0.0".into()), Err(ConfigError::ServiceNetwork(_))));
        assert!(matches!(config(|c| c.service_network = "172.11.128.0/20".into()), Err(ConfigError::Overlap { .. })));
        assert!(matches!(config(|c| c.plugin_name = "x".into()), Err(ConfigError::PluginName(_))));
        assert!(matches!(config(|c| c.network = "10.0.0.0/16,10.1.0.0/16".into()), Err(ConfigError::FamilyTwice(_))));
        assert!(matches!(config(|c| c.network = "fd00::/112".into()), Err(ConfigError::NoIpv4)));
    }

    #[test]
    fn a_dual_stack_node_has_the_same_block_in_both_families() {
        let config = config(|c| c.network = "172.11.0.0/16,fd00:77::/112".into()).unwrap();
        let networks = config.networks();
        let subnets = networks.node_subnets(3).unwrap();
        assert_eq!(subnets.v6().unwrap().to_string(), "fd00:77::c00/118");
        assert_eq!(networks.block_of(subnets), Ok(3));
        let crossed = NodeSubnets::new(networks.node_subnets(1).unwrap().v4(), subnets.v6()).unwrap();
        assert!(networks.block_of(crossed).is_err());
        let json = serde_json::to_string(networks).unwrap();
        assert_eq!(&serde_json::from_str::<Networks>(&json).unwrap(), networks);
    }
}
