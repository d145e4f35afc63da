//! What should pass: the naive model of the tenants' networks that matrices are held against.

use std::collections::BTreeMap;

use crate::endpoint::Endpoint;

/// Which network each namespace is in. Labels are `namespace/pod@node` for pods, a node's name for its host.
#[derive(Debug, Clone, Default)]
pub struct Tenancy {
    networks: BTreeMap<String, Network>,
    fresh: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Global,
    Own(u32),
}

impl Tenancy {
    /// Each namespace in a network of its own.
    pub fn isolated(namespaces: &[&str]) -> Self {
        let mut tenancy = Self::default();
        for name in namespaces {
            tenancy.isolate(name);
        }
        tenancy
    }

    /// A network of its own.
    pub fn isolate(&mut self, namespace: &str) {
        self.fresh += 1;
        self.networks.insert(namespace.to_owned(), Network::Own(self.fresh));
    }

    /// The network of another.
    pub fn join(&mut self, namespace: &str, to: &str) {
        if let Some(network) = self.networks.get(to).copied() {
            self.networks.insert(namespace.to_owned(), network);
        }
    }

    /// Open to all.
    pub fn global(&mut self, namespace: &str) {
        self.networks.insert(namespace.to_owned(), Network::Global);
    }

    /// Whether these two may talk.
    pub fn may(&self, from: &Endpoint, to: &Endpoint) -> bool {
        let network = |endpoint: &Endpoint| match endpoint.name().split_once('/') {
            None => Some(Network::Global),
            Some((namespace, _)) => self.networks.get(namespace).copied(),
        };
        match (network(from), network(to)) {
            (Some(Network::Global), _) | (_, Some(Network::Global)) => true,
            (from, to) => from.is_some() && from == to,
        }
    }
}
