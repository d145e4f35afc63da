//! Birth and death of namespaces.
//!
//! A birth gives the numbers and fills the mirror in one transaction; what cannot be born is answered in its record and
//! tried again whenever the state changes. A death releases the numbers. A namespace that Kubernetes has is always born:
//! what its record asks for in vain is noted there.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::ledger::to_json;
use bulkhead_core::record::{NetNamespaceRecord, Record};
use bulkhead_core::{Namespace, NetId, Tenant, Vni};

use super::Policy;
use super::mirror::NOTICE;
use super::note::Note;
use super::numbers::Draft;
use super::shown;
use super::step::Step;
use crate::source::{self, Unborn, Wish};
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
        let record = state.records.get(namespace);
        item.expect(state.keys().netnamespace(namespace), record.map_or(0, |held| held.revision));
        item.expect(state.keys().ledger_namespace(namespace), held.revision);
        item.delete(state.keys().ledger_namespace(namespace));
        // Standalone, a record that is there is that of the next one under the name.
        if record.is_some() && state.source.is_kubernetes() {
            item.delete(state.keys().netnamespace(namespace));
        }
        draft.release(&former, &mut item);
        item.note(Note::Died(namespace.clone(), former));
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// Writes the UIDs of living namespaces into ledger entries that have none: imported ones, or of a standalone cluster.
pub(super) fn ties(state: &State) -> Option<Step> {
    let objects = state.source.objects()?;
    let mut step = Step::default();
    for (namespace, held) in &state.ledger {
        let (Ok(tenant), Some(object)) = (&held.value, objects.namespaces.get(namespace)) else { continue };
        if tenant.uid.is_some() {
            continue;
        }
        let key = state.keys().ledger_namespace(namespace);
        let mut item = Step::default();
        item.expect(key.as_str(), held.revision);
        item.put(key, to_json(&Tenant { uid: Some(object.uid.clone()), ..tenant.clone() }));
        item.note(Note::Tied { namespace: namespace.clone(), uid: object.uid.clone() });
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// Gives numbers to the namespaces that have none.
pub(super) fn births(state: &State, policy: &Policy) -> Option<Step> {
    let unborn = source::unborn(state);
    if unborn.is_empty() {
        return None;
    }
    let mut draft = Draft::new(state)?;
    let shown = shown::vnis(state, &draft.numbers);
    // Nor is anybody given what another shows, while some of those have no entry.
    let avoided = if draft.numbers.may_be_reborn() { shown::all_vnis(state) } else { BTreeMap::new() };
    let avoided: BTreeSet<u32> = avoided.into_values().collect();
    let mut step = Step::default();
    for newborn in unborn {
        let item = match birth(state, policy, &mut draft, &newborn, (shown.get(newborn.name).copied(), &avoided)) {
            Ok(item) => Some(item),
            Err(reason) => newborn.record.and_then(|held| refuse(state, newborn.name, held, &reason)),
        };
        if item.is_some_and(|item| !step.absorb(&item)) {
            break;
        }
    }
    step.some()
}

/// Answers records of namespaces that Kubernetes does not have.
pub(super) fn strays(state: &State) -> Option<Step> {
    let mut step = Step::default();
    for (namespace, held) in source::strays(state) {
        let reason = format!("Kubernetes has no namespace {namespace}; create it there, or delete this record");
        let Some(item) = refuse(state, namespace, held, &reason) else { continue };
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// The tenant that a namespace becomes, and why it is not what its record asks for. `shown` is the VNI that it had in a
/// ledger that is lost, and those that nobody is given for another may have had them.
fn conceive(
    policy: &Policy,
    draft: &mut Draft,
    newborn: &Unborn,
    (shown, avoided): (Option<Vni>, &BTreeSet<u32>),
) -> Result<(Tenant, Option<String>), String> {
    let mut give = |wish: Wish, uid: Option<String>| {
        let own = shown.filter(|_| wish.net_id.is_none_or(NetId::is_global));
        if let Some(Ok(tenant)) = own.map(|vni| draft.tenants.rebirth(vni, wish.net_id.is_some(), uid.clone())) {
            return Ok(tenant);
        }
        let fresh = wish.net_id.is_none_or(NetId::is_global);
        let mut tenant = draft.tenants.birth(wish.net_id, uid.clone(), &mut draft.numbers);
        for _ in avoided {
            if !fresh || !tenant.as_ref().is_ok_and(|tenant| avoided.contains(&tenant.vni.get())) {
                break;
            }
            tenant = draft.tenants.birth(wish.net_id, uid.clone(), &mut draft.numbers);
        }
        tenant.map_err(|error| error.to_string())
    };
    let asked = newborn.record.map(|held| source::wish(newborn.name, &held.value, policy));
    let Some(object) = newborn.object else {
        return Ok((give(asked.ok_or("there is no record")??, None)?, None));
    };
    let uid = Some(object.uid.clone());
    let default = source::default_wish(newborn.name, policy);
    let (wish, bad) = match (source::declared_wish(object), asked) {
        (Some(declared), _) => (declared, None),
        (None, Some(Ok(wish))) => (wish, None),
        (None, Some(Err(reason))) => (default.clone(), Some(reason)),
        (None, None) => (default.clone(), None),
    };
    match give(wish, uid.clone()) {
        Ok(tenant) => Ok((tenant, bad)),
        Err(reason) => Ok((give(default, uid)?, Some(reason))),
    }
}

fn birth(
    state: &State,
    policy: &Policy,
    draft: &mut Draft,
    newborn: &Unborn,
    shown: (Option<Vni>, &BTreeSet<u32>),
) -> Result<Step, String> {
    let (tenant, bad) = conceive(policy, draft, newborn, shown)?;
    let namespace = newborn.name;
    draft.tenants.insert(namespace.clone(), tenant.clone());
    let keys = state.keys();
    let mut item = Step::default();
    item.expect(keys.netnamespace(namespace), newborn.record.map_or(0, |held| held.revision));
    item.expect(keys.ledger_namespace(namespace), 0);
    draft.serialise(&mut item);
    item.put(keys.ledger_namespace(namespace), to_json(&tenant));
    let record = match newborn.record.map(|held| &held.value) {
        // What cannot be read is restored by the mirror, with its reason.
        Some(Mail::Broken(_)) => None,
        Some(Mail::Record(record)) => Some(record.clone()),
        None => Some(NetNamespaceRecord::asking(namespace)),
    };
    if let Some(record) = record {
        // An action that came with it stays for the next step.
        let record = NetNamespaceRecord {
            net_name: namespace.to_string(),
            net_id: Some(tenant.net_id.get().into()),
            error: bad.map(|reason| format!("{NOTICE}{reason}")).unwrap_or_default(),
            ..record
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
