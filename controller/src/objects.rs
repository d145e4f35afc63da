//! What Kubernetes has, as far as the plan needs it: namespaces, nodes, and which agents are ready.
//!
//! A value of this type is always whole: it is made of complete lists and what followed them, so what it does not have
//! is not there. Pure; [`kubernetes`](crate::kubernetes) makes it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bulkhead_core::annotation::{AnnotationError, JoinConsent, Network};
use bulkhead_core::{Namespace, NodeName};
use tokio::time::Instant;

use crate::memory::Memory;

/// The namespace that every cluster has: a list without it is not believed.
pub const KUBE_SYSTEM: &str = "kube-system";

/// All of it. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// By name.
    pub namespaces: Arc<BTreeMap<Namespace, NamespaceObject>>,
    /// By name.
    pub nodes: Arc<BTreeMap<NodeName, NodeObject>>,
    /// The agents' pods by node: whether one of them is ready.
    pub agents: Arc<BTreeMap<NodeName, bool>>,
    /// Nodes that this process saw and that are gone: since when. Every controller keeps it, leading or not.
    pub away: Arc<BTreeMap<NodeName, Instant>>,
    /// What it remembered of etcd when this process began, if anything.
    pub memory: Option<Memory>,
}

/// A Namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceObject {
    /// Tells it from one that had the same name before.
    pub uid: String,
    /// The network that it declares, if it does.
    pub network: Option<Result<Network, AnnotationError>>,
    /// Who may join it, if it says so.
    pub consent: Option<Result<JoinConsent, AnnotationError>>,
    /// What its annotations show of the VNI.
    pub shown_vni: Option<String>,
    /// What its annotations show of its status.
    pub shown_status: Option<String>,
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeObject {
    /// Tells it from one that had the same name before.
    pub uid: String,
    /// Its internal addresses, IPv4 first: the first is where tunnels end.
    pub addresses: Vec<IpAddr>,
    /// What its annotations show of its subnets.
    pub shown_subnet: Option<String>,
    /// Its condition `NetworkUnavailable`.
    pub unavailable: Option<Condition>,
}

/// A condition of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// Where namespaces and nodes come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// Standalone: the mailbox records.
    #[default]
    Records,
    /// Kubernetes; none until everything was listed once.
    Kubernetes(Option<Objects>),
}

impl Source {
    /// What Kubernetes has, if it is the source and has been listed.
    pub const fn objects(&self) -> Option<&Objects> {
        match self {
            Self::Kubernetes(Some(objects)) => Some(objects),
            Self::Records | Self::Kubernetes(None) => None,
        }
    }

    /// Whether Kubernetes is the source, listed or not.
    pub const fn is_kubernetes(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }
}
