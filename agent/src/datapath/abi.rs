//! The bytes that the agent and the eBPF programs share: `bpf/abi.h` in Rust.
//!
//! Values are written and read as plain byte arrays, field by field, so that no memory layout of Rust's is involved. The
//! test below holds sizes and offsets against the compiled programs' own BTF.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kernel::Mac;

/// `ABI_VERSION`: names the folder of the pinned maps.
pub const ABI_VERSION: u32 = 1;
/// Namespace indices: 0 is none, 1 the nodes' own, 2 a VNI that is not known.
pub const NS_NODE: u32 = 1;
/// See [`NS_NODE`].
pub const NS_UNKNOWN: u32 = 2;
/// The first index of a namespace.
pub const NS_FIRST: u32 = 3;
/// One past the last index: it travels in 16 bits of the mark.
pub const NS_MAX: u32 = 65_536;
/// In place of a `NetID`: reaches `NetID` 0 only.
pub const NETID_NONE: u32 = u32::MAX;

const NS_ASSIGNED: u32 = 1;
const NODE_PRESENT: u32 = 1;
const NODE_LOCAL: u32 = 2;
const EP_SHAPED: u32 = 1;
const EP_POLICED: u32 = 2;
const POLICER_SHIFT: u32 = 24;

/// A device of ours in the host's netns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Port {
    /// A pod's host veth.
    Pod = 1,
    /// The overlay device.
    Overlay = 2,
}

/// Bytes of a value, filled in field by field.
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Bytes<N> {
    const fn new() -> Self {
        Self([0; N])
    }

    fn at(mut self, offset: usize, field: &[u8]) -> Self {
        if let Some(place) = self.0.get_mut(offset..offset + field.len()) {
            place.copy_from_slice(field);
        }
        self
    }

    fn u32(self, offset: usize, field: u32) -> Self {
        self.at(offset, &field.to_ne_bytes())
    }

    fn u64(self, offset: usize, field: u64) -> Self {
        self.at(offset, &field.to_ne_bytes())
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn v4_at(bytes: &[u8], offset: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32_at(bytes, offset).to_ne_bytes())
}

/// `struct ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespaceValue {
    /// Its name on the wire.
    pub vni: u32,
    /// Its network in each bank.
    pub net_id: [u32; 2],
    /// Whether the index is in use.
    pub assigned: bool,
}

impl NamespaceValue {
    /// Its size.
    pub const SIZE: usize = 16;

    /// As the programs read it.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let flags = if self.assigned { NS_ASSIGNED } else { 0 };
        Bytes::new().u32(0, self.vni).u32(4, self.net_id[0]).u32(8, self.net_id[1]).u32(12, flags).0
    }

    /// As it was written.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self {
            vni: u32_at(&bytes, 0),
            net_id: [u32_at(&bytes, 4), u32_at(&bytes, 8)],
            assigned: u32_at(&bytes, 12) & NS_ASSIGNED != 0,
        }
    }
}

/// Which state of etcd the maps are of: the revision's lower 48 bits, and 16 bits of the cluster's ID. 0 is none known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin(u64);

impl Origin {
    const REVISION_BITS: u32 = 48;

    /// Of a state that was read from etcd; a revision below 1 is of none.
    pub fn new(cluster_id: u64, revision: i64) -> Self {
        let Some(revision) = u64::try_from(revision).ok().filter(|revision| *revision > 0) else {
            return Self::default();
        };
        let tag = (0..4).fold(0, |tag, part| tag ^ (cluster_id >> (16 * part))) & 0xffff;
        Self(tag << Self::REVISION_BITS | revision & ((1 << Self::REVISION_BITS) - 1))
    }

    /// Whether a state of `other` may lack what this one has: it is older, or of another etcd, or unknown.
    pub const fn is_ahead_of(self, other: Self) -> bool {
        self.0 != 0 && (self.0 >> Self::REVISION_BITS != other.0 >> Self::REVISION_BITS || other.0 < self.0)
    }
}

/// `struct state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateValue {
    /// The bank of `NetID`s that holds, 0 or 1.
    pub bank: u32,
    /// The overlay device.
    pub overlay_ifindex: u32,
    /// Which state of etcd the `NetID`s are of: for the agent after this one.
    pub origin: Origin,
}

impl StateValue {
    /// Its size.
    pub const SIZE: usize = 16;

    /// As the programs read it.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        Bytes::new().u32(0, self.bank).u32(4, self.overlay_ifindex).u64(8, self.origin.0).0
    }

    /// As it was written.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let origin = Origin(u64_at(&bytes, 8));
        Self { bank: u32_at(&bytes, 0) & 1, overlay_ifindex: u32_at(&bytes, 4), origin }
    }
}

/// Where a tunnel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The node's underlay address.
    pub remote: IpAddr,
    /// Whether it is this node.
    pub local: bool,
    /// The MTU of the route to it, where that is narrower than its device.
    pub mtu: Option<u32>,
}

impl Peer {
    const fn flags(self) -> u32 {
        NODE_PRESENT | if self.local { NODE_LOCAL } else { 0 }
    }

    fn remotes(self) -> ([u8; 4], [u8; 16]) {
        match self.remote {
            IpAddr::V4(v4) => (v4.octets(), [0; 16]),
            IpAddr::V6(v6) => ([0; 4], v6.octets()),
        }
    }

    /// `struct node`'s size.
    pub const NODE_SIZE: usize = 32;

    /// As `struct node`.
    pub fn to_node(self) -> [u8; Self::NODE_SIZE] {
        let (v4, v6) = self.remotes();
        Bytes::new().at(0, &v4).u32(4, self.flags()).u32(8, self.mtu.unwrap_or(0)).at(16, &v6).0
    }

    /// `struct node_address`' size.
    pub const ADDRESS_SIZE: usize = 32;

    /// As `struct node_address`.
    pub fn to_node_address(self) -> [u8; Self::ADDRESS_SIZE] {
        let (v4, v6) = self.remotes();
        Bytes::new().at(0, &v4).u32(4, self.flags()).u32(8, self.mtu.unwrap_or(0)).at(16, &v6).0
    }
}

/// `struct address`: IPv4 as `::ffff:a.b.c.d`.
pub fn address_key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of a `struct address`.
pub fn address_of_key(key: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(key).to_canonical()
}

/// `struct endpoint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointValue {
    /// The pod's address.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address, in a dual-stack cluster.
    pub ip6: Option<Ipv6Addr>,
    /// The host's side of its veth.
    pub ifindex: u32,
    /// Namespace index.
    pub namespace: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// The MAC address that its gateway has.
    pub gateway_mac: Mac,
    /// A qdisc on the host's side must see what goes to it.
    pub shaped: bool,
    /// Its egress has a limit.
    pub policed: bool,
}

impl EndpointValue {
    /// Its size.
    pub const SIZE: usize = 64;

    /// As the programs read it.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let flags = if self.shaped { EP_SHAPED } else { 0 } | if self.policed { EP_POLICED } else { 0 };
        Bytes::new()
            .at(0, &self.ip4.octets())
            .u32(4, self.ifindex)
            .u32(8, self.namespace)
            .u32(12, flags)
            .at(16, &self.mac.0)
            .at(22, &self.gateway_mac.0)
            .at(32, &self.ip6.map_or([0; 16], |ip| ip.octets()))
            .0
    }

    /// The device and namespace index of a value, or none if no pod is there.
    pub fn occupant(bytes: &[u8; Self::SIZE]) -> Option<(u32, u32)> {
        let ifindex = u32_at(bytes, 4);
        (ifindex != 0).then(|| (ifindex, u32_at(bytes, 8)))
    }
}

/// `struct policer`: the guaranteed bound of a pod's egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicerValue {
    /// Bytes per second, at least 1.
    pub rate: u64,
    /// Bytes that may come at once.
    pub burst: u64,
}

impl PolicerValue {
    /// Its size.
    pub const SIZE: usize = 32;

    /// As the programs read it, with an empty history.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let per_byte = |bytes: u64, shift: u32| {
            let nanoseconds = (u128::from(bytes) * 1_000_000_000) << shift;
            u64::try_from(nanoseconds / u128::from(self.rate.max(1))).unwrap_or(u64::MAX)
        };
        // At least 1: 0 means no limit.
        let cost = per_byte(1, POLICER_SHIFT).max(1);
        Bytes::new().u64(8, cost).u64(16, per_byte(self.burst, 0)).0
    }
}

/// `struct drop_count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropCount {
    /// Packets.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl DropCount {
    /// Its size.
    pub const SIZE: usize = 16;

    /// One CPU's count.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self { packets: u64_at(&bytes, 0), bytes: u64_at(&bytes, 8) }
    }
}

/// `struct drop_event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropEvent {
    /// The reason's number.
    pub reason: u32,
    /// Where it was dropped.
    pub ifindex: u32,
    /// From.
    pub source: (Ipv4Addr, u16),
    /// To.
    pub destination: (Ipv4Addr, u16),
    /// The IP protocol's number.
    pub protocol: u32,
    /// The source's VNI, 0 where it is not known.
    pub source_vni: u32,
    /// The destination's VNI, 0 where it is not known.
    pub destination_vni: u32,
}

impl DropEvent {
    /// Its size.
    pub const SIZE: usize = 40;

    /// Reads an event; none if it is too short.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let port = |offset| Some(u16::from_be_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?));
        (bytes.len() >= Self::SIZE).then_some(())?;
        Some(Self {
            reason: u32_at(bytes, 8),
            ifindex: u32_at(bytes, 12),
            source: (v4_at(bytes, 16), port(24)?),
            destination: (v4_at(bytes, 20), port(26)?),
            protocol: u32_at(bytes, 28),
            source_vni: u32_at(bytes, 32),
            destination_vni: u32_at(bytes, 36),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;

    /// Name, size, and members with their offsets.
    type Layout = (&'static str, usize, &'static [(&'static str, usize)]);

    /// Member offsets in bytes and the size of each struct, as clang wrote them into the object's BTF.
    fn structs() -> BTreeMap<String, (usize, BTreeMap<String, usize>)> {
        let object = concat!(env!("OUT_DIR"), "/datapath.bpf.o");
        let dump = Command::new("bpftool").args(["-j", "btf", "dump", "file", object]).output();
        let dump = dump.expect("this test needs bpftool: run `make setup`");
        let json: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
        let types = json["types"].as_array().unwrap();
        let entry = |t: &serde_json::Value| {
            let members = t["members"].as_array().unwrap().iter();
            let offsets = members.map(|m| {
                let offset = usize::try_from(m["bits_offset"].as_u64().unwrap() / 8).unwrap();
                (m["name"].as_str().unwrap().to_owned(), offset)
            });
            let size = usize::try_from(t["size"].as_u64().unwrap()).unwrap();
            (t["name"].as_str().unwrap().to_owned(), (size, offsets.collect()))
        };
        types.iter().filter(|t| t["kind"] == "STRUCT").map(entry).collect()
    }

    #[test]
    fn the_layouts_are_those_of_the_compiled_programs() {
        let structs = structs();
        let expected: &[Layout] = &[
            ("ns", NamespaceValue::SIZE, &[("vni", 0), ("net_id", 4), ("flags", 12)]),
            ("state", StateValue::SIZE, &[("bank", 0), ("overlay_ifindex", 4), ("origin", 8)]),
            ("node", Peer::NODE_SIZE, &[("remote4", 0), ("flags", 4), ("mtu", 8), ("remote6", 16)]),
            ("node_address", Peer::ADDRESS_SIZE, &[("remote4", 0), ("flags", 4), ("mtu", 8), ("remote6", 16)]),
            (
                "endpoint",
                EndpointValue::SIZE,
                &[("ip4", 0), ("ifindex", 4), ("ns", 8), ("flags", 12), ("mac", 16), ("gw_mac", 22), ("ip6", 32)],
            ),
            ("policer", PolicerValue::SIZE, &[("arrival", 0), ("cost", 8), ("burst", 16)]),
            ("drop_count", DropCount::SIZE, &[("packets", 0), ("bytes", 8)]),
        ];
        for (name, size, members) in expected {
            let (actual, offsets) = &structs[*name];
            assert_eq!(actual, size, "struct {name}");
            for (member, offset) in *members {
                assert_eq!(offsets[*member], *offset, "{name}.{member}");
            }
        }
    }

    #[test]
    fn values_round_trip() {
        let ns = NamespaceValue { vni: 10, net_id: [11, 12], assigned: true };
        assert_eq!(NamespaceValue::from_bytes(ns.to_bytes()), ns);
        let state = StateValue { bank: 1, overlay_ifindex: 7, origin: Origin::new(3, 9) };
        assert_eq!(StateValue::from_bytes(state.to_bytes()), state);
        let key = address_key("10.0.0.1".parse().unwrap());
        assert_eq!(address_of_key(key), "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_state_is_older_when_it_may_lack_something() {
        let none = Origin::default();
        let (cluster, other) = (0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdee);
        let at = |revision| Origin::new(cluster, revision);
        for older in [none, at(8), at(0), at(-1), Origin::new(other, 9), Origin::new(other, 10)] {
            assert!(at(9).is_ahead_of(older), "{older:?}");
        }
        for newer in [at(9), at(10), at(1 << 40)] {
            assert!(!at(9).is_ahead_of(newer), "{newer:?}");
        }
        // Maps of an agent that did not tell: whatever is known is applied.
        assert!(!none.is_ahead_of(none) && !none.is_ahead_of(at(1)));
    }

    #[test]
    fn a_policer_holds_at_both_ends_of_the_range() {
        let slow = PolicerValue { rate: 125, burst: 65_536 }.to_bytes();
        assert_eq!(u64_at(&slow, 8), 8_000_000 << 24);
        assert!(65_536u64.checked_mul(u64_at(&slow, 8)).is_some(), "one GSO packet's cost fits 64 bits");
        let fast = PolicerValue { rate: 125_000_000_000_000, burst: 1 << 30 }.to_bytes();
        assert!(u64_at(&fast, 8) > 0);
    }
}
