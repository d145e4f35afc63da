//! What the leader does next: pure functions from the state to one transaction.
//!
//! Level-triggered: nothing is remembered between two calls, and a state that needs nothing gives nothing. Each step is
//! planned on the state alone; the caller commits it, applies it to the state and asks again.

mod cluster;
mod complaint;
mod declarations;
mod declared;
mod import;
mod lifecycle;
mod lost;
mod mirror;
mod moves;
mod nodes;
mod note;
mod numbers;
mod restore;
mod seats;
mod shown;
mod status;
mod step;

#[cfg(test)]
mod declared_model;
#[cfg(test)]
mod declared_tests;
#[cfg(test)]
mod kubernetes_tests;
#[cfg(test)]
mod lost_tests;
#[cfg(test)]
mod node_races;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod races;
#[cfg(test)]
mod restore_tests;
#[cfg(test)]
mod scenes;
#[cfg(test)]
mod seat_tests;
#[cfg(test)]
mod shown_model;
#[cfg(test)]
mod shown_tests;
#[cfg(test)]
mod status_tests;
#[cfg(test)]
mod tenant_tests;

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::{Namespace, NodeName};

pub use complaint::{Complaint, complaints};
pub use mirror::NOTICE;
pub use note::Note;
pub use shown::{Shown, subnets};
pub use status::{Kind, Status, statuses};
pub use step::{MAX_BYTES, MAX_COMPARES, MAX_WRITES, Step};

use declared::Declared;

use crate::state::State;

/// What an administrator decided once for all namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Namespaces that are global at birth unless their record names a `NetID`.
    pub global_at_birth: BTreeSet<Namespace>,
    /// Whether a join by annotation needs the target's consent.
    pub require_join_consent: bool,
}

/// The nodes that have no subnet, and why; only those that Kubernetes has.
pub fn without_subnet(state: &State) -> BTreeMap<NodeName, String> {
    match state.cluster.as_ref().map(|held| &held.value) {
        Some(Ok(cluster)) => seats::problems(state, &cluster.networks),
        _ => BTreeMap::new(),
    }
}

/// Whether all is known that Kubernetes has, where it is the source.
fn is_listed(state: &State) -> bool {
    !state.source.is_kubernetes() || state.source.objects().is_some()
}

/// The next transaction; none if everything is as it should be, or nothing can be done.
pub fn next(state: &State, policy: &Policy) -> Option<Step> {
    if let Some(step) = lost::step(state) {
        return Some(step);
    }
    if restore::waits(state) {
        let cluster = state.cluster.as_ref()?.value.as_ref().ok()?;
        return nodes::waiting(state, &cluster.networks);
    }
    if let Some(step) =
        restore::step(state, policy).or_else(|| cluster::step(state)).or_else(|| restore::refusal(state))
    {
        return Some(step);
    }
    // Without a readable ledger entry of the cluster nothing else can be right.
    let cluster = state.cluster.as_ref()?.value.as_ref().ok()?;
    if import::is_due(state) && !is_listed(state) {
        return nodes::waiting(state, &cluster.networks);
    }
    if import::is_due(state) {
        return import::step(state, cluster.epoch, policy);
    }
    if state.owed.is_some() && restore::is_due(state) {
        return None;
    }
    let declared = Declared::new(state, policy);
    lifecycle::deaths(state)
        .or_else(|| lifecycle::ties(state))
        .or_else(|| lifecycle::births(state, policy))
        .or_else(|| restore::all_reborn(state))
        .or_else(|| lifecycle::strays(state))
        .or_else(|| seats::step(state, &cluster.networks))
        .or_else(|| nodes::releases(state, &cluster.networks))
        .or_else(|| restore::settled(state))
        .or_else(|| nodes::admissions(state, &cluster.networks))
        .or_else(|| cluster::built(state))
        .or_else(|| declarations::step(state, &declared))
        .or_else(|| moves::step(state, &declared))
        .or_else(|| mirror::namespaces(state))
        .or_else(|| mirror::nodes(state))
        .or_else(|| nodes::forgotten(state, &cluster.networks))
}
