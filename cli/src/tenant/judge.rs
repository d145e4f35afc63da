//! What has become of an action: read from its record and from the ledger, at one revision.
//!
//! An empty `Action` alone is no answer: the leader empties it when it has carried the action out, but so does a person
//! who writes back a record read before. So the effect decides, as the ledger has it: done means that the namespace is
//! where it was asked to be, and that nothing of the action is left. Whoever looks at every revision since the write,
//! as the wait does unless its watch breaks, meets the effect in the very revision that empties the record, whatever
//! others do afterwards. Whoever comes later cannot tell an action that was carried out and undone by another's from
//! one that was overwritten, and is told that the namespace is not where it was asked to be: never a false success.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use bulkhead_core::tenant::Action;
use bulkhead_core::{Namespace, NetId};

use crate::view::{Mail, View};

/// What has become of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The namespace is where it was asked to be, in this network.
    Done(NetId),
    /// The leader refused it, or lets it wait for something; it still lies in the record.
    Refused(String),
    /// Nobody has answered; it still lies in the record, or may yet come to lie there.
    Pending,
    /// The record is not as we wrote it, and the action without effect: somebody else's doing.
    Lost(String),
}

impl Answer {
    /// Whether our action still lies in the record, or may come to.
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Pending)
    }
}

/// Reads answers from one state.
pub struct Judge<'a> {
    view: &'a View,
    /// How many namespaces each network has; counted when first asked for.
    members: OnceCell<BTreeMap<NetId, usize>>,
}

impl<'a> Judge<'a> {
    /// Of this state.
    pub const fn new(view: &'a View) -> Self {
        Self { view, members: OnceCell::new() }
    }

    /// The answer to an action that was written at revision `since`, or if at all then not before it.
    pub fn answer(&self, namespace: &Namespace, action: &Action, since: i64) -> Answer {
        // Read before the write.
        if self.view.revision() < since {
            return Answer::Pending;
        }
        let record = match self.view.netnamespace(namespace) {
            Mail::Absent => return Answer::Lost("the namespace was deleted meanwhile".into()),
            Mail::Broken(error, _) => return Answer::Lost(format!("somebody else overwrote the record: {error}")),
            Mail::Read(_, entry) if entry.mod_revision < since => return Answer::Pending,
            Mail::Read(record, _) => record,
        };
        if record.action.is_empty() {
            return match self.effect(namespace, action) {
                Some(net_id) => Answer::Done(net_id),
                None => Answer::Lost(self.without_effect(namespace, since)),
            };
        }
        if (record.action.as_str(), record.namespace.as_str()) != action.fields() {
            return Answer::Lost(format!("somebody else asked for {} meanwhile", record.action));
        }
        if record.error.is_empty() { Answer::Pending } else { Answer::Refused(record.error) }
    }

    /// The namespace's network, if it is one that the action leads to.
    pub fn effect(&self, namespace: &Namespace, action: &Action) -> Option<NetId> {
        let own = self.view.tenant(namespace)?.net_id;
        let holds = match action {
            Action::Join(target) => self.view.tenant(target)?.net_id == own,
            Action::Isolate => !own.is_global() && self.members(own) == 1,
            Action::Global => own.is_global(),
        };
        holds.then_some(own)
    }

    fn members(&self, net_id: NetId) -> usize {
        let count = || {
            let mut members = BTreeMap::new();
            for tenant in self.view.tenants().values() {
                *members.entry(tenant.net_id).or_default() += 1;
            }
            members
        };
        self.members.get_or_init(count).get(&net_id).copied().unwrap_or(0)
    }

    fn without_effect(&self, namespace: &Namespace, since: i64) -> String {
        match self.view.tenant(namespace) {
            // Only the leader writes the ledger, and only to carry something out.
            Some(tenant) if self.view.tenant_revision(namespace) >= since => {
                format!("somebody else changed the namespace meanwhile, its NetID is {}", tenant.net_id)
            }
            _ => "somebody overwrote the action before it was carried out".into(),
        }
    }
}
