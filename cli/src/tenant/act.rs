//! `tenant join`, `isolate` and `global`: an action written into several records at once, and waited for.
//!
//! All records change in one transaction, so that the leader moves them in one; beyond what etcd takes, in chunks. What
//! is refused, or answered by nobody in time, is taken back: nothing is left behind that works later by surprise.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::record::Record;
use bulkhead_core::tenant::{Action, MOVES_PER_TRANSACTION};
use bulkhead_core::{Namespace, NetId};
use bulkhead_store::{Compare, Entry, Outcome, StoreError, Txn};
use serde::Serialize;

use super::judge::{Answer, judge};
use super::list::unknown;
use crate::args::Wait;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;
use crate::view::{Mail, View};
use crate::wait::{TimedOut, Waiting};

/// What one transaction may hold: what the leader moves in one, and well below etcd's limit of bytes.
const MAX_RECORDS: usize = MOVES_PER_TRANSACTION;
const MAX_BYTES: usize = 1 << 20;
/// How often a write is begun anew because somebody else wrote a record in between.
const ATTEMPTS: usize = 10;

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

/// What was written.
#[derive(Default)]
struct Written {
    /// Each namespace's `NetID` before.
    before: BTreeMap<Namespace, Option<NetId>>,
    /// What there is to tell of the write itself.
    notes: Vec<String>,
    /// Namespaces that a later chunk could not write any more.
    unwritten: BTreeMap<Namespace, String>,
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
    let written = write(cluster, &names, &action).await?;
    let mut answers: BTreeMap<Namespace, (Answer, bool)> = BTreeMap::new();
    if !wait.no_wait {
        let names: Vec<&Namespace> = written.before.keys().collect();
        answers = await_answers(cluster, &names, &action, wait, &written.before).await;
    }
    report(&written, &answers, &action, console)
}

/// Why a record cannot take an action, or what it loses by taking it.
fn check(view: &View, namespace: &Namespace, action: &Action, uncertain: bool) -> Result<Option<String>, String> {
    let record = match view.netnamespace(namespace) {
        Mail::Absent => return Err(format!("{namespace} is being deleted")),
        Mail::Broken(error, _) => return Err(format!("{namespace}: {error}")),
        Mail::Read(record, _) => record,
    };
    // After a write of unknown outcome, our own action is no obstacle.
    let ours = uncertain && (record.action.as_str(), record.namespace.as_str()) == action.fields();
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

/// Writes the action into all records: all or none, unless there are more than one transaction takes.
async fn write(cluster: &Cluster, names: &[Namespace], action: &Action) -> Result<Written, CliError> {
    let mut written = Written::default();
    let (mut at, mut chunks, mut attempts, mut uncertain) = (0, 0, 0, false);
    while at < names.len() {
        let rest = &names[at..];
        let view = cluster.view().await?;
        let known = view.namespaces();
        let strangers: Vec<&Namespace> = rest.iter().filter(|namespace| !known.contains(*namespace)).collect();
        let checked: Result<Vec<_>, String> =
            rest.iter().map(|namespace| check(&view, namespace, action, uncertain)).collect();
        let notes = match checked {
            _ if at == 0 && !strangers.is_empty() => return Err(unknown(&strangers)),
            Err(reason) if at == 0 => return Err(CliError::Refused(reason)),
            Err(reason) => {
                written.unwritten = rest.iter().map(|namespace| (namespace.clone(), reason.clone())).collect();
                break;
            }
            Ok(notes) => notes,
        };
        let (txn, taken) = compose(&view, rest, action);
        match cluster.store.commit(txn).await {
            Ok(Outcome::Done { .. }) => {
                for namespace in &rest[..taken] {
                    written.before.insert(namespace.clone(), view.tenant(namespace).map(|tenant| tenant.net_id));
                }
                written.notes.extend(notes.into_iter().take(taken).flatten());
                (at, chunks, attempts, uncertain) = (at + taken, chunks + 1, 0, false);
                continue;
            }
            Ok(Outcome::Conflict(_)) => {}
            Err(StoreError::OutcomeUnknown { .. }) => uncertain = true,
            Err(error) if at == 0 => return Err(error.into()),
            Err(error) => {
                written.unwritten = rest.iter().map(|namespace| (namespace.clone(), error.chain())).collect();
                break;
            }
        }
        attempts += 1;
        if attempts == ATTEMPTS {
            return Err(CliError::Contended);
        }
    }
    if chunks > 1 {
        written.notes.push(format!(
            "{} namespaces are more than one transaction takes: they moved in {chunks} steps, each at once",
            written.before.len()
        ));
    }
    Ok(written)
}

/// Each namespace's answer, and whether its action is out of the record.
async fn await_answers(
    cluster: &Cluster,
    names: &[&Namespace],
    action: &Action,
    wait: Wait,
    before: &BTreeMap<Namespace, Option<NetId>>,
) -> BTreeMap<Namespace, (Answer, bool)> {
    let judge_all = |view: &View| -> BTreeMap<Namespace, Answer> {
        names.iter().map(|name| ((*name).clone(), judge(view, name, action))).collect()
    };
    let all_answered = |view: &View| {
        let answers = judge_all(view);
        (!answers.values().any(|answer| *answer == Answer::Pending)).then_some(answers)
    };
    let (answers, silence) = match Waiting::start(cluster, wait.timeout).until(all_answered).await {
        Ok(answers) => (answers, String::new()),
        Err(TimedOut { last, cause }) => {
            let nothing = || names.iter().map(|name| ((*name).clone(), Answer::Pending)).collect();
            (last.as_ref().map_or_else(nothing, judge_all), format!("no answer within {:?}: {cause}", wait.timeout))
        }
    };
    take_back(cluster, answers, action, &silence, before).await
}

/// Takes the action out of every record that still has it. What was carried out meanwhile counts as that.
async fn take_back(
    cluster: &Cluster,
    answers: BTreeMap<Namespace, Answer>,
    action: &Action,
    silence: &str,
    before: &BTreeMap<Namespace, Option<NetId>>,
) -> BTreeMap<Namespace, (Answer, bool)> {
    let (mut ours, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
        answers.into_iter().partition(|(_, answer)| answer.is_ours());
    let mut ended: BTreeMap<_, _> = ended.into_iter().map(|(namespace, answer)| (namespace, (answer, true))).collect();
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
        for (namespace, old) in std::mem::take(&mut ours) {
            let answer = judge(&view, &namespace, action);
            let moved = matches!(&answer, Answer::Done(after) if before.get(&namespace) != Some(after));
            if answer.is_ours() {
                ours.insert(namespace, answer);
            } else if uncertain.contains(&namespace) && !moved {
                ended.insert(namespace, (said(old, silence), true));
            } else {
                ended.insert(namespace, (answer, true));
            }
        }
        let (mut txn, mut taken) = (Txn::new(), Vec::new());
        for namespace in ours.keys().take(MAX_RECORDS) {
            if let Some((entry, value)) = blanked(&view, namespace) {
                txn = txn.when(Compare::unchanged(entry)).put(entry.key.clone(), value);
                taken.push(namespace.clone());
            }
        }
        match cluster.store.commit(txn).await {
            Ok(Outcome::Done { .. }) => {
                for namespace in taken {
                    let answer = ours.remove(&namespace).unwrap_or(Answer::Pending);
                    ended.insert(namespace, (said(answer, silence), true));
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

fn blanked<'a>(view: &'a View, namespace: &Namespace) -> Option<(&'a Entry, Vec<u8>)> {
    let Mail::Read(mut record, entry) = view.netnamespace(namespace) else { return None };
    record.action.clear();
    record.namespace.clear();
    record.error.clear();
    Some((entry, record.to_json()))
}

fn report(
    written: &Written,
    answers: &BTreeMap<Namespace, (Answer, bool)>,
    action: &Action,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    let target = if let Action::Join(target) = action { Some(target.clone()) } else { None };
    let moved = |namespace: &Namespace, result, after, error| Move {
        namespace: namespace.clone(),
        action: action.fields().0,
        target: target.clone(),
        result,
        before: written.before.get(namespace).copied().flatten(),
        after,
        error,
    };
    let mut moves: Vec<Move> = Vec::new();
    for namespace in written.before.keys() {
        moves.push(match answers.get(namespace) {
            None => moved(namespace, MoveResult::Written, None, String::new()),
            Some((Answer::Done(after), _)) => moved(namespace, MoveResult::Done, *after, String::new()),
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
