//! Firewalls of others that stop forwarded packets: Docker's `FORWARD` chain drops by policy, firewalld's ends with a reject.
//! Pods' traffic through the host's stack (services, the way out) would die there, and an accept in a table of our own does
//! not help: every base chain has to let a packet pass. So each of those chains gets our rules, just before what stops all.
//!
//! They pass what comes from or goes to our own devices and nothing else; which of it may pass is the programs' to judge.
//! Rules of others before that keep their say: kube-proxy rejects what has no endpoint there, an administrator drops what
//! they like. The chain may be iptables': its tools read all of these expressions, so that nobody's `iptables-save` breaks.
//!
//! Earlier agents put our rules at a chain's head. Where those pass what might be stopped further on, they stay until the node boots:
//! an upgrade cuts no running connection. It is told, with what an administrator may do.

mod chains;
#[cfg(test)]
mod tests;

use ipnetwork::Ipv4Network;

use super::firewall::FirewallError;
use super::overlay;
use crate::kernel::nftables::{
    Chain, Expression as E, Family, Fate, Meta, Nftables, Place, Rule, Transaction, Verdict,
};
use crate::pods::Record;

use chains::{end, forward_chains, stopping};

/// What our rules' comments start with.
const ABOUT: &str = "bulkhead: ";
/// What they end with, other than those of agents that put them at the head.
const UNLESS: &str = ", unless stopped before";
/// The table that is ours, where nothing is in the way.
const OWN: (Family, &str) = (Family::Ip, "bulkhead");
/// How many rules of others a message names.
const NAMED: usize = 5;

/// Other firewalls of this host, seen with the pods' network.
#[derive(Debug, Clone, Copy)]
pub struct HostFirewall {
    /// The pods' network: its devices have names of it.
    pub network: Ipv4Network,
}

/// What a look at the host's firewall came to, in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// What was changed.
    pub changed: Vec<String>,
    /// Where rules of others have no say over pods, because an earlier agent put ours before them; and what to do.
    pub passed_over: Vec<String>,
}

fn place(chain: &Chain) -> String {
    format!("{} {} {}", chain.family.name(), chain.table, chain.name)
}

fn is_ours(rule: &Rule) -> bool {
    rule.comment.as_ref().is_some_and(|comment| comment.starts_with(ABOUT))
}

fn passed_over(chain: &Chain, stopping: &[&Rule]) -> String {
    let mut named: Vec<String> = stopping
        .iter()
        .take(NAMED)
        .map(|rule| match &rule.met {
            Some(Fate::Jumps(name) | Fate::Goes(name)) => format!("{} (to {name})", rule.handle),
            _ => rule.handle.to_string(),
        })
        .collect();
    let more = stopping.len().saturating_sub(NAMED);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    let place = place(chain);
    format!(
        "rules of the host's firewall ({place}) may stop packets, but have no say over pods: {} (handles in `nft -a list chain \
         {place}`). An earlier agent put ours before them, and ours stay there until the node boots, as pods' running connections \
         might be cut else; what is to hold for pods now, put before ours",
        named.join(", ")
    )
}

impl HostFirewall {
    fn rules(self) -> [(String, Vec<E>); 4] {
        let rule = |about: &str, condition: Vec<E>| {
            let steps = [condition, E::counted(), E::verdict(Verdict::Accept)].concat();
            (format!("{ABOUT}{about}{UNLESS}"), steps)
        };
        let prefix = Record::host_interface_prefix(self.network);
        [
            rule("from pods of this node", E::device_prefix(Meta::InputName, &prefix)),
            rule("to pods of this node", E::device_prefix(Meta::OutputName, &prefix)),
            rule("from other nodes' pods", E::device(Meta::InputName, overlay::NAME, true)),
            rule("to other nodes' pods", E::device(Meta::OutputName, overlay::NAME, true)),
        ]
    }

    /// Whether our rules are in the chain, all of them and nowhere else than behind that many of others' rules.
    fn passes(self, rules: &[Rule], end: usize) -> bool {
        self.are_at(rules, end, |wanted| wanted)
    }

    /// Behind how many of others' rules an earlier agent put ours, if all of them are there and any packet comes to them.
    fn earlier(self, rules: &[Rule], end: usize) -> Option<usize> {
        let first = rules.iter().position(is_ours)?;
        (first <= end && self.are_at(rules, first, |wanted| wanted.strip_suffix(UNLESS).unwrap_or(wanted)))
            .then_some(first)
    }

    fn are_at(self, rules: &[Rule], at: usize, named: impl Fn(&str) -> &str) -> bool {
        let (ours, wanted) = (rules.iter().filter(|rule| is_ours(rule)).count(), self.rules());
        let here = rules.iter().skip(at).take(wanted.len()).map(|rule| rule.comment.as_deref());
        ours == wanted.len() && here.eq(wanted.iter().map(|(about, _)| Some(named(about))))
    }

    /// Puts our rules where they are needed, and takes them from where they are not any more.
    pub fn pass(self) -> Result<Looked, FirewallError> {
        let mut nftables = Nftables::here()?;
        let (mut all, mut looked) = (Transaction::default(), Looked::default());
        for (chain, rules) in forward_chains(&mut nftables)? {
            let (held, others): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| is_ours(rule));
            let end = end(&mut nftables, &chain, &others)?;
            if end.map_or(held.is_empty(), |end| self.passes(&rules, end)) {
                continue;
            }
            let limit = end.unwrap_or(others.len());
            let earlier = self.earlier(&rules, limit);
            let behind = earlier.and_then(|first| others.get(first..limit)).unwrap_or_default();
            let stopping = stopping(&mut nftables, &chain, behind)?;
            if !stopping.is_empty() {
                looked.passed_over.push(passed_over(&chain, &stopping));
                continue;
            }
            let at = (chain.family, chain.table.as_str(), chain.name.as_str());
            for rule in held {
                all.delete_rule(at, rule.handle);
            }
            let Some(end) = end else {
                looked.changed.push(format!(
                    "the host's firewall ({}) lets forwarded packets pass now; our rules left it",
                    place(&chain)
                ));
                continue;
            };
            let before = others.get(end).map_or(Place::Last, |rule| Place::Before(rule.handle));
            for (about, steps) in self.rules() {
                all.rule(at, before, &about, &steps);
            }
            // Else only their comments change.
            if earlier != Some(end) {
                looked.changed.push(format!(
                    "the host's firewall ({}) stops forwarded packets; rules just before it does let pods' pass",
                    place(&chain)
                ));
            }
        }
        if !all.is_empty() {
            nftables.commit(&all).map_err(FirewallError::from)?;
        }
        Ok(looked)
    }

    /// Takes our rules out of every chain of others.
    pub fn leave() -> Result<(), FirewallError> {
        let mut nftables = Nftables::here()?;
        let mut all = Transaction::default();
        for (chain, rules) in forward_chains(&mut nftables)? {
            for rule in rules.iter().filter(|rule| is_ours(rule)) {
                all.delete_rule((chain.family, &chain.table, &chain.name), rule.handle);
            }
        }
        if all.is_empty() { Ok(()) } else { Ok(nftables.commit(&all)?) }
    }
}
