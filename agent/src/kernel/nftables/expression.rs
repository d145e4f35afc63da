//! The expressions of nftables' rules that we write, and of others' the little that we read.
//!
//! Each [`Expression`] is a step of the kernel's register machine: load something, compare it, decide.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::super::nla::Nla;
use super::super::reply::Attributes;
use super::Fate;

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_*`, `NFTA_DATA_*`, `NFTA_VERDICT_CODE`.
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`.
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
/// `NFTA_IMMEDIATE_*`.
const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_LOOKUP_DREG`: where the value of a map goes.
const LOOKUP_DREG: u16 = 3;
/// `NFTA_TARGET_NAME` and `NFTA_MATCH_*` of `linux/netfilter/nf_tables_compat.h`: how iptables-nft calls its own.
const TARGET_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
/// `NFT_REG_VERDICT` and the first three registers of 16 bytes.
const VERDICT: u32 = 0;
const REG: u32 = 1;
const REG_MIN: u32 = 2;
const REG_MAX: u32 = 3;
/// `NFT_CMP_*`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_LEAST: u32 = 5;
/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`.
const DST_NAT: u32 = 1 << 5;
/// `RTN_LOCAL` of `linux/rtnetlink.h`.
const LOCAL: u32 = 2;

impl Nla {
    /// A value of a register.
    fn data(self, kind: u16, value: &[u8]) -> Self {
        self.nest(kind, &Self::default().raw(DATA_VALUE, value))
    }
}

/// How a rule ends (`NF_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet is gone.
    Drop = 0,
    /// This chain lets the packet pass.
    Accept = 1,
}

/// A field of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The IPv4 source address.
    Source,
    /// The IPv4 destination address.
    Destination,
    /// The transport's source port.
    SourcePort,
    /// The transport's destination port.
    DestinationPort,
    /// ICMP's type.
    IcmpType,
    /// The ports of the packet that an ICMP error quotes, if that has no options.
    QuotedPorts,
}

impl Field {
    /// Base (`NFT_PAYLOAD_*`), offset, length.
    const fn place(self) -> (u32, u32, u32) {
        match self {
            Self::Source => (1, 12, 4),
            Self::Destination => (1, 16, 4),
            Self::SourcePort => (2, 0, 2),
            Self::DestinationPort => (2, 2, 2),
            Self::IcmpType => (2, 0, 1),
            Self::QuotedPorts => (2, 28, 4),
        }
    }
}

/// What the kernel knows beside the packet (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the keys of nft(8)")]
pub enum Meta {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    Protocol = 16,
}

/// Which address or device is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    name: &'static str,
    data: Nla,
}

fn step(name: &'static str, data: Nla) -> Expression {
    Expression { name, data }
}

fn compare(operation: u32, value: &[u8]) -> Expression {
    step("cmp", Nla::default().be32(1, REG).be32(2, operation).data(3, value))
}

fn masked(mask: &[u8]) -> Expression {
    let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    let data = Nla::default().be32(1, REG).be32(2, REG).be32(3, length);
    step("bitwise", data.data(4, mask).data(5, &vec![0; mask.len()]))
}

fn load(field: Field) -> Expression {
    let (base, offset, length) = field.place();
    step("payload", Nla::default().be32(1, REG).be32(2, base).be32(3, offset).be32(4, length))
}

fn meta(key: Meta) -> Expression {
    step("meta", Nla::default().be32(1, REG).be32(2, key as u32))
}

/// A device's name as the kernel compares it.
fn padded(name: &str) -> [u8; 16] {
    let mut value = [0; 16];
    let length = name.len().min(15);
    value[..length].copy_from_slice(&name.as_bytes()[..length]);
    value
}

impl Expression {
    /// The address is in the network, or is not.
    pub fn in_network(field: Field, network: Ipv4Network, within: bool) -> Vec<Self> {
        let operation = if within { EQUAL } else { NOT_EQUAL };
        let mask = network.mask().octets();
        vec![load(field), masked(&mask), compare(operation, &network.network().octets())]
    }

    /// The address is this one.
    pub fn is_address(field: Field, address: Ipv4Addr) -> Vec<Self> {
        vec![load(field), compare(EQUAL, &address.octets())]
    }

    /// The transport protocol, by its number.
    pub fn protocol(number: u8) -> Vec<Self> {
        vec![meta(Meta::Protocol), compare(EQUAL, &[number])]
    }

    /// A port is this one; the protocol must have been compared before.
    pub fn port(field: Field, port: u16) -> Vec<Self> {
        vec![load(field), compare(EQUAL, &port.to_be_bytes())]
    }

    /// A port is this one or higher.
    pub fn port_from(field: Field, port: u16) -> Vec<Self> {
        vec![load(field), compare(AT_LEAST, &port.to_be_bytes())]
    }

    /// ICMP's type.
    pub fn icmp_type(number: u8) -> Vec<Self> {
        vec![load(Field::IcmpType), compare(EQUAL, &[number])]
    }

    /// An ICMP error quotes ports.
    pub fn quotes_ports() -> Vec<Self> {
        vec![load(Field::QuotedPorts), compare(NOT_EQUAL, &[0; 4])]
    }

    /// Whether any of these bits of the packet's mark is set.
    pub fn mark(bits: u32, set: bool) -> Vec<Self> {
        let operation = if set { NOT_EQUAL } else { EQUAL };
        vec![meta(Meta::Mark), masked(&bits.to_ne_bytes()), compare(operation, &[0; 4])]
    }

    /// All of these bits of the packet's mark are set.
    pub fn mark_has(bits: u32) -> Vec<Self> {
        vec![meta(Meta::Mark), masked(&bits.to_ne_bytes()), compare(EQUAL, &bits.to_ne_bytes())]
    }

    /// Sets these bits of the packet's mark.
    pub fn set_mark(bits: u32) -> Vec<Self> {
        let data = Nla::default().be32(1, REG).be32(2, REG).be32(3, 4);
        let or = step("bitwise", data.data(4, &(!bits).to_ne_bytes()).data(5, &bits.to_ne_bytes()));
        vec![meta(Meta::Mark), or, step("meta", Nla::default().be32(2, Meta::Mark as u32).be32(3, REG))]
    }

    /// The device is, or is not, the one of this name.
    pub fn device(key: Meta, name: &str, same: bool) -> Vec<Self> {
        vec![meta(key), compare(if same { EQUAL } else { NOT_EQUAL }, &padded(name))]
    }

    /// The device's name starts so.
    pub fn device_prefix(key: Meta, prefix: &str) -> Vec<Self> {
        vec![meta(key), compare(EQUAL, prefix.as_bytes())]
    }

    /// Whether conntrack translates the flow's destination.
    pub fn is_translated(translated: bool) -> Vec<Self> {
        const STATUS: u32 = 2;
        let operation = if translated { NOT_EQUAL } else { EQUAL };
        let ct = step("ct", Nla::default().be32(1, REG).be32(2, STATUS));
        vec![ct, masked(&DST_NAT.to_ne_bytes()), compare(operation, &[0; 4])]
    }

    /// The packet goes the way of the flow's first one.
    pub fn is_original() -> Vec<Self> {
        const DIRECTION: u32 = 1;
        vec![step("ct", Nla::default().be32(1, REG).be32(2, DIRECTION)), compare(EQUAL, &[0])]
    }

    /// Whether the address is one of this node's.
    pub fn is_local(which: Direction, local: bool) -> Vec<Self> {
        const ADDRTYPE: u32 = 3;
        let flags = if which == Direction::Source { 1 } else { 2 };
        let fib = step("fib", Nla::default().be32(1, REG).be32(2, ADDRTYPE).be32(3, flags));
        vec![fib, compare(if local { EQUAL } else { NOT_EQUAL }, &LOCAL.to_ne_bytes())]
    }

    /// The packet goes out by the device by which it came in.
    pub fn turns_back() -> Vec<Self> {
        const OIF: u32 = 1;
        const DADDR_AND_IIF: u32 = 2 | 8;
        let fib = step("fib", Nla::default().be32(1, REG).be32(2, OIF).be32(3, DADDR_AND_IIF));
        vec![fib, compare(NOT_EQUAL, &[0; 4])]
    }

    /// For a packet of this mark the device of this name leads to where it came from.
    pub fn comes_from_behind(device: &str) -> Vec<Self> {
        const OIFNAME: u32 = 2;
        const SADDR_AND_MARK: u32 = 1 | 4;
        let fib = step("fib", Nla::default().be32(1, REG).be32(2, OIFNAME).be32(3, SADDR_AND_MARK));
        vec![fib, compare(EQUAL, &padded(device))]
    }

    /// Conntrack leaves the packet alone.
    pub fn notrack() -> Vec<Self> {
        vec![step("notrack", Nla::default())]
    }

    /// Counts in a counter of the rule's own.
    pub fn counted() -> Vec<Self> {
        vec![step("counter", Nla::default().be64(1, 0).be64(2, 0))]
    }

    /// Counts in a named counter of the table.
    pub fn counted_in(counter: &str) -> Vec<Self> {
        vec![step("objref", Nla::default().be32(1, super::transaction::COUNTER).text(2, counter))]
    }

    /// The end.
    pub fn verdict(verdict: Verdict) -> Vec<Self> {
        let inner = Nla::default().nest(DATA_VERDICT, &Nla::default().be32(VERDICT_CODE, verdict as u32));
        vec![step("immediate", Nla::default().be32(1, VERDICT).nest(IMMEDIATE_DATA, &inner))]
    }

    /// The source keeps its address and gets a port of this range.
    pub fn source_port_of(first: u16, last: u16) -> Vec<Self> {
        const SNAT: u32 = 0;
        const NFPROTO_IPV4: u32 = 2;
        let port = |register, port: u16| {
            step("immediate", Nla::default().be32(1, register).data(IMMEDIATE_DATA, &port.to_be_bytes()))
        };
        let nat = Nla::default().be32(1, SNAT).be32(2, NFPROTO_IPV4).be32(3, REG);
        let nat = step("nat", nat.be32(5, REG_MIN).be32(6, REG_MAX));
        vec![load(Field::Source), port(REG_MIN, first), port(REG_MAX, last), nat]
    }

    /// The source gets the address of the device by which the packet leaves.
    pub fn masquerade() -> Vec<Self> {
        vec![step("masq", Nla::default())]
    }
}

/// The list of a rule's expressions.
pub(super) fn list(expressions: &[Expression]) -> Nla {
    expressions.iter().fold(Nla::default(), |list, expression| {
        let one = Nla::default().text(EXPR_NAME, expression.name).nest(EXPR_DATA, &expression.data);
        list.nest(LIST_ELEM, &one)
    })
}

/// What a rule's expressions say.
pub(super) struct Description {
    /// What becomes of every packet that comes to it, if that is known without a condition.
    pub fate: Option<Fate>,
    /// What becomes of a packet that meets its conditions.
    pub met: Option<Fate>,
    /// The comment that iptables made a match of.
    pub comment: Option<String>,
}

/// The fate that an `immediate` decides.
fn decided(data: &Attributes<'_>) -> Option<Fate> {
    let value = data.nest(IMMEDIATE_DATA);
    let verdict = value.nest(DATA_VERDICT);
    let code = i32::from_be_bytes(verdict.bytes(VERDICT_CODE)?.try_into().ok()?);
    match code {
        code if code == Verdict::Drop as i32 => Some(Fate::Stopped),
        code if code == Verdict::Accept as i32 => Some(Fate::Passed),
        JUMP => verdict.text(VERDICT_CHAIN).map(Fate::Jumps),
        GOTO => verdict.text(VERDICT_CHAIN).map(Fate::Goes),
        RETURN => Some(Fate::Returned),
        _ => None,
    }
}

/// The fate that an extension of iptables decides.
fn decided_by_target(name: &str) -> Option<Fate> {
    match name {
        "REJECT" | "DROP" => Some(Fate::Stopped),
        "NFQUEUE" | "SYNPROXY" => Some(Fate::Varies),
        _ => None,
    }
}

/// Reads a rule's expressions. Its last one decides.
pub(super) fn describe(list: &Attributes<'_>) -> Description {
    let (mut conditional, mut met, mut comment) = (false, None, None);
    for element in list.all(LIST_ELEM) {
        let element = Attributes::parse(element);
        let (name, data) = (element.text(EXPR_NAME).unwrap_or_default(), element.nest(EXPR_DATA));
        met = match name.as_str() {
            "immediate" => decided(&data),
            "reject" => Some(Fate::Stopped),
            "target" => decided_by_target(&data.text(TARGET_NAME).unwrap_or_default()),
            "match" if data.text(TARGET_NAME).as_deref() == Some("comment") => {
                comment = data.text(MATCH_INFO);
                None
            }
            "counter" | "log" => None,
            // Anything else is a condition, or does something else than to decide.
            other => {
                conditional = true;
                let varies = match other {
                    "lookup" => super::be32(&data, LOOKUP_DREG) == Some(VERDICT),
                    other => matches!(other, "queue" | "synproxy"),
                };
                varies.then_some(Fate::Varies)
            }
        };
    }
    Description { fate: met.clone().filter(|met| !conditional && *met != Fate::Varies), met, comment }
}
