//! Ledger entries that somebody else deleted: what they said, for the leader to put back.
//!
//! Only the leader writes the ledger, so an entry that is gone though the leader did not remove it is damage: a person
//! with etcdctl, a wrong script. One that was overwritten by what cannot be read is kept in mind as well, for when
//! somebody deletes that (a newer version may have written it, so it is not ours to overwrite). Promises: nothing is remembered of what the leader itself removes (its own deletions
//! never come here: [`State::committed`](super::State::committed) is told of them first, and what it removes has no
//! mailbox record any more, or one that is younger than the entry: a re-created namespace's), and a mailbox record that
//! was deleted or written anew since ends the memory. What comes from Kubernetes is remembered as long as its object is
//! there, whatever became of the record.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bulkhead_core::ledger::{ClusterEntry, NodeEntry};
use bulkhead_core::{Namespace, Numbers, Tenant};

use super::{Held, Readable, State};
use crate::objects::Source;

/// What was lost. Each with the create revision of the mailbox record that it belonged to; 0 if there was none.
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
        let Some(held) = self.ledger.get(namespace) else { return };
        let record = self.records.get(namespace).map(|record| record.created);
        let lives = self.source.is_kubernetes()
            || record.is_some_and(|record| held.created >= record && !self.departed.contains(namespace));
        if let Ok(tenant) = &held.value
            && lives
        {
            self.lost.tenants.insert(namespace.clone(), (tenant.clone(), record.unwrap_or(0)));
        }
    }

    /// Remembers a node's.
    pub(super) fn lose_node(&mut self, address: IpAddr) {
        let Some(held) = self.nodes.get(&address) else { return };
        let record = self.subnets.get(&address.to_string()).map(|record| record.created);
        if let Ok(node) = &held.value
            && (record.is_some_and(|record| held.created >= record)
                || (self.source.is_kubernetes() && node.uid.is_some()))
        {
            self.lost.nodes.insert(address, (node.clone(), record.unwrap_or(0)));
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
        let (records, ledger, source) = (&self.records, &self.ledger, &self.source);
        self.lost.tenants.retain(|namespace, (tenant, created)| {
            let lives = match source {
                Source::Records => records.get(namespace).is_some_and(|record| record.created == *created),
                Source::Kubernetes(None) => true,
                Source::Kubernetes(Some(objects)) => {
                    let object = objects.namespaces.get(namespace);
                    object.is_some_and(|object| tenant.uid.as_ref().is_none_or(|uid| *uid == object.uid))
                }
            };
            lives && !is_readable(ledger.get(namespace))
        });
        let (subnets, nodes) = (&self.subnets, &self.nodes);
        self.lost.nodes.retain(|address, (node, created)| {
            let lives = match source {
                Source::Kubernetes(objects) if node.uid.is_some() => objects.as_ref().is_none_or(|objects| {
                    let object = objects.nodes.get(&node.host);
                    // A node that moved or was made anew is not the one that was lost.
                    object.is_some_and(|object| {
                        object.addresses.first() == Some(address) && Some(&object.uid) == node.uid.as_ref()
                    })
                }),
                _ => subnets.get(&address.to_string()).is_some_and(|record| record.created == *created),
            };
            lives && !is_readable(nodes.get(address))
        });
        if is_readable(self.numbers.as_ref()) {
            self.lost.numbers = None;
        }
        if is_readable(self.cluster.as_ref()) {
            self.lost.cluster = None;
        }
    }
}
