//! What an agent needs in a large cluster: 10,000 namespaces and 5,000 nodes in etcd, given their numbers and subnets by the
//! controller as in life; then the agent starts, reads all of it and comes to rest.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bulkhead_tests::cluster::{ClusterSpec, ROOT, netnamespace_key};
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, Node};
use serde_json::json;

use crate::machine::{field, kibibytes};
use crate::report::{Row, Target};
use crate::sample::median;

/// Namespaces in etcd.
const NAMESPACES: u64 = 10_000;
/// Nodes in etcd, beside the one whose agent is measured.
const NODES: u64 = 4_999;
/// Room for 8,192 nodes of 253 pods.
const NETWORK: &str = "10.64.0.0/11";
const HOST_BITS: u8 = 8;
/// Operations of one transaction; etcd takes 128.
const CHUNK: usize = 120;
/// How long the controller may take for all of them.
const NUMBERED: Duration = Duration::from_mins(5);
/// Samples of a window, 10 ms apart: as long as the time between two resyncs. The agent has come to rest when the medians of
/// two windows in a row differ by less than 1 %.
const WINDOW: usize = 200;
const RESYNC: &str = "2";
/// The most that an agent may need, in MiB.
const MOST: f64 = 40.0;

fn namespaces() -> impl Iterator<Item = (String, String)> {
    (0..NAMESPACES).map(|number| {
        let name = format!("tenant-{number:05}");
        let record = json!({"NetName": name, "Action": "", "Namespace": ""});
        (netnamespace_key(&name), record.to_string())
    })
}

fn nodes() -> impl Iterator<Item = (String, String)> {
    (1..=NODES).map(|number| {
        // Of the range for benchmarks (RFC 2544).
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + u32::try_from(number).unwrap_or(0));
        let record = json!({"Host": format!("node-{number:04}"), "HostIP": address, "Subnet": "", "Assign": true});
        (format!("{ROOT}/subnets/{address}"), record.to_string())
    })
}

/// Fills a lab of its own and measures its agent.
pub fn rows() -> Result<Vec<Row>, LabError> {
    let builder = Lab::builder().nodes(1).network(NETWORK, HOST_BITS).agent_flag("--resync", RESYNC);
    let lab = builder.bare().start()?;
    let cluster = ClusterSpec { network: NETWORK.into(), host_subnet_length: HOST_BITS, ..ClusterSpec::default() };
    let arguments = cluster.init_arguments();
    lab.cli().ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    let records: Vec<(String, String)> = namespaces().chain(nodes()).collect();
    for chunk in records.chunks(CHUNK) {
        lab.etcd().put_all(chunk)?;
    }
    let begin = Instant::now();
    lab.controllers().start(0)?;
    for (folder, wanted) in [("namespaces", NAMESPACES), ("nodes", NODES)] {
        let prefix = format!("{ROOT}/bulkhead/ledger/{folder}/");
        wait::until_or(&format!("{wanted} {folder} in the ledger"), NUMBERED, || {
            let count = lab.etcd().keys(&prefix).map_err(|error| error.to_string())?.len() as u64;
            if count >= wanted { Ok(()) } else { Err(format!("{count}")) }
        })?;
    }
    let numbered = begin.elapsed().as_secs_f64();
    let node = lab.node(0);
    let begin = Instant::now();
    node.start_agent()?;
    wait::until_or("the agent knowing all of it", Duration::from_mins(1), || {
        let status = node.status().map_err(|error| error.to_string())?;
        let all = status.namespaces >= NAMESPACES && status.nodes > NODES;
        if all { Ok(()) } else { Err(format!("{} namespaces, {} nodes", status.namespaces, status.nodes)) }
    })?;
    let known = begin.elapsed().as_secs_f64();
    let settled = settle(node)?;
    let name = |what: &str| format!("agent, 10,000 namespaces and 5,000 nodes: {what}");
    Ok(vec![
        Row::new(name("resident memory"), "MiB", settled.resident).target(Target::AtMost(MOST)),
        Row::new(name("highest resident memory"), "MiB", settled.highest),
        Row::new(name("memory of BPF maps"), "MiB", map_memory(node)?),
        Row::new(name("start until all is known"), "s", known),
        Row::new("controller, 10,000 namespaces and 5,000 nodes: until all have their numbers", "s", numbered),
    ])
}

/// MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Memory {
    resident: f64,
    highest: f64,
}

fn process_dir(node: &Node) -> Result<String, LabError> {
    let gone = || LabError::Refused { what: "measure the agent".into(), answer: "it does not run".into() };
    Ok(format!("/proc/{}", node.agent_pid().ok_or_else(gone)?))
}

fn memory(node: &Node) -> Result<Memory, LabError> {
    let path = format!("{}/status", process_dir(node)?);
    let text = fs::read_to_string(&path).tried(|| format!("read {path}"))?;
    let of = |name: &str| {
        let found = field(&text, name).and_then(|value| kibibytes(&value)).and_then(|kib| u32::try_from(kib).ok());
        found.map(|kib| f64::from(kib) / 1024.0).ok_or_else(|| LabError::Broken(format!("{path} has no {name}")))
    };
    Ok(Memory { resident: of("VmRSS")?, highest: of("VmHWM")? })
}

fn settle(node: &Node) -> Result<Memory, LabError> {
    let (mut window, mut last) = (Vec::new(), 0.0);
    wait::until_or("the agent's memory coming to rest", Duration::from_mins(2), || {
        let now = memory(node).map_err(|error| error.to_string())?;
        window.push(now.resident);
        if window.len() < WINDOW {
            return Err(format!("{:.1} MiB", now.resident));
        }
        let resident = median(&mut window);
        window.clear();
        let before = std::mem::replace(&mut last, resident);
        if (resident - before).abs() < resident * 0.01 {
            return Ok(Memory { resident, highest: now.highest });
        }
        Err(format!("{before:.1} MiB, then {resident:.1} MiB"))
    })
}

/// What the kernel charges for all maps that the agent has open, MiB.
fn map_memory(node: &Node) -> Result<f64, LabError> {
    let dir = format!("{}/fdinfo", process_dir(node)?);
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(&dir).tried(|| format!("read {dir}"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let bytes = field(&text, "memlock").and_then(|value| value.parse::<u64>().ok());
        // Programs have a memlock too, and one map may be open twice.
        if let (Some(id), Some(bytes)) = (field(&text, "map_id"), bytes) {
            maps.insert(id, bytes);
        }
    }
    let kib = u32::try_from(maps.values().sum::<u64>() / 1024).unwrap_or(u32::MAX);
    Ok(f64::from(kib) / 1024.0)
}
