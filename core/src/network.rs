//! The cluster network and its cut into host subnets.
//!
//! An [`AddressPool`] is one address family's range: base + block * 2^host bits + host part. A block belongs to one
//! node, and both families use the same host part for the same pod, so that the datapath finds a pod and a node by
//! plain array indexes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most host bits of a node's subnet: 65,536 addresses.
pub const MAX_HOST_BITS: u8 = 16;
/// The most bits that number blocks: 65,536 nodes.
pub const MAX_BLOCK_BITS: u8 = 16;
/// The host part of the node's own address on its overlay device, the pods' gateway.
pub const GATEWAY: u32 = 1;

/// Why a network cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// Not a network in CIDR form.
    #[error("{0:?} is not a network in CIDR form such as 172.11.0.0/16")]
    NotCidr(String),
    /// Bits are set behind the prefix.
    #[error("{given} has host bits set; did you mean {meant}?")]
    HostBitsSet {
        /// What was written.
        given: IpNetwork,
        /// The network that contains it.
        meant: IpNetwork,
    },
    /// `HostSubnetLength` does not fit.
    #[error("HostSubnetLength {host_bits} does not fit {network}: it must be from 2 to {max}")]
    HostBits {
        /// The network to be cut.
        network: IpNetwork,
        /// The host bits asked for.
        host_bits: u64,
        /// The most that fit this network.
        max: u8,
    },
    /// More blocks than the datapath indexes.
    #[error(
        "{network} cut into subnets of {host_bits} host bits makes more than 65536 subnets; use a HostSubnetLength of at least {min}"
    )]
    TooManyBlocks {
        /// The network to be cut.
        network: IpNetwork,
        /// The host bits asked for.
        host_bits: u8,
        /// The fewest that would do.
        min: u8,
    },
    /// The network lies in a range that is not for hosts.
    #[error("{0} is not usable: it overlaps loopback, link-local, multicast or unspecified addresses")]
    Unusable(IpNetwork),
    /// A subnet that is not a block of the cluster network.
    #[error("{0} is not one of the subnets that the cluster network is cut into")]
    NotABlock(IpNetwork),
    /// No address at all.
    #[error("a node's subnet is missing: one of each address family of the cluster is needed")]
    Missing,
}

/// Parses a network and refuses host bits, so that "172.11.5.0/16" is not silently read as something else.
pub fn parse_network(text: &str) -> Result<IpNetwork, NetworkError> {
    let given: IpNetwork = match text.contains('/').then(|| text.parse()) {
        Some(Ok(network)) => network,
        _ => return Err(NetworkError::NotCidr(text.chars().take(80).collect())),
    };
    let meant = canonical(given);
    if meant == given { Ok(given) } else { Err(NetworkError::HostBitsSet { given, meant }) }
}

fn canonical(network: IpNetwork) -> IpNetwork {
    // The prefix comes from a valid network, so the constructor cannot fail.
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

/// Whether two networks share an address.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

fn is_usable(network: IpNetwork) -> bool {
    let not_for_hosts: &[&str] = match network {
        IpNetwork::V4(_) => &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"],
        IpNetwork::V6(_) => &["::/128", "::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96"],
    };
    not_for_hosts.iter().all(|text| text.parse().is_ok_and(|range| !overlap(network, range)))
}

const fn width(network: IpNetwork) -> u8 {
    match network {
        IpNetwork::V4(_) => 32,
        IpNetwork::V6(_) => 128,
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// One address family's cluster network and the size of its host subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    network: IpNetwork,
    host_bits: u8,
}

impl AddressPool {
    /// A pool of subnets with `host_bits` bits each (2 to 16), at most 65,536 of them.
    pub fn new(network: IpNetwork, host_bits: u64) -> Result<Self, NetworkError> {
        let meant = canonical(network);
        if meant != network {
            return Err(NetworkError::HostBitsSet { given: network, meant });
        }
        if !is_usable(network) {
            return Err(NetworkError::Unusable(network));
        }
        let room = width(network) - network.prefix();
        let max = room.min(MAX_HOST_BITS);
        let fitting = u8::try_from(host_bits).ok().filter(|bits| (2..=max).contains(bits));
        let host_bits = fitting.ok_or(NetworkError::HostBits { network, host_bits, max })?;
        if room - host_bits > MAX_BLOCK_BITS {
            return Err(NetworkError::TooManyBlocks { network, host_bits, min: room - MAX_BLOCK_BITS });
        }
        Ok(Self { network, host_bits })
    }

    /// The whole range.
    pub const fn network(&self) -> IpNetwork {
        self.network
    }

    /// Host bits of one node's subnet.
    pub const fn host_bits(&self) -> u8 {
        self.host_bits
    }

    /// How many subnets the range is cut into, 1 to 65,536.
    pub fn blocks(&self) -> u32 {
        1 << (width(self.network) - self.network.prefix() - self.host_bits)
    }

    /// The subnet number `block`, in address order.
    pub fn subnet(&self, block: u32) -> Option<IpNetwork> {
        let first = self.address(block, 0)?;
        IpNetwork::new(first, width(self.network) - self.host_bits).ok()
    }

    /// The address with this block and host part, or none if either is outside the pool.
    pub fn address(&self, block: u32, host: u32) -> Option<IpAddr> {
        if block >= self.blocks() || host >= 1 << self.host_bits {
            return None;
        }
        let bits = bits_of(self.network.network()) | u128::from(block) << self.host_bits | u128::from(host);
        Some(match self.network {
            IpNetwork::V4(_) => Ipv4Addr::from(u32::try_from(bits).ok()?).into(),
            IpNetwork::V6(_) => Ipv6Addr::from(bits).into(),
        })
    }

    /// The block and host part of an address of this pool.
    pub fn locate(&self, address: IpAddr) -> Option<(u32, u32)> {
        if !self.network.contains(address) {
            return None;
        }
        let offset = bits_of(address) - bits_of(self.network.network());
        let host = offset & ((1 << self.host_bits) - 1);
        Some((u32::try_from(offset >> self.host_bits).ok()?, u32::try_from(host).ok()?))
    }

    /// The block that a subnet is, if it is exactly one.
    pub fn block_of(&self, subnet: IpNetwork) -> Result<u32, NetworkError> {
        self.locate(subnet.ip())
            .filter(|&(block, _)| self.subnet(block) == Some(subnet))
            .map(|(block, _)| block)
            .ok_or(NetworkError::NotABlock(subnet))
    }
}

/// A node's subnets: at least one, at most one of each address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Vec<IpNetwork>", into = "Vec<IpNetwork>")]
pub struct NodeSubnets {
    v4: Option<Ipv4Network>,
    v6: Option<Ipv6Network>,
}

impl NodeSubnets {
    /// Makes the pair; both missing is an error.
    pub const fn new(v4: Option<Ipv4Network>, v6: Option<Ipv6Network>) -> Result<Self, NetworkError> {
        if v4.is_none() && v6.is_none() { Err(NetworkError::Missing) } else { Ok(Self { v4, v6 }) }
    }

    /// The IPv4 subnet.
    pub const fn v4(&self) -> Option<Ipv4Network> {
        self.v4
    }

    /// The IPv6 subnet.
    pub const fn v6(&self) -> Option<Ipv6Network> {
        self.v6
    }

    /// Both, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        self.v4.map(IpNetwork::V4).into_iter().chain(self.v6.map(IpNetwork::V6))
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, network: IpNetwork) -> bool {
        self.iter().any(|own| overlap(own, network))
    }
}

impl TryFrom<Vec<IpNetwork>> for NodeSubnets {
    type Error = NetworkError;

    fn try_from(list: Vec<IpNetwork>) -> Result<Self, NetworkError> {
        let (mut v4, mut v6) = (None, None);
        for network in list {
            let clash = match network {
                IpNetwork::V4(network) => v4.replace(network).is_some(),
                IpNetwork::V6(network) => v6.replace(network).is_some(),
            };
            if clash {
                return Err(NetworkError::NotABlock(network));
            }
        }
        Self::new(v4, v6)
    }
}

impl From<NodeSubnets> for Vec<IpNetwork> {
    fn from(subnets: NodeSubnets) -> Self {
        subnets.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(text: &str, host_bits: u64) -> Result<AddressPool, NetworkError> {
        AddressPool::new(parse_network(text)?, host_bits)
    }

    #[test]
    fn subnets_come_in_address_order_the_first_and_the_last_too() {
        let pool = pool("172.11.0.0/16", 10).unwrap();
        assert_eq!(pool.blocks(), 64);
        assert_eq!(pool.subnet(0).unwrap().to_string(), "172.11.0.0/22");
        assert_eq!(pool.subnet(63).unwrap().to_string(), "172.11.252.0/22");
        assert_eq!(pool.subnet(64), None);
        assert_eq!(pool.locate("172.11.5.7".parse().unwrap()), Some((1, 263)));
        assert_eq!(pool.block_of("172.11.4.0/22".parse().unwrap()), Ok(1));
        assert!(pool.block_of("172.11.4.0/23".parse().unwrap()).is_err());
        assert!(pool.block_of("172.12.0.0/22".parse().unwrap()).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_range_that_would() {
        for (text, bits) in [("10.0.0.0/24", 9), ("10.0.0.0/24", 1), ("10.0.0.0/8", 17), ("10.0.0.0/24", 300)] {
            assert!(matches!(pool(text, bits), Err(NetworkError::HostBits { .. })), "{text} {bits}");
        }
        assert!(matches!(pool("10.0.0.0/8", 4), Err(NetworkError::TooManyBlocks { min: 8, .. })));
        assert!(matches!(pool("10.0.0.1/8", 8), Err(NetworkError::HostBitsSet { .. })));
        assert!(matches!(pool("127.0.0.0/8", 8), Err(NetworkError::Unusable(_))));
        assert!(matches!(pool("0.0.0.0/0", 16), Err(NetworkError::Unusable(_))));
        assert!(matches!(pool("10.0.0.0", 8), Err(NetworkError::NotCidr(_))));
        assert_eq!(pool("10.0.0.0/24", 8).unwrap().blocks(), 1);
    }

    #[test]
    fn an_ipv6_pool_is_cut_alike() {
        let pool = pool("fd00:77::/100", 12).unwrap();
        assert_eq!(pool.subnet(1).unwrap().to_string(), "fd00:77::1000/116");
        assert_eq!(pool.locate("fd00:77::1005".parse().unwrap()), Some((1, 5)));
    }

    proptest! {
        #[test]
        fn an_address_and_its_place_are_one(prefix in 8u8..=28, bits in 2u64..=16, block in 0u32..65536, host in 0u32..65536) {
            let network = IpNetwork::new("10.0.0.0".parse().unwrap(), prefix).unwrap();
            let Ok(pool) = AddressPool::new(network, bits) else { return Ok(()) };
            match pool.address(block, host) {
                Some(address) => {
                    prop_assert_eq!(pool.locate(address), Some((block, host)));
                    let subnet = pool.subnet(block).unwrap();
                    prop_assert!(subnet.contains(address));
                    prop_assert_eq!(pool.block_of(subnet), Ok(block));
                }
                None => prop_assert!(block >= pool.blocks() || host >= 1 << bits),
            }
        }
    }
}
