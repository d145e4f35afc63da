//! The first look at a cluster: K8S-OVS records that have no ledger.
//!
//! The numbers' key says that an import goes on from its first transaction to its last. So a leader that takes over in
//! the middle goes on with it, and nothing else is planned before. Numbers that are absent beside a ledger were lost:
//! the mark then begins a jump beyond the highest number that the ledger shows. With Kubernetes, what its namespaces show is
//! all that is left of such a ledger: it waits until they were listed, and who lives keeps their VNI.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::ledger::to_json;
use bulkhead_core::{Namespace, NetId, Numbers};

use super::Policy;
use super::note::Note;
use super::shown;
use super::step::Step;
use crate::source;
use crate::state::State;

/// Whether an import is to begin, or goes on.
pub(super) fn is_due(state: &State) -> bool {
    state.numbers.as_ref().is_none_or(|held| held.value.as_ref().is_ok_and(Numbers::is_importing))
}

/// The next transaction of the import; none while the ledger cannot be read.
pub(super) fn step(state: &State, epoch: u64, policy: &Policy) -> Option<Step> {
    if state.ledger.len() != state.tenants.len() {
        return None;
    }
    let shown = shown::undisputed_vnis(state);
    // Those are given to nobody else anyway; the disputed ones to nobody at all.
    let owned: BTreeSet<u32> = shown.values().map(|vni| vni.get()).collect();
    let mut reserved: BTreeSet<u32> = shown::all_vnis(state).into_values().filter(|n| !owned.contains(n)).collect();
    let asked: BTreeMap<Namespace, Option<i64>> = state
        .records
        .iter()
        .filter(|(namespace, _)| !state.ledger.contains_key(*namespace))
        // What cannot be read is answered when the import is done; its number is kept for it until then.
        .filter_map(|(namespace, held)| {
            let Ok(wish) = source::wish(namespace, &held.value, policy) else {
                reserved.extend(source::number_shown(&held.value));
                return None;
            };
            Some((namespace.clone(), wish.net_id.map(NetId::get).map(i64::from)))
        })
        .collect();
    let mut tenants = state.tenants.clone();
    let known = state.numbers.as_ref().map(|held| (held.value.clone().unwrap_or_default(), held.revision));
    let (mut numbers, revision) = known.unwrap_or_else(|| {
        let mut numbers = Numbers::default();
        // A ledger that was lost with its numbers may have given out those of each epoch before.
        numbers.rise(epoch.saturating_sub(1).max((!shown.is_empty()).into()));
        let highest = state.tenants.iter().map(|(_, tenant)| tenant.vni.get().max(tenant.net_id.get())).max();
        if let Some(highest) = highest {
            numbers.pass(highest);
            numbers.rise(1);
        }
        (numbers, 0)
    });
    tenants.resume_import(&asked, &shown, &reserved, &mut numbers);

    let keys = state.keys();
    let mut step = Step::default();
    step.expect(keys.numbers(), revision);
    step.put(keys.numbers(), to_json(&numbers.clone().with_import(true)));
    for namespace in asked.keys() {
        let Some(tenant) = tenants.get(namespace) else { continue };
        let mut item = Step::default();
        item.expect(keys.netnamespace(namespace), state.records.get(namespace).map_or(0, |held| held.revision));
        item.expect(keys.ledger_namespace(namespace), 0);
        item.expect(keys.numbers(), revision);
        item.put(keys.ledger_namespace(namespace), to_json(tenant));
        item.note(Note::Born(namespace.clone(), tenant.clone()));
        if !step.absorb(&item) {
            return Some(step);
        }
    }
    let mut end = Step::default();
    end.expect(keys.numbers(), revision);
    end.put(keys.numbers(), to_json(&numbers.with_import(false)));
    end.note(Note::ImportDone(tenants.len()));
    step.absorb(&end);
    Some(step)
}
