//! Whether a state that etcd shows is believed.
//!
//! Pure. An etcd that was restored from an older snapshot, or replaced, shows numbers that running pods have moved on from.
//! Once that is noticed nothing makes it undone but an epoch above the one that was in force: the revision soon passes the
//! one seen before. A ledger that somebody only deleted is believed as soon as the leader has put it back.

use bulkhead_store::Discontinuity;

use super::Intent;

/// Why a state is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    /// The epoch that the ledger's must exceed. None: a ledger with its cluster's entry will do.
    pub must_exceed: Option<u64>,
    /// What happened and what to do, for a person.
    pub reason: String,
}

const BUILDING: &str = "the ledger was deleted, and the controller is making it anew from the records: this node keeps its last \
    state until it is whole; if it is not within a minute, look at the controller's log";

/// Judges `fresh` by what was `seen`; none if it is to be followed.
pub(super) fn judge(seen: &Intent, discontinuity: Option<Discontinuity>, fresh: &Intent) -> Option<Hold> {
    let (epoch, now) = (seen.must_exceed.unwrap_or_else(|| seen.epoch()), fresh.epoch());
    let whole = |intent: &Intent| intent.cluster.as_ref().is_some_and(|cluster| !cluster.building);
    if whole(seen) && fresh.cluster.as_ref().is_some_and(|cluster| cluster.building) {
        return Some(Hold { must_exceed: seen.must_exceed, reason: BUILDING.to_owned() });
    }
    let what = match discontinuity {
        _ if now > epoch => return None,
        Some(Discontinuity::ClusterChanged { .. }) => "another etcd cluster answers",
        Some(Discontinuity::RevisionWentBack { .. }) => "etcd went back to an older revision",
        None if seen.must_exceed.is_some() => "etcd was restored from an older state, or replaced",
        None if now == epoch => return None,
        None if fresh.cluster.is_none() => return Some(Hold { must_exceed: None, reason: emptied(epoch) }),
        None => "the ledger's epoch went back",
    };
    Some(Hold { must_exceed: Some(epoch), reason: restored(what, now, epoch) })
}

fn restored(what: &str, now: u64, seen: u64) -> String {
    format!(
        "{what} (ledger epoch {now}, seen {seen}): this node keeps its last state until the controller has raised the epoch; \
         if it does not within a minute, run `bulkhead restore`; if etcd was emptied on purpose, stop the agent, remove its \
         --state-dir and start it again"
    )
}

fn emptied(seen: u64) -> String {
    format!(
        "the ledger's cluster entry was deleted (epoch {seen} was in force): this node keeps its last state until the \
         controller has put the ledger back; if it does not within a minute, run `bulkhead restore`; if the cluster was \
         removed on purpose, stop the agent, remove its --state-dir and start it again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(epoch: u64) -> Intent {
        let json = format!(
            r#"{{"epoch":{epoch},"network":["10.77.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}}"#
        );
        Intent { cluster: serde_json::from_str(&json).ok(), ..Intent::default() }
    }

    /// Followed, or what the epoch must exceed.
    fn judged(seen: &Intent, discontinuity: Option<Discontinuity>, fresh: &Intent) -> Result<(), Option<u64>> {
        judge(seen, discontinuity, fresh).map_or(Ok(()), |hold| Err(hold.must_exceed))
    }

    #[test]
    fn a_restored_etcd_is_held_off_until_the_epoch_rises() {
        for found in
            [Discontinuity::RevisionWentBack { seen: 9, now: 5 }, Discontinuity::ClusterChanged { seen: 1, now: 2 }]
        {
            assert_eq!(judged(&of(1), Some(found), &of(1)), Err(Some(1)));
            assert_eq!(judged(&of(1), Some(found), &Intent::default()), Err(Some(1)));
            assert_eq!(judged(&of(1), Some(found), &of(2)), Ok(()));
        }
        assert_eq!(judged(&of(2), None, &of(1)), Err(Some(2)));
    }

    #[test]
    fn what_was_noticed_once_holds_though_later_lists_look_sound() {
        let noticed = Intent { must_exceed: Some(1), ..of(1) };
        assert_eq!(judged(&noticed, None, &of(1)), Err(Some(1)));
        assert_eq!(judged(&noticed, None, &Intent::default()), Err(Some(1)));
        assert_eq!(judged(&noticed, None, &of(2)), Ok(()));
        let reason = judge(&noticed, None, &of(1)).unwrap().reason;
        assert!(reason.contains("keeps its last state") && reason.contains("run `bulkhead restore`"), "{reason}");
    }

    #[test]
    fn an_emptied_ledger_is_held_off_until_it_is_back() {
        assert_eq!(judged(&of(1), None, &Intent::default()), Err(None));
        assert_eq!(judged(&of(1), None, &of(1)), Ok(()));
        assert_eq!(judged(&of(1), None, &of(2)), Ok(()));
        assert_eq!(judged(&of(2), None, &of(1)), Err(Some(2)), "put back, but older");
    }

    #[test]
    fn a_ledger_that_is_not_whole_yet_is_held_off_by_who_has_one() {
        let building = |epoch| {
            let mut intent = of(epoch);
            intent.cluster.as_mut().unwrap().building = true;
            intent
        };
        for epoch in 1..4 {
            assert_eq!(judged(&of(2), None, &building(epoch)), Err(None), "{epoch}");
        }
        let noticed = Intent { must_exceed: Some(2), ..of(1) };
        assert_eq!(judged(&noticed, None, &building(3)), Err(Some(2)));
        assert_eq!(judged(&of(2), None, &of(3)), Ok(()));
        // Nobody waits for it who has nothing to lose.
        for seen in [Intent::default(), building(3)] {
            assert_eq!(judged(&seen, None, &building(3)), Ok(()));
            assert_eq!(judged(&seen, None, &of(3)), Ok(()));
        }
    }

    #[test]
    fn a_node_that_has_seen_nothing_believes() {
        assert_eq!(judge(&Intent::default(), None, &Intent::default()), None);
        assert_eq!(judge(&Intent::default(), None, &of(1)), None);
    }
}
