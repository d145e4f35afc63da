//! `tenant join`, `isolate` and `global`: an action written into several records at once, and waited for.
//!
//! All records change in one transaction, so that the leader moves them in one; beyond what etcd takes, in chunks. What
//! is refused, or answered by nobody in time, is taken back: nothing is left behind that works later by surprise.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::record::Record;
use bulkhead_core::tenant::Action;
use bulkhead_core::{Namespace, NetId};
use bulkhead_store::{Compare, Entry, Outcome, Txn};
use serde::Serialize;

use super::judge::{Answer, Judge};
use super::write::{ATTEMPTS, MAX_RECORDS, Sent, Written, write};
use crate::args::Wait;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;
use crate::view::{Mail, View};
use crate::wait::{TimedOut, Waiting};

/// What became of one namespace, as `-o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Move {
    namespace: Namespace,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Namespace>,
    result: MoveResult,
    /// Its `NetID` before; absent if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<NetId>,
    /// Its `NetID` now; absent unless it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<NetId>,
    /// Why it is not done.
    error: String,
}

/// How a namespace's action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum MoveResult {
    /// Carried out.
    Done,
    /// Written, not waited for.
    Written,
    /// Not carried out, and nothing of it is left.
    Refused,
    /// Not carried out, and left in the record since it could not be taken back.
    Left,
}

fn verb(action: &Action) -> String {
    match action {
        Action::Join(target) => format!("join {target}"),
        Action::Isolate | Action::Global => action.fields().0.to_owned(),
    }
}

/// Writes the action into all records, waits, and reports.
pub async fn act(
    cluster: &Cluster,
    namespaces: &[Namespace],
    action: Action,
    wait: Wait,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    let mut names: Vec<Namespace> = namespaces.to_vec();
    names.sort_unstable();
    names.dedup();
    if let Action::Join(target) = &action
        && names.contains(target)
    {
        return Err(CliError::Usage(format!("{target} cannot join itself; name another namespace with --to")));
    }
    // Watching since before the write, so that no revision after it goes unseen.
    let waiting = if wait.no_wait { None } else { Some(Waiting::start(cluster, wait.timeout).ready().await?) };
    let written = write(cluster, &names, &action).await?;
    let answers = match waiting {
        Some(waiting) => await_answers(cluster, waiting, &written, &action, wait).await,
        None => settle_doubts(cluster, &written, &action).await,
    };
    report(&written, &answers, &action, console)
}

/// Each namespace's answer, and whether its action is out of the record.
type Answers = BTreeMap<Namespace, (Answer, bool)>;

/// Waits for the answers, and takes back what was not carried out.
async fn await_answers(
    cluster: &Cluster,
    waiting: Waiting<'_>,
    written: &Written,
    action: &Action,
    wait: Wait,
) -> Answers {
    let mut open: BTreeMap<Namespace, Answer> = all_pending(written.sent.keys());
    let mut ended = Answers::new();
    // An answer stands once it is there: what others do afterwards is no part of it.
    let look = |view: &View| {
        let judge = Judge::new(view);
        for namespace in std::mem::take(&mut open).into_keys() {
            let since = written.sent.get(&namespace).map_or(0, |sent| sent.since);
            match judge.answer(&namespace, action, since) {
                now if now.is_ours() => drop(open.insert(namespace, now)),
                now => drop(ended.insert(namespace, (now, true))),
            }
        }
        (!open.values().any(|answer| *answer == Answer::Pending)).then_some(())
    };
    let silence = match waiting.until(look).await {
        Ok(()) => String::new(),
        Err(TimedOut { cause, .. }) => format!("no answer within {:?}: {cause}", wait.timeout),
    };
    ended.extend(take_back(cluster, open, &written.sent, action, &silence).await);
    ended
}

/// Without a wait only what may not have been written has an answer: it is taken back, so that it is known.
async fn settle_doubts(cluster: &Cluster, written: &Written, action: &Action) -> Answers {
    let doubts = written.sent.iter().filter_map(|(namespace, sent)| Some((namespace, sent.doubt.as_ref()?)));
    let (names, reasons): (Vec<_>, Vec<_>) = doubts.unzip();
    let Some(reason) = reasons.first() else { return Answers::new() };
    take_back(cluster, all_pending(names), &written.sent, action, reason).await
}

fn all_pending<'a>(names: impl IntoIterator<Item = &'a Namespace>) -> BTreeMap<Namespace, Answer> {
    names.into_iter().map(|namespace| (namespace.clone(), Answer::Pending)).collect()
}

/// Takes the action out of every record that still has it. What was carried out meanwhile counts as that. A record that
/// the action may yet come to lie in is written as it is, and with that etcd refuses the write that was in doubt.
async fn take_back(
    cluster: &Cluster,
    mut ours: BTreeMap<Namespace, Answer>,
    sent: &BTreeMap<Namespace, Sent>,
    action: &Action,
    silence: &str,
) -> Answers {
    let mut ended = Answers::new();
    // Those that a write of unknown outcome may have taken back.
    let mut uncertain: BTreeSet<Namespace> = BTreeSet::new();
    let mut trouble = CliError::Contended.to_string();
    let mut attempts = 0;
    while !ours.is_empty() && attempts < ATTEMPTS {
        let view = match cluster.view().await {
            Ok(view) => view,
            Err(error) => {
                trouble = error.to_string();
                break;
            }
        };
        let judge = Judge::new(&view);
        let moved = |namespace: &Namespace, after| sent.get(namespace).is_none_or(|sent| sent.before != Some(after));
        for (namespace, old) in std::mem::take(&mut ours) {
            let answer = judge.answer(&namespace, action, sent.get(&namespace).map_or(0, |sent| sent.since));
            if answer.is_ours() {
                ours.insert(namespace, answer);
            } else if uncertain.contains(&namespace)
                && !matches!(answer, Answer::Done(after) if moved(&namespace, after))
            {
                ended.insert(namespace, (said(old, silence), true));
            } else {
                ended.insert(namespace, (answer, true));
            }
        }
        let (mut txn, mut taken) = (Txn::new(), Vec::new());
        for namespace in ours.keys().take(MAX_RECORDS) {
            if let Some((entry, value)) = blanked(&view, namespace, action) {
                txn = txn.when(Compare::unchanged(entry)).put(entry.key.clone(), value);
                taken.push(namespace.clone());
            }
        }
        match cluster.store.commit(txn).await {
            Ok(Outcome::Done { .. }) => {
                for namespace in taken {
                    let answer = ours.remove(&namespace).unwrap_or(Answer::Pending);
                    // The first of two writes in doubt may have been carried out, and the second have been lost.
                    let answer = match judge.effect(&namespace, action) {
                        Some(after) if answer == Answer::Pending && moved(&namespace, after) => Answer::Done(after),
                        _ => said(answer, silence),
                    };
                    ended.insert(namespace, (answer, true));
                }
                continue;
            }
            Ok(Outcome::Conflict(_)) => {}
            Err(error) => {
                trouble = error.chain();
                uncertain.extend(taken);
            }
        }
        attempts += 1;
    }
    ended.extend(ours.into_iter().map(|(namespace, answer)| {
        let reason = format!("{}; {trouble}", reason(&said(answer, silence)));
        (namespace, (Answer::Refused(reason), false))
    }));
    ended
}

/// Silence is an answer too, with its reason.
fn said(answer: Answer, silence: &str) -> Answer {
    if answer == Answer::Pending { Answer::Refused(silence.to_owned()) } else { answer }
}

fn reason(answer: &Answer) -> String {
    match answer {
        Answer::Done(_) | Answer::Pending => String::new(),
        Answer::Refused(reason) | Answer::Lost(reason) => reason.clone(),
    }
}

/// The record without our action.
fn blanked<'a>(view: &'a View, namespace: &Namespace, action: &Action) -> Option<(&'a Entry, Vec<u8>)> {
    let Mail::Read(mut record, entry) = view.netnamespace(namespace) else { return None };
    if (record.action.as_str(), record.namespace.as_str()) != action.fields() {
        return Some((entry, entry.value.clone()));
    }
    record.action.clear();
    record.namespace.clear();
    record.error.clear();
    Some((entry, record.to_json()))
}

fn report(written: &Written, answers: &Answers, action: &Action, console: &mut Console<'_>) -> Result<(), CliError> {
    let target = if let Action::Join(target) = action { Some(target.clone()) } else { None };
    let moved = |namespace: &Namespace, result, after, error| Move {
        namespace: namespace.clone(),
        action: action.fields().0,
        target: target.clone(),
        result,
        before: written.sent.get(namespace).and_then(|sent| sent.before),
        after,
        error,
    };
    let mut moves: Vec<Move> = Vec::new();
    for namespace in written.sent.keys() {
        moves.push(match answers.get(namespace) {
            None => moved(namespace, MoveResult::Written, None, String::new()),
            Some((Answer::Done(after), _)) => moved(namespace, MoveResult::Done, Some(*after), String::new()),
            Some((answer, true)) => moved(namespace, MoveResult::Refused, None, reason(answer)),
            Some((answer, false)) => moved(namespace, MoveResult::Left, None, reason(answer)),
        });
    }
    moves.extend(written.unwritten.iter().map(|(name, why)| moved(name, MoveResult::Refused, None, why.clone())));
    let sentences = written.notes.iter().cloned().chain(moves.iter().filter_map(Move::sentence));
    console.report(&moves, &sentences.collect::<Vec<_>>())?;
    let failed: Vec<String> = moves.iter().filter_map(|moved| moved.failure(action)).collect();
    if failed.is_empty() { Ok(()) } else { Err(CliError::Unfinished(failed)) }
}

impl Move {
    /// What is told of a success.
    fn sentence(&self) -> Option<String> {
        let name = &self.namespace;
        match self.result {
            MoveResult::Written => Some(format!("{name}: {} is written, not waited for", self.action)),
            MoveResult::Refused | MoveResult::Left => None,
            MoveResult::Done => Some(match (self.before, self.after) {
                (before, Some(after)) if before == Some(after) => format!("{name}: NetID {after}, unchanged"),
                (Some(before), Some(after)) => format!("{name}: NetID {before} -> {after}"),
                (None, Some(after)) => format!("{name}: NetID {after}"),
                (_, None) => format!("{name}: done"),
            }),
        }
    }

    /// What is told of a failure.
    fn failure(&self, action: &Action) -> Option<String> {
        let fate = match self.result {
            MoveResult::Done | MoveResult::Written => return None,
            MoveResult::Refused => "nothing of it is left",
            MoveResult::Left => "the action could NOT be taken back and may still be carried out",
        };
        Some(format!("{}: {} failed: {}; {fate}", self.namespace, verb(action), self.error))
    }
}
