//! Declarations carried out: whoever is not where its annotation says moves, together with its followers.
//!
//! One transaction takes a namespace and those that follow it, as many as fit; the rest moves in the next ones, for
//! they follow whatever the first did.

use std::collections::BTreeSet;

use bulkhead_core::ledger::to_json;
use bulkhead_core::record::{NetNamespaceRecord, Record};
use bulkhead_core::{Namespace, NetId, Tenant};

use super::declared::{Declared, Standing};
use super::note::Note;
use super::numbers::Draft;
use super::step::Step;
use crate::state::State;

/// Moves whom an annotation moves.
pub(super) fn step(state: &State, declared: &Declared) -> Option<Step> {
    let standing = |name: &Namespace| match declared.get(name) {
        Some(Standing::Isolated) => Some(true),
        Some(Standing::Global) => Some(false),
        _ => None,
    };
    let mut roots: BTreeSet<&Namespace> = declared.roots().collect();
    roots.extend(declared.iter().map(|(name, _)| name).filter(|name| standing(name).is_some()));
    // Who leaves goes before who asks to be alone, and whoever is not at home before those that are: nobody gets a
    // fresh number for company that is about to leave.
    if roots.is_empty() {
        return None;
    }
    let mut order: Vec<_> = roots.into_iter().collect();
    let home = |name: &Namespace| state.tenants().get(name).is_some_and(|tenant| tenant.net_id == tenant.vni.into());
    order.sort_by_key(|name| (standing(name) == Some(true), home(name)));

    let mut draft = Draft::new(state)?;
    let mut step = Step::default();
    for root in order {
        let company = declared.followers(root);
        let Some(now) = draft.tenants.get(root).map(|tenant| tenant.net_id) else { continue };
        let numbers = draft.numbers.clone();
        let net_id = match standing(root) {
            Some(false) => NetId::GLOBAL,
            // With no number left it stays where it is; whoever is alone needs none.
            Some(true) => draft.tenants.isolate(root, &company, &mut draft.numbers).unwrap_or(now),
            None => now,
        };
        let drawn = numbers != draft.numbers;
        let movers: Vec<_> = std::iter::once(root)
            .chain(&company)
            .filter(|name| draft.tenants.get(name).is_some_and(|tenant| tenant.net_id != net_id))
            .cloned()
            .collect();
        for (at, name) in movers.iter().enumerate() {
            let Some(mut item) = item(state, &mut draft, name, root, net_id) else { continue };
            if drawn {
                draft.serialise(&mut item);
            }
            if !step.absorb(&item) {
                step.note(Note::Split { left: movers.len() - at });
                return step.some();
            }
        }
    }
    step.some()
}

/// The move of one namespace to where `root` is, or is to be.
pub(super) fn item(
    state: &State,
    draft: &mut Draft,
    namespace: &Namespace,
    root: &Namespace,
    net_id: NetId,
) -> Option<Step> {
    let keys = state.keys();
    let former = draft.tenants.get(namespace)?.clone();
    let tenant = Tenant { net_id, ..former.clone() };
    let mut item = Step::default();
    for name in [namespace, root] {
        item.expect(keys.ledger_namespace(name), state.ledger.get(name).map_or(0, |held| held.revision));
    }
    item.put(keys.ledger_namespace(namespace), to_json(&tenant));
    // A record with an action gets its answer, one that cannot be read is restored, one that is missing is made: later.
    if let Some(held) = state.records.get(namespace)
        && let Some(record) = held.value.record()
        && record.action.is_empty()
    {
        let record = NetNamespaceRecord { net_id: Some(net_id.get().into()), ..record.clone() };
        item.expect(keys.netnamespace(namespace), held.revision);
        item.put(keys.netnamespace(namespace), record.to_json());
    }
    draft.tenants.insert(namespace.clone(), tenant);
    draft.release(&former, &mut item);
    item.note(Note::Declared {
        namespace: namespace.clone(),
        vni: former.vni,
        from: former.net_id,
        to: net_id,
        root: root.clone(),
    });
    Some(item)
}
