//! A whole lab: underlay, etcd, controller, nodes.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::binaries::Binaries;
use crate::cli::Cli;
use crate::cluster::{ClusterSpec, Controllers};
use crate::endpoint::Endpoint;
use crate::error::{LabError, Tried};
use crate::etcd::Etcd;
use crate::netns::Netns;
use crate::node::{Node, NodeParts};
use crate::pod::{Pod, PodSpec};
use crate::registry::{Claim, LabId};
use crate::underlay::{BEYOND, Underlay};

/// The last octet of the first node.
const FIRST_NODE: u8 = 11;
/// The last octet of the external machine.
const EXTERNAL: u8 = 40;

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    nodes: u8,
    etcd_members: usize,
    cluster: ClusterSpec,
    far_mtu: Option<u32>,
    external: bool,
    agent_flags: Vec<String>,
    bare: bool,
    api_servers: bool,
}

impl LabBuilder {
    /// How many nodes (3).
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many etcd members, 1 or 3 (1).
    #[must_use]
    pub fn etcd_members(mut self, members: usize) -> Self {
        self.etcd_members = members;
        self
    }

    /// `multitenant` (the default) or `flat`.
    #[must_use]
    pub fn mode(mut self, mode: &str) -> Self {
        mode.clone_into(&mut self.cluster.mode);
        self
    }

    /// The pods' network and a node's host bits (10.77.0.0/16, 8).
    #[must_use]
    pub fn network(mut self, network: &str, host_subnet_length: u8) -> Self {
        network.clone_into(&mut self.cluster.network);
        self.cluster.host_subnet_length = host_subnet_length;
        self
    }

    /// Puts the last node behind a path of this MTU.
    #[must_use]
    pub fn far_mtu(mut self, mtu: u32) -> Self {
        self.far_mtu = Some(mtu);
        self
    }

    /// Adds an external machine `lb1` that is no Kubernetes node: its agent runs, it has no pods.
    #[must_use]
    pub fn external(mut self) -> Self {
        self.external = true;
        self
    }

    /// A further flag of every agent, with its value.
    #[must_use]
    pub fn agent_flag(mut self, flag: &str, value: &str) -> Self {
        self.agent_flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Gives each node an API server of its own, which its agent watches.
    #[must_use]
    pub fn api_servers(mut self) -> Self {
        self.api_servers = true;
        self
    }

    /// Starts etcd only; cluster config, controller and agents are the test's to start.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Builds it and waits until every node takes pods.
    pub fn start(self) -> Result<Lab, LabError> {
        let begin = Instant::now();
        let claim = Claim::take()?;
        let binaries = Binaries::find()?;
        binaries.controller()?;
        let dir = claim.id().dir();
        let spaces = dir.join("ns");
        fs::create_dir_all(&spaces).tried(|| format!("create {}", spaces.display()))?;
        let underlay = Underlay::build(claim.id(), &spaces, self.far_mtu)?;
        let addresses = underlay.infra_addresses()[..self.etcd_members.clamp(1, 3)].to_vec();
        let etcd = Etcd::start(Arc::clone(&underlay.infra), addresses, &dir)?;
        let endpoints = etcd.endpoints();
        let cli = Cli {
            netns: Arc::clone(&underlay.infra),
            program: binaries.cli()?,
            flags: vec!["--etcd-endpoints".into(), endpoints.clone()],
        };
        let infra = Arc::clone(&underlay.infra);
        let controllers = Controllers::new(infra, binaries.clone(), endpoints.clone(), &dir, &self.cluster);
        let outside =
            Endpoint::start_on("outside", &[underlay.outside_address(), BEYOND], Arc::clone(&underlay.outside))?;
        let mut lab = Lab {
            nodes: Vec::new(),
            external: None,
            controllers: Mutex::new(controllers),
            etcd: Mutex::new(etcd),
            outside,
            underlay,
            cli,
            claim,
        };
        for number in 0..self.nodes {
            let far = lab.underlay.has_far() && number + 1 == self.nodes;
            let node = lab.build_node(&self, &binaries, &format!("n{}", number + 1), FIRST_NODE + number, far)?;
            lab.nodes.push(node);
        }
        if self.external {
            lab.external = Some(lab.build_node(&self, &binaries, "lb1", EXTERNAL, false)?);
        }
        if !self.bare {
            let arguments = self.cluster.init_arguments();
            lab.cli.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
            lab.controllers().start(0)?;
            lab.start_agents()?;
            println!("lab {} is up after {:.1} s", lab.id().number(), begin.elapsed().as_secs_f64());
        }
        Ok(lab)
    }
}

/// A lab that runs; dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: agents before what they talk to, the claim (which removes what is left) last.
    nodes: Vec<Node>,
    external: Option<Node>,
    controllers: Mutex<Controllers>,
    etcd: Mutex<Etcd>,
    outside: Endpoint,
    underlay: Underlay,
    cli: Cli,
    claim: Claim,
}

impl Lab {
    /// Three nodes and one etcd member, unless changed.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            nodes: 3,
            etcd_members: 1,
            cluster: ClusterSpec::default(),
            far_mtu: None,
            external: false,
            agent_flags: Vec::new(),
            bare: false,
            api_servers: false,
        }
    }

    fn build_node(
        &self,
        builder: &LabBuilder,
        binaries: &Binaries,
        name: &str,
        last: u8,
        far: bool,
    ) -> Result<Node, LabError> {
        let dir = self.id().dir();
        let netns = Arc::new(Netns::create(&dir.join("ns"), name)?);
        let address = if far {
            self.underlay.join_far(&netns)?
        } else {
            self.underlay.join(&netns, last)?;
            self.underlay.address(last)
        };
        Node::build(NodeParts {
            name: name.to_owned(),
            address,
            netns,
            lab: dir,
            binaries: binaries.clone(),
            etcd: self.etcd().endpoints(),
            infra: self.underlay.infra_addresses().to_vec(),
            flags: builder.agent_flags.clone(),
            api_server: builder.api_servers,
        })
    }

    /// Starts every agent and waits for all.
    pub fn start_agents(&self) -> Result<(), LabError> {
        self.nodes.iter().chain(&self.external).try_for_each(Node::launch_agent)?;
        self.nodes.iter().chain(&self.external).try_for_each(Node::await_ready)
    }

    /// Its name.
    pub fn id(&self) -> LabId {
        self.claim.id()
    }

    /// The node of that number, from 0.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The external machine.
    pub fn external(&self) -> Option<&Node> {
        self.external.as_ref()
    }

    /// The machine that is no node, with its own address.
    pub fn outside(&self) -> &Endpoint {
        &self.outside
    }

    /// What joins the nodes.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// etcd; keep the guard short.
    pub fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controllers; keep the guard short.
    pub fn controllers(&self) -> MutexGuard<'_, Controllers> {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The command line tool on the infra machine.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// Runs the tool; anything but success is an error.
    pub fn bulkhead(&self, arguments: &str) -> Result<String, LabError> {
        self.cli.ok(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Creates namespaces.
    pub fn create_tenants(&self, namespaces: &[&str]) -> Result<(), LabError> {
        namespaces.iter().try_for_each(|name| self.cli.ok(&["tenant", "create", name]).map(drop))
    }

    /// Starts a pod.
    pub fn pod(&self, node: usize, namespace: &str, pod: &str) -> Result<Pod, LabError> {
        self.node(node).pod(namespace, pod)
    }

    /// Starts a pod with limits.
    pub fn pod_with(&self, node: usize, namespace: &str, pod: &str, spec: &PodSpec) -> Result<Pod, LabError> {
        self.node(node).pod_with(namespace, pod, spec)
    }

    /// Waits until every running agent's state is of etcd's present revision of the ledger.
    pub fn settle(&self) -> Result<(), LabError> {
        let namespaces =
            self.etcd().keys(&format!("{}/bulkhead/ledger/namespaces/", crate::cluster::ROOT))?.len() as u64;
        for node in &self.nodes {
            crate::wait::until_or(
                &format!("{} knowing {namespaces} namespaces", node.name()),
                Duration::from_secs(30),
                || {
                    let status = node.status().map_err(|error| error.to_string())?;
                    if status.namespaces == namespaces { Ok(()) } else { Err(format!("{} known", status.namespaces)) }
                },
            )?;
        }
        Ok(())
    }

    /// An address of a machine that does not exist, on the underlay.
    pub fn nobody(&self) -> Ipv4Addr {
        self.underlay.address(99)
    }
}
