//! Where namespaces come from, and what each asks for when it is born.
//!
//! Standalone, a namespace is there while its `netnamespaces` record is there: the CLI or a person writes it, and
//! deleting it deletes the namespace. With Kubernetes, it is there while Kubernetes has it under the UID that the ledger
//! holds; its record is mailbox and mirror only. Until Kubernetes was listed once nothing is born and nothing dies.

use bulkhead_core::annotation::Network;
use bulkhead_core::record::NetNamespaceRecord;
use bulkhead_core::tenant::parse_net_id;
use bulkhead_core::{Namespace, NetId};

use crate::objects::{NamespaceObject, Source};
use crate::plan::Policy;
use crate::state::{Held, Mail, State};

/// What a namespace asks for at birth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The network: 0, a free number, or none for one of its own.
    pub net_id: Option<NetId>,
}

/// A namespace that is there and has no numbers.
pub(crate) struct Unborn<'a> {
    pub(crate) name: &'a Namespace,
    /// Its record, if there is one already.
    pub(crate) record: Option<&'a Held<Mail<NetNamespaceRecord>>>,
    /// Its object, if Kubernetes is the source.
    pub(crate) object: Option<&'a NamespaceObject>,
}

/// Whether a namespace that the ledger has is there no more.
pub(crate) fn is_gone(state: &State, namespace: &Namespace) -> bool {
    match &state.source {
        Source::Records => !state.records.contains_key(namespace) || state.departed.contains(namespace),
        Source::Kubernetes(None) => false,
        Source::Kubernetes(Some(objects)) => objects.namespaces.get(namespace).is_none_or(|object| {
            let known = state.tenants().get(namespace).and_then(|tenant| tenant.uid.as_deref());
            known.is_some_and(|uid| uid != object.uid)
        }),
    }
}

/// The namespaces that are to be born.
pub(crate) fn unborn(state: &State) -> Vec<Unborn<'_>> {
    match &state.source {
        Source::Records => {
            let records = state.records.iter().filter(|(name, _)| !state.ledger.contains_key(*name));
            records.map(|(name, held)| Unborn { name, record: Some(held), object: None }).collect()
        }
        Source::Kubernetes(None) => Vec::new(),
        Source::Kubernetes(Some(objects)) => {
            let objects = objects.namespaces.iter().filter(|(name, _)| !state.ledger.contains_key(*name));
            let unborn =
                objects.map(|(name, object)| Unborn { name, record: state.records.get(name), object: Some(object) });
            unborn.collect()
        }
    }
}

/// Records of namespaces that Kubernetes does not have.
pub(crate) fn strays(state: &State) -> impl Iterator<Item = (&Namespace, &Held<Mail<NetNamespaceRecord>>)> {
    let objects = state.source.objects();
    state.records.iter().filter(move |(name, _)| {
        objects.is_some_and(|objects| !objects.namespaces.contains_key(*name)) && !state.ledger.contains_key(*name)
    })
}

/// What a record asks for, or why it cannot be given.
pub(crate) fn wish(namespace: &Namespace, mail: &Mail<NetNamespaceRecord>, policy: &Policy) -> Result<Wish, String> {
    let record = match mail {
        Mail::Record(record) => record,
        Mail::Broken(broken) => return Err(broken.problem.clone()),
    };
    check_name(namespace, record)?;
    let net_id = match record.net_id {
        Some(number) => Some(parse_net_id(number).map_err(|error| error.to_string())?),
        None => return Ok(default_wish(namespace, policy)),
    };
    Ok(Wish { net_id })
}

/// The number that a record shows, even if the record cannot be followed.
pub(crate) fn number_shown(mail: &Mail<NetNamespaceRecord>) -> Option<u32> {
    let number = match mail {
        Mail::Record(record) => record.net_id,
        Mail::Broken(broken) => {
            let shown = broken.object.as_ref()?.get("NetID")?;
            shown.as_i64().or_else(|| shown.as_str()?.parse().ok())
        }
    };
    number.and_then(|number| u32::try_from(number).ok())
}

/// What a namespace asks for that says nothing.
pub(crate) fn default_wish(namespace: &Namespace, policy: &Policy) -> Wish {
    Wish { net_id: policy.global_at_birth.contains(namespace).then_some(NetId::GLOBAL) }
}

/// What a Namespace's annotation asks for at birth; none if it has no valid one.
pub(crate) fn declared_wish(object: &NamespaceObject) -> Option<Wish> {
    match object.network.as_ref()?.as_ref().ok()? {
        Network::Global => Some(Wish { net_id: Some(NetId::GLOBAL) }),
        Network::Isolated | Network::Join(_) => Some(Wish { net_id: None }),
    }
}

/// A record is about the namespace that its key names; an empty `NetName` is filled in.
pub(crate) fn check_name(namespace: &Namespace, record: &NetNamespaceRecord) -> Result<(), String> {
    if record.net_name.is_empty() || record.net_name == namespace.as_str() {
        return Ok(());
    }
    let name: String = record.net_name.chars().take(80).collect();
    Err(format!("NetName {name:?} differs from {namespace}, the name in the key; make them the same"))
}
