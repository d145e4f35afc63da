//! How each namespace stands, in the words that its annotations and Events show.
//!
//! A pure function of the state. What is in force comes last in the text, so that a refusal says what holds instead.

use std::collections::BTreeMap;

use bulkhead_core::{Mode, Namespace, NetId, Tenant};

use super::Policy;
use super::declared::{Declared, Standing};
use crate::state::State;

/// The longest text, in characters: an annotation is for people.
const LONGEST: usize = 400;

/// Whether what was asked for holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    InForce,
    /// It waits for something.
    Waits,
    /// It does not, until somebody changes it.
    Refused,
}

/// A namespace's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The namespace's UID, so that it is not shown by another one.
    pub uid: String,
    /// For `bulkhead.dev/vni`.
    pub vni: String,
    /// For `bulkhead.dev/network-status`.
    pub text: String,
    /// Whether the text is good news.
    pub kind: Kind,
}

/// The statuses of all namespaces that have numbers and that Kubernetes has.
pub fn statuses(state: &State, policy: &Policy) -> BTreeMap<Namespace, Status> {
    let Some(objects) = state.source.objects() else { return BTreeMap::new() };
    let declared = Declared::new(state, policy);
    let homes: BTreeMap<NetId, &Namespace> =
        state.tenants().iter().map(|(name, tenant)| (tenant.vni.into(), name)).collect();
    let flat = state.cluster.as_ref().and_then(|held| held.value.as_ref().ok()).is_some_and(|c| c.mode == Mode::Flat);
    let mut statuses = BTreeMap::new();
    for (name, tenant) in state.tenants().iter() {
        let Some(uid) = tenant.uid.as_ref().filter(|uid| objects.namespaces.get(name).is_some_and(|o| o.uid == **uid))
        else {
            continue;
        };
        let standing = declared.get(name);
        let holds = if flat { "flat".to_owned() } else { in_force(state, &homes, name, tenant, standing) };
        let answer = state.records.get(name).and_then(|held| held.value.record());
        let action = answer.filter(|record| !record.action.is_empty() && !record.error.is_empty());
        let (kind, text) = match (standing, action) {
            (Some(Standing::Unfollowed(why)), _) if why.waits() => (Kind::Waits, format!("waiting: {why}; {holds}")),
            (Some(Standing::Unfollowed(why)), _) => (Kind::Refused, format!("refused: {why}; {holds}")),
            (_, Some(record)) => {
                let asked = format!("{} {}", record.action, record.namespace);
                (Kind::Refused, format!("refused: action {}: {}; {holds}", asked.trim_end(), record.error))
            }
            _ => (Kind::InForce, holds),
        };
        let text = text.chars().take(LONGEST).collect();
        statuses.insert(name.clone(), Status { uid: uid.clone(), vni: tenant.vni.to_string(), text, kind });
    }
    statuses
}

fn in_force(
    state: &State,
    homes: &BTreeMap<NetId, &Namespace>,
    name: &Namespace,
    tenant: &Tenant,
    standing: Option<&Standing>,
) -> String {
    let net_id = tenant.net_id;
    match standing {
        Some(Standing::Follows { target, .. }) if net_id.is_global() => format!("joined to {target} (global)"),
        Some(Standing::Follows { target, .. }) => format!("joined to {target} (NetID {net_id})"),
        _ if net_id.is_global() => "global".to_owned(),
        _ if state.tenants().members(net_id) == 1 => "isolated".to_owned(),
        _ => match homes.get(&net_id) {
            Some(home) if *home != name => format!("joined to {home} (NetID {net_id})"),
            _ => format!("joined by others (NetID {net_id})"),
        },
    }
}
