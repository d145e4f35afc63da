//! The annotations of Kubernetes objects that Bulkhead reads or writes, and what those for people may say.
//!
//! [`ALL`] describes each of them; `docs/annotations.md` is made of it. Promises: what is read is valid or refused with an error
//! that says what to write.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::name::{NameError, Namespace};

/// Which network a namespace is to be in: a [`Network`].
pub const NETWORK: &str = "bulkhead.dev/network";
/// Who may join by annotation: a [`JoinConsent`].
pub const ALLOW_JOIN_FROM: &str = "bulkhead.dev/allow-join-from";
/// The namespace's VNI, for people to read.
pub const VNI: &str = "bulkhead.dev/vni";
/// How the namespace stands, for people to read.
pub const NETWORK_STATUS: &str = "bulkhead.dev/network-status";
/// The limit of what goes to a pod: a [`Bandwidth`](crate::Bandwidth).
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// The limit of what comes from a pod.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// The kubelet's, on the API server's image of a static pod: the UID by which the runtime knows that pod.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// An annotation as its reference describes it, in Markdown.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// The kind of object that has it.
    pub object: &'static str,
    /// Who writes it.
    pub writer: &'static str,
    /// What it may say.
    pub values: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// All that Bulkhead reads or writes.
pub const ALL: [Description; 7] = [
    Description {
        name: NETWORK,
        object: "Namespace",
        writer: "people",
        values: "`isolated`, `global` or `join:NAMESPACE`, to the letter",
        effect: "A network of its own, with those that declare to join it; open to all; in that namespace's network, wherever it \
                 goes. Holds whatever anybody does later. Removed, it moves nobody",
    },
    Description {
        name: ALLOW_JOIN_FROM,
        object: "Namespace",
        writer: "people",
        values: "names separated by commas, or `*`",
        effect: "Who may `join:` this namespace. Asked for with `--require-join-consent` (`requireJoinConsent`) only",
    },
    Description {
        name: VNI,
        object: "Namespace",
        writer: "the controller",
        values: "10 to 16777215",
        effect: "Shows the number on the wire, which never changes",
    },
    Description {
        name: NETWORK_STATUS,
        object: "Namespace",
        writer: "the controller",
        values: "`isolated`, `global`, `joined to ...`, `joined by others ...`, `flat`, `waiting: ...`, `refused: ...`",
        effect: "Shows how the namespace stands",
    },
    Description {
        name: INGRESS_BANDWIDTH,
        object: "Pod",
        writer: "people",
        values: "bits per second from `1k` to `1P`, as a Quantity: `10M`, `1.5G`, `64Ki`",
        effect: "Limits what goes to the pod. A bad value fails the start of a pod; of a running pod it changes nothing and is an \
                 Event `InvalidBandwidth`. Removed, there is no limit",
    },
    Description {
        name: EGRESS_BANDWIDTH,
        object: "Pod",
        writer: "people",
        values: "as above",
        effect: "The same for what comes from the pod",
    },
    Description {
        name: CONFIG_MIRROR,
        object: "Pod",
        writer: "the kubelet",
        values: "a UID",
        effect: "Tells the agent which static pod a mirror pod's limits are for",
    },
];

/// Characters of a wrong value that an error repeats.
const EXCERPT: usize = 80;

/// Why an annotation's value cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AnnotationError {
    /// Not one of the three forms.
    #[error("{NETWORK} is {0:?}; write isolated, global or join:<namespace>")]
    Network(String),
    /// What follows `join:` cannot be a namespace.
    #[error("{NETWORK}: {0}; write join:<namespace>")]
    Target(#[source] NameError),
    /// An item of the list cannot be a namespace.
    #[error("{ALLOW_JOIN_FROM}: {0}; write namespaces separated by commas, or *")]
    AllowJoinFrom(#[source] NameError),
}

/// The network that a namespace declares. It holds whatever anybody does later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// One of its own; who declares to join it is there, too.
    Isolated,
    /// Open to all.
    Global,
    /// That of another namespace, wherever it goes.
    Join(Namespace),
}

impl FromStr for Network {
    type Err = AnnotationError;

    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        // To the letter: admission policies look at the same text.
        match text {
            "isolated" => Ok(Self::Isolated),
            "global" => Ok(Self::Global),
            other => match other.strip_prefix("join:") {
                Some(target) => Namespace::new(target).map(Self::Join).map_err(AnnotationError::Target),
                None => Err(AnnotationError::Network(text.chars().take(EXCERPT).collect())),
            },
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolated => f.write_str("isolated"),
            Self::Global => f.write_str("global"),
            Self::Join(target) => write!(f, "join:{target}"),
        }
    }
}

/// Who may join a namespace by annotation, where the cluster asks for consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinConsent {
    /// `*`
    Anyone,
    /// These; none if the list is empty.
    Of(BTreeSet<Namespace>),
}

impl JoinConsent {
    /// Whether `namespace` may join.
    pub fn admits(&self, namespace: &Namespace) -> bool {
        match self {
            Self::Anyone => true,
            Self::Of(list) => list.contains(namespace),
        }
    }
}

impl FromStr for JoinConsent {
    type Err = AnnotationError;

    fn from_str(text: &str) -> Result<Self, AnnotationError> {
        let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        if items.contains(&"*") {
            return Ok(Self::Anyone);
        }
        let list = items.into_iter().map(Namespace::new).collect::<Result<_, _>>();
        list.map(Self::Of).map_err(AnnotationError::AllowJoinFrom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(name: &str) -> Namespace {
        Namespace::new(name).unwrap()
    }

    #[test]
    fn the_three_forms_are_read_and_written() {
        for (text, network) in
            [("isolated", Network::Isolated), ("global", Network::Global), ("join:a-b", Network::Join(ns("a-b")))]
        {
            assert_eq!(text.parse(), Ok(network.clone()));
            assert_eq!(network.to_string(), text);
        }
        for padded in [" join:b", "join: b", "join:b ", "\tglobal", "isolated\n"] {
            assert!(padded.parse::<Network>().is_err(), "{padded:?}");
        }
    }

    #[test]
    fn what_is_none_of_them_is_told_what_to_write() {
        for bad in ["", "Isolated", "join", "join:", "join:B", "join:a,b", "merge:a", "10", &"x".repeat(10_000)] {
            let error = bad.parse::<Network>().unwrap_err().to_string();
            assert!(error.starts_with(NETWORK) && error.contains("join:<namespace>"), "{bad}: {error}");
            assert!(error.len() < 400);
        }
    }

    #[test]
    fn consent_is_a_list_or_a_star() {
        let some: JoinConsent = "a, b,".parse().unwrap();
        assert!(some.admits(&ns("a")) && some.admits(&ns("b")) && !some.admits(&ns("c")));
        assert!("*".parse::<JoinConsent>().unwrap().admits(&ns("c")));
        assert!(!"".parse::<JoinConsent>().unwrap().admits(&ns("a")));
        assert!("a,B".parse::<JoinConsent>().unwrap_err().to_string().contains("separated by commas"));
    }
}
