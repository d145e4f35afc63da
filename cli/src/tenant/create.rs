//! `tenant create`: a record that asks for numbers, waited for, and removed again if it gets none.

use bulkhead_core::record::{NetNamespaceRecord, Record};
use bulkhead_core::{Namespace, NetId};
use bulkhead_store::{Compare, Outcome, StoreError, Txn};

use super::list;
use crate::args::Wait;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;
use crate::view::{Mail, View};
use crate::wait::{TimedOut, Waiting};

/// How often a removal is tried while others write the record.
const ATTEMPTS: usize = 10;

/// What has become of the request.
enum Answer {
    Born,
    Refused(String),
}

/// Creates a namespace.
pub async fn create(
    cluster: &Cluster,
    namespace: &Namespace,
    net_id: Option<NetId>,
    wait: Wait,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    await_release(cluster, namespace, wait).await?;
    let mut record = NetNamespaceRecord::asking(namespace);
    record.net_id = net_id.map(|id| id.get().into());
    let key = cluster.keys.netnamespace(namespace);
    let ledger = cluster.keys.ledger_namespace(namespace);
    let txn = Txn::new().when(Compare::absent(&key)).when(Compare::absent(ledger)).put(&key, record.to_json());
    match cluster.store.commit(txn).await {
        Ok(Outcome::Done { .. }) => {}
        Ok(Outcome::Conflict(_)) => return Err(exists(namespace)),
        Err(error @ StoreError::OutcomeUnknown { .. }) => {
            let view = cluster.view().await?;
            if view.netnamespace(namespace).record().is_none() {
                return Err(error.into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    if wait.no_wait {
        return list::show(&cluster.view().await?, namespace, console);
    }
    let judge = |view: &View| match view.netnamespace(namespace) {
        Mail::Absent => Some(Answer::Refused("somebody deleted it meanwhile".into())),
        Mail::Broken(error, _) => Some(Answer::Refused(format!("somebody else overwrote its record: {error}"))),
        Mail::Read(record, _) if view.tenant(namespace).is_some() && record.error.is_empty() => Some(Answer::Born),
        Mail::Read(record, _) => (!record.error.is_empty()).then_some(Answer::Refused(record.error)),
    };
    let reason = match Waiting::start(cluster, wait.timeout).until(judge).await {
        Ok(Answer::Born) => return list::show(&cluster.view().await?, namespace, console),
        Ok(Answer::Refused(reason)) => reason,
        Err(TimedOut { cause, .. }) => format!("no numbers within {:?}: {cause}", wait.timeout),
    };
    if remove(cluster, namespace, &reason).await? {
        return list::show(&cluster.view().await?, namespace, console);
    }
    Err(CliError::Refused(format!("{namespace} was not created: {reason}")))
}

fn exists(namespace: &Namespace) -> CliError {
    CliError::Refused(format!("the namespace {namespace} exists already; `bulkhead tenant show {namespace}` shows it"))
}

/// A namespace of that name that is just being deleted is another one: its numbers must go first.
async fn await_release(cluster: &Cluster, namespace: &Namespace, wait: Wait) -> Result<(), CliError> {
    let state = |view: &View| (view.netnamespace(namespace).entry().is_some(), view.tenant(namespace).is_some());
    match state(&cluster.view().await?) {
        (true, _) => return Err(exists(namespace)),
        (false, false) => return Ok(()),
        (false, true) => {}
    }
    let released = Waiting::start(cluster, wait.timeout).until(|view| (!state(view).1).then_some(()));
    released.await.map_err(|TimedOut { cause, .. }| {
        CliError::Refused(format!("a namespace {namespace} is being deleted and its numbers are not released: {cause}"))
    })
}

/// Removes the record that asked in vain; true if the namespace was born meanwhile after all.
async fn remove(cluster: &Cluster, namespace: &Namespace, reason: &str) -> Result<bool, CliError> {
    let left = |trouble: String| {
        CliError::Unfinished(vec![format!(
            "{namespace} was not created: {reason}; its record could NOT be removed and may still be answered: {trouble}"
        )])
    };
    let ledger = cluster.keys.ledger_namespace(namespace);
    for _ in 0..ATTEMPTS {
        let view = cluster.view().await.map_err(|error| left(error.to_string()))?;
        let mail = view.netnamespace(namespace);
        let Some(entry) = mail.entry() else { return Ok(false) };
        if view.tenant(namespace).is_some() {
            return Ok(true);
        }
        let txn = Txn::new().when(Compare::unchanged(entry)).when(Compare::absent(&ledger)).delete(&entry.key);
        match cluster.store.commit(txn).await {
            Ok(Outcome::Done { .. }) => return Ok(false),
            Ok(Outcome::Conflict(_)) | Err(StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(left(error.chain())),
        }
    }
    Err(left(CliError::Contended.to_string()))
}
