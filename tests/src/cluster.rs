//! The cluster's config and its controllers.

use std::process::Command;
use std::sync::Arc;

use crate::binaries::Binaries;
use crate::error::LabError;
use crate::netns::Netns;
use crate::process::Process;

/// What `bulkhead config init` is given.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// The pods' network.
    pub network: String,
    /// Host bits of a node's subnet.
    pub host_subnet_length: u8,
    /// The services' network.
    pub service_network: String,
    /// `multitenant` or `flat`.
    pub mode: String,
    /// Namespaces that are global at birth.
    pub global_namespaces: String,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            network: "10.77.0.0/16".into(),
            host_subnet_length: 8,
            service_network: "10.96.0.0/16".into(),
            mode: "multitenant".into(),
            global_namespaces: "kube-system".into(),
        }
    }
}

/// The cluster's name in the lab.
pub const NAME: &str = "k8ssdn";
/// Where its records are.
pub const ROOT: &str = "/k8s.ovs.com/ovs/network/k8ssdn";
/// The key of its config.
pub const CONFIG: &str = "/k8s.ovs.com/ovs/network/config";

impl ClusterSpec {
    /// Arguments of the command line tool that make this cluster.
    pub fn init_arguments(&self) -> Vec<String> {
        let length = self.host_subnet_length.to_string();
        let words = ["config", "init", "--name", NAME, "--network", &self.network, "--host-subnet-length", &length];
        let more = ["--service-network", &self.service_network, "--mode", &self.mode];
        words.iter().chain(&more).map(|word| (*word).to_owned()).collect()
    }
}

/// The key of a namespace's record.
pub fn netnamespace_key(namespace: &str) -> String {
    format!("{ROOT}/netnamespaces/{namespace}")
}

/// Controllers, each by its number.
#[derive(Debug)]
pub struct Controllers {
    netns: Arc<Netns>,
    binaries: Binaries,
    etcd: String,
    dir: std::path::PathBuf,
    global: String,
    running: Vec<Option<Process>>,
}

impl Controllers {
    /// None run yet.
    pub fn new(netns: Arc<Netns>, binaries: Binaries, etcd: String, dir: &std::path::Path, spec: &ClusterSpec) -> Self {
        let global = spec.global_namespaces.clone();
        Self { netns, binaries, etcd, dir: dir.to_owned(), global, running: Vec::new() }
    }

    /// Starts the controller of that number, if it does not run.
    pub fn start(&mut self, number: usize) -> Result<(), LabError> {
        self.running.resize_with(self.running.len().max(number + 1), || None);
        if self.running[number].is_some() {
            return Ok(());
        }
        let name = format!("controller{number}");
        let mut command = Command::new(self.binaries.controller()?);
        command
            .args(["--etcd-endpoints", &self.etcd, "--identity", &name, "--lease-ttl", "2", "--log-level", "info"])
            .args(["--global-namespaces", &self.global])
            .arg("--state-dir")
            .arg(self.dir.join(&name).with_extension("state"));
        let log = self.dir.join(format!("{name}.log"));
        self.running[number] = Some(Process::start(&self.netns, &name, command, &log)?);
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self, number: usize) -> Result<(), LabError> {
        self.running.get_mut(number).and_then(Option::take).map_or(Ok(()), Process::kill)
    }

    /// Its process, to freeze it or to read its log.
    pub fn process(&mut self, number: usize) -> Option<&mut Process> {
        self.running.get_mut(number)?.as_mut()
    }
}
