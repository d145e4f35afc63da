//! A node: a namespace with an agent in it, a bpffs, and a runtime that calls the plugin.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_core::protocol::{self, AgentStatus, PodStatus, Reply, Request};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::api_server::ApiServer;
use crate::binaries::Binaries;
use crate::cli::Cli;
use crate::endpoint::Endpoint;
use crate::error::{LabError, Tried};
use crate::netns::Netns;
use crate::pod::{Pod, PodSpec};
use crate::process::Process;
use crate::runtime::{Container, Runtime};
use crate::wait;

/// How long an agent may take to be ready.
const READY: Duration = Duration::from_mins(1);

static NEXT_CONTAINER: AtomicU32 = AtomicU32::new(1);

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    dir: PathBuf,
    // Before the namespace: the agent goes first.
    agent: Mutex<Option<Process>>,
    api: Option<ApiServer>,
    host: Endpoint,
    runtime: Runtime,
    cli: Cli,
    binaries: Binaries,
    etcd: String,
    infra: Vec<Ipv4Addr>,
    flags: Vec<String>,
    spaces: PathBuf,
}

/// What a node is made of.
#[derive(Debug)]
pub struct NodeParts {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its namespace, on the underlay already.
    pub netns: Arc<Netns>,
    /// The lab's directory.
    pub lab: PathBuf,
    /// The product's programs.
    pub binaries: Binaries,
    /// For `--etcd-endpoints`.
    pub etcd: String,
    /// Where etcd is, to be cut off from.
    pub infra: Vec<Ipv4Addr>,
    /// Further flags of the agent.
    pub flags: Vec<String>,
    /// Whether it has an API server.
    pub api_server: bool,
}

impl Node {
    /// Makes the node's directories and mounts its bpffs; the agent is not started.
    pub fn build(parts: NodeParts) -> Result<Self, LabError> {
        let NodeParts { name, address, netns, lab, binaries, etcd, infra, mut flags, api_server } = parts;
        let dir = lab.join(&name);
        for sub in ["run", "state", "bpf", "cni"] {
            fs::create_dir_all(dir.join(sub)).tried(|| format!("create {}", dir.join(sub).display()))?;
        }
        let bpf = dir.join("bpf");
        mount("bpf", &bpf, "bpf", MountFlags::empty(), None).tried(|| format!("mount bpffs on {}", bpf.display()))?;
        let (socket, spool) = (dir.join("run/agent.sock"), dir.join("run/spool"));
        let runtime = Runtime { netns: Arc::clone(&netns), plugin: binaries.cni()?, socket: socket.clone(), spool };
        let socket = socket.display().to_string();
        let cli = Cli {
            netns: Arc::clone(&netns),
            program: binaries.cli()?,
            flags: ["--etcd-endpoints", &etcd, "--agent-socket", &socket].map(str::to_owned).to_vec(),
        };
        let api = if api_server { Some(ApiServer::start(&netns, &name)?) } else { None };
        if let Some(api) = &api {
            let path = dir.join("kubeconfig");
            fs::write(&path, api.kubeconfig()).tried(|| format!("write {}", path.display()))?;
            flags.extend(["--kubernetes".into(), "--kubeconfig".into(), path.display().to_string()]);
        }
        let host = Endpoint::start(&name, address, netns)?;
        let spaces = lab.join("ns");
        let agent = Mutex::new(None);
        Ok(Self { name, address, dir, agent, api, host, runtime, cli, binaries, etcd, infra, flags, spaces })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its underlay address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its host as an endpoint.
    pub fn host(&self) -> &Endpoint {
        &self.host
    }

    /// Its API server; an error in a lab without.
    pub fn api(&self) -> Result<&ApiServer, LabError> {
        self.api.as_ref().ok_or_else(|| LabError::Broken("this lab has no API servers".into()))
    }

    /// Its namespace.
    pub fn netns(&self) -> &Arc<Netns> {
        self.host.netns()
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its container runtime.
    pub fn cni(&self) -> &Runtime {
        &self.runtime
    }

    /// The command line tool on this node.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    fn agent(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's command, to be changed by a test that starts it by hand.
    pub fn agent_command(&self) -> Result<Command, LabError> {
        let at = |sub: &str| self.dir.join(sub);
        let mut command = Command::new(self.binaries.agent()?);
        command
            .args(["--node-name", &self.name, "--node-ip", &self.address.to_string()])
            .args(["--etcd-endpoints", &self.etcd, "--register", "--log-level", "info"])
            .arg("--run-dir")
            .arg(at("run"))
            .arg("--state-dir")
            .arg(at("state"))
            .arg("--bpf-dir")
            .arg(at("bpf/bulkhead"))
            .arg("--cni-conf-dir")
            .arg(at("cni"))
            .args(&self.flags);
        Ok(command)
    }

    /// Starts the agent without waiting for it.
    pub fn launch_agent(&self) -> Result<(), LabError> {
        let log = self.dir.join("agent.log");
        let process = Process::start(self.netns(), &format!("agent of {}", self.name), self.agent_command()?, &log)?;
        *self.agent() = Some(process);
        Ok(())
    }

    /// Waits until pods can be attached.
    pub fn await_ready(&self) -> Result<(), LabError> {
        let conflist = self.dir.join("cni/10-bulkhead.conflist");
        let ready = wait::until_or(&format!("{} being ready", self.name), READY, || {
            if let Some(agent) = &mut *self.agent()
                && let Err(died) = agent.check()
            {
                return Ok(Err(died));
            }
            if !conflist.exists() {
                return Err(format!("no {}", conflist.display()));
            }
            match self.status() {
                Ok(status) if status.ready => Ok(Ok(())),
                Ok(status) => Err(format!("problems: {:?}", status.problems)),
                Err(error) => Err(error.to_string()),
            }
        });
        ready.map_err(|error| LabError::Refused { what: error.to_string(), answer: self.agent_log(15) })?
    }

    /// Starts the agent and waits until it is ready.
    pub fn start_agent(&self) -> Result<(), LabError> {
        self.launch_agent()?;
        self.await_ready()
    }

    /// SIGKILL.
    pub fn kill_agent(&self) -> Result<(), LabError> {
        self.agent().take().map_or(Ok(()), Process::kill)
    }

    /// SIGTERM, and its end awaited.
    pub fn stop_agent(&self) -> Result<(), LabError> {
        let agent = self.agent().take();
        agent.map_or(Ok(()), |agent| agent.terminate(Duration::from_secs(30)).map(drop))
    }

    /// Kills the agent and starts it again.
    pub fn restart_agent(&self) -> Result<(), LabError> {
        self.kill_agent()?;
        self.start_agent()
    }

    /// What a power cycle does to a node whose agent is dead and whose pods are gone: pinned objects, /run and everything in
    /// the kernel that is not the underlay's go, the disk stays.
    pub fn power_cycle(&self) -> Result<(), LabError> {
        let (bpf, run) = (self.dir.join("bpf"), self.dir.join("run"));
        unmount(&bpf, UnmountFlags::DETACH).tried(|| format!("unmount {}", bpf.display()))?;
        mount("bpf", &bpf, "bpf", MountFlags::empty(), None).tried(|| format!("mount bpffs on {}", bpf.display()))?;
        fs::remove_dir_all(&run).and_then(|()| fs::create_dir(&run)).tried(|| format!("empty {}", run.display()))?;
        let netns = self.netns();
        netns.nft("flush ruleset\n")?;
        let links: serde_json::Value =
            serde_json::from_str(&netns.exec("ip", &["-j", "link"], &[])?).unwrap_or_default();
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        for name in names.filter(|name| !["lo", "eth0"].contains(name)) {
            // A veth goes with its pod's namespace, perhaps right now.
            drop(netns.output("ip", &["link", "del", name], &[])?);
        }
        drop(netns.output("tc", &["qdisc", "del", "dev", "eth0", "clsact"], &[])?);
        netns.ip("rule flush\nrule add priority 32766 lookup main\nrule add priority 32767 lookup default").map(drop)
    }

    /// SIGSTOP and SIGCONT.
    pub fn freeze_agent(&self, frozen: bool) -> Result<(), LabError> {
        let agent = self.agent();
        let Some(agent) = &*agent else { return Ok(()) };
        if frozen { agent.freeze() } else { agent.thaw() }
    }

    /// The agent's process, if it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Process::pid)
    }

    /// Calls that the agent is serving: it has a thread for each.
    pub fn calls(&self) -> usize {
        let tasks = format!("/proc/{}/task", self.agent_pid().unwrap_or_default());
        let tasks = fs::read_dir(tasks).into_iter().flatten().flatten();
        tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "call\n")).count()
    }

    /// The end of the agent's log.
    pub fn agent_log(&self, lines: usize) -> String {
        crate::process::tail(&self.dir.join("agent.log"), lines)
    }

    fn ask(&self, request: &Request) -> Result<Reply, LabError> {
        let what = || format!("ask the agent of {}", self.name);
        let mut stream = UnixStream::connect(&self.runtime.socket).tried(what)?;
        stream.set_read_timeout(Some(Duration::from_secs(15))).tried(what)?;
        let answer = protocol::send(&mut stream, request).and_then(|()| protocol::receive(&[], &mut stream));
        answer.map_err(|error| LabError::Refused { what: what(), answer: error.to_string() })
    }

    /// How the agent is.
    pub fn status(&self) -> Result<AgentStatus, LabError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => Err(LabError::Refused { what: "status".into(), answer: format!("{other:?}") }),
        }
    }

    /// The pods that the agent knows.
    pub fn pods(&self) -> Result<Vec<PodStatus>, LabError> {
        match self.ask(&Request::Pods)? {
            Reply::Pods(pods) => Ok(pods),
            other => Err(LabError::Refused { what: "pods".into(), answer: format!("{other:?}") }),
        }
    }

    /// Packets dropped on this node, by reason.
    pub fn drops(&self) -> Result<BTreeMap<String, u64>, LabError> {
        Ok(self.status()?.drops)
    }

    /// Drops all packets between this node and etcd, and nothing else.
    pub fn cut_off(&self) -> Result<(), LabError> {
        let addresses: Vec<String> = self.infra.iter().map(ToString::to_string).collect();
        let set = addresses.join(", ");
        self.netns()
            .nft(&format!(
                "add table ip lab_cut\n\
                 add chain ip lab_cut out {{ type filter hook output priority -400; }}\n\
                 add chain ip lab_cut in {{ type filter hook input priority -400; }}\n\
                 add rule ip lab_cut out ip daddr {{ {set} }} drop\n\
                 add rule ip lab_cut in ip saddr {{ {set} }} drop\n"
            ))
            .map(drop)
    }

    /// Undoes [`Self::cut_off`].
    pub fn reconnect(&self) -> Result<(), LabError> {
        self.netns().nft("delete table ip lab_cut\n").map(drop)
    }

    /// A namespace for a pod, and what a runtime knows of it; nothing is attached.
    pub fn sandbox(&self, namespace: &str, pod: &str, interface: &str) -> Result<(Arc<Netns>, Container), LabError> {
        let number = NEXT_CONTAINER.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::create(&self.spaces, &format!("{}-{namespace}-{pod}-{number}", self.name))?;
        let container = Container {
            id: format!("{:08x}{number:056x}", std::process::id()),
            interface: interface.to_owned(),
            netns: netns.path().to_owned(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
        };
        Ok((Arc::new(netns), container))
    }

    /// Starts a pod without limits.
    pub fn pod(&self, namespace: &str, pod: &str) -> Result<Pod, LabError> {
        self.pod_with(namespace, pod, &PodSpec::default())
    }

    /// Starts a pod.
    pub fn pod_with(&self, namespace: &str, pod: &str, spec: &PodSpec) -> Result<Pod, LabError> {
        let (netns, container) = self.sandbox(namespace, pod, &spec.interface)?;
        Pod::attach(&self.runtime, netns, container, &format!("{namespace}/{pod}@{}", self.name), spec)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.agent().take();
        let _ = unmount(self.dir.join("bpf"), UnmountFlags::DETACH);
    }
}
