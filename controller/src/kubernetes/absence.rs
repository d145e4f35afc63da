//! How long nodes of the ledger have been away from Kubernetes.
//!
//! The one thing about nodes that needs a clock. It is this process's memory: a new leader begins to count anew, so a
//! subnet is kept for the grace period at least.

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
            let end = *self.since.entry((address, host)).or_insert(now) + self.grace;
            if end <= now {
                overdue.insert(address);
            } else {
                next = next.into_iter().chain([end]).min();
            }
        }
        (overdue, next)
    }
}
