//! What has become of an action: read from the record that it was written into.

use bulkhead_core::tenant::Action;
use bulkhead_core::{Namespace, NetId};

use crate::view::{Mail, View};

/// What has become of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was carried out; the namespace has this `NetID` now.
    Done(Option<NetId>),
    /// The leader refused it, or lets it wait for something; it still lies in the record.
    Refused(String),
    /// Nobody has answered; it still lies in the record.
    Pending,
    /// The record is not as we wrote it: somebody else's doing.
    Lost(String),
}

impl Answer {
    /// Whether our action still lies in the record.
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Pending)
    }
}

/// Reads the answer to `action` from the state.
pub fn judge(view: &View, namespace: &Namespace, action: &Action) -> Answer {
    let record = match view.netnamespace(namespace) {
        Mail::Absent => return Answer::Lost("the namespace was deleted meanwhile".into()),
        Mail::Broken(error, _) => return Answer::Lost(format!("somebody else overwrote the record: {error}")),
        Mail::Read(record, _) => record,
    };
    if record.action.is_empty() {
        return Answer::Done(view.tenant(namespace).map(|tenant| tenant.net_id));
    }
    if (record.action.as_str(), record.namespace.as_str()) != action.fields() {
        return Answer::Lost(format!("somebody else asked for {} meanwhile", record.action));
    }
    if record.error.is_empty() { Answer::Pending } else { Answer::Refused(record.error) }
}
