//! Subnets for nodes: admission and release.
//!
//! A machine that asks gets the first subnet that was never used, in the order of addresses, or else the one that was
//! released the longest ago. A record that names its subnet keeps it if it is free. What cannot be is answered in the
//! record and tried again whenever the state changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bulkhead_core::NodeName;
use bulkhead_core::cluster::Networks;
use bulkhead_core::ledger::{NodeEntry, ReleasedEntry, to_json};
use bulkhead_core::network::{NodeSubnets, parse_network};
use bulkhead_core::record::{Record, SubnetRecord};
use ipnetwork::IpNetwork;

use super::mirror::node_record;
use super::note::Note;
use super::numbers::Draft;
use super::seats::{self, Seats};
use super::shown;
use super::step::Step;
use crate::state::{Held, Mail, State};

/// Answer to who names no subnet before Kubernetes was listed: its Nodes may show what a restored ledger does not have.
const UNLISTED: &str = "no subnet yet: this controller has not been told by the API server which subnets the Nodes have; leave the record for when it is, or name a subnet that is free";
/// Answer to who names no subnet behind a restore.
const SETTLING: &str = "no subnet yet: etcd was restored, and for a minute machines that name the subnet they had come first; leave the record, or ask again in a minute";

/// What a valid record asks for.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) address: IpAddr,
    pub(super) host: NodeName,
    pub(super) subnets: Option<NodeSubnets>,
}

/// Takes the subnets of nodes whose record is gone, or whose Node has been for longer than the grace period.
pub(super) fn releases(state: &State, networks: &Networks) -> Option<Step> {
    let seats = Seats::new(state, networks);
    let mut step = Step::default();
    let mut turn = last_turn(state);
    for (&address, held) in &state.nodes {
        let Ok(node) = &held.value else { continue };
        if !seats::is_over(state, seats.as_ref(), address, node) {
            continue;
        }
        turn += 1;
        let record = state.subnets.get(&address.to_string()).map_or(0, |held| held.revision);
        let mut item = Step::default();
        item.expect(state.keys().subnet(address), record);
        item.expect(state.keys().ledger_node(address), held.revision);
        item.delete(state.keys().ledger_node(address));
        if record != 0 {
            item.delete(state.keys().subnet(address));
        }
        queue(state, node.subnets, turn, &mut item);
        item.note(Note::Released { host: node.host.clone(), address, subnets: node.subnets });
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// The last turn that was given out in the queue of released subnets.
pub(super) fn last_turn(state: &State) -> u64 {
    state.released.values().filter_map(|held| held.value).map(|(_, turn)| turn).max().unwrap_or(0)
}

/// Puts a node's subnet at this place in the queue.
pub(super) fn queue(state: &State, subnets: NodeSubnets, turn: u64, item: &mut Step) {
    if let Some(subnet) = subnets.iter().next() {
        let key = state.keys().released_subnet(subnet);
        let known = state.released.get(&segment_of(subnet)).map_or(0, |held| held.revision);
        item.expect(key.as_str(), known);
        item.put(key, to_json(&ReleasedEntry { turn }));
    }
}

fn segment_of(subnet: IpNetwork) -> String {
    format!("{}-{}", subnet.ip(), subnet.prefix())
}

/// Gives subnets to the records that have none in the ledger, first to those that name theirs.
pub(super) fn admissions(state: &State, networks: &Networks) -> Option<Step> {
    let waiting: Vec<_> = state.subnets.iter().filter(|(segment, _)| !is_admitted(state, segment)).collect();
    if waiting.is_empty() {
        return None;
    }
    let draft = Draft::new(state)?;
    let mut blocks = Blocks::new(state, networks, &waiting)?;
    let mut step = Step::default();
    let mut later = Vec::new();
    for (segment, held) in waiting {
        let item = match ask(segment, &held.value, networks) {
            Ok(ask) if ask.subnets.is_none() => {
                later.push((segment, held, ask));
                None
            }
            Ok(ask) => attempt(state, &draft, &mut blocks, segment, held, &ask),
            Err(reason) => refuse(state, segment, held, &reason),
        };
        if item.is_some_and(|item| !step.absorb(&item)) {
            return step.some();
        }
    }
    let wait = must_wait(state);
    for (segment, held, ask) in later {
        let item = match wait {
            Some(reason) => refuse(state, segment, held, reason),
            None => attempt(state, &draft, &mut blocks, segment, held, &ask),
        };
        if item.is_some_and(|item| !step.absorb(&item)) {
            break;
        }
    }
    step.some()
}

/// Why machines that name no subnet get none for now.
fn must_wait(state: &State) -> Option<&'static str> {
    if !super::is_listed(state) {
        return Some(UNLISTED);
    }
    // Behind a restore of etcd, whoever lost their place asks for it by name; it is theirs until then.
    state.settling().map(|_| SETTLING)
}

/// Answers machines that name no subnet and have to wait, while nobody at all is served.
pub(super) fn waiting(state: &State, networks: &Networks) -> Option<Step> {
    let reason = must_wait(state)?;
    let mut step = Step::default();
    for (segment, held) in state.subnets.iter().filter(|(segment, _)| !is_admitted(state, segment)) {
        let unnamed = ask(segment, &held.value, networks).is_ok_and(|ask| ask.subnets.is_none());
        let item = unnamed.then(|| refuse(state, segment, held, reason)).flatten();
        if item.is_some_and(|item| !step.absorb(&item)) {
            break;
        }
    }
    step.some()
}

/// Whether the key's text is the address of a node in the ledger, in its one spelling.
pub(super) fn is_admitted(state: &State, segment: &str) -> bool {
    segment.parse().is_ok_and(|address: IpAddr| address.to_string() == segment && state.nodes.contains_key(&address))
}

fn attempt(
    state: &State,
    draft: &Draft,
    blocks: &mut Blocks,
    segment: &str,
    held: &Held<Mail<SubnetRecord>>,
    ask: &Ask,
) -> Option<Step> {
    match blocks.give(ask) {
        Ok((subnets, reused)) => Some(admit(state, draft, held, ask, subnets, reused)),
        Err(reason) => refuse(state, segment, held, &reason),
    }
}

fn admit(
    state: &State,
    draft: &Draft,
    held: &Held<Mail<SubnetRecord>>,
    ask: &Ask,
    subnets: NodeSubnets,
    reused: Option<(String, i64)>,
) -> Step {
    let keys = state.keys();
    let node = NodeEntry { host: ask.host.clone(), addresses: vec![ask.address], subnets, uid: None };
    let mut item = Step::default();
    item.expect(keys.subnet(ask.address), held.revision);
    item.expect(keys.ledger_node(ask.address), 0);
    item.expect(keys.ledger_cluster(), state.cluster.as_ref().map_or(0, |held| held.revision));
    draft.serialise(&mut item);
    if let Some((segment, revision)) = reused {
        let key = format!("{}{segment}", keys.released_subnets());
        item.expect(key.as_str(), revision);
        item.delete(key);
    }
    item.put(keys.ledger_node(ask.address), to_json(&node));
    if let Mail::Record(record) = &held.value {
        let record = SubnetRecord { unknown: record.unknown.clone(), ..node_record(ask.address, &node) };
        item.put(keys.subnet(ask.address), record.to_json());
    }
    item.note(Note::Admitted { host: node.host, address: ask.address, subnets, adopted: ask.subnets.is_some() });
    item
}

/// Answers in the record, once.
fn refuse(state: &State, segment: &str, held: &Held<Mail<SubnetRecord>>, reason: &str) -> Option<Step> {
    let answer = match &held.value {
        Mail::Record(record) if record.error == reason => None,
        Mail::Record(record) => Some(SubnetRecord { error: reason.to_owned(), ..record.clone() }.to_json()),
        Mail::Broken(broken) => broken.answered(reason),
    }?;
    let key = format!("{}{segment}", state.keys().subnets());
    let mut item = Step::default();
    item.expect(key.as_str(), held.revision);
    item.put(key, answer);
    item.note(Note::Refused { what: "node", name: segment.to_owned(), reason: reason.to_owned() });
    Some(item)
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

pub(super) fn ask(segment: &str, mail: &Mail<SubnetRecord>, networks: &Networks) -> Result<Ask, String> {
    let record = match mail {
        Mail::Record(record) => record,
        Mail::Broken(broken) => return Err(broken.problem.clone()),
    };
    let address = check_address(segment, networks)?;
    if !record.host_ip.is_empty() && record.host_ip.parse() != Ok(address) {
        let given = excerpt(&record.host_ip);
        return Err(format!("HostIP {given:?} differs from {address}, the address in the key; make them the same"));
    }
    let host = NodeName::new(record.host.as_str()).map_err(|error| format!("Host: {error}"))?;
    if record.subnet.is_empty() {
        if !record.assign {
            return Err("Subnet is empty; set Assign to true to get one, or name one that is free".to_owned());
        }
        return Ok(Ask { address, host, subnets: None });
    }
    let subnets = parse_subnets(&record.subnet, networks)?;
    Ok(Ask { address, host, subnets: Some(subnets) })
}

pub(super) fn check_address(segment: &str, networks: &Networks) -> Result<IpAddr, String> {
    let address: IpAddr = segment
        .parse()
        .map_err(|_| format!("{:?} in the key is not an IP address; use the node's own", excerpt(segment)))?;
    if address.to_canonical().to_string() != segment {
        return Err(format!("the address in the key must be written {}", address.to_canonical()));
    }
    let for_hosts = !address.is_unspecified()
        && !address.is_loopback()
        && !address.is_multicast()
        && address != IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    if !for_hosts {
        return Err(format!("{address} is not an address by which other nodes reach this one"));
    }
    let ranges = networks.pools().map(|pool| pool.network()).chain(networks.services().iter().copied());
    match ranges.into_iter().find(|range| range.contains(address)) {
        Some(range) => {
            Err(format!("{address} lies in {range}, a range of pods or services; a node's address must not"))
        }
        None => Ok(address),
    }
}

fn parse_list(text: &str) -> Result<Vec<IpNetwork>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| parse_network(part).map_err(|error| format!("Subnet: {error}"))).collect()
}

pub(super) fn parse_subnets(text: &str, networks: &Networks) -> Result<NodeSubnets, String> {
    let subnets = NodeSubnets::try_from(parse_list(text)?).map_err(|error| format!("Subnet: {error}"))?;
    networks.block_of(subnets).map_err(|error| format!("Subnet: {error}"))?;
    Ok(subnets)
}

#[cfg(test)]
thread_local! {
    /// How often all nodes were looked over for what is free.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Which of the network's subnets are free.
pub(super) struct Blocks<'a> {
    networks: &'a Networks,
    taken: BTreeMap<u32, IpAddr>,
    /// Ranges that records name or Nodes show which the ledger does not have: whoever uses them must not get a neighbour.
    claimed: BTreeSet<u32>,
    /// What one Node alone shows.
    shown: BTreeMap<NodeName, u32>,
    /// By turn: block, last segment of the key, revision.
    released: BTreeMap<(u64, u32), (String, i64)>,
    /// The blocks that were in the queue.
    used: BTreeSet<u32>,
    /// Every block before it is taken, claimed or was used once.
    next: u32,
    /// Why nobody gets one any more.
    full: Option<String>,
}

impl<'a> Blocks<'a> {
    /// None while a node's entry cannot be read: its subnet could be given out twice.
    pub(super) fn new(
        state: &State,
        networks: &'a Networks,
        waiting: &[(&String, &Held<Mail<SubnetRecord>>)],
    ) -> Option<Self> {
        #[cfg(test)]
        LOOKS.with(|looks| looks.set(looks.get() + 1));
        let mut taken = BTreeMap::new();
        for (&address, held) in &state.nodes {
            taken.insert(networks.block_of(held.value.as_ref().ok()?.subnets).ok()?, address);
        }
        // Only what lies in one block: a record that names the whole network by mistake must not keep all others out.
        let block = |subnet: IpNetwork| {
            let pool = networks.pools().find(|pool| pool.network().is_ipv4() == subnet.is_ipv4())?;
            let (first, last) = (pool.locate(subnet.network())?.0, pool.locate(subnet.broadcast())?.0);
            (first == last).then_some(first)
        };
        let records = waiting.iter().filter_map(|(_, held)| held.value.record());
        let mut claimed: BTreeSet<u32> =
            records.filter_map(|record| parse_list(&record.subnet).ok()).flatten().filter_map(block).collect();
        let (shown, all) = shown::blocks(state, networks, &claimed);
        claimed.extend(all);
        let mut released = BTreeMap::new();
        for (segment, held) in &state.released {
            let Some((subnet, turn)) = held.value else { continue };
            let Ok(block) = networks.v4().block_of(subnet) else { continue };
            released.insert((turn, block), (segment.clone(), held.revision));
        }
        let used = released.keys().map(|(_, block)| *block).collect();
        Some(Self { networks, taken, claimed, shown, released, used, next: 0, full: None })
    }

    /// The subnets that a Node shows, if nobody else has, names or shows them.
    pub(super) fn shown(&self, host: &NodeName) -> Option<NodeSubnets> {
        let block = self.shown.get(host).filter(|block| !self.taken.contains_key(block))?;
        self.networks.node_subnets(*block)
    }

    /// The subnets that an ask gets, and the key of the queue that it takes them from.
    pub(super) fn give(&mut self, ask: &Ask) -> Result<(NodeSubnets, Option<(String, i64)>), String> {
        let block = match ask.subnets {
            Some(subnets) => {
                let block = self.networks.block_of(subnets).map_err(|error| format!("Subnet: {error}"))?;
                if let Some(owner) = self.taken.get(&block) {
                    return Err(format!(
                        "Subnet: the node {owner} has it; leave Subnet empty and set Assign to true to get a free one"
                    ));
                }
                block
            }
            None => self.next_free()?,
        };
        let subnets = self.networks.node_subnets(block).ok_or("Subnet: out of the network")?;
        self.taken.insert(block, ask.address);
        let turn = self.released.keys().find(|(_, released)| *released == block).copied();
        Ok((subnets, turn.and_then(|turn| self.released.remove(&turn))))
    }

    /// The block that comes next. Once there is none there will be none: nothing is given back meanwhile.
    fn next_free(&mut self) -> Result<u32, String> {
        if let Some(problem) = &self.full {
            return Err(problem.clone());
        }
        if let Some(block) = self.fresh().or_else(|| self.longest_released()) {
            return Ok(block);
        }
        let network = self.networks.v4().network();
        let all = self.networks.blocks();
        let claimed = self.claimed.iter().filter(|block| !self.taken.contains_key(block)).count();
        let problem = format!(
            "all {all} subnets of {network} are in use ({claimed} of them named by records that are refused, or shown by other nodes); remove nodes that are gone (bulkhead node remove; a Node of Kubernetes gives its subnet back --node-release-after seconds after it was deleted)"
        );
        self.full = Some(problem.clone());
        Err(problem)
    }

    fn is_free(&self, block: u32) -> bool {
        block < self.networks.blocks() && !self.taken.contains_key(&block) && !self.claimed.contains(&block)
    }

    fn fresh(&mut self) -> Option<u32> {
        let found =
            (self.next..self.networks.blocks()).find(|block| self.is_free(*block) && !self.used.contains(block));
        self.next = found.map_or(self.networks.blocks(), |block| block + 1);
        found
    }

    fn longest_released(&self) -> Option<u32> {
        self.released.keys().map(|(_, block)| *block).find(|block| self.is_free(*block))
    }
}

/// Clears places in the queue that are of no subnet of the network, left by a network of before.
pub(super) fn forgotten(state: &State, networks: &Networks) -> Option<Step> {
    let mut step = Step::default();
    for (segment, held) in &state.released {
        if held.value.is_some_and(|(subnet, _)| networks.v4().block_of(subnet).is_ok()) {
            continue;
        }
        let key = format!("{}{segment}", state.keys().released_subnets());
        let mut item = Step::default();
        item.expect(key.as_str(), held.revision);
        item.delete(key);
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}
