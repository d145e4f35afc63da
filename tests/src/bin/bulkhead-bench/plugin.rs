//! CNI plugins as a runtime starts them: Bulkhead's with its agent, and the reference `bridge` with `host-local`.
//!
//! Both get the environment and stdin that containerd gives. The pods' namespaces are made beforehand, the calls are prepared
//! beforehand, and the threads that start the programs are in the node's namespace already: what is timed is exec to exit.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::runtime::{Container, Runtime};
use bulkhead_tests::{Lab, Node};
use serde_json::{Value, json};

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";
/// Last octet of the node that has no agent.
const MACHINE: u8 = 41;

/// A plugin on a node, with namespaces for its pods.
#[derive(Debug)]
pub struct Contender {
    node: Arc<Netns>,
    program: PathBuf,
    runtime: Runtime,
    config: Value,
    pods: Vec<(Arc<Netns>, Container)>,
    results: Mutex<Vec<Value>>,
}

/// One call, ready to be made.
#[derive(Debug)]
struct Prepared {
    pod: usize,
    environment: Vec<(String, String)>,
    stdin: Vec<u8>,
}

impl Contender {
    /// Bulkhead on a node of the lab.
    pub fn bulkhead(node: &Node, namespace: &str, pods: usize) -> Result<Self, LabError> {
        let pods = sandboxes(node, namespace, "own", pods)?;
        let runtime = node.cni().clone();
        let (program, config) = (runtime.plugin.clone(), runtime.config("1.0.0"));
        Ok(Self { node: Arc::clone(node.netns()), program, runtime, config, results: no_results(&pods), pods })
    }

    /// The reference plugins on a node that has no agent, in their leanest form: no masquerading (which would start
    /// iptables for each pod), no chained plugin, their data on the same tmpfs as everything of the lab.
    pub fn reference(lab: &Lab, namespace: &str, pods: usize) -> Result<Self, LabError> {
        let program = Path::new(REFERENCE).join("bridge");
        for needed in [&program, &Path::new(REFERENCE).join("host-local")] {
            if !needed.is_file() {
                return Err(LabError::Refused {
                    what: format!("{} is not there", needed.display()),
                    answer: "install Debian's containernetworking-plugins".into(),
                });
            }
        }
        let dir = lab.id().dir();
        let node = Arc::new(Netns::create(&dir.join("ns"), "reference")?);
        lab.underlay().join(&node, MACHINE)?;
        let pods = sandboxes(lab.node(0), namespace, "reference", pods)?;
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "reference",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("host-local"),
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        let runtime = lab.node(0).cni().clone();
        Ok(Self { node, program, runtime, config, results: no_results(&pods), pods })
    }

    /// How many pods it has namespaces for.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    fn prepare(&self, command: &str, pod: usize) -> Prepared {
        let mut call = self.runtime.call_for(command, &self.pods[pod].1);
        call.set("CNI_PATH", &self.program.parent().unwrap_or(&self.program).display().to_string());
        let mut config = self.config.clone();
        if command == "DEL" {
            config["prevResult"] = self.results.lock().unwrap_or_else(PoisonError::into_inner)[pod].clone();
        }
        Prepared { pod, environment: call.environment, stdin: config.to_string().into_bytes() }
    }

    /// Keeps the results for the DELs. A plugin that gave no address has not done what it is timed for.
    fn keep(&self, answers: Vec<(usize, Vec<u8>)>) -> Result<(), LabError> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        for (pod, stdout) in answers {
            let result: Value = serde_json::from_slice(&stdout).unwrap_or_default();
            if !result["ips"][0]["address"].is_string() {
                let answer = format!("no address: {}", String::from_utf8_lossy(&stdout));
                return Err(LabError::Refused { what: format!("ADD by {}", self.program.display()), answer });
            }
            results[pod] = result;
        }
        Ok(())
    }

    /// Makes a call for each of these pods, one after another; how long each took.
    pub fn one_by_one(&self, command: &str, pods: std::ops::Range<usize>) -> Result<Vec<Duration>, LabError> {
        let calls: Vec<Prepared> = pods.map(|pod| self.prepare(command, pod)).collect();
        let program = self.program.clone();
        let (times, answers) = self.node.aside(move || {
            let (mut times, mut answers) = (Vec::new(), Vec::new());
            for call in calls {
                let (took, stdout) = make(&program, &call)?;
                times.push(took);
                answers.push((call.pod, stdout));
            }
            Ok::<_, LabError>((times, answers))
        })??;
        if command == "ADD" {
            self.keep(answers)?;
        }
        Ok(times)
    }

    /// Makes a call for each pod but the first, `width` at a time; calls per second.
    pub fn at_once(&self, command: &str, width: usize) -> Result<f64, LabError> {
        let calls: Arc<Vec<Prepared>> = Arc::new((1..self.pods()).map(|pod| self.prepare(command, pod)).collect());
        let (next, start) = (Arc::<AtomicUsize>::default(), Arc::new(Barrier::new(width + 1)));
        let mut threads = Vec::new();
        for _ in 0..width {
            let (calls, next, start) = (Arc::clone(&calls), Arc::clone(&next), Arc::clone(&start));
            let program = self.program.clone();
            threads.push(self.node.thread("runtime", move || {
                start.wait();
                let mut answers = Vec::new();
                while let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                    answers.push((call.pod, make(&program, call)?.1));
                }
                Ok::<_, LabError>(answers)
            })?);
        }
        // Before the start, for the threads may be at work before this one goes on.
        let begin = Instant::now();
        start.wait();
        let mut answers = Vec::new();
        for thread in threads {
            answers.extend(thread.join().map_err(|_| LabError::ThreadGone("a runtime".into()))??);
        }
        let took = begin.elapsed().as_secs_f64();
        let count = u32::try_from(answers.len()).unwrap_or(u32::MAX);
        if command == "ADD" {
            self.keep(answers)?;
        }
        Ok(f64::from(count) / took)
    }
}

fn no_results(pods: &[(Arc<Netns>, Container)]) -> Mutex<Vec<Value>> {
    Mutex::new(vec![Value::Null; pods.len()])
}

fn sandboxes(node: &Node, namespace: &str, name: &str, count: usize) -> Result<Vec<(Arc<Netns>, Container)>, LabError> {
    (0..count).map(|number| node.sandbox(namespace, &format!("{name}-{number}"), "eth0")).collect()
}

/// Starts the program in the calling thread's namespace and waits for its end; anything but success is an error.
fn make(program: &Path, call: &Prepared) -> Result<(Duration, Vec<u8>), LabError> {
    let what = || format!("run {}", program.display());
    let mut command = Command::new(program);
    command.env_clear().envs(call.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = command.spawn().tried(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&call.stdin).tried(what)?;
    }
    let output = child.wait_with_output().tried(what)?;
    let took = begin.elapsed();
    if output.status.success() {
        return Ok((took, output.stdout));
    }
    let answer = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout).trim());
    Err(LabError::Refused { what: what(), answer })
}
