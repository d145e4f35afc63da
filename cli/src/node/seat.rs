//! `node add-external` and `node remove`: a machine's place in the cluster network, asked for and given back.

use std::net::IpAddr;

use bulkhead_core::NodeName;
use bulkhead_core::record::{Record, SubnetRecord};
use bulkhead_store::{Compare, Outcome, StoreError, Txn};
use serde::Serialize;

use super::{find, list};
use crate::args::Wait;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;
use crate::view::{Mail, View};
use crate::wait::{TimedOut, Waiting};

/// How often a write is tried while others write the record.
const ATTEMPTS: usize = 10;

enum Answer {
    Seated,
    Refused(String),
}

/// Asks for a subnet for a machine outside the cluster, and prints it.
pub async fn add_external(
    cluster: &Cluster,
    host: &NodeName,
    ip: IpAddr,
    wait: Wait,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    let key = cluster.keys.subnet(ip);
    let record = SubnetRecord::asking(host.as_str(), ip);
    let txn = Txn::new()
        .when(Compare::absent(&key))
        .when(Compare::absent(cluster.keys.ledger_node(ip)))
        .put(&key, record.to_json());
    match cluster.store.commit(txn).await {
        Ok(Outcome::Done { .. }) => {}
        Ok(Outcome::Conflict(_)) => {
            return Err(CliError::Refused(format!(
                "a node at {ip} exists already, or is just being removed; `bulkhead node show {ip}` shows it"
            )));
        }
        Err(error @ StoreError::OutcomeUnknown { .. }) => {
            if cluster.view().await?.subnet(ip).record().is_none_or(|record| record.host != host.as_str()) {
                return Err(error.into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    if wait.no_wait {
        return list::show(&cluster.view().await?, ip, console);
    }
    let judge = |view: &View| match view.subnet(ip) {
        Mail::Absent => Some(Answer::Refused("somebody removed it meanwhile".into())),
        Mail::Broken(error, _) => Some(Answer::Refused(format!("somebody else overwrote its record: {error}"))),
        Mail::Read(record, _) if !record.error.is_empty() => Some(Answer::Refused(record.error)),
        Mail::Read(..) => view.node(ip).map(|_| Answer::Seated),
    };
    let reason = match Waiting::start(cluster, wait.timeout).until(judge).await {
        Ok(Answer::Seated) => return list::show(&cluster.view().await?, ip, console),
        Ok(Answer::Refused(reason)) => reason,
        Err(TimedOut { cause, .. }) => format!("no subnet within {:?}: {cause}", wait.timeout),
    };
    if take_back(cluster, ip, &reason).await? {
        return list::show(&cluster.view().await?, ip, console);
    }
    Err(CliError::Refused(format!("{host} at {ip} got no subnet: {reason}")))
}

/// Removes the record that asked in vain; true if it was answered meanwhile after all.
async fn take_back(cluster: &Cluster, ip: IpAddr, reason: &str) -> Result<bool, CliError> {
    let left = |trouble: String| {
        CliError::Unfinished(vec![format!(
            "{ip} got no subnet: {reason}; its record could NOT be removed and may still be answered: {trouble}"
        )])
    };
    for _ in 0..ATTEMPTS {
        let view = cluster.view().await.map_err(|error| left(error.to_string()))?;
        let mail = view.subnet(ip);
        let Some(entry) = mail.entry() else { return Ok(false) };
        if view.node(ip).is_some() {
            return Ok(true);
        }
        let ledger = Compare::absent(cluster.keys.ledger_node(ip));
        let txn = Txn::new().when(Compare::unchanged(entry)).when(ledger).delete(&entry.key);
        match cluster.store.commit(txn).await {
            Ok(Outcome::Done { .. }) => return Ok(false),
            Ok(Outcome::Conflict(_)) | Err(StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(left(error.chain())),
        }
    }
    Err(left(CliError::Contended.to_string()))
}

/// What became of a removed node, as `-o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Removal {
    host: String,
    ip: IpAddr,
    /// The subnets that it had.
    subnets: Vec<String>,
    /// Whether they are known to be released.
    released: bool,
}

/// Removes a node's record and waits until its subnet is released.
pub async fn remove(cluster: &Cluster, node: &str, wait: Wait, console: &mut Console<'_>) -> Result<(), CliError> {
    let (ip, before) = remove_record(cluster, node).await?;
    let mut trouble = String::new();
    if !wait.no_wait {
        let gone = |view: &View| view.node(ip).is_none().then_some(());
        if let Err(TimedOut { cause, .. }) = Waiting::start(cluster, wait.timeout).until(gone).await {
            trouble = cause;
        }
    }
    let released = !wait.no_wait && trouble.is_empty();
    let subnets = before.node(ip).as_ref().map(list::subnets).unwrap_or_default();
    let removal = Removal { host: list::host(&before, ip), ip, subnets, released };
    let fate = match (removal.subnets.is_empty(), released) {
        (false, true) => format!("removed, {} released", removal.subnets.join(",")),
        _ => "removed".to_owned(),
    };
    console.report(&removal, &[format!("{} ({ip}): {fate}", removal.host)])?;
    if trouble.is_empty() {
        return Ok(());
    }
    Err(CliError::Unfinished(vec![format!("{ip}: its subnet is not released after {:?}: {trouble}", wait.timeout)]))
}

/// Removes a node's record; returns the state before.
async fn remove_record(cluster: &Cluster, node: &str) -> Result<(IpAddr, View), CliError> {
    let mut unknown: Option<(IpAddr, View)> = None;
    for _ in 0..ATTEMPTS {
        let view = cluster.view().await?;
        if let Some((ip, before)) = unknown.take()
            && view.subnet(ip).entry().is_none()
        {
            return Ok((ip, before));
        }
        let ip = find(&view, node)?;
        let Some(entry) = view.subnet(ip).entry().cloned() else {
            return Err(CliError::Refused(format!("{node} is removed already; its subnet waits to be released")));
        };
        if let Some(owned) = view.node(ip).filter(|owned| owned.uid.is_some()) {
            return Err(CliError::Refused(format!(
                "{} ({ip}) is a Node of Kubernetes, and its record would be written again: after `kubectl delete node {}` the \
                 controller takes its subnet back (--node-release-after). Where there is no Kubernetes any more: `etcdctl del {}`",
                owned.host, owned.host, entry.key
            )));
        }
        match cluster.store.commit(Txn::new().when(Compare::unchanged(&entry)).delete(entry.key)).await {
            Ok(Outcome::Done { .. }) => return Ok((ip, view)),
            Ok(Outcome::Conflict(_)) => {}
            Err(StoreError::OutcomeUnknown { .. }) => unknown = Some((ip, view)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(CliError::Contended)
}
