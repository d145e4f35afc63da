//! `bulkhead restore`: tells the leader that etcd was restored from a snapshot or replaced.
//!
//! The wish is a record that the leader deletes in the transaction that raises the epoch. One that nobody answers in
//! time is taken back.

use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_core::record::{Record, RestoreRecord};
use bulkhead_store::{Compare, Outcome, StoreError, Txn};
use serde::Serialize;

use crate::args::Wait;
use crate::cluster::Cluster;
use crate::confirm;
use crate::error::CliError;
use crate::output::Console;
use crate::view::{Mail, View};
use crate::wait::{TimedOut, Waiting};

/// How often the record is tried to be taken back.
const ATTEMPTS: usize = 10;

/// What came of it, as `-o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `done`, or `written`: not waited for.
    result: &'static str,
    /// The epoch before; absent if there was no ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<u64>,
    /// The epoch now; absent if not waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<u64>,
    /// The next VNI is past this one; absent if not waited for, or before the first one is given out.
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<u32>,
}

impl Report {
    fn sentence(&self) -> String {
        let epoch = match (self.before, self.after) {
            (Some(before), Some(after)) => format!("epoch {before} -> {after}"),
            (None, Some(after)) => format!("epoch {after}"),
            (_, None) => "written; the leading controller raises the epoch".to_owned(),
        };
        self.mark.map_or_else(|| epoch.clone(), |mark| format!("{epoch}, the next VNI is past {mark}"))
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Wish {
    /// Do not ask on a terminal.
    pub yes: bool,
    /// The epoch that the new one has to exceed.
    pub above: Option<u64>,
}

enum Answer {
    Done { after: u64, mark: Option<u32> },
    Refused(String),
}

/// Asks the leader to raise the epoch, and waits until it is done.
pub async fn restore(cluster: &Cluster, wish: Wish, wait: Wait, console: &mut Console<'_>) -> Result<(), CliError> {
    if !wish.yes && !confirmed()? {
        return Err(CliError::Refused("not confirmed".into()));
    }
    let view = cluster.view().await?;
    let before = view.cluster().map(|cluster| cluster.epoch);
    let record = RestoreRecord::asking(&words(), wish.above);
    write(cluster, &record, before).await?;
    if wait.no_wait {
        let report = Report { result: "written", before, after: None, mark: None };
        return console.report(&report, &[report.sentence()]);
    }
    let outcome = Waiting::start(cluster, wait.timeout).until(|view| judge(view, &record, before)).await;
    let answer = match outcome {
        Ok(Answer::Refused(reason)) => take_back(cluster, &record, before, &reason).await?,
        Ok(done) => done,
        Err(TimedOut { cause, .. }) => {
            let reason = format!("not done within {:?}: {cause}", wait.timeout);
            take_back(cluster, &record, before, &reason).await?
        }
    };
    match answer {
        Answer::Done { after, mark } => {
            let report = Report { result: "done", before, after: Some(after), mark };
            console.report(&report, &[report.sentence()])?;
            match wish.above.filter(|above| after <= *above) {
                None => Ok(()),
                Some(above) => Err(CliError::Unfinished(vec![format!(
                    "the restore: the epoch rose, but not above {above}: the leading controller is older than this \
                     command; update it and type this again"
                )])),
            }
        }
        Answer::Refused(reason) => Err(CliError::Refused(format!("the restore: {reason}"))),
    }
}

/// Who asked, for people who find the record; it also tells this wish from another.
pub fn words() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("bulkhead restore, process {}, unix time {}.{:09}", std::process::id(), now.as_secs(), now.subsec_nanos())
}

/// Asks on a terminal; elsewhere whoever runs it has decided.
pub fn confirmed() -> Result<bool, CliError> {
    let warning = "This is for an etcd that was restored from a snapshot or replaced. The epoch rises, and the next 1048576 VNIs \
                   are passed by.";
    Ok(confirm::asked(warning)?.unwrap_or(true))
}

/// What has come of the wish; none while it waits.
fn judge(view: &View, ours: &RestoreRecord, before: Option<u64>) -> Option<Answer> {
    match view.restore() {
        Mail::Read(record, _) if record.requested == ours.requested && record.error.is_empty() => None,
        Mail::Read(record, _) if record.requested == ours.requested => Some(Answer::Refused(record.error)),
        mail => {
            let raised = view.cluster().map(|cluster| cluster.epoch).filter(|epoch| *epoch > before.unwrap_or(0));
            Some(match (raised, mail) {
                (Some(after), _) => Answer::Done { after, mark: view.numbers().map(|numbers| numbers.mark()) },
                (None, Mail::Absent) => Answer::Refused("somebody removed the request meanwhile".into()),
                (None, _) => Answer::Refused("somebody overwrote the request meanwhile".into()),
            })
        }
    }
}

async fn write(cluster: &Cluster, record: &RestoreRecord, before: Option<u64>) -> Result<(), CliError> {
    let key = cluster.keys.restore();
    match cluster.store.commit(Txn::new().when(Compare::absent(&key)).put(&key, record.to_json())).await {
        Ok(Outcome::Done { .. }) => Ok(()),
        Ok(Outcome::Conflict(_)) => {
            let view = cluster.view().await?;
            let detail = match view.restore().record() {
                Some(there) if there.error.is_empty() => format!(" ({})", there.requested),
                Some(there) => format!(" ({}; it waits: {})", there.requested, there.error),
                None => String::new(),
            };
            Err(CliError::Refused(format!(
                "a restore is under way already{detail}; wait until the controller has removed {key}"
            )))
        }
        Err(error @ StoreError::OutcomeUnknown { .. }) => {
            let view = cluster.view().await?;
            match judge(&view, record, before) {
                None | Some(Answer::Done { .. }) => Ok(()),
                Some(Answer::Refused(_)) => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes the wish that was not answered, or says how it was answered after all.
async fn take_back(
    cluster: &Cluster,
    ours: &RestoreRecord,
    before: Option<u64>,
    reason: &str,
) -> Result<Answer, CliError> {
    let left = |trouble: String| {
        CliError::Unfinished(vec![format!(
            "the restore: {reason}; the request could NOT be taken back and may still be carried out: {trouble}"
        )])
    };
    for _ in 0..ATTEMPTS {
        let view = cluster.view().await.map_err(|error| left(error.to_string()))?;
        let entry = match view.restore() {
            Mail::Read(record, entry) if record.requested == ours.requested => entry,
            _ => {
                return Ok(match judge(&view, ours, before) {
                    Some(done @ Answer::Done { .. }) => done,
                    _ => Answer::Refused(reason.to_owned()),
                });
            }
        };
        match cluster.store.commit(Txn::new().when(Compare::unchanged(entry)).delete(&entry.key)).await {
            Ok(Outcome::Done { .. }) => return Ok(Answer::Refused(reason.to_owned())),
            Ok(Outcome::Conflict(_)) | Err(StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(left(error.chain())),
        }
    }
    Err(left(CliError::Contended.to_string()))
}
