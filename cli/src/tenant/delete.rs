//! `tenant delete`: the records go in one transaction, then the numbers, which the leader releases.

use bulkhead_core::Namespace;
use bulkhead_store::{Compare, Outcome, StoreError, Txn};
use serde::Serialize;

use super::list::unknown;
use crate::args::Wait;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;
use crate::view::View;
use crate::wait::{TimedOut, Waiting};

/// What one transaction takes.
const MAX_RECORDS: usize = 128;
const ATTEMPTS: usize = 10;

/// What became of one namespace, as `-o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Deletion<'a> {
    namespace: &'a Namespace,
    /// The VNI that it had; absent if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    /// Whether its numbers are known to be released.
    released: bool,
}

/// Deletes namespaces.
pub async fn delete(
    cluster: &Cluster,
    namespaces: &[Namespace],
    wait: Wait,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    let mut names: Vec<&Namespace> = namespaces.iter().collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_RECORDS {
        return Err(CliError::Usage(format!("at most {MAX_RECORDS} namespaces can be deleted at once")));
    }
    let before = delete_records(cluster, &names).await?;
    let vni = |namespace: &Namespace| before.tenant(namespace).map(|tenant| tenant.vni.get());
    let gone = |view: &View, namespace: &Namespace| {
        view.tenant(namespace).is_none_or(|now| Some(now.vni.get()) != vni(namespace))
    };
    let mut trouble = String::new();
    let mut after = None;
    if !wait.no_wait {
        let all_gone = |view: &View| names.iter().all(|namespace| gone(view, namespace)).then_some(());
        if let Err(TimedOut { last, cause }) = Waiting::start(cluster, wait.timeout).until(all_gone).await {
            (after, trouble) = (last, cause);
        }
    }
    let released = |namespace: &Namespace| match &after {
        _ if wait.no_wait => false,
        Some(view) => gone(view, namespace),
        None => trouble.is_empty(),
    };
    let deletions: Vec<Deletion<'_>> = names
        .iter()
        .map(|namespace| Deletion { namespace, vni: vni(namespace), released: released(namespace) })
        .collect();
    let sentences: Vec<String> = deletions.iter().map(Deletion::sentence).collect();
    console.report(&deletions, &sentences)?;
    let held: Vec<String> = deletions
        .iter()
        .filter(|deletion| !deletion.released && !wait.no_wait)
        .map(|deletion| {
            format!("{}: its numbers are not released after {:?}: {trouble}", deletion.namespace, wait.timeout)
        })
        .collect();
    if held.is_empty() { Ok(()) } else { Err(CliError::Unfinished(held)) }
}

impl Deletion<'_> {
    fn sentence(&self) -> String {
        let fate = match (self.vni, self.released) {
            (Some(vni), true) => format!("deleted, VNI {vni} released"),
            _ => "deleted".to_owned(),
        };
        format!("{}: {fate}", self.namespace)
    }
}

/// Removes all records or none; returns the state before.
async fn delete_records(cluster: &Cluster, names: &[&Namespace]) -> Result<View, CliError> {
    let mut uncertain = false;
    for _ in 0..ATTEMPTS {
        let view = cluster.view().await?;
        let entry_of = |namespace: &Namespace| view.netnamespace(namespace).entry().cloned();
        let absent: Vec<&Namespace> = names.iter().copied().filter(|namespace| entry_of(namespace).is_none()).collect();
        if uncertain && absent.len() == names.len() {
            return Ok(view);
        }
        if !absent.is_empty() {
            return Err(unknown(&absent));
        }
        if let Some(owned) = names.iter().find(|name| view.tenant(name).is_some_and(|tenant| tenant.uid.is_some())) {
            return Err(CliError::Refused(format!(
                "{owned} is a Namespace of Kubernetes, and its record would be written again: `kubectl delete namespace {owned}` \
                 deletes both. Where there is no Kubernetes any more: `etcdctl del {}`",
                cluster.keys.netnamespace(owned)
            )));
        }
        let entries = names.iter().filter_map(|namespace| entry_of(namespace));
        let txn = entries.fold(Txn::new(), |txn, entry| txn.when(Compare::unchanged(&entry)).delete(entry.key));
        match cluster.store.commit(txn).await {
            Ok(Outcome::Done { .. }) => return Ok(view),
            Ok(Outcome::Conflict(_)) => {}
            Err(StoreError::OutcomeUnknown { .. }) => uncertain = true,
            Err(error) => return Err(error.into()),
        }
    }
    Err(CliError::Contended)
}
