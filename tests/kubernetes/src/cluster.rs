//! A whole cluster: underlay, etcd, the node `control` with the control plane, and worker nodes `n1`, `n2`, ...

mod etcd;
mod operations;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::etcd::Etcd;
use bulkhead_tests::netns::Netns;
use bulkhead_tests::registry::{Claim, LabId};
use bulkhead_tests::underlay::Underlay;
use bulkhead_tests::wait;

use crate::caretaker::{Caretaker, Nodes};
use crate::certificates::{Authority, Subject};
use crate::control_plane::{self, API_SERVER};
use crate::disk::Disk;
use crate::kubectl::Kubectl;
use crate::network::{self, Network};
use crate::node::Node;
use crate::programs::Programs;
use crate::service::{self, Identity, ProxyMode};
use crate::{dns, images, inotify, kubeconfig};

pub use self::etcd::EtcdClient;

/// The node with the control plane; ordinary pods are kept off it.
pub const CONTROL: &str = "control";
/// The keys of etcd that the certificate of [`Cluster::etcd_client`] may read and write.
pub const BULKHEAD_PREFIX: &str = "/k8s.ovs.com/ovs/network/";
const CONTROL_ADDRESS: u8 = 10;
const FIRST_WORKER: u8 = 11;
/// Workers beyond this have no address in the underlay's plan.
const MAX_WORKERS: u8 = 29;
const API_READY: Duration = Duration::from_mins(3);
const NODES_READY: Duration = Duration::from_mins(4);

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    workers: u8,
    proxy: ProxyMode,
    proxy_knows_pods: bool,
    network: Network,
}

/// A cluster that runs; dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: nobody revives what is being taken down, nodes before what they talk to, the claim (which removes what is left) last.
    caretaker: Option<Caretaker>,
    nodes: Nodes,
    etcd: Mutex<Etcd>,
    underlay: Underlay,
    authority: Authority,
    programs: Programs,
    kubectl: Kubectl,
    spec: ClusterBuilder,
    archives: Mutex<Vec<PathBuf>>,
    claim: Claim,
}

impl ClusterBuilder {
    /// How many worker nodes (2).
    #[must_use]
    pub fn workers(mut self, workers: u8) -> Self {
        self.workers = workers;
        self
    }

    /// kube-proxy's mode (iptables).
    #[must_use]
    pub fn proxy(mut self, mode: ProxyMode) -> Self {
        self.proxy = mode;
        self
    }

    /// Whether kube-proxy is told the pods' network (it is).
    #[must_use]
    pub fn proxy_knows_pods(mut self, knows: bool) -> Self {
        self.proxy_knows_pods = knows;
        self
    }

    /// What connects the pods (nothing).
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Brings it up: the API answers and every node has registered. With a network, all nodes are ready and so is DNS.
    pub fn start(self) -> Result<Cluster, LabError> {
        let begin = Instant::now();
        let programs = Programs::find()?;
        inotify::allow()?;
        let claim = Claim::take()?;
        let dir = claim.id().dir();
        let spaces = dir.join("ns");
        fs::create_dir_all(&spaces).tried(|| format!("create {}", spaces.display()))?;
        let underlay = Underlay::build(claim.id(), &spaces, None)?;
        let authority = Authority::new("bulkhead-lab")?;
        let etcd = etcd::start(&underlay, &authority, &dir, 0)?;
        let api = underlay.address(CONTROL_ADDRESS);
        let admin = dir.join("admin.conf");
        let subject = Subject::client("kubernetes-admin", Some("system:masters"));
        crate::certificates::write(&admin, &kubeconfig::kubeconfig(&authority, api, &subject)?, 0o600)?;
        let kubectl = Kubectl::new(Arc::clone(&underlay.infra), programs.get("kubectl")?, admin, &dir.join("home"));
        let archive = dir.join("images.tar");
        images::write(&programs, &archive)?;
        let mut cluster = Cluster {
            caretaker: None,
            nodes: Nodes::default(),
            etcd: Mutex::new(etcd),
            underlay,
            authority,
            programs,
            kubectl,
            spec: self,
            archives: Mutex::new(vec![archive]),
            claim,
        };
        let say = |what: &str| println!("{what} after {:.1} s", begin.elapsed().as_secs_f64());
        say("images are built");
        cluster.bring_up(&say)?;
        cluster.caretaker = Some(Caretaker::start(Arc::clone(&cluster.nodes))?);
        Ok(cluster)
    }
}

impl Cluster {
    /// Two workers, kube-proxy in iptables mode, no network.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { workers: 2, proxy: ProxyMode::Iptables, proxy_knows_pods: true, network: Network::None }
    }

    fn bring_up(&self, say: &dyn Fn(&str)) -> Result<(), LabError> {
        let names: Vec<String> = (1..=self.spec.workers).map(|number| format!("n{number}")).collect();
        thread::scope(|scope| {
            let control = scope.spawn(|| self.build_node(CONTROL));
            let workers: Vec<_> = names.iter().map(|name| scope.spawn(|| self.build_node(name))).collect();
            let joined = |thread: thread::ScopedJoinHandle<'_, Result<(), LabError>>| {
                thread.join().unwrap_or_else(|_| Err(LabError::ThreadGone("a node's builder".into())))
            };
            joined(control)?;
            self.await_api()?;
            say("the API server is ready");
            workers.into_iter().try_for_each(joined)
        })?;
        // Its namespace comes by a hook of the API server that may end after it is ready.
        wait::until_or("the name server being accepted", API_READY, || {
            self.kubectl.apply(&dns::manifests()).map_err(|error| error.to_string())
        })?;
        self.await_registered()?;
        // A kubelet may not give itself a role.
        self.kubectl.run(&["label", "node", CONTROL, "node-role.kubernetes.io/control-plane="])?;
        say("the nodes are registered");
        if self.spec.network == Network::Reference {
            self.await_nodes_ready()?;
            say("the nodes are ready");
            self.await_dns()?;
            say("DNS is ready");
        }
        Ok(())
    }

    /// Its name.
    pub fn id(&self) -> LabId {
        self.claim.id()
    }

    /// Where everything of it is.
    pub fn dir(&self) -> PathBuf {
        self.id().dir()
    }

    /// The network namespace of a node that is on.
    pub fn netns_path(&self, name: &str) -> PathBuf {
        self.dir().join("ns").join(name)
    }

    /// The built programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// What joins the machines.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// kubectl as an administrator.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The lab's certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All nodes, `control` first.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.locked().values().cloned().collect()
    }

    /// The nodes that take ordinary pods.
    pub fn workers(&self) -> Vec<Arc<Node>> {
        self.nodes().into_iter().filter(|node| node.name() != CONTROL).collect()
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<Arc<Node>, LabError> {
        self.locked().get(name).cloned().ok_or_else(|| LabError::Refused {
            what: "find a node".into(),
            answer: format!("there is no {name} in lab {}", self.id().number()),
        })
    }

    fn build_node(&self, name: &str) -> Result<(), LabError> {
        let number = name.strip_prefix('n').and_then(|number| number.parse::<u8>().ok());
        match number {
            _ if name == CONTROL => self.build_node_at(name, CONTROL_ADDRESS),
            Some(number @ 1..=MAX_WORKERS) => self.build_node_at(name, FIRST_WORKER + number - 1),
            _ => Err(LabError::Refused {
                what: format!("add a node {name}"),
                answer: format!("workers are n1 to n{MAX_WORKERS}"),
            }),
        }
    }

    /// Builds it at the underlay's address that ends so.
    fn build_node_at(&self, name: &str, last: u8) -> Result<(), LabError> {
        let identity = Identity {
            name: name.to_owned(),
            address: self.underlay.address(last),
            cgroup: format!("{}/{name}", self.id().prefix()),
            api: self.underlay.address(CONTROL_ADDRESS),
            control_plane: name == CONTROL,
        };
        let dir = self.dir().join(name);
        let outside = self.underlay.outside_address().to_string();
        let disk = Disk::create(&dir.join("disk"), name, self.programs.dir(), &outside)?;
        let mut services = if identity.control_plane {
            control_plane::services(&disk, &self.authority, &identity, &self.etcd().endpoints())?
        } else {
            Vec::new()
        };
        services.push(service::containerd(&disk)?);
        services.push(service::kubelet(&disk, &self.authority, &identity)?);
        services.push(service::kube_proxy(
            &disk,
            &self.authority,
            &identity,
            (self.spec.proxy, self.spec.proxy_knows_pods),
        )?);
        let node = Arc::new(Node::new(identity, &dir, disk, services));
        self.locked().insert(name.to_owned(), Arc::clone(&node));
        self.boot(&node, true)
    }

    fn boot(&self, node: &Node, first: bool) -> Result<(), LabError> {
        let netns = Netns::create(&self.dir().join("ns"), node.name())?;
        self.underlay.join(&netns, node.address().octets()[3])?;
        node.boot(netns)?;
        if node.name() == CONTROL {
            node.start(API_SERVER)?;
        }
        if first {
            let archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner).clone();
            archives.iter().try_for_each(|archive| node.import(archive))?;
        }
        if self.spec.network == Network::Reference {
            self.connect_by_reference(node)?;
        }
        if node.name() == CONTROL {
            self.await_api()?;
        }
        node.start_services()
    }

    /// Installs the reference network on a node, and routes to it on those that are on.
    fn connect_by_reference(&self, node: &Node) -> Result<(), LabError> {
        let others: Vec<Arc<Node>> = self.nodes().into_iter().filter(|other| other.name() != node.name()).collect();
        let addresses: Vec<_> = others.iter().map(|other| other.address()).collect();
        node.with_machine(|machine| network::install_reference(node.disk(), machine, node.address(), &addresses))?;
        for other in others.iter().filter(|other| other.is_on()) {
            other.with_machine(|machine| network::add_route(machine, node.address()))?;
        }
        Ok(())
    }

    fn await_api(&self) -> Result<(), LabError> {
        let control = self.node(CONTROL)?;
        wait::until_or("the API server being ready", API_READY, || {
            if let Err(died) = control.check() {
                return Ok(Err(died));
            }
            let ready = self.kubectl.run(&["get", "--raw", "/readyz"]);
            ready.map(|_| Ok(())).map_err(|error| error.to_string())
        })?
    }

    fn await_registered(&self) -> Result<(), LabError> {
        for node in self.nodes() {
            wait::until_or(&format!("{} being registered", node.name()), NODES_READY, || {
                if let Err(died) = node.check() {
                    return Ok(Err(died));
                }
                let there = self.kubectl.run(&["get", "node", node.name()]);
                there.map(|_| Ok(())).map_err(|error| error.to_string())
            })??;
        }
        Ok(())
    }

    /// Waits until every node is ready: a CNI configuration is there and the kubelet says so.
    pub fn await_nodes_ready(&self) -> Result<(), LabError> {
        let ready = self.kubectl.wait("condition=Ready", &["nodes", "--all"], NODES_READY);
        ready.map(drop).map_err(|error| self.explain(&error))
    }

    /// An error with what the nodes that are not ready say.
    fn explain(&self, error: &LabError) -> LabError {
        let mut text = error.to_string();
        for node in self.nodes() {
            let condition = "jsonpath={.status.conditions[?(@.type=='Ready')]}";
            let said = self.kubectl.run(&["get", "node", node.name(), "-o", condition]);
            let said = said.unwrap_or_else(|error| error.to_string());
            if !said.contains(r#""status":"True""#) {
                text = format!("{text}\n{}: {said}\n{}", node.name(), node.log("kubelet", 40));
            }
        }
        LabError::Broken(text)
    }

    /// Waits until a node is ready.
    pub fn await_ready(&self, name: &str) -> Result<(), LabError> {
        self.kubectl.wait("condition=Ready", &["node", name], NODES_READY).map(drop)
    }

    /// Waits until a node is known not to answer.
    pub fn await_not_ready(&self, name: &str) -> Result<(), LabError> {
        self.kubectl.wait("condition=Ready=Unknown", &["node", name], NODES_READY).map(drop)
    }

    /// Waits until the name server is there.
    pub fn await_dns(&self) -> Result<(), LabError> {
        let deployment = ["-n", "kube-system", "deployment/coredns"];
        self.kubectl.wait("condition=Available", &deployment, NODES_READY).map(drop)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Somebody may still hold a node.
        drop(self.caretaker.take());
        for node in self.nodes() {
            drop(node.power_off());
        }
    }
}
