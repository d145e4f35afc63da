//! A ledger that somebody deleted, or a part of it, is put back as it was.
//!
//! Before anything else happens, and the cluster's entry last: agents that saw it go believe nothing until it is there
//! again, and then find the whole. Nodes hold the same numbers all the while, so no connection is cut that the deletion
//! itself did not cut.

use bulkhead_core::ledger::to_json;

use super::cluster;
use super::note::Note;
use super::step::Step;
use crate::state::State;

/// Puts entries back; none if nothing was lost, or if the cluster's config is gone as well: then this is an end on purpose.
pub(super) fn step(state: &State) -> Option<Step> {
    if state.lost.is_empty() || cluster::config(state).is_err() {
        return None;
    }
    // Who is gone from Kubernetes was removed by whoever led then; nobody knows before the first whole list.
    if state.source.is_kubernetes() && state.source.objects().is_none() {
        return None;
    }
    let keys = state.keys();
    let mut step = Step::default();
    let mut back = |key: String, record: Option<(String, i64)>, value: Vec<u8>| {
        let mut item = Step::default();
        item.expect(key.as_str(), 0);
        if let Some((record, revision)) = record {
            item.expect(record, revision);
        }
        item.put(key.as_str(), value);
        item.note(Note::PutBack { key });
        step.absorb(&item)
    };
    let lost = &state.lost;
    let mut fits = true;
    if let (Some(numbers), None) = (&lost.numbers, &state.numbers) {
        fits = fits && back(keys.numbers(), None, to_json(numbers));
    }
    let tenants = lost.tenants.iter().filter(|(namespace, _)| !state.ledger.contains_key(*namespace));
    for (namespace, (tenant, _)) in tenants {
        let record = state.records.get(namespace).map(|held| (keys.netnamespace(namespace), held.revision));
        fits = fits && back(keys.ledger_namespace(namespace), record, to_json(tenant));
    }
    for (&address, (node, _)) in lost.nodes.iter().filter(|(address, _)| !state.nodes.contains_key(*address)) {
        let record = state.subnets.get(&address.to_string()).map(|held| (keys.subnet(address), held.revision));
        fits = fits && back(keys.ledger_node(address), record, to_json(node));
    }
    if let (Some(cluster), None) = (&lost.cluster, &state.cluster) {
        let _last = fits && back(keys.ledger_cluster(), None, to_json(cluster));
    }
    step.some()
}
