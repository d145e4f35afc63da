//! Something with an address that sends and answers: a pod, a node's host, a machine outside.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::echo::EchoServers;
use crate::error::LabError;
use crate::netns::Netns;

/// An endpoint with its servers; cheap to clone, all clones are the same one.
#[derive(Debug, Clone)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    address: Ipv4Addr,
    // Before the namespace, so that its sockets are closed first.
    _echo: EchoServers,
    netns: Arc<Netns>,
}

impl Endpoint {
    /// Starts servers in the namespace; others reach it at `address`.
    pub fn start(name: &str, address: Ipv4Addr, netns: Arc<Netns>) -> Result<Self, LabError> {
        Self::start_on(name, &[address], netns)
    }

    /// As [`Self::start`] with several addresses; the first is the one that [`Self::address`] gives.
    pub fn start_on(name: &str, addresses: &[Ipv4Addr], netns: Arc<Netns>) -> Result<Self, LabError> {
        let echo = EchoServers::start(&netns, addresses)?;
        let address = addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST);
        Ok(Self(Arc::new(Inner { name: name.to_owned(), address, _echo: echo, netns })))
    }

    /// Its name in tables.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where others reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.0.address
    }

    /// Where it is.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.0.netns
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}
