//! The annotations on Kubernetes objects: what people ask for, and where the controller answers.
//!
//! | annotation | written by | value |
//! |---|---|---|
//! | [`NETWORK`] | people | `isolated`, `global` or `join:<namespace>` |
//! | [`ALLOW_JOIN_FROM`] | people | who may join: namespaces separated by commas, or `*` |
//! | [`VNI`] | the controller | the namespace's number on the wire |
//! | [`NETWORK_STATUS`] | the controller | how the namespace stands, in words |
//! | [`SUBNET`], on a Node | the controller | the node's subnets |
//!
//! Promises: what is read is valid or refused with an error that says what to write.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::name::{NameError, Namespace};

/// Which network a namespace is to be in: a [`Network`].
pub const NETWORK: &str = "bulkhead.dev/network";
/// Who may join by annotation: a [`JoinConsent`].
pub const ALLOW_JOIN_FROM: &str = "bulkhead.dev/allow-join-from";
/// The namespace's VNI, for people to read, and for a controller whose ledger was lost.
pub const VNI: &str = "bulkhead.dev/vni";
/// How the namespace stands, for people to read.
pub const NETWORK_STATUS: &str = "bulkhead.dev/network-status";
/// On a Node: its subnets, separated by a comma, for people to read and for a controller whose ledger was lost.
pub const SUBNET: &str = "bulkhead.dev/subnet";

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
