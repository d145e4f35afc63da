//! Changes of nftables: all of a [`Transaction`] or nothing.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

use super::super::error::KernelError;
use super::super::nla::Nla;
use super::super::reply::{Outcome, Reply};
use super::super::socket::ReceiveError;
use super::expression::{self, Expression};
use super::{Family, InetHook, Nftables, comment, message};

/// `NFT_OBJECT_COUNTER`.
pub(super) const COUNTER: u32 = 1;
/// `NFNL_MSG_BATCH_BEGIN` and its end.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// `NLM_F_APPEND`: behind the chain's other rules.
const APPEND: u16 = 0x800;

/// A base chain to be made.
#[derive(Debug, Clone, Copy)]
pub struct BaseChain<'a> {
    /// Its name.
    pub name: &'a str,
    /// `filter` or `nat`.
    pub kind: &'a str,
    /// Where it is called.
    pub hook: InetHook,
    /// Lower comes first.
    pub priority: i32,
}

/// Where in its chain a rule is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Behind all others.
    Last,
    /// Just before the rule of that handle.
    Before(u64),
}

struct Change {
    kind: u16,
    family: Family,
    flags: u16,
    attributes: Nla,
    operation: String,
}

/// Changes that happen together.
#[derive(Default)]
pub struct Transaction(Vec<Change>);

impl Transaction {
    fn push(&mut self, kind: u16, family: Family, flags: u16, attributes: Nla, operation: String) {
        self.0.push(Change { kind, family, flags, attributes, operation });
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes a table, if there is none of that name.
    pub fn table(&mut self, family: Family, name: &str, about: &str) {
        let attributes = Nla::default().text(super::TABLE_NAME, name).raw(super::TABLE_USERDATA, &comment(about));
        self.push(super::NEWTABLE, family, NLM_F_CREATE, attributes, format!("make the table {name}"));
    }

    /// Deletes a table, which must be there, with all that is in it.
    pub fn delete_table(&mut self, family: Family, name: &str) {
        let attributes = Nla::default().text(super::TABLE_NAME, name);
        self.push(super::DELTABLE, family, 0, attributes, format!("delete the table {name}"));
    }

    /// Makes a named counter.
    pub fn counter(&mut self, family: Family, table: &str, name: &str) {
        let zero = Nla::default().be64(1, 0).be64(super::COUNTER_PACKETS, 0);
        let attributes = Nla::default().text(super::OBJ_TABLE, table).text(super::OBJ_NAME, name);
        let attributes = attributes.be32(super::OBJ_TYPE, COUNTER).nest(super::OBJ_DATA, &zero);
        self.push(super::NEWOBJ, family, NLM_F_CREATE, attributes, format!("make the counter {name}"));
    }

    /// Makes a base chain that accepts what reaches its end.
    pub fn chain(&mut self, family: Family, table: &str, chain: &BaseChain<'_>) {
        let hook = Nla::default().be32(super::HOOK_NUMBER, chain.hook as u32);
        let hook = hook.be32(super::HOOK_PRIORITY, chain.priority.cast_unsigned());
        let attributes = Nla::default().text(super::CHAIN_TABLE, table).text(super::CHAIN_NAME, chain.name);
        let attributes = attributes.nest(super::CHAIN_HOOK, &hook).be32(super::CHAIN_POLICY, 1);
        let attributes = attributes.text(super::CHAIN_TYPE, chain.kind);
        self.push(super::NEWCHAIN, family, NLM_F_CREATE, attributes, format!("make the chain {table} {}", chain.name));
    }

    /// Adds a rule.
    pub fn rule(
        &mut self,
        (family, table, chain): (Family, &str, &str),
        place: Place,
        about: &str,
        expressions: &[Expression],
    ) {
        let attributes = Nla::default().text(super::RULE_TABLE, table).text(super::RULE_CHAIN, chain);
        let attributes = attributes.nest(super::RULE_EXPRESSIONS, &expression::list(expressions));
        let attributes = attributes.raw(super::RULE_USERDATA, &comment(about));
        let (flags, attributes) = match place {
            Place::Last => (NLM_F_CREATE | APPEND, attributes),
            Place::Before(handle) => (NLM_F_CREATE, attributes.be64(super::RULE_POSITION, handle)),
        };
        self.push(super::NEWRULE, family, flags, attributes, format!("add to {table} {chain} the rule {about:?}"));
    }

    /// Deletes a rule.
    pub fn delete_rule(&mut self, (family, table, chain): (Family, &str, &str), handle: u64) {
        let attributes = Nla::default().text(super::RULE_TABLE, table).text(super::RULE_CHAIN, chain);
        let attributes = attributes.be64(super::RULE_HANDLE, handle);
        self.push(super::DELRULE, family, 0, attributes, format!("delete the rule {handle} of {table} {chain}"));
    }
}

/// The header of a batch's first and last message: its `res_id` names the subsystem.
fn bracket(kind: u16, sequence: u32) -> Vec<u8> {
    let mut bytes = 20_u32.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([0, 0]);
    bytes.extend(super::SUBSYSTEM.to_be_bytes());
    bytes
}

impl Nftables {
    /// Carries all of it out, or nothing.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), KernelError> {
        let Self(netlink) = self;
        let first = netlink.next_sequence();
        let mut bytes = bracket(BEGIN, first);
        let mut waiting = Vec::new();
        for change in &transaction.0 {
            let sequence = netlink.next_sequence();
            let flags = change.flags | NLM_F_ACK;
            bytes.extend(message(change.kind, change.family.number(), flags, sequence, &change.attributes));
            waiting.push((sequence, change.operation.as_str()));
        }
        let operation = waiting.last().map_or("change nftables", |(_, operation)| operation).to_owned();
        bytes.extend(bracket(END, netlink.next_sequence()));
        netlink.send(&bytes).map_err(|source| KernelError::Socket { operation: operation.clone(), source })?;
        let mut refused = None;
        while !waiting.is_empty() {
            let length = match netlink.receive(false) {
                Ok(length) => length,
                // After a refusal some are not answered at all.
                Err(_) if refused.is_some() => break,
                Err(ReceiveError::Failed(source)) => return Err(KernelError::Socket { operation, source }),
                Err(_) => return Err(KernelError::Unanswered { operation }),
            };
            for reply in Reply::each(&netlink.buffer[..length]) {
                let Some(Outcome { errno, text }) = reply.outcome() else { continue };
                let place = waiting.iter().position(|(sequence, _)| *sequence == reply.sequence);
                let what = place.map(|place| waiting.remove(place).1);
                if let (Some(errno), true) = (errno, what.is_some() || reply.sequence >= first) {
                    let operation = what.unwrap_or("change nftables").to_owned();
                    refused.get_or_insert(KernelError::Refused { operation, errno, text });
                }
            }
            if refused.is_some() {
                // What else there is came with it.
                while netlink.receive(true).is_ok() {}
                break;
            }
        }
        refused.map_or(Ok(()), Err)
    }
}
