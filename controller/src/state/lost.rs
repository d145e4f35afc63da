//! Ledger entries that somebody else deleted: what they said, for the leader to put back.
//!
//! Only the leader writes the ledger, so an entry that is gone though the leader did not remove it is damage: a person
//! with etcdctl, a wrong script. Promises: nothing is remembered of what the leader itself removes (its own deletions
//! never come here: [`State::committed`](super::State::committed) is told of them first, and what it removes has no
//! mailbox record any more), and a mailbox record that was deleted or written anew since ends the memory.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bulkhead_core::ledger::{ClusterEntry, NodeEntry};
use bulkhead_core::{Namespace, Numbers, Tenant};

use super::State;

/// What was lost. Each with the create revision of the mailbox record that it belonged to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Lost {
    pub(crate) tenants: BTreeMap<Namespace, (Tenant, i64)>,
    pub(crate) nodes: BTreeMap<IpAddr, (NodeEntry, i64)>,
    pub(crate) numbers: Option<Numbers>,
    pub(crate) cluster: Option<ClusterEntry>,
}

impl Lost {
    /// Whether nothing was.
    pub(crate) fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.nodes.is_empty() && self.numbers.is_none() && self.cluster.is_none()
    }
}

impl State {
    /// Remembers a namespace's entry that is about to vanish from the state.
    pub(super) fn lose_tenant(&mut self, namespace: &Namespace) {
        let held = self.ledger.get(namespace).and_then(|held| held.value.as_ref().ok());
        let (Some(tenant), Some(record)) = (held, self.records.get(namespace)) else { return };
        if !self.departed.contains(namespace) {
            self.lost.tenants.insert(namespace.clone(), (tenant.clone(), record.created));
        }
    }

    /// Remembers a node's.
    pub(super) fn lose_node(&mut self, address: IpAddr) {
        let held = self.nodes.get(&address).and_then(|held| held.value.as_ref().ok());
        if let (Some(node), Some(record)) = (held, self.subnets.get(&address.to_string())) {
            self.lost.nodes.insert(address, (node.clone(), record.created));
        }
    }

    /// Remembers the allocator's state.
    pub(super) fn lose_numbers(&mut self) {
        self.lost.numbers = self.numbers.as_ref().and_then(|held| held.value.clone().ok()).or(self.lost.numbers.take());
    }

    /// Remembers the cluster's entry.
    pub(super) fn lose_cluster(&mut self) {
        self.lost.cluster = self.cluster.as_ref().and_then(|held| held.value.clone().ok()).or(self.lost.cluster.take());
    }

    /// Takes over what a list that leads on from the state `before` no longer shows.
    pub(super) fn lose_what_is_missing(&mut self, mut before: Self) {
        let tenants: Vec<_> =
            before.ledger.keys().filter(|namespace| !self.ledger.contains_key(*namespace)).cloned().collect();
        for namespace in &tenants {
            before.lose_tenant(namespace);
        }
        let nodes: Vec<_> = before.nodes.keys().filter(|address| !self.nodes.contains_key(*address)).copied().collect();
        for address in nodes {
            before.lose_node(address);
        }
        if self.numbers.is_none() {
            before.lose_numbers();
        }
        if self.cluster.is_none() {
            before.lose_cluster();
        }
        self.lost = before.lost;
        self.forget_what_is_settled();
    }

    /// Drops the memory of what is there again, or whose mailbox record is not the one that it was.
    pub(super) fn forget_what_is_settled(&mut self) {
        if self.lost.is_empty() {
            return;
        }
        let (records, ledger) = (&self.records, &self.ledger);
        self.lost.tenants.retain(|namespace, (_, created)| {
            !ledger.contains_key(namespace) && records.get(namespace).is_some_and(|record| record.created == *created)
        });
        let (subnets, nodes) = (&self.subnets, &self.nodes);
        self.lost.nodes.retain(|address, (_, created)| {
            !nodes.contains_key(address)
                && subnets.get(&address.to_string()).is_some_and(|record| record.created == *created)
        });
        if self.numbers.is_some() {
            self.lost.numbers = None;
        }
        if self.cluster.is_some() {
            self.lost.cluster = None;
        }
    }
}
