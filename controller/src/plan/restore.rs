//! After a restore of etcd: the epoch rises, the numbers jump, before anything else happens.
//!
//! Asked for by a record (`bulkhead restore`), or owed because this process saw etcd's history break. Either is one
//! transaction; the record is gone with it, so it is done once. The record may name an epoch that agents have seen: the
//! new one exceeds that, too. Numbers that are not there yet jump when the import makes them: by the epoch.
//!
//! From then on the ledger is settling: who lost their place comes first, whoever leads. The leader's clock ends that.
//!
//! With Kubernetes, the same transaction takes up what its objects show and the ledger lacks, as far as it fits: agents obey
//! the new epoch at once, and are to find there whoever lives.

use bulkhead_core::ledger::{ClusterEntry, to_json};
use bulkhead_core::record::{Record, RestoreRecord};

use super::Policy;
use super::note::Note;
use super::step::Step;
use crate::state::{Mail, State};

const NO_LEDGER: &str = "there is no ledger yet: it waits until the cluster's config is in force";

/// Epochs rise by one at each restore: what is asked for from here on is a slip of the pen, and would use up the epochs.
const MAX_ABOVE: u64 = 1 << 32;

/// How many steps at the most are taken into the one that raises the epoch: more than fit.
const MOST_TAKEN_UP: i64 = 64;
/// Revisions that etcd never has.
const BEYOND: i64 = 1 << 60;

/// Whether the epoch has to rise.
pub(super) fn is_due(state: &State) -> bool {
    let epoch = state.cluster.as_ref().and_then(|held| held.value.as_ref().ok()).map_or(0, |cluster| cluster.epoch);
    followed(state).is_some() || state.owed.is_some_and(|owed| owed >= epoch)
}

/// The record, if it can be followed.
fn followed(state: &State) -> Option<&RestoreRecord> {
    wish(state).filter(|record| record.above.is_none_or(|above| above < MAX_ABOVE))
}

/// The record, if it is one.
fn wish(state: &State) -> Option<&RestoreRecord> {
    state.restore.as_ref().and_then(|held| held.value.record())
}

/// Why the record cannot be followed, or what is owed not be done.
pub(super) fn obstacle(state: &State) -> Option<String> {
    if let Some(Mail::Broken(broken)) = state.restore.as_ref().map(|held| &held.value) {
        return Some(broken.problem.clone());
    }
    blocked(state).or_else(|| {
        let above = wish(state)?.above.filter(|above| *above >= MAX_ABOVE)?;
        Some(format!(
            "Above {above} is no epoch that an agent can have seen: give the one that `bulkhead agent status` shows"
        ))
    })
}

/// Why the epoch cannot rise, whoever wants it.
fn blocked(state: &State) -> Option<String> {
    match (&state.cluster, &state.numbers) {
        (None, _) => Some(NO_LEDGER.to_owned()),
        (Some(held), _) if let Err(error) = &held.value => Some(error.clone()),
        (_, Some(held)) if let Err(error) = &held.value => Some(error.clone()),
        _ => None,
    }
}

/// Whether it is due and has to wait until Kubernetes was listed.
pub(super) fn waits(state: &State) -> bool {
    is_due(state) && !super::is_listed(state)
}

/// The transaction, if it is due and can be.
pub(super) fn step(state: &State, policy: &Policy) -> Option<Step> {
    let step = rise(state, false)?;
    if !state.source.is_kubernetes() {
        return Some(step);
    }
    match with_those_who_live(state, policy, step) {
        (step, true) => Some(step),
        // Agents keep their state until the rest is there too.
        _ => Some(with_those_who_live(state, policy, rise(state, true)?).0),
    }
}

/// The same with what of namespaces and nodes has to be taken up or let go; whether that is all of it.
fn with_those_who_live(state: &State, policy: &Policy, mut step: Step) -> (Step, bool) {
    let mut ahead = state.clone();
    let mut later = step.clone();
    for number in 0..MOST_TAKEN_UP {
        // A revision beyond all: nothing of it is compared, for the step compares what its parts were read as.
        ahead.committed(later.writes(), BEYOND + number);
        match super::next(&ahead, policy) {
            None => return (step, true),
            Some(next) if step.absorb(&next) => later = next,
            Some(_) => return (step, false),
        }
    }
    (step, false)
}

/// The rise alone. `building` has agents keep their state for now.
fn rise(state: &State, building: bool) -> Option<Step> {
    if !is_due(state) || blocked(state).is_some() || waits(state) {
        return None;
    }
    let held = state.cluster.as_ref()?;
    let cluster = held.value.as_ref().ok()?;
    let above = followed(state).and_then(|record| record.above).unwrap_or(0);
    let epoch = cluster.epoch.max(state.owed.unwrap_or(0)).max(above).checked_add(1)?;
    let keys = state.keys();
    let mut step = Step::default();
    step.expect(keys.restore(), state.restore.as_ref().map_or(0, |held| held.revision));
    step.expect(keys.ledger_cluster(), held.revision);
    step.expect(keys.numbers(), state.numbers.as_ref().map_or(0, |held| held.revision));
    step.put(
        keys.ledger_cluster(),
        to_json(&ClusterEntry { epoch, building: cluster.building || building, ..cluster.clone() }),
    );
    let mut mark = None;
    if let Some(held) = &state.numbers {
        let mut numbers = held.value.clone().ok()?;
        numbers.rise(epoch - cluster.epoch);
        mark = Some(numbers.mark());
        step.put(keys.numbers(), to_json(&numbers));
    }
    // What cannot be followed stays, for its answer.
    let requested = followed(state).map(|record| record.requested.clone());
    if requested.is_some() {
        step.delete(keys.restore());
    }
    step.note(Note::EpochRaised { from: cluster.epoch, to: epoch, mark, requested });
    Some(step)
}

/// Says that everybody who lives has been born again: what a namespace shows that comes later is not believed.
pub(super) fn all_reborn(state: &State) -> Option<Step> {
    state.source.objects()?;
    let held = state.numbers.as_ref()?;
    let numbers = held.value.as_ref().ok().filter(|numbers| numbers.may_be_reborn())?;
    let mut step = Step::default();
    step.expect(state.keys().numbers(), held.revision);
    step.put(state.keys().numbers(), to_json(&numbers.clone().all_reborn()));
    step.some()
}

/// Says that the ledger has settled, once those that lost their place had their time and all of them are known.
pub(super) fn settled(state: &State) -> Option<Step> {
    let epoch = state.settling().filter(|epoch| state.settled == Some(*epoch) && super::is_listed(state))?;
    let held = state.numbers.as_ref()?;
    let numbers = held.value.clone().ok()?.settled();
    let keys = state.keys();
    let mut step = Step::default();
    // Not of another rise.
    step.expect(keys.ledger_cluster(), state.cluster.as_ref().map_or(0, |held| held.revision));
    step.expect(keys.numbers(), held.revision);
    step.put(keys.numbers(), to_json(&numbers));
    step.note(Note::Settled { epoch });
    Some(step)
}

/// Answers a record that nothing can be done for now, once.
pub(super) fn refusal(state: &State) -> Option<Step> {
    let (held, reason) = (state.restore.as_ref()?, obstacle(state)?);
    let answer = match &held.value {
        Mail::Record(record) if record.error == reason => None,
        Mail::Record(record) => Some(RestoreRecord { error: reason.clone(), ..record.clone() }.to_json()),
        Mail::Broken(broken) => broken.answered(&reason),
    }?;
    let mut step = Step::default();
    step.expect(state.keys().restore(), held.revision);
    step.put(state.keys().restore(), answer);
    step.note(Note::Refused { what: "restore", name: String::new(), reason });
    Some(step)
}
