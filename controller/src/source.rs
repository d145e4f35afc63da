//! Where namespaces come from, and what each asks for when it is born.
//!
//! Standalone, a namespace is there while its `netnamespaces` record is there: the CLI or a person writes it, and
//! deleting it deletes the namespace. Another source belongs here, beside it, as functions of the state.

use bulkhead_core::record::NetNamespaceRecord;
use bulkhead_core::tenant::parse_net_id;
use bulkhead_core::{Namespace, NetId};

use crate::plan::Policy;
use crate::state::{Mail, State};

/// What a namespace asks for at birth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The network: 0, a free number, or none for one of its own.
    pub net_id: Option<NetId>,
}

/// Whether a namespace that the ledger has is there no more.
pub(crate) fn is_gone(state: &State, namespace: &Namespace) -> bool {
    !state.records.contains_key(namespace) || state.departed.contains(namespace)
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
        None => policy.global_at_birth.contains(namespace).then_some(NetId::GLOBAL),
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

/// A record is about the namespace that its key names; an empty `NetName` is filled in.
pub(crate) fn check_name(namespace: &Namespace, record: &NetNamespaceRecord) -> Result<(), String> {
    if record.net_name.is_empty() || record.net_name == namespace.as_str() {
        return Ok(());
    }
    let name: String = record.net_name.chars().take(80).collect();
    Err(format!("NetName {name:?} differs from {namespace}, the name in the key; make them the same"))
}
