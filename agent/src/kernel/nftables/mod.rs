//! nftables by netlink: tables, chains, rules and counters, written in one transaction, read back by dumps.
//!
//! Expressions are in `expression.rs`. A rule is told from others by its comment: nobody changes a rule in place, so a chain
//! whose comments are ours, in our order, is our chain. Numbers travel in network byte order (nfnetlink).

mod expression;
mod transaction;

use std::os::fd::AsFd as _;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::error::KernelError;
use super::nla::Nla;
use super::reply::{Attributes, Reply};
use super::socket::{ANSWER_DEADLINE, DUMP_TRIES, Netlink, RECEIVE_BUFFER};

pub use expression::{Direction, Expression, Field, Meta, Verdict};
pub use transaction::{BaseChain, Place, Transaction};

use expression::Description;

/// `NFNL_SUBSYS_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_*` of `linux/netfilter/nf_tables.h`.
const GETTABLE: u16 = 1;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWOBJ: u16 = 18;
const GETOBJ: u16 = 19;
/// Length of `struct nfgenmsg`.
const HEADER_LEN: usize = 4;
/// `NFTA_TABLE_*`.
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USERDATA: u16 = 6;
/// `NFTA_CHAIN_*`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_*`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_POSITION: u16 = 6;
const RULE_USERDATA: u16 = 7;
/// `NFTA_OBJ_*` and `NFTA_COUNTER_*`.
const OBJ_TABLE: u16 = 1;
const OBJ_NAME: u16 = 2;
const OBJ_TYPE: u16 = 3;
const OBJ_DATA: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
/// `NFT_TABLE_F_DORMANT`.
const DORMANT: u32 = 1;

/// The protocol family of a table (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
        }
    }

    const fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            _ => None,
        }
    }

    /// As `nft` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
        }
    }
}

/// Where a base chain is called (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the hooks of nft(8)")]
pub enum InetHook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A table that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its comment.
    pub comment: Option<String>,
    /// Switched off.
    pub dormant: bool,
}

/// A chain that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Of its table.
    pub family: Family,
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its hook's number and priority, if it is a base chain.
    pub hook: Option<(u32, i32)>,
    /// `filter`, `nat`, `route`.
    pub kind: String,
    /// Whether what reaches its end is dropped.
    pub drops: bool,
}

/// A rule that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its number in its table.
    pub handle: u64,
    /// Its comment, as nft or iptables keeps it.
    pub comment: Option<String>,
    /// What becomes of every packet that comes to it; none if that takes a condition or the rule does not decide.
    pub fate: Option<Fate>,
    /// What becomes of a packet that meets its conditions, if it has any; none if the rule does not decide.
    pub met: Option<Fate>,
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Drops or rejects it.
    Stopped,
    /// Accepts it for this base chain.
    Passed,
    /// Ends this chain: the caller goes on, a base chain's policy decides.
    Returned,
    /// Has it judged by the chain of that name, and goes on with what comes back.
    Jumps(String),
    /// Has it judged by the chain of that name instead of the rest of this one.
    Goes(String),
    /// A map of verdicts or a program of somebody's decides.
    Varies,
}

/// A socket for nftables in one network namespace.
#[derive(Debug)]
pub struct Nftables(Netlink);

/// The header of a message, and its attributes.
fn message(kind: u16, family: u8, flags: u16, sequence: u32, attributes: &Nla) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes.bytes());
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// A comment as libnftnl keeps it: type 0, length, text, zero.
fn comment(text: &str) -> Vec<u8> {
    // What does not fit into the length's byte is of no use to anybody.
    let text: String = text.chars().take(120).collect();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length][..], text.as_bytes(), &[0]].concat()
}

fn comment_of(userdata: Option<&[u8]>) -> Option<String> {
    let mut rest = userdata?;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == 0 {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = &tail[usize::from(*length)..];
    }
    None
}

fn be32(attributes: &Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attributes.bytes(kind)?.try_into().ok()?))
}

fn be64(attributes: &Attributes<'_>, kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(attributes.bytes(kind)?.try_into().ok()?))
}

fn of_kind<'a>(reply: &Reply<'a>, kind: u16) -> Option<(u8, Attributes<'a>)> {
    (reply.kind == (SUBSYSTEM << 8 | kind)).then_some(())?;
    Some((*reply.body.first()?, Attributes::behind(reply.body, HEADER_LEN)))
}

impl Nftables {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn here() -> Result<Self, KernelError> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let failed = |source| KernelError::Socket { operation: "open a netlink socket for nftables".into(), source };
        let socket = open().map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        sockopt::set_socket_timeout(socket.as_fd(), sockopt::Timeout::Recv, Some(ANSWER_DEADLINE)).map_err(failed)?;
        Ok(Self(Netlink { socket, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] }))
    }

    fn list<T>(
        &mut self,
        operation: &str,
        (kind, family): (u16, u8),
        attributes: &Nla,
        mut read: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.0.next_sequence();
            let bytes = message(kind, family, NLM_F_DUMP, sequence, attributes);
            let failed = |source| KernelError::Socket { operation: operation.into(), source };
            self.0.send(&bytes).map_err(failed)?;
            match self.0.read_dump(operation, sequence, &mut read) {
                // The kernel tells a listing that changed in two ways.
                Ok(None) | Err(KernelError::Refused { errno: Errno::INTR | Errno::AGAIN, .. }) => {}
                Ok(Some(listed)) => return Ok(listed),
                Err(error) => return Err(error),
            }
        }
        Err(KernelError::Unsettled { operation: operation.into(), tries: DUMP_TRIES })
    }

    /// The table of that name, if there is one.
    pub fn table(&mut self, family: Family, name: &str) -> Result<Option<Table>, KernelError> {
        let found = self.list("list nftables' tables", (GETTABLE, family.number()), &Nla::default(), |reply| {
            let (of, attributes) = of_kind(reply, NEWTABLE)?;
            (of == family.number() && attributes.text(TABLE_NAME)? == name).then(|| Table {
                comment: comment_of(attributes.bytes(TABLE_USERDATA)),
                dormant: be32(&attributes, TABLE_FLAGS).unwrap_or_default() & DORMANT != 0,
            })
        })?;
        Ok(found.into_iter().next())
    }

    /// All chains of tables that see IPv4.
    pub fn chains(&mut self) -> Result<Vec<Chain>, KernelError> {
        self.list("list nftables' chains", (GETCHAIN, 0), &Nla::default(), |reply| {
            let (family, attributes) = of_kind(reply, NEWCHAIN)?;
            let hook = attributes.nest(CHAIN_HOOK);
            let priority = be32(&hook, HOOK_PRIORITY).map(u32::cast_signed);
            Some(Chain {
                family: Family::of(family)?,
                table: attributes.text(CHAIN_TABLE)?,
                name: attributes.text(CHAIN_NAME)?,
                hook: be32(&hook, HOOK_NUMBER).zip(priority),
                kind: attributes.text(CHAIN_TYPE).unwrap_or_default(),
                // NF_DROP is 0, NF_ACCEPT 1.
                drops: be32(&attributes, CHAIN_POLICY) == Some(0),
            })
        })
    }

    /// The rules of a chain in their order; none if the chain is not there.
    pub fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Rule>, KernelError> {
        let attributes = Nla::default().text(RULE_TABLE, table).text(RULE_CHAIN, chain);
        let operation = format!("list the rules of {} {table} {chain}", family.name());
        let listed = self.list(&operation, (GETRULE, family.number()), &attributes, |reply| {
            let (_, attributes) = of_kind(reply, NEWRULE)?;
            // A kernel that does not filter lists all.
            let here = attributes.text(RULE_TABLE)? == table && attributes.text(RULE_CHAIN)? == chain;
            let Description { fate, met, comment } = expression::describe(&attributes.nest(RULE_EXPRESSIONS));
            here.then(|| Rule {
                handle: be64(&attributes, RULE_HANDLE).unwrap_or_default(),
                comment: comment_of(attributes.bytes(RULE_USERDATA)).or(comment),
                fate,
                met,
            })
        });
        match listed {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// The packets of a table's named counters.
    pub fn counters(&mut self, family: Family, table: &str) -> Result<Vec<(String, u64)>, KernelError> {
        let attributes = Nla::default().text(OBJ_TABLE, table).be32(OBJ_TYPE, transaction::COUNTER);
        let listed = self.list("list nftables' counters", (GETOBJ, family.number()), &attributes, |reply| {
            let (_, attributes) = of_kind(reply, NEWOBJ)?;
            (attributes.text(OBJ_TABLE)? == table).then_some(())?;
            let packets = be64(&attributes.nest(OBJ_DATA), COUNTER_PACKETS)?;
            Some((attributes.text(OBJ_NAME)?, packets))
        });
        match listed {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            listed => listed,
        }
    }
}
