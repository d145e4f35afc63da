//! Nodes that Kubernetes has: each gets a subnet, and keeps it when its address changes or it is made anew.
//!
//! A Node's first internal address is its seat: the key of its entry. The name says who it is, so an entry of the same
//! name elsewhere moves here, with its subnet, in one transaction; nodes that swap addresses swap in one. An entry that
//! stands under the address already is of the same machine, whatever its name was. Entries without a UID that no Node
//! claims are machines outside Kubernetes: theirs is the mailbox alone. A Node without an entry that shows a subnet had it
//! in a ledger that is lost: see [`shown`](super::shown).
//!
//! A Node's further addresses are its kubelet's word alone, and pods' packets follow them. So one that cannot be a host's, or
//! is another's, is left out; what two claim stays with the one that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bulkhead_core::NodeName;
use bulkhead_core::cluster::Networks;
use bulkhead_core::ledger::{NodeEntry, to_json};
use bulkhead_core::record::{Record, SubnetRecord};

use super::mirror::node_record;
use super::nodes::{self, Ask, Blocks};
use super::note::Note;
use super::numbers::Draft;
use super::shown;
use super::step::Step;
use crate::objects::{NodeObject, Objects, Source};
use crate::state::State;

/// Who sits where.
pub(super) struct Seats<'a> {
    state: &'a State,
    objects: &'a Objects,
    /// The seats of living Nodes.
    taken: BTreeMap<&'a NodeName, IpAddr>,
    /// Where entries of a name are, and whether each has a UID.
    by_host: BTreeMap<&'a NodeName, Vec<(IpAddr, bool)>>,
    /// Entries older than what living Nodes show: of a Node that was made anew with another subnet since, or of one that is
    /// no more and whose subnet is another's by now. None but for a minute behind a restore.
    outdated: BTreeSet<IpAddr>,
    /// The Nodes that wait for the release of these.
    waiting: BTreeSet<&'a NodeName>,
    /// Nodes that can have none, and why.
    pub(super) problems: BTreeMap<&'a NodeName, String>,
    /// Whose an address is that anybody claims.
    owners: BTreeMap<IpAddr, &'a NodeName>,
}

/// A node whose entry is not as it should be.
struct Change<'a> {
    host: &'a NodeName,
    object: &'a NodeObject,
    /// All that are believed, `address` first.
    addresses: Vec<IpAddr>,
    address: IpAddr,
    /// Where its entry is now.
    from: Option<IpAddr>,
}

fn entry(state: &State, address: IpAddr) -> Option<&NodeEntry> {
    state.nodes.get(&address).and_then(|held| held.value.as_ref().ok())
}

/// Whose the further addresses are that Nodes have and still claim.
fn further<'a>(state: &'a State, objects: &Objects) -> BTreeMap<IpAddr, &'a NodeName> {
    let claims = |node: &NodeEntry, address: &IpAddr| {
        objects.nodes.get(&node.host).is_some_and(|object| object.addresses.contains(address))
    };
    let nodes = state.nodes().filter(|(_, node)| node.uid.is_some());
    let all = nodes.flat_map(|(seat, node)| node.addresses.iter().map(move |address| (seat, node, address)));
    all.filter(|(seat, node, address)| seat != *address && claims(node, address))
        .map(|(_, node, address)| (*address, &node.host))
        .collect()
}

/// Whose each address is: a seat's Node's, a machine's outside Kubernetes, the one's whose entry has it and who still claims
/// it, else the first Node's by name.
fn owners<'a>(
    state: &'a State,
    objects: &'a Objects,
    taken: &BTreeMap<&'a NodeName, IpAddr>,
) -> BTreeMap<IpAddr, &'a NodeName> {
    let mut owners: BTreeMap<IpAddr, &NodeName> = taken.iter().map(|(host, address)| (*address, *host)).collect();
    let claims = |host: &NodeName, address: &IpAddr| {
        let object = objects.nodes.get(host).filter(|_| taken.contains_key(host));
        object.is_some_and(|object| object.addresses.contains(address))
    };
    for (_, node) in state.nodes() {
        let own = node.addresses.iter().filter(|address| node.uid.is_none() || claims(&node.host, address));
        for address in own {
            owners.entry(*address).or_insert(&node.host);
        }
    }
    for (name, object) in objects.nodes.iter().filter(|(name, _)| taken.contains_key(name)) {
        for address in &object.addresses {
            owners.entry(*address).or_insert(name);
        }
    }
    owners
}

impl<'a> Seats<'a> {
    /// None until Kubernetes was listed.
    pub(super) fn new(state: &'a State, networks: &Networks) -> Option<Self> {
        let objects = state.source.objects()?;
        let mut claims = BTreeMap::<IpAddr, Vec<&NodeName>>::new();
        let mut problems = BTreeMap::new();
        for (name, object) in &*objects.nodes {
            let checked = match object.addresses.first() {
                Some(address) => nodes::check_address(&address.to_string(), networks),
                None => Err("it has no InternalIP (inside the controller's --node-networks, if that is set); \
                    the kubelet sets it (--node-ip)"
                    .to_owned()),
            };
            match checked {
                Ok(address) => claims.entry(address).or_default().push(name),
                Err(problem) => drop(problems.insert(name, problem)),
            }
        }
        let further = further(state, objects);
        let mut taken = BTreeMap::new();
        for (address, names) in claims {
            let holder = entry(state, address).map(|entry| &entry.host);
            let winner = match (holder, further.get(&address)) {
                (None, Some(holder)) => Some(*holder),
                _ => names.iter().find(|name| Some(**name) == holder).or(names.first()).copied(),
            };
            for name in names {
                if Some(name) == winner {
                    taken.insert(name, address);
                } else if let Some(winner) = winner {
                    problems.insert(name, format!("its InternalIP {address} is that of the node {winner}"));
                }
            }
        }
        let mut by_host = BTreeMap::<&NodeName, Vec<_>>::new();
        for (address, node) in state.nodes() {
            by_host.entry(&node.host).or_default().push((address, node.uid.is_some()));
        }
        let owners = owners(state, objects, &taken);
        let mut seats = Self {
            state,
            objects,
            taken,
            by_host,
            outdated: BTreeSet::new(),
            waiting: BTreeSet::new(),
            problems,
            owners,
        };
        seats.compare_with_shown(networks);
        Some(seats)
    }

    /// Finds what is outdated, and who waits for that: behind a restore only.
    fn compare_with_shown(&mut self, networks: &Networks) {
        if self.state.settling().is_none() {
            return;
        }
        let shown = shown::blocks(self.state, networks, &BTreeSet::new()).0;
        let block_of = |node: &NodeEntry| networks.block_of(node.subnets).ok();
        let made_anew = |node: &NodeEntry| {
            let object = self.objects.nodes.get(&node.host).filter(|object| node.uid.as_ref() != Some(&object.uid));
            object.is_some() && shown.get(&node.host).is_some_and(|block| Some(*block) != block_of(node))
        };
        let tied = || self.state.nodes().filter(|(_, node)| node.uid.is_some());
        let anew: BTreeSet<IpAddr> = tied().filter(|(_, node)| made_anew(node)).map(|(address, _)| address).collect();
        let without = |host: &NodeName| {
            self.by_host.get(host).is_none_or(|entries| entries.iter().all(|(address, _)| anew.contains(address)))
        };
        let showing: BTreeMap<u32, &NodeName> = shown.iter().map(|(host, block)| (*block, host)).collect();
        let mut outdated = anew.clone();
        let mut waiting = BTreeSet::new();
        for (address, node) in tied() {
            let object = self.objects.nodes.get_key_value(&node.host);
            if anew.contains(&address) {
                waiting.extend(object.map(|(host, _)| host));
            } else if object.is_none_or(|(_, object)| node.uid.as_ref() != Some(&object.uid)) {
                // Under the newcomer's own address it is the same machine, which keeps it in one transaction.
                let newcomer = block_of(node).and_then(|block| showing.get(&block).copied());
                let newcomer = newcomer.filter(|host| without(host) && self.taken.get(*host) != Some(&address));
                let newcomer = newcomer.and_then(|host| self.objects.nodes.get_key_value(host));
                if let Some((host, _)) = newcomer {
                    outdated.insert(address);
                    waiting.extend([Some(host), object.map(|(host, _)| host)].into_iter().flatten());
                }
            }
        }
        (self.outdated, self.waiting) = (outdated, waiting);
    }

    /// Whether this Node's address is believed, or why not.
    fn check(&self, host: &NodeName, address: IpAddr, networks: &Networks) -> Result<(), String> {
        nodes::check_address(&address.to_string(), networks)?;
        match self.owners.get(&address) {
            Some(owner) if *owner != host => Err(format!("{address} is an address of the node {owner}")),
            _ => Ok(()),
        }
    }

    /// The addresses of a Node that has a seat; it comes first.
    fn addresses(&self, host: &NodeName, object: &NodeObject, networks: &Networks) -> Vec<IpAddr> {
        let all = object.addresses.iter().copied();
        all.filter(|address| self.check(host, *address, networks).is_ok()).collect()
    }

    /// The address of a node's entry: the one at its seat before others.
    fn current(&self, host: &NodeName, seat: IpAddr) -> Option<IpAddr> {
        let own = self.by_host.get(host)?.iter().copied();
        own.min_by_key(|&(address, tied)| (address != seat, !tied)).map(|(address, _)| address)
    }

    /// Whether an entry is of a Node of this cluster that has no use for it any more.
    fn is_left(&self, address: IpAddr, node: &NodeEntry) -> bool {
        if node.uid.is_none() {
            return false;
        }
        if self.outdated.contains(&address) {
            return true;
        }
        match self.taken.get(&node.host) {
            Some(seat) => *seat != address && entry(self.state, *seat).is_some_and(|entry| entry.host == node.host),
            None => !self.objects.nodes.contains_key(&node.host) && self.state.overdue.contains(&address),
        }
    }

    fn changes(&self, networks: &Networks) -> Vec<Change<'a>> {
        let mut changes = Vec::new();
        for (&host, &address) in &self.taken {
            let Some(object) = self.objects.nodes.get(host) else { continue };
            if self.waiting.contains(host) {
                continue;
            }
            let from = self.current(host, address);
            let addresses = self.addresses(host, object, networks);
            let settled = entry(self.state, address).is_some_and(|entry| {
                entry.host == *host && entry.uid.as_ref() == Some(&object.uid) && entry.addresses == addresses
            });
            if !settled {
                changes.push(Change { host, object, addresses, address, from });
            }
        }
        changes
    }

    /// Whether the entry under a seat goes with its Node to another one.
    fn moves_away(&self, entry: &NodeEntry, from: IpAddr) -> bool {
        self.taken.get(&entry.host).is_some_and(|seat| *seat != from)
            && self.taken.get(&entry.host).is_some_and(|seat| self.current(&entry.host, *seat) == Some(from))
    }
}

/// Whether a node's subnet is to be taken back.
pub(super) fn is_over(state: &State, seats: Option<&Seats>, address: IpAddr, node: &NodeEntry) -> bool {
    let recorded = state.subnets.contains_key(&address.to_string());
    match (&state.source, seats) {
        (Source::Records, _) => !recorded,
        (Source::Kubernetes(_), Some(seats)) if node.uid.is_some() => seats.is_left(address, node),
        (Source::Kubernetes(_), Some(seats)) => !recorded && !seats.taken.values().any(|seat| *seat == address),
        (Source::Kubernetes(_), None) => false,
    }
}

/// Brings entries in line with the Nodes.
pub(super) fn step(state: &State, networks: &Networks) -> Option<Step> {
    let seats = Seats::new(state, networks)?;
    let changes = seats.changes(networks);
    if changes.is_empty() {
        return None;
    }
    let draft = Draft::new(state)?;
    let claimed: BTreeSet<String> = changes.iter().map(|change| change.address.to_string()).collect();
    let waiting: Vec<_> = state
        .subnets
        .iter()
        .filter(|(segment, _)| !nodes::is_admitted(state, segment) && !claimed.contains(*segment))
        .collect();
    let mut blocks = Blocks::new(state, networks, &waiting)?;
    let mut turn = nodes::last_turn(state);
    let mut step = Step::default();
    for together in grouped(changes) {
        let Some(item) = seat(&seats, networks, &draft, &mut blocks, &mut turn, &together) else { continue };
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// Changes that touch the same entries, together.
fn grouped(changes: Vec<Change<'_>>) -> Vec<Vec<Change<'_>>> {
    let touched = |change: &Change| [Some(change.address), change.from].into_iter().flatten();
    let mut groups = BTreeMap::<usize, Vec<Change>>::new();
    let mut group_of = BTreeMap::<IpAddr, usize>::new();
    for (number, change) in changes.into_iter().enumerate() {
        let others: BTreeSet<usize> = touched(&change).filter_map(|key| group_of.get(&key).copied()).collect();
        let mut members = vec![change];
        let mut own = number;
        for other in others {
            let (few, many) = match groups.remove(&other) {
                Some(held) if held.len() > members.len() => (std::mem::replace(&mut members, held), other),
                Some(held) => (held, own),
                None => continue,
            };
            own = many;
            members.extend(few);
        }
        group_of.extend(members.iter().flat_map(touched).map(|key| (key, own)));
        groups.insert(own, members);
    }
    groups.into_values().collect()
}

/// One transaction for nodes that touch the same entries; none if a subnet is missing.
fn seat(
    seats: &Seats,
    networks: &Networks,
    draft: &Draft,
    blocks: &mut Blocks,
    turn: &mut u64,
    together: &[Change],
) -> Option<Step> {
    let (state, keys) = (seats.state, seats.state.keys());
    let mut item = Step::default();
    for from in together.iter().filter_map(|change| change.from.filter(|from| *from != change.address)) {
        let record = state.subnets.get(&from.to_string()).map_or(0, |held| held.revision);
        item.expect(keys.ledger_node(from), state.nodes.get(&from)?.revision);
        item.expect(keys.subnet(from), record);
        item.delete(keys.ledger_node(from));
        if record != 0 {
            item.delete(keys.subnet(from));
        }
        // A subnet goes from entry to entry: no allocation may have been planned on the state before.
        draft.serialise(&mut item);
    }
    for change in together {
        let standing = entry(state, change.address);
        let held = state.subnets.get(&change.address.to_string());
        let inherited = standing.filter(|entry| !seats.moves_away(entry, change.address));
        let kept = match change.from {
            Some(from) => entry(state, from),
            None => inherited,
        };
        let mut adopted = false;
        let subnets = if let Some(kept) = kept {
            kept.subnets
        } else {
            let asked = held.and_then(|held| nodes::ask(&change.address.to_string(), &held.value, networks).ok());
            let wish = Ask { address: change.address, host: change.host.clone(), subnets: None };
            let asked = asked.filter(|ask| ask.subnets.is_some());
            let shown = blocks.shown(change.host).map(|subnets| Ask { subnets: Some(subnets), ..wish.clone() });
            let named = [shown, asked].into_iter().flatten().find_map(|ask| blocks.give(&ask).ok());
            adopted = named.is_some();
            let (subnets, reused) = named.or_else(|| blocks.give(&wish).ok())?;
            if let Some((segment, revision)) = reused {
                let key = format!("{}{segment}", keys.released_subnets());
                item.expect(key.as_str(), revision);
                item.delete(key);
            }
            item.expect(keys.ledger_cluster(), state.cluster.as_ref().map_or(0, |held| held.revision));
            draft.serialise(&mut item);
            subnets
        };
        // Somebody's entry that is neither kept nor moved gives its subnet back.
        if let Some(displaced) = inherited.filter(|entry| entry.subnets != subnets) {
            *turn += 1;
            nodes::queue(state, displaced.subnets, *turn, &mut item);
        }
        let node = NodeEntry {
            host: change.host.clone(),
            addresses: change.addresses.clone(),
            subnets,
            uid: Some(change.object.uid.clone()),
        };
        item.expect(keys.ledger_node(change.address), state.nodes.get(&change.address).map_or(0, |held| held.revision));
        item.expect(keys.subnet(change.address), held.map_or(0, |held| held.revision));
        item.put(keys.ledger_node(change.address), to_json(&node));
        let former = change.from.and_then(|from| state.subnets.get(&from.to_string())).or(held);
        let unknown = former.and_then(|held| held.value.record()).map(|record| record.unknown.clone());
        let record = SubnetRecord { unknown: unknown.unwrap_or_default(), ..node_record(change.address, &node) };
        item.put(keys.subnet(change.address), record.to_json());
        let (host, address) = (change.host.clone(), change.address);
        item.note(if kept.is_some() {
            Note::Seated { host, address, was: change.from.filter(|from| *from != address), subnets }
        } else {
            Note::Admitted { host, address, subnets, adopted }
        });
    }
    Some(item)
}

/// Nodes that have no subnet, and why.
pub(super) fn problems(state: &State, networks: &Networks) -> BTreeMap<NodeName, String> {
    let Some(seats) = Seats::new(state, networks) else { return BTreeMap::new() };
    let mut problems: BTreeMap<NodeName, String> =
        seats.problems.iter().map(|(name, problem)| ((*name).clone(), problem.clone())).collect();
    let without: Vec<_> = seats
        .changes(networks)
        .into_iter()
        .filter(|change| change.from.is_none() && entry(state, change.address).is_none())
        .collect();
    let Some(first) = without.first() else { return problems };
    // Whether there is one for any is the same for all of them, who may be thousands.
    let wish = Ask { address: first.address, host: first.host.clone(), subnets: None };
    let given = Blocks::new(state, networks, &[]).map(|mut blocks| blocks.give(&wish));
    if let Some(Err(problem)) = given {
        problems.extend(without.iter().map(|change| (change.host.clone(), problem.clone())));
    }
    problems
}

/// Addresses of Nodes that are not believed, and why.
pub(super) fn disbelieved(state: &State, networks: &Networks) -> Vec<(NodeName, IpAddr, String)> {
    let Some(seats) = Seats::new(state, networks) else { return Vec::new() };
    let mut all = Vec::new();
    for host in seats.taken.keys() {
        let Some(object) = seats.objects.nodes.get(*host) else { continue };
        let wrong = object
            .addresses
            .iter()
            .filter_map(|address| Some(((*host).clone(), *address, seats.check(host, *address, networks).err()?)));
        all.extend(wrong);
    }
    all
}
