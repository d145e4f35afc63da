//! Ledger entries that somebody else deleted: what they said, for the leader to put back.
//!
//! Only the leader writes the ledger, so an entry that is gone though the leader did not remove it is damage: a person
//! with etcdctl, a wrong script. One that was overwritten by what cannot be read is kept in mind as well, for when
//! somebody deletes that (a newer version may have written it, so it is not ours to overwrite). Promises: nothing is remembered of what the leader itself removes (its own deletions
//! never come here: [`State::committed`](super::State::committed) is told of them first, and what it removes has no
//! mailbox record any more, or one that is younger than the entry: a re-created namespace's), and a mailbox record that was deleted or written anew since ends the memory.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bulkhead_core::ledger::{ClusterEntry, NodeEntry};
use bulkhead_core::{Namespace, Numbers, Tenant};

use super::{Held, Readable, State};

/// What was lost. Each with the create revision of the mailbox record that it belonged to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Lost {
    pub(crate) tenants: BTreeMap<Namespace, (Tenant, i64)>,
    pub(crate) nodes: BTreeMap<IpAddr, (NodeEntry, i64)>,
    pub(crate) numbers: Option<Numbers>,
    pub(crate) cluster: Option<ClusterEntry>,
}

fn is_readable<T>(held: Option<&Held<Readable<T>>>) -> bool {
    held.is_some_and(|held| held.value.is_ok())
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
        let (Some(held), Some(record)) = (self.ledger.get(namespace), self.records.get(namespace)) else { return };
        if let Ok(tenant) = &held.value
            && held.created >= record.created
            && !self.departed.contains(namespace)
        {
            self.lost.tenants.insert(namespace.clone(), (tenant.clone(), record.created));
        }
    }

    /// Remembers a node's.
    pub(super) fn lose_node(&mut self, address: IpAddr) {
        let (Some(held), Some(record)) = (self.nodes.get(&address), self.subnets.get(&address.to_string())) else {
            return;
        };
        if let Ok(node) = &held.value
            && held.created >= record.created
        {
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
            before.ledger.keys().filter(|namespace| !is_readable(self.ledger.get(*namespace))).cloned().collect();
        for namespace in &tenants {
            before.lose_tenant(namespace);
        }
        let nodes: Vec<_> =
            before.nodes.keys().filter(|address| !is_readable(self.nodes.get(*address))).copied().collect();
        for address in nodes {
            before.lose_node(address);
        }
        if !is_readable(self.numbers.as_ref()) {
            before.lose_numbers();
        }
        if !is_readable(self.cluster.as_ref()) {
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
            !is_readable(ledger.get(namespace))
                && records.get(namespace).is_some_and(|record| record.created == *created)
        });
        let (subnets, nodes) = (&self.subnets, &self.nodes);
        self.lost.nodes.retain(|address, (_, created)| {
            !is_readable(nodes.get(address))
                && subnets.get(&address.to_string()).is_some_and(|record| record.created == *created)
        });
        if is_readable(self.numbers.as_ref()) {
            self.lost.numbers = None;
        }
        if is_readable(self.cluster.as_ref()) {
            self.lost.cluster = None;
        }
    }
}
