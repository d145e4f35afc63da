//! The controller's answers to what was declared, awaited.
//!
//! Each Namespace is read by its name, again and again: a `RoleBinding` lets one read a single Namespace, but watch none.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_core::Namespace;
use bulkhead_core::tenant::Action;
use futures::{StreamExt, stream};
use kube::Api;
use tokio::time::{Instant, sleep, timeout_at};

use super::Object;
use super::status::{Answer, JOINED_BY_OTHERS, Shown, judge};
use crate::error::CliError;

/// A pause before all are read again.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a status that often passes has to stay.
const SETTLED: Duration = Duration::from_secs(1);
/// How many are read at the same time.
const AT_ONCE: usize = 16;

/// An answer, or why it cannot be read.
type Reading = Result<Answer, String>;

/// Each Namespace's answer, as it stands when all are answered and none changes any more; a refusal with its reason where there
/// is none in time. `written`: how each stood before.
pub async fn answers(
    api: &Api<Object>,
    written: &BTreeMap<Namespace, Shown>,
    action: &Action,
    patience: Duration,
) -> BTreeMap<Namespace, Answer> {
    let deadline = Instant::now() + patience;
    let silent = || Err("the API server has not answered".to_owned());
    let mut readings: BTreeMap<Namespace, Reading> = written.keys().map(|name| (name.clone(), silent())).collect();
    let (mut last, mut since) = (readings.clone(), Instant::now());
    loop {
        let round = async {
            let mut all = stream::iter(written)
                .map(|(name, before)| async move { (name, read(api, name, before, action).await) })
                .buffer_unordered(AT_ONCE);
            while let Some((name, reading)) = all.next().await {
                readings.insert(name.clone(), reading);
            }
        };
        let read = timeout_at(deadline, round).await;
        if readings != last {
            (last, since) = (readings.clone(), Instant::now());
        }
        let answered = readings.values().all(|reading| matches!(reading, Ok(answer) if !answer.is_pending()));
        let settled = read.is_ok() && answered && since.elapsed() >= needed(&readings);
        if settled || timeout_at(deadline, sleep(PAUSE)).await.is_err() {
            return readings.into_iter().map(|(name, reading)| (name, concluded(reading, patience))).collect();
        }
    }
}

/// How long these have to stay before they are told. What one Namespace does changes how others stand, and the controller writes
/// one status after the other.
fn needed(readings: &BTreeMap<Namespace, Reading>) -> Duration {
    let passing =
        |reading: &Reading| matches!(reading, Ok(Answer::Done(status)) if status.starts_with(JOINED_BY_OTHERS));
    if readings.values().any(passing) {
        SETTLED
    } else if readings.len() > 1 {
        PAUSE
    } else {
        Duration::ZERO
    }
}

async fn read(api: &Api<Object>, name: &Namespace, before: &Shown, action: &Action) -> Reading {
    let object = api.get_opt(name.as_str()).await.map_err(|error| CliError::from(error).to_string())?;
    let now = object.map(|object| Shown::of(object.metadata.annotations.as_ref()));
    Ok(judge(now.as_ref(), action, before.status.as_deref()))
}

/// The answer when no other is awaited any more.
fn concluded(reading: Reading, patience: Duration) -> Answer {
    let cause = match reading {
        Ok(Answer::Pending(said)) if said.is_empty() => "the controller has said nothing; look at its log".to_owned(),
        Ok(Answer::Pending(said)) => said,
        Ok(answer) => return answer,
        Err(trouble) => trouble,
    };
    Answer::Refused(format!("not in force within {patience:?}: {cause}"))
}
