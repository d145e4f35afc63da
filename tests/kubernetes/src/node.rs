//! A node: its disk, and while it is on, its network, its machine and the services on it.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::process::{Process, tail};
use bulkhead_tests::{cgroup, wait};

use crate::disk::Disk;
use crate::machine::Machine;
use crate::service::{Identity, Service};

/// The program that everything else on a node waits for.
pub const CONTAINERD: &str = "containerd";
/// How long containerd may take to answer.
const ANSWER: Duration = Duration::from_mins(2);

/// A node, on or off.
#[derive(Debug)]
pub struct Node {
    identity: Identity,
    dir: PathBuf,
    disk: Disk,
    services: Vec<Service>,
    running: Mutex<Option<Running>>,
}

/// What a node is while it is on. Dropped in this order: what runs before what it runs in.
#[derive(Debug)]
struct Running {
    processes: BTreeMap<&'static str, Process>,
    machine: Machine,
    // Held: its network ends with it.
    _netns: Netns,
}

impl Node {
    /// A node that is off. `dir` is its directory within the lab's; its logs are there.
    pub fn new(identity: Identity, dir: &Path, disk: Disk, services: Vec<Service>) -> Self {
        Self { identity, dir: dir.to_owned(), disk, services, running: Mutex::new(None) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Its underlay address.
    pub fn address(&self) -> Ipv4Addr {
        self.identity.address
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its disk; files of the node can be read and written there while it is on or off.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.running().is_some()
    }

    /// Does something with its machine, if it is on.
    pub fn with_machine<T>(&self, act: impl FnOnce(&Machine) -> Result<T, LabError>) -> Result<T, LabError> {
        match &*self.running() {
            Some(running) => act(&running.machine),
            None => Err(self.refused("use it", "it is off")),
        }
    }

    fn refused(&self, what: &str, answer: &str) -> LabError {
        LabError::Refused { what: format!("{}: {what}", self.name()), answer: answer.to_owned() }
    }

    /// Boots it in this network namespace and starts its services up to containerd; the rest is [`Self::start_services`].
    pub fn boot(&self, netns: Netns) -> Result<(), LabError> {
        cgroup::create(Path::new(&self.identity.cgroup))?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        let machine = Machine::boot(self.name(), &self.disk, netns.path())?;
        *self.running() = Some(Running { processes: BTreeMap::new(), machine, _netns: netns });
        self.start(CONTAINERD)?;
        self.await_containerd()
    }

    fn await_containerd(&self) -> Result<(), LabError> {
        wait::until_or(&format!("containerd of {}", self.name()), ANSWER, || {
            if let Err(died) = self.check() {
                return Ok(Err(died));
            }
            self.exec(&["ctr", "version"], &[]).map(|_| Ok(())).map_err(|error| error.to_string())
        })?
    }

    /// Starts every service that does not run, in their order.
    pub fn start_services(&self) -> Result<(), LabError> {
        self.services.iter().try_for_each(|service| self.start(service.name))
    }

    /// Starts a service unless it runs.
    pub fn start(&self, name: &str) -> Result<(), LabError> {
        let service = self.services.iter().find(|service| service.name == name);
        let service = service.ok_or_else(|| self.refused("start a service", &format!("it has no {name}")))?;
        let mut running = self.running();
        let Some(running) = &mut *running else { return Err(self.refused("start a service", "it is off")) };
        if running.processes.contains_key(service.name) {
            return Ok(());
        }
        let mut command = Machine::command(service.name);
        command.args(&service.arguments);
        let label = format!("{} of {}", service.name, self.name());
        let process = running.machine.start(&label, command, &self.log_path(service.name))?;
        running.processes.insert(service.name, process);
        Ok(())
    }

    /// Kills a service; containers go on.
    pub fn stop(&self, name: &str) -> Result<(), LabError> {
        let process = self.running().as_mut().and_then(|running| running.processes.remove(name));
        process.map_or(Ok(()), Process::kill)
    }

    /// Kills a service and starts it again.
    pub fn restart(&self, name: &str) -> Result<(), LabError> {
        self.stop(name)?;
        self.start(name)?;
        if name == CONTAINERD { self.await_containerd() } else { Ok(()) }
    }

    /// Is an error if a service has ended by itself.
    pub fn check(&self) -> Result<(), LabError> {
        let mut running = self.running();
        running.iter_mut().flat_map(|running| running.processes.values_mut()).try_for_each(Process::check)
    }

    /// Starts again what has ended by itself; says what.
    pub fn revive(&self) -> Vec<String> {
        let mut ended = Vec::new();
        if let Some(running) = &mut *self.running() {
            running.processes.retain(|name, process| {
                let died = process.check().is_err();
                if died {
                    ended.push(*name);
                }
                !died
            });
        }
        ended
            .iter()
            .filter(|name| self.start(name).is_ok())
            .map(|name| format!("{name} of {} has ended", self.name()))
            .collect()
    }

    /// Cuts its power: every process ends at once, memory is lost, the disk stays.
    pub fn power_off(&self) -> Result<(), LabError> {
        drop(self.running().take());
        cgroup::remove(Path::new(&self.identity.cgroup))
    }

    /// Runs a program on the node; anything but success is an error.
    pub fn exec(&self, words: &[&str], input: &[u8]) -> Result<String, LabError> {
        self.with_machine(|machine| machine.exec(words, input))
    }

    /// Imports an image archive of the host.
    pub fn import(&self, archive: &Path) -> Result<(), LabError> {
        let inside = "/var/cache/import.tar";
        let here = self.disk.path(inside);
        fs::hard_link(archive, &here)
            .or_else(|_| fs::copy(archive, &here).map(drop))
            .tried(|| format!("give {} to {}", archive.display(), self.name()))?;
        // The layers are kept once: unpacked.
        let how = ["--local", "--discard-unpacked-layers"];
        let done = self.exec(&[&["ctr", "-n", "k8s.io", "images", "import"], &how[..], &[inside]].concat(), &[]);
        fs::remove_file(&here).tried(|| format!("remove {}", here.display()))?;
        done.map(drop)
    }

    fn log_path(&self, service: &str) -> PathBuf {
        self.dir.join(format!("{service}.log"))
    }

    /// The end of a service's log.
    pub fn log(&self, service: &str, lines: usize) -> String {
        tail(&self.log_path(service), lines)
    }

    /// The first process of its PID namespace, as the host numbers it.
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(|running| running.machine.pid())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.running().take());
    }
}
