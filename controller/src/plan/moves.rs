//! Actions: join, isolate, global.
//!
//! Older writes go first. Namespaces whose actions came by one write move in one transaction, in the order of their
//! keys, each decided on the state after the one before. A refused action stays in its record beside an `Error`.

use std::collections::BTreeMap;

use bulkhead_core::ledger::to_json;
use bulkhead_core::record::{NetNamespaceRecord, Record};
use bulkhead_core::{Action, Namespace, Tenant};

use super::declarations;
use super::declared::{Declared, is_objection};
use super::note::Note;
use super::numbers::Draft;
use super::step::Step;
use crate::objects::Source;
use crate::source;
use crate::state::{Held, State};

/// Carries out the oldest action that can be, with those written by the same transaction.
pub(super) fn step(state: &State, declared: &Declared) -> Option<Step> {
    // What is declared is not known yet: an action could break it.
    if state.source == Source::Kubernetes(None) {
        return None;
    }
    let mut writes: BTreeMap<i64, Vec<(&Namespace, &Held<_>)>> = BTreeMap::new();
    for (namespace, held) in &state.records {
        let acts = held.value.record().is_some_and(|record| !record.action.is_empty());
        if acts && state.ledger.contains_key(namespace) {
            writes.entry(held.revision).or_default().push((namespace, held));
        }
    }
    if writes.is_empty() {
        return None;
    }
    let mut draft = Draft::new(state)?;
    writes.values().find_map(|together| {
        let mut step = Step::default();
        for (at, (namespace, held)) in together.iter().enumerate() {
            let Some(record) = held.value.record() else { continue };
            let Some(item) = item(state, declared, &mut draft, namespace, record, held.revision) else { continue };
            let left = together.len() - at;
            if !step.absorb(&item) {
                step.note(Note::Split { left });
                break;
            }
            if !follow(state, declared, &mut draft, namespace, &mut step) {
                step.note(Note::Split { left });
                break;
            }
        }
        step.some()
    })
}

/// Moves those that declare to follow; those that do not fit any more do so by their declaration. False if some did not.
fn follow(state: &State, declared: &Declared, draft: &mut Draft, root: &Namespace, step: &mut Step) -> bool {
    let Some(net_id) = draft.tenants.get(root).map(|tenant| tenant.net_id) else { return true };
    for follower in declared.followers(root) {
        if draft.tenants.get(&follower).is_none_or(|tenant| tenant.net_id == net_id) {
            continue;
        }
        let Some(item) = declarations::item(state, draft, &follower, root, net_id) else { continue };
        if !step.absorb(&item) {
            return false;
        }
    }
    true
}

fn item(
    state: &State,
    declared: &Declared,
    draft: &mut Draft,
    namespace: &Namespace,
    record: &NetNamespaceRecord,
    revision: i64,
) -> Option<Step> {
    let mut item = Step::default();
    item.expect(state.keys().netnamespace(namespace), revision);
    let former = draft.tenants.get(namespace)?.clone();
    let action = Action::parse(&record.action, &record.namespace);
    let objection = action.ok().flatten().and_then(|action| declared.objection(state, namespace, &action));
    // What an annotation has forbidden does not happen by surprise when the annotation goes: it has to be asked again.
    if objection.is_none() && is_objection(&record.error) {
        let record = NetNamespaceRecord {
            action: String::new(),
            namespace: String::new(),
            error: String::new(),
            ..record.clone()
        };
        item.put(state.keys().netnamespace(namespace), record.to_json());
        item.note(Note::Mirrored { what: "namespace", name: namespace.to_string() });
        return Some(item);
    }
    let outcome = match objection {
        Some(objection) => Err(objection),
        None => carry_out(state, declared, draft, namespace, record, &mut item),
    };
    let mirrored = NetNamespaceRecord { net_name: namespace.to_string(), ..record.clone() };
    let answer = match outcome {
        Ok(tenant) => NetNamespaceRecord {
            net_id: Some(tenant.net_id.get().into()),
            action: String::new(),
            namespace: String::new(),
            error: String::new(),
            ..mirrored
        },
        // A wrong NetName stays as it is, for its error to be true.
        Err(reason) => NetNamespaceRecord {
            net_name: if record.net_name.is_empty() { mirrored.net_name } else { record.net_name.clone() },
            net_id: Some(former.net_id.get().into()),
            error: reason,
            ..record.clone()
        },
    };
    if answer == *record {
        return None;
    }
    if !answer.error.is_empty() {
        // The answer shows the NetID, so it is of this very ledger entry.
        item.expect(state.keys().ledger_namespace(namespace), ledger_revision(state, namespace));
        item.note(Note::Refused { what: "namespace", name: namespace.to_string(), reason: answer.error.clone() });
    }
    item.put(state.keys().netnamespace(namespace), answer.to_json());
    Some(item)
}

/// Decides, and adds the ledger's part to the step; gives the tenant as it is then.
fn carry_out(
    state: &State,
    declared: &Declared,
    draft: &mut Draft,
    namespace: &Namespace,
    record: &NetNamespaceRecord,
    item: &mut Step,
) -> Result<Tenant, String> {
    source::check_name(namespace, record)?;
    let action = Action::parse(&record.action, &record.namespace).map_err(|error| error.to_string())?;
    let former = draft.tenants.get(namespace).ok_or("the namespace is not known")?.clone();
    // No action: nothing to decide. The caller asks for records with one only.
    let Some(action) = action else { return Ok(former) };
    let before = draft.numbers.clone();
    let decided = match &action {
        Action::Isolate => draft.tenants.isolate(namespace, &declared.followers(namespace), &mut draft.numbers),
        _ => draft.tenants.decide(namespace, &action, &mut draft.numbers),
    };
    let net_id = decided.map_err(|error| error.to_string())?;
    let tenant = Tenant { net_id, ..former.clone() };

    item.expect(state.keys().ledger_namespace(namespace), ledger_revision(state, namespace));
    if let Action::Join(target) = &action {
        item.expect(state.keys().ledger_namespace(target), ledger_revision(state, target));
    }
    if tenant != former {
        draft.tenants.insert(namespace.clone(), tenant.clone());
        item.put(state.keys().ledger_namespace(namespace), to_json(&tenant));
    }
    if before != draft.numbers {
        draft.serialise(item);
    }
    draft.release(&former, item);
    item.note(Note::Moved {
        namespace: namespace.clone(),
        vni: tenant.vni,
        from: former.net_id,
        to: net_id,
        action: action.fields().0,
    });
    Ok(tenant)
}

fn ledger_revision(state: &State, namespace: &Namespace) -> i64 {
    state.ledger.get(namespace).map_or(0, |held| held.revision)
}
