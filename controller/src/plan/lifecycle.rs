//! Birth and death of namespaces.
//!
//! A birth gives the numbers and fills the mirror in one transaction; what cannot be born is answered in its record and
//! tried again whenever the state changes. A death releases the numbers.

use bulkhead_core::Namespace;
use bulkhead_core::ledger::to_json;
use bulkhead_core::record::{NetNamespaceRecord, Record};

use super::Policy;
use super::note::Note;
use super::numbers::Draft;
use super::step::Step;
use crate::source;
use crate::state::{Held, Mail, State};

/// Removes the namespaces that are there no more.
pub(super) fn deaths(state: &State) -> Option<Step> {
    let gone: Vec<&Namespace> = state.ledger.keys().filter(|name| source::is_gone(state, name)).collect();
    if gone.is_empty() {
        return None;
    }
    let mut draft = Draft::new(state)?;
    let mut step = Step::default();
    for namespace in gone {
        let (Some(held), Some(former)) = (state.ledger.get(namespace), draft.tenants.remove(namespace)) else {
            continue;
        };
        let mut item = Step::default();
        item.expect(state.keys().netnamespace(namespace), state.records.get(namespace).map_or(0, |held| held.revision));
        item.expect(state.keys().ledger_namespace(namespace), held.revision);
        item.delete(state.keys().ledger_namespace(namespace));
        draft.release(&former, &mut item);
        item.note(Note::Died(namespace.clone(), former));
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// Gives numbers to the namespaces that have none.
pub(super) fn births(state: &State, policy: &Policy) -> Option<Step> {
    let unborn: Vec<_> = state.records.iter().filter(|(name, _)| !state.ledger.contains_key(*name)).collect();
    if unborn.is_empty() {
        return None;
    }
    let mut draft = Draft::new(state)?;
    let mut step = Step::default();
    for (namespace, held) in unborn {
        let item = match birth(state, policy, &mut draft, namespace, held) {
            Ok(item) => Some(item),
            Err(reason) => refuse(state, namespace, held, &reason),
        };
        if item.is_some_and(|item| !step.absorb(&item)) {
            break;
        }
    }
    step.some()
}

fn birth(
    state: &State,
    policy: &Policy,
    draft: &mut Draft,
    namespace: &Namespace,
    held: &Held<Mail<NetNamespaceRecord>>,
) -> Result<Step, String> {
    let wish = source::wish(namespace, &held.value, policy)?;
    let tenant = draft.tenants.birth(wish.net_id, None, &mut draft.numbers).map_err(|error| error.to_string())?;
    draft.tenants.insert(namespace.clone(), tenant.clone());
    let keys = state.keys();
    let mut item = Step::default();
    item.expect(keys.netnamespace(namespace), held.revision);
    item.expect(keys.ledger_namespace(namespace), 0);
    draft.serialise(&mut item);
    item.put(keys.ledger_namespace(namespace), to_json(&tenant));
    if let Mail::Record(record) = &held.value {
        // An action that came with it stays for the next step.
        let record = NetNamespaceRecord {
            net_name: namespace.to_string(),
            net_id: Some(tenant.net_id.get().into()),
            error: String::new(),
            ..record.clone()
        };
        item.put(keys.netnamespace(namespace), record.to_json());
    }
    item.note(Note::Born(namespace.clone(), tenant));
    Ok(item)
}

/// Answers in the record, once.
fn refuse(state: &State, namespace: &Namespace, held: &Held<Mail<NetNamespaceRecord>>, reason: &str) -> Option<Step> {
    let answer = match &held.value {
        Mail::Record(record) if record.error == reason => None,
        Mail::Record(record) => Some(NetNamespaceRecord { error: reason.to_owned(), ..record.clone() }.to_json()),
        Mail::Broken(broken) => broken.answered(reason),
    }?;
    let mut item = Step::default();
    item.expect(state.keys().netnamespace(namespace), held.revision);
    item.put(state.keys().netnamespace(namespace), answer);
    item.note(Note::Refused { what: "namespace", name: namespace.to_string(), reason: reason.to_owned() });
    Some(item)
}
