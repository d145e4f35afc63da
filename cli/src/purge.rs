//! `bulkhead purge`: the end of a cluster in etcd, the last step of an uninstall.
//!
//! No controller may lead meanwhile: it would write the ledger anew. Promises: the config goes last, so that what was broken
//! off is still known as a cluster and can be purged again.

use bulkhead_core::keys;
use bulkhead_store::{Outcome, Txn};
use serde::Serialize;

use crate::cluster::Etcd;
use crate::confirm;
use crate::error::CliError;
use crate::output::Console;

/// What one transaction may hold, well below etcd's limit.
const MAX_DELETES: usize = 100;
/// The part of their key by which controllers stand for election (`bulkhead_core::Keys::election`).
const ELECTION: &str = "/bulkhead/election/";

/// What was done, as `-o json` prints it.
#[derive(Serialize)]
struct Report {
    removed: usize,
}

/// Deletes every key below the prefix.
pub async fn purge(etcd: &Etcd, yes: bool, console: &mut Console<'_>) -> Result<(), CliError> {
    let prefix = etcd.prefix()?;
    if !yes && !confirmed(prefix)? {
        return Err(CliError::Refused("not confirmed".into()));
    }
    let store = etcd.connect().await?;
    let below = format!("{prefix}/");
    let mut found: Vec<String> = store.list(&below).await?.entries.into_iter().map(|entry| entry.key).collect();
    if let Some(candidate) = found.iter().find(|key| key.contains(ELECTION)) {
        return Err(CliError::Refused(format!(
            "a controller stands in etcd ({candidate}) and would write everything anew; stop all controllers and try again: \
             the key of one that was killed goes within 10 s"
        )));
    }
    found.sort_by_key(|key| *key == keys::config(prefix));
    for chunk in found.chunks(MAX_DELETES) {
        let txn = chunk.iter().fold(Txn::new(), |txn, key| txn.delete(key.clone()));
        let begun = "the purge has begun and is not whole: run it again";
        match store.commit(txn).await {
            Ok(Outcome::Done { .. }) => {}
            Ok(Outcome::Conflict(_)) => return Err(CliError::Unfinished(vec![begun.into()])),
            Err(error) => return Err(CliError::Unfinished(vec![format!("{}; {begun}", error.chain())])),
        }
    }
    let report = Report { removed: found.len() };
    console.report(&report, &[format!("{} keys below {prefix} are removed", report.removed)])
}

/// Asks on a terminal; elsewhere whoever runs it has decided.
fn confirmed(prefix: &str) -> Result<bool, CliError> {
    let warning = format!("This removes the cluster below {prefix} from etcd: every tenant's numbers.");
    Ok(confirm::asked(&warning)?.unwrap_or(true))
}
