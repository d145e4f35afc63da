//! What Kubernetes should show of what the leader decided: annotations and Events of Namespaces, condition and subnets of
//! Nodes, the epoch in a `ConfigMap`; and how that differs from what it shows. Numbers and subnets are read there again when
//! a restored etcd lacks them.
//!
//! Pure; [`reporter`](super::reporter) writes it.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_core::{Namespace, NodeName};
use tokio::time::Instant;

use crate::memory::Memory;
use crate::objects::{Condition, Objects};
use crate::plan::{Kind, Shown, Status};

/// How often the revision that goes with the epoch is written.
pub(super) const REVISION_EVERY: Duration = Duration::from_mins(1);
/// Reason of the condition and of the Event of a node that can have no subnet.
const NO_SUBNET: &str = "BulkheadNoSubnet";

/// What Kubernetes should show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How namespaces stand.
    pub statuses: BTreeMap<Namespace, Status>,
    /// Nodes that have no subnet, and why.
    pub without_subnet: BTreeMap<NodeName, String>,
    /// What Nodes show of their subnets.
    pub subnets: BTreeMap<NodeName, Shown>,
    /// What of etcd is to be remembered, if the ledger can be read.
    pub memory: Option<Memory>,
}

/// One thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    Namespace { name: Namespace, status: Status, reason: &'static str },
    Node { name: NodeName, uid: String, standing: Standing },
    Subnet { name: NodeName, shown: Shown },
    Memory(Memory),
}

/// How a node's network stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    Ready,
    NotReady,
    /// Its agent cannot be ready for this.
    NoSubnet(String),
}

impl Standing {
    /// The condition's status and reason.
    pub(super) const fn condition(&self) -> (&'static str, &'static str) {
        match self {
            Self::Ready => ("False", "BulkheadReady"),
            Self::NotReady => ("True", "BulkheadNotReady"),
            Self::NoSubnet(_) => ("True", NO_SUBNET),
        }
    }

    /// Whether that is what a Node shows. Why there is no subnet may change; the rest says the same with any message.
    fn is_shown(&self, shown: &Condition) -> bool {
        self.condition() == (shown.status.as_str(), shown.reason.as_str())
            && (!matches!(self, Self::NoSubnet(_)) || shown.message == self.message())
    }

    pub(super) fn message(&self) -> String {
        match self {
            Self::Ready => "the node's bulkhead-agent is ready".to_owned(),
            Self::NotReady => "the node's bulkhead-agent is not ready".to_owned(),
            Self::NoSubnet(why) => format!("the node has no subnet: {why}"),
        }
    }
}

/// What a write is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Namespace(Namespace),
    Node(NodeName),
    Subnet(NodeName),
    Memory,
}

impl Write {
    pub(super) fn subject(&self) -> Subject {
        match self {
            Self::Namespace { name, .. } => Subject::Namespace(name.clone()),
            Self::Node { name, .. } => Subject::Node(name.clone()),
            Self::Subnet { name, .. } => Subject::Subnet(name.clone()),
            Self::Memory(_) => Subject::Memory,
        }
    }

    /// The same thing would be shown, whatever it is said to be.
    pub(super) fn shows_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Namespace { status: a, .. }, Self::Namespace { status: b, .. }) => a == b,
            _ => self == other,
        }
    }
}

/// Everything that Kubernetes does not show as it should. Nodes are left alone while no agent's pod was ever seen:
/// then the agents run by other means, or the selector is wrong.
pub(super) fn differences(
    report: &Report,
    objects: &Objects,
    remembered: Option<&(Memory, Instant)>,
    now: Instant,
) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(memory) = &report.memory {
        let stale = remembered.is_none_or(|(known, when)| {
            known.epoch != memory.epoch
                || known.cluster_id != memory.cluster_id
                || known.owed != memory.owed
                || (known.revision != memory.revision && *when + REVISION_EVERY <= now)
        });
        writes.extend(stale.then(|| Write::Memory(memory.clone())));
    }
    if !objects.agents.is_empty() {
        for (name, node) in &*objects.nodes {
            let ready = objects.agents.get(name).copied().unwrap_or(false);
            let standing = match report.without_subnet.get(name) {
                _ if ready => Standing::Ready,
                Some(why) => Standing::NoSubnet(why.clone()),
                None => Standing::NotReady,
            };
            if !node.unavailable.as_ref().is_some_and(|shown| standing.is_shown(shown)) {
                writes.push(Write::Node { name: name.clone(), uid: node.uid.clone(), standing });
            }
        }
    }
    for (name, status) in &report.statuses {
        let Some(object) = objects.namespaces.get(name).filter(|object| object.uid == status.uid) else { continue };
        let known = object.shown_vni.as_ref() == Some(&status.vni);
        if known && object.shown_status.as_ref() == Some(&status.text) {
            continue;
        }
        let reason = match status.kind {
            Kind::Waits | Kind::Refused => "NetworkRefused",
            Kind::InForce if known => "NetworkChanged",
            Kind::InForce => "NetworkReady",
        };
        writes.push(Write::Namespace { name: name.clone(), status: status.clone(), reason });
    }
    for (name, shown) in &report.subnets {
        let object = objects.nodes.get(name).filter(|object| object.uid == shown.uid);
        if object.is_some_and(|object| object.shown_subnet.as_ref() != Some(&shown.text)) {
            writes.push(Write::Subnet { name: name.clone(), shown: shown.clone() });
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::objects::{NamespaceObject, NodeObject};

    fn status(text: &str, kind: Kind) -> Status {
        Status { uid: "u".into(), vni: "10".into(), text: text.into(), kind }
    }

    fn shows(vni: Option<&str>, text: Option<&str>) -> Objects {
        let object = NamespaceObject {
            uid: "u".into(),
            shown_vni: vni.map(ToOwned::to_owned),
            shown_status: text.map(ToOwned::to_owned),
            ..NamespaceObject::default()
        };
        let namespaces = Arc::new([(Namespace::new("a").unwrap(), object)].into());
        Objects { namespaces, ..Objects::default() }
    }

    fn reports(status: Status) -> Report {
        Report { statuses: [(Namespace::new("a").unwrap(), status)].into(), ..Report::default() }
    }

    #[test]
    fn only_what_differs_is_written_and_the_reason_says_how() {
        let report = reports(status("isolated", Kind::InForce));
        let refused = reports(status("refused: x", Kind::Refused));
        let reason = |report: &Report, objects: &Objects| {
            let writes = differences(report, objects, None, Instant::now());
            assert!(writes.len() <= 1);
            writes.first().map(|write| match write {
                Write::Namespace { reason, .. } => *reason,
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(reason(&report, &shows(Some("10"), Some("isolated"))), None);
        assert_eq!(reason(&report, &shows(None, None)), Some("NetworkReady"));
        assert_eq!(reason(&report, &shows(Some("9"), Some("isolated"))), Some("NetworkReady"));
        assert_eq!(reason(&report, &shows(Some("10"), Some("global"))), Some("NetworkChanged"));
        assert_eq!(reason(&refused, &shows(Some("10"), Some("isolated"))), Some("NetworkRefused"));
        // Nor is another namespace of that name told.
        let other = reports(Status { uid: "v".into(), ..status("isolated", Kind::InForce) });
        assert_eq!(reason(&other, &shows(None, None)), None);
    }

    #[test]
    fn a_node_is_told_what_its_agent_is_unless_there_is_no_agent_at_all() {
        let name = |text: &str| NodeName::new(text).unwrap();
        let node = |shown: Option<(&str, &str)>| NodeObject {
            unavailable: shown.map(|(status, reason)| Condition {
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: "the node has no subnet: it has no InternalIP".to_owned(),
            }),
            ..NodeObject::default()
        };
        let nodes = [
            (name("new"), node(None)),
            (name("ready"), node(Some(("False", "BulkheadReady")))),
            (name("was-ready"), node(Some(("False", "BulkheadReady")))),
            (name("without"), node(Some(("True", "NoRouteCreated")))),
            (name("told"), node(Some(("True", "BulkheadNoSubnet")))),
            (name("told-otherwise"), node(Some(("True", "BulkheadNoSubnet")))),
        ];
        let agents = [(name("new"), true), (name("ready"), true), (name("was-ready"), false)];
        let mut objects = Objects { nodes: Arc::new(nodes.into()), ..Objects::default() };
        assert_eq!(differences(&Report::default(), &objects, None, Instant::now()), []);
        objects.agents = Arc::new(agents.into());
        let full = ["new", "was-ready", "told-otherwise"].map(|text| (name(text), "all are in use".to_owned()));
        let told = (name("told"), "it has no InternalIP".to_owned());
        let report = Report { without_subnet: full.into_iter().chain([told]).collect(), ..Report::default() };
        let writes = differences(&report, &objects, None, Instant::now());
        let expected = [
            ("new", Standing::Ready),
            ("told-otherwise", Standing::NoSubnet("all are in use".into())),
            ("was-ready", Standing::NoSubnet("all are in use".into())),
            ("without", Standing::NotReady),
        ];
        let write = |(text, standing)| Write::Node { name: name(text), uid: String::new(), standing };
        assert_eq!(writes, expected.map(write));
    }

    #[test]
    fn a_node_shows_its_subnets_and_no_other_node_does() {
        let name = NodeName::new("n1").unwrap();
        let shown = Shown { uid: "u".into(), text: "172.11.4.0/22".into() };
        let report = Report { subnets: [(name.clone(), shown.clone())].into(), ..Report::default() };
        let objects = |uid: &str, text: Option<&str>| {
            let shown_subnet = text.map(ToOwned::to_owned);
            let object = NodeObject { uid: uid.into(), shown_subnet, ..NodeObject::default() };
            Objects { nodes: Arc::new([(name.clone(), object)].into()), ..Objects::default() }
        };
        let written = |objects: &Objects| differences(&report, objects, None, Instant::now());
        for text in [None, Some("172.11.8.0/22")] {
            assert_eq!(written(&objects("u", text)), [Write::Subnet { name: name.clone(), shown: shown.clone() }]);
        }
        assert_eq!(written(&objects("u", Some("172.11.4.0/22"))), []);
        assert_eq!(written(&objects("other", None)), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_revision_is_written_now_and_then_the_epoch_at_once() {
        let memory = |epoch, revision| Memory { epoch, cluster_id: 7, revision, owed: None };
        let report = |memory| Report { memory: Some(memory), ..Report::default() };
        let known = (memory(1, 5), Instant::now());
        let due = |memory| !differences(&report(memory), &Objects::default(), Some(&known), Instant::now()).is_empty();
        assert!(!due(memory(1, 5)) && !due(memory(1, 6)) && due(memory(2, 6)));
        tokio::time::advance(REVISION_EVERY).await;
        assert!(!due(memory(1, 5)) && due(memory(1, 6)));
    }
}
