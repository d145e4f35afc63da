//! Writes one action into several records: all in one transaction, beyond what etcd takes in chunks.
//!
//! Promises: an error means that nothing was written. Once something was, or may have been, what fails afterwards only
//! leaves the rest unwritten; the caller learns what lies in etcd, waits for it and takes it back.

use std::collections::BTreeMap;

use bulkhead_core::record::Record;
use bulkhead_core::tenant::{Action, MOVES_PER_TRANSACTION};
use bulkhead_core::{Namespace, NetId};
use bulkhead_store::{Compare, Outcome, StoreError, Txn};

use super::list::unknown;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::view::{Mail, View};

/// What one transaction may hold: what the leader moves in one, and well below etcd's limit of bytes.
pub const MAX_RECORDS: usize = MOVES_PER_TRANSACTION;
const MAX_BYTES: usize = 1 << 20;
/// How often a write is begun anew because somebody else wrote a record in between.
pub const ATTEMPTS: usize = 10;

/// An action that was written, or may have been.
pub struct Sent {
    /// The namespace's `NetID` before.
    pub before: Option<NetId>,
    /// The revision that wrote it; in doubt, the earliest that can have.
    pub since: i64,
    /// Why it is not known whether it was written.
    pub doubt: Option<String>,
}

/// What was written.
#[derive(Default)]
pub struct Written {
    /// Each action that was.
    pub sent: BTreeMap<Namespace, Sent>,
    /// What there is to tell of the write itself.
    pub notes: Vec<String>,
    /// Namespaces that could not be written any more, and why.
    pub unwritten: BTreeMap<Namespace, String>,
}

impl Written {
    fn in_doubt(&self, namespace: &Namespace) -> bool {
        self.sent.get(namespace).is_some_and(|sent| sent.doubt.is_some())
    }

    fn add(&mut self, namespace: &Namespace, view: &View, since: i64, doubt: Option<String>) {
        // After a write in doubt the first state read is the one before.
        let before = match self.sent.get(namespace) {
            Some(sent) => sent.before,
            None => view.tenant(namespace).map(|tenant| tenant.net_id),
        };
        self.sent.insert(namespace.clone(), Sent { before, since, doubt });
    }
}

/// Writes the action into all records: all or none, unless there are more than one transaction takes.
pub async fn write(cluster: &Cluster, names: &[Namespace], action: &Action) -> Result<Written, CliError> {
    let mut written = Written::default();
    let (mut at, mut chunks, mut attempts) = (0, 0, 0);
    while at < names.len() {
        let failure = match attempt(cluster, &names[at..], action, &mut written).await {
            Ok(Some(taken)) => {
                (at, chunks, attempts) = (at + taken, chunks + 1, 0);
                continue;
            }
            Ok(None) if attempts + 1 < ATTEMPTS => {
                attempts += 1;
                continue;
            }
            Ok(None) => CliError::Contended,
            Err(failure) => failure,
        };
        if written.sent.is_empty() {
            return Err(failure);
        }
        let reason = match failure {
            CliError::Refused(reason) => reason,
            CliError::Store(error) => error.chain(),
            other => other.to_string(),
        };
        let rest = names[at..].iter().filter(|namespace| !written.sent.contains_key(*namespace));
        written.unwritten = rest.map(|namespace| (namespace.clone(), reason.clone())).collect();
        break;
    }
    if chunks > 1 {
        written.notes.push(format!(
            "{} namespaces are more than one transaction takes: they moved in {chunks} steps, each at once",
            written.sent.len()
        ));
    }
    Ok(written)
}

/// Writes as large a part of `rest` as one transaction takes, and tells how much; none if it has to be begun anew.
async fn attempt(
    cluster: &Cluster,
    rest: &[Namespace],
    action: &Action,
    written: &mut Written,
) -> Result<Option<usize>, CliError> {
    let view = cluster.view().await?;
    let known = view.namespaces();
    let strangers: Vec<&Namespace> = rest.iter().filter(|namespace| !known.contains(*namespace)).collect();
    if !strangers.is_empty() {
        return Err(unknown(&strangers));
    }
    let check_one = |namespace| check(&view, namespace, action, written.in_doubt(namespace));
    let notes = rest.iter().map(check_one).collect::<Result<Vec<_>, _>>().map_err(CliError::Refused)?;
    let (txn, taken) = compose(&view, rest, action);
    match cluster.store.commit(txn).await {
        Ok(Outcome::Done { revision }) => {
            for namespace in &rest[..taken] {
                written.add(namespace, &view, revision, None);
            }
            written.notes.extend(notes.into_iter().take(taken).flatten());
            Ok(Some(taken))
        }
        Ok(Outcome::Conflict(_)) => Ok(None),
        Err(error @ StoreError::OutcomeUnknown { .. }) => {
            for namespace in &rest[..taken] {
                // The record did not change between its read and the write, if that took effect.
                let read = view.netnamespace(namespace).entry().map_or(0, |entry| entry.mod_revision);
                written.add(namespace, &view, read + 1, Some(error.chain()));
            }
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Why a record cannot take an action, or what it loses by taking it.
fn check(view: &View, namespace: &Namespace, action: &Action, in_doubt: bool) -> Result<Option<String>, String> {
    let record = match view.netnamespace(namespace) {
        Mail::Absent => return Err(format!("{namespace} is being deleted")),
        Mail::Broken(error, _) => return Err(format!("{namespace}: {error}")),
        Mail::Read(record, _) => record,
    };
    // After a write of unknown outcome, our own action is no obstacle.
    let ours = in_doubt && (record.action.as_str(), record.namespace.as_str()) == action.fields();
    if record.action.is_empty() || ours {
        return Ok(None);
    }
    let pending = [record.action.as_str(), record.namespace.as_str()].join(" ").trim_end().to_owned();
    if record.error.is_empty() {
        return Err(format!("{namespace} has an action that nobody has answered yet ({pending}); wait for it"));
    }
    Ok(Some(format!("{namespace}: replaced the action {pending}, which was not carried out: {}", record.error)))
}

/// The records of `names` with the action in them, as large a part as one transaction takes. Unknown fields are kept.
fn compose(view: &View, names: &[Namespace], action: &Action) -> (Txn, usize) {
    let (verb, target) = action.fields();
    let (mut txn, mut taken, mut bytes) = (Txn::new(), 0, 0);
    for namespace in names {
        let Mail::Read(mut record, entry) = view.netnamespace(namespace) else { break };
        verb.clone_into(&mut record.action);
        target.clone_into(&mut record.namespace);
        record.error.clear();
        let value = record.to_json();
        bytes += value.len() + 4 * entry.key.len() + 200;
        if taken == MAX_RECORDS || (taken > 0 && bytes > MAX_BYTES) {
            break;
        }
        txn = txn.when(Compare::unchanged(entry)).put(entry.key.clone(), value);
        taken += 1;
    }
    (txn, taken)
}
