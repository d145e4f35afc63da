//! The cluster's own ledger entry: what of the config is in force.
//!
//! A network is not changed under nodes that hold subnets of it: then the ledger's copy rules until the config is put
//! back. The services' network and the mode are followed at once.

use bulkhead_core::ClusterConfig;
use bulkhead_core::cluster::Networks;
use bulkhead_core::ledger::{ClusterEntry, to_json};
use thiserror::Error;

use super::note::Note;
use super::step::Step;
use crate::state::{Held, State};

/// Why the config is not, or not entirely, in force.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum NotFollowed {
    #[error("the config was deleted; the last one stays in force, write it again")]
    Deleted,
    #[error("the config is not used: {0}")]
    Invalid(String),
    #[error(
        "Name in the config is now {now}; this controller serves {serves} until it is restarted (then with no namespace and node of {serves})"
    )]
    Renamed { serves: String, now: String },
    #[error(
        "Network or HostSubnetLength changed while {nodes} nodes hold subnets of {network}: not followed; put it back, or remove the nodes first"
    )]
    NodesHold { nodes: usize, network: String },
    #[error("ServiceNetwork is not followed: {0}")]
    Services(String),
    #[error(
        "nodes in the ledger hold subnets that the config's Network does not have: put Network and HostSubnetLength back"
    )]
    Foreign,
}

/// The config that is to be followed.
pub(super) fn config(state: &State) -> Result<&Held<Result<ClusterConfig, String>>, NotFollowed> {
    let held = state.config.as_ref().ok_or(NotFollowed::Deleted)?;
    let config = held.value.as_ref().map_err(|error| NotFollowed::Invalid(error.clone()))?;
    let serves = state.keys().root();
    let serves = serves.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if config.name().as_str() != serves {
        return Err(NotFollowed::Renamed { serves: serves.to_owned(), now: config.name().to_string() });
    }
    Ok(held)
}

/// What the ledger's entry should be, and what of the config it leaves out.
pub(super) fn wanted(state: &State) -> (Option<ClusterEntry>, Option<NotFollowed>) {
    let config = match config(state).map(|held| held.value.as_ref()) {
        Ok(Ok(config)) => config,
        Ok(Err(error)) => return (None, Some(NotFollowed::Invalid(error.clone()))),
        Err(reason) => return (None, Some(reason)),
    };
    let (networks, mode) = (config.networks().clone(), config.mode());
    let Some(held) = &state.cluster else {
        let mut nodes = state.nodes.values().map(|held| held.value.as_ref());
        let fits = nodes.all(|node| node.is_ok_and(|node| networks.block_of(node.subnets).is_ok()));
        return if fits {
            // A ledger that is gone is begun above the epoch that agents have seen: they believe nothing else.
            let epoch = state.owed.unwrap_or(0).max(state.seen_epoch).saturating_add(1);
            // Agents that had the one before would cut what is not in this one yet.
            let building = !state.records.is_empty() || !state.subnets.is_empty() || epoch > 1;
            (Some(ClusterEntry { epoch, networks, mode, building }), None)
        } else {
            (None, Some(NotFollowed::Foreign))
        };
    };
    let Ok(current) = &held.value else { return (None, None) };
    let ClusterEntry { epoch, building, .. } = *current;
    if state.nodes.is_empty() || current.networks.pools().eq(networks.pools()) {
        return (Some(ClusterEntry { epoch, networks, mode, building }), None);
    }
    // The pods' ranges stay, the rest follows.
    let held_ranges: Vec<_> = current.networks.pools().map(|pool| pool.network()).collect();
    let host_bits = current.networks.v4().host_bits().into();
    match Networks::new(&held_ranges, host_bits, networks.services().to_vec()) {
        Ok(networks) => {
            let network = held_ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let reason = NotFollowed::NodesHold { nodes: state.nodes.len(), network };
            (Some(ClusterEntry { epoch, networks, mode, building }), Some(reason))
        }
        Err(error) => {
            let entry = ClusterEntry { epoch, networks: current.networks.clone(), mode, building };
            (Some(entry), Some(NotFollowed::Services(error.to_string())))
        }
    }
}

/// Says that the ledger is whole, when there is nothing more to make of the records.
pub(super) fn built(state: &State) -> Option<Step> {
    let held = state.cluster.as_ref()?;
    let entry = held.value.as_ref().ok().filter(|entry| entry.building)?;
    if !super::is_listed(state) {
        return None;
    }
    let entry = ClusterEntry { building: false, ..entry.clone() };
    let mut step = Step::default();
    step.expect(state.keys().ledger_cluster(), held.revision);
    step.put(state.keys().ledger_cluster(), to_json(&entry));
    step.note(Note::Cluster(entry));
    Some(step)
}

/// Writes the entry if it is not what it should be.
pub(super) fn step(state: &State) -> Option<Step> {
    let entry = wanted(state).0?;
    let current = state.cluster.as_ref();
    if current.is_some_and(|held| held.value.as_ref() == Ok(&entry)) {
        return None;
    }
    let mut step = Step::default();
    step.expect(state.keys().config(), state.config.as_ref().map_or(0, |held| held.revision));
    step.expect(state.keys().ledger_cluster(), current.map_or(0, |held| held.revision));
    // Every admission writes the numbers: one that is on its way would leave a subnet of a network that is no more.
    step.expect(state.keys().numbers(), state.numbers.as_ref().map_or(0, |held| held.revision));
    step.put(state.keys().ledger_cluster(), to_json(&entry));
    // Numbers without a ledger: it was deleted while nobody led. What the records say is all that is left of it.
    if let (None, true, Some(Ok(numbers))) =
        (current, state.ledger.is_empty(), state.numbers.as_ref().map(|held| &held.value))
    {
        let mut numbers = numbers.clone().with_import(true);
        if state.source.is_kubernetes() {
            numbers.outlive_ledger();
        }
        numbers.rise(u64::from(state.owed.is_some()));
        step.put(state.keys().numbers(), to_json(&numbers));
    }
    step.note(Note::Cluster(entry));
    Some(step)
}
