//! What chains of others do with forwarded packets: where one stops them all, and which of its rules may stop some.

use super::super::firewall::FirewallError;
use super::OWN;
use crate::kernel::nftables::{Chain, Fate, InetHook, Nftables, Rule};

/// Base chains of others in the way of forwarded packets, with their rules.
pub(super) fn forward_chains(nftables: &mut Nftables) -> Result<Vec<(Chain, Vec<Rule>)>, FirewallError> {
    let hook = InetHook::Forward as u32;
    let others = nftables.chains()?.into_iter().filter(|chain| {
        chain.hook.is_some_and(|(number, _)| number == hook) && (chain.family, chain.table.as_str()) != OWN
    });
    let others: Vec<Chain> = others.collect();
    let with_rules = others.into_iter().map(|chain| {
        let rules = nftables.rules(chain.family, &chain.table, &chain.name)?;
        Ok((chain, rules))
    });
    with_rules.collect()
}

/// Whether nothing that goes through the chain of that name comes out of it again, but by a condition. The kernel sees to it
/// that chains do not call each other in a circle, and how deep they may.
fn stops(nftables: &mut Nftables, within: &Chain, name: &str) -> Result<bool, FirewallError> {
    for rule in nftables.rules(within.family, &within.table, name)? {
        match rule.fate {
            Some(Fate::Stopped) => return Ok(true),
            Some(Fate::Passed | Fate::Returned) => return Ok(false),
            Some(Fate::Goes(chain)) => return stops(nftables, within, &chain),
            Some(Fate::Jumps(chain)) if stops(nftables, within, &chain)? => return Ok(true),
            Some(Fate::Jumps(_) | Fate::Varies) | None => {}
        }
    }
    Ok(false)
}

/// Where pods' packets have to be let pass in a base chain: the place is before that many of others' rules. None if nothing
/// stops them.
pub(super) fn end(nftables: &mut Nftables, chain: &Chain, others: &[&Rule]) -> Result<Option<usize>, FirewallError> {
    for (index, rule) in others.iter().enumerate() {
        let stopped = match &rule.fate {
            Some(Fate::Stopped) => true,
            Some(Fate::Passed) => return Ok(None),
            // What is behind it is reached by nobody; the policy decides.
            Some(Fate::Returned) => return Ok(chain.drops.then_some(index)),
            Some(Fate::Goes(name)) => return Ok((chain.drops || stops(nftables, chain, name)?).then_some(index)),
            Some(Fate::Jumps(name)) => stops(nftables, chain, name)?,
            Some(Fate::Varies) | None => false,
        };
        if stopped {
            return Ok(Some(index));
        }
    }
    Ok(chain.drops.then_some(others.len()))
}

/// Whether the rule may stop a packet that meets its conditions, by itself or by what it calls.
fn may_stop(nftables: &mut Nftables, within: &Chain, rule: &Rule) -> Result<bool, FirewallError> {
    match &rule.met {
        Some(Fate::Stopped | Fate::Varies) => Ok(true),
        Some(Fate::Jumps(name) | Fate::Goes(name)) => {
            for called in nftables.rules(within.family, &within.table, name)? {
                if may_stop(nftables, within, &called)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Some(Fate::Passed | Fate::Returned) | None => Ok(false),
    }
}

/// Those of a base chain's rules that may stop packets on their way to its end.
pub(super) fn stopping<'a>(
    nftables: &mut Nftables,
    chain: &Chain,
    rules: &[&'a Rule],
) -> Result<Vec<&'a Rule>, FirewallError> {
    let mut found = Vec::new();
    for &rule in rules {
        // Whatever leaves the chain here meets its policy.
        let leaves = chain.drops && matches!(rule.met, Some(Fate::Returned | Fate::Goes(_)));
        if leaves || may_stop(nftables, chain, rule)? {
            found.push(rule);
        }
    }
    Ok(found)
}
