//! How long nodes of the ledger have been away from Kubernetes.
//!
//! The one thing about nodes that needs a clock. It is this process's memory, which begins before it leads: a leader that
//! follows another goes on counting. One that never saw the Node begins anew, so a subnet is kept for the grace period at
//! least.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bulkhead_core::NodeName;
use tokio::time::Instant;

use crate::state::State;

/// Since when each is away.
#[derive(Debug, Clone)]
pub struct Absences {
    grace: Duration,
    since: BTreeMap<(IpAddr, NodeName), Instant>,
}

impl Absences {
    /// None yet.
    pub const fn new(grace: Duration) -> Self {
        Self { grace, since: BTreeMap::new() }
    }

    /// Looks who is away: gives the addresses of those that have been for too long, and when the next will have been.
    /// While Kubernetes was not listed nobody is away.
    pub fn look(&mut self, state: &State, now: Instant) -> (BTreeSet<IpAddr>, Option<Instant>) {
        let Some(objects) = state.source().objects() else { return (BTreeSet::new(), None) };
        let away = state.nodes().filter(|(_, node)| node.uid.is_some() && !objects.nodes.contains_key(&node.host));
        let away: BTreeSet<_> = away.map(|(address, node)| (address, node.host.clone())).collect();
        self.since.retain(|node, _| away.contains(node));
        let mut overdue = BTreeSet::new();
        let mut next = None;
        for (address, host) in away {
            let seen = objects.away.get(&host).copied().unwrap_or(now);
            let end = *self.since.entry((address, host)).or_insert(seen) + self.grace;
            if end <= now {
                overdue.insert(address);
            } else {
                next = next.into_iter().chain([end]).min();
            }
        }
        (overdue, next)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bulkhead_core::{ClusterName, Keys, keys};
    use bulkhead_store::{Change, Changes, Entry};

    use super::*;
    use crate::objects::Objects;

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_goes_on_counting_for_a_node_that_it_saw_leave() {
        let (grace, minute) = (Duration::from_mins(10), Duration::from_mins(1));
        let keys = Keys::new(keys::DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
        let mut state = State::new(keys.clone()).with_kubernetes();
        let node = |host: &str, index: u8| {
            let address = IpAddr::from([10, 0, 0, index]);
            let value = format!(
                r#"{{"host":"{host}","addresses":["{address}"],"subnets":["172.11.{}.0/22"],"uid":"u"}}"#,
                index * 4
            );
            let key = keys.ledger_node(address);
            Change::Put(Entry { key, value: value.into(), create_revision: 1, mod_revision: 1 })
        };
        state.apply(&Changes { revision: 1, changes: vec![node("seen", 1), node("never-seen", 2)] });
        let left = Instant::now();
        let away = Arc::new([(NodeName::new("seen").unwrap(), left)].into());
        state.observe(Objects { away, ..Objects::default() });
        let now = left + 9 * minute;
        let mut fresh = Absences::new(grace);
        assert_eq!(fresh.look(&state, now), (BTreeSet::new(), Some(left + grace)));
        let (overdue, next) = fresh.look(&state, left + grace);
        assert_eq!(overdue, [IpAddr::from([10, 0, 0, 1])].into());
        assert_eq!(next, Some(now + grace));
    }
}
