//! What happens to a cluster while it runs: nodes come, go, lose power or the network, the control plane is away.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;

use bulkhead_tests::error::{LabError, Tried};

use super::{CONTROL, Cluster, FIRST_WORKER, MAX_WORKERS};
use crate::control_plane::API_SERVER;
use crate::network::{self, Network};
use crate::node::CONTAINERD;

/// The underlay's addresses behind those of the workers, for machines that take a worker's name.
const REPLACEMENTS: std::ops::Range<u8> = FIRST_WORKER + MAX_WORKERS..50;

impl Cluster {
    /// Adds a worker with the lowest free number; gives its name. It is registered when this returns.
    pub fn add_node(&self) -> Result<String, LabError> {
        let taken = self.locked().keys().cloned().collect::<Vec<_>>();
        let name = (1..=MAX_WORKERS).map(|number| format!("n{number}")).find(|name| !taken.contains(name));
        let name = name.ok_or_else(|| LabError::Refused {
            what: "add a node".into(),
            answer: format!("{MAX_WORKERS} workers are there already"),
        })?;
        self.build_node(&name)?;
        self.await_registered()?;
        Ok(name)
    }

    /// Adds another machine under the name of a worker that was removed: its disk is empty, its underlay address one that no
    /// node has or had by that name. It is registered when this returns.
    pub fn add_node_in_place_of(&self, removed: &str) -> Result<(), LabError> {
        let refuse = |answer: &str| LabError::Refused { what: format!("replace {removed}"), answer: answer.to_owned() };
        if self.node(removed).is_ok() {
            return Err(refuse("it is there"));
        }
        let taken: Vec<u8> = self.nodes().iter().map(|node| node.address().octets()[3]).collect();
        let free = REPLACEMENTS.into_iter().find(|last| !taken.contains(last));
        self.build_node_at(removed, free.ok_or_else(|| refuse("no address is free"))?)?;
        self.await_registered()
    }

    /// Takes a node away for ever: its power is cut, its disk goes, its Node object is deleted.
    pub fn remove_node(&self, name: &str) -> Result<(), LabError> {
        let node = self.node(name)?;
        if node.identity().control_plane {
            return Err(LabError::Refused { what: format!("remove {name}"), answer: "it is the control plane".into() });
        }
        self.power_off(name)?;
        self.locked().remove(name);
        for other in self.nodes().iter().filter(|_| self.spec.network == Network::Reference) {
            other.with_machine(|machine| network::remove_route(machine, node.address()))?;
        }
        let dir = self.dir().join(name);
        fs::remove_dir_all(&dir).tried(|| format!("remove {}", dir.display()))?;
        self.kubectl.run(&["delete", "node", name]).map(drop)
    }

    /// Cuts a node's power and leaves it off.
    pub fn power_off(&self, name: &str) -> Result<(), LabError> {
        self.node(name)?.power_off()?;
        self.underlay.leave(name)
    }

    /// Switches a node on that [`Self::power_off`] left off: the disk is as it was, memory empty.
    pub fn power_on(&self, name: &str) -> Result<(), LabError> {
        self.boot(&*self.node(name)?, false)
    }

    /// Cuts a node's power and switches it on again.
    pub fn reboot(&self, name: &str) -> Result<(), LabError> {
        self.power_off(name)?;
        self.power_on(name)
    }

    /// Drops all packets between a node and all other machines.
    pub fn cut_off(&self, name: &str) -> Result<(), LabError> {
        self.underlay.cut(name)
    }

    /// Undoes [`Self::cut_off`].
    pub fn reconnect(&self, name: &str) -> Result<(), LabError> {
        self.underlay.mend(name)
    }

    /// Kills a node's kubelet and starts it again.
    pub fn restart_kubelet(&self, name: &str) -> Result<(), LabError> {
        self.node(name)?.restart("kubelet")
    }

    /// Kills a node's containerd and starts it again; containers go on.
    pub fn restart_containerd(&self, name: &str) -> Result<(), LabError> {
        self.node(name)?.restart(CONTAINERD)
    }

    /// Kills the API server.
    pub fn stop_api(&self) -> Result<(), LabError> {
        self.node(CONTROL)?.stop(API_SERVER)
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api(&self) -> Result<(), LabError> {
        self.node(CONTROL)?.start(API_SERVER)?;
        self.await_api()
    }

    /// Kills etcd; its data stays.
    pub fn stop_etcd(&self) -> Result<(), LabError> {
        self.etcd().stop_all()
    }

    /// Starts etcd and waits until it takes writes.
    pub fn start_etcd(&self) -> Result<(), LabError> {
        self.etcd().start_all()
    }

    /// Imports an image archive on every node, and on those that are added later.
    pub fn import(&self, archive: &Path) -> Result<(), LabError> {
        self.nodes().iter().try_for_each(|node| node.import(archive))?;
        self.archives.lock().unwrap_or_else(PoisonError::into_inner).push(archive.to_owned());
        Ok(())
    }
}
