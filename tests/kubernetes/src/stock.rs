//! What the cluster holds of pods and tenants, to be compared before and after: on each node links, network namespaces,
//! programs on devices, entries of maps, rules, CNI results, the agent's records; in etcd the keys. Sandboxes that are over are the
//! kubelet's to forget, once a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;
use serde_json::Value;

use crate::bulkhead;
use crate::cluster::{BULKHEAD_PREFIX, Cluster};
use crate::node::Node;

/// How long a cluster that was just installed may take until nothing comes any more.
const SETTLED: Duration = Duration::from_mins(3);

/// Everything that could leak, by where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock(BTreeMap<String, BTreeSet<String>>);

/// Commands whose output's lines are what a node holds.
const LISTS: [(&str, &[&str]); 7] = [
    ("network namespace", &["ls", "/run/netns"]),
    ("program on a device", &["sh", "-c", "bpftool net show | sed 's/ id [0-9]*//g'"]),
    ("nftables rule", &["sh", "-c", "nft -s list table ip bulkhead 2>/dev/null || true"]),
    // kube-proxy's own come when it gets to them.
    ("iptables rule", &["sh", "-c", "iptables-save 2>/dev/null | grep '^-A' | grep -v KUBE || true"]),
    ("spooled DEL", &["sh", "-c", "ls /run/bulkhead/spool 2>/dev/null || true"]),
    ("CNI result", &["sh", "-c", "find /var/lib/cni -type f"]),
    ("rule", &["ip", "rule"]),
];

impl Stock {
    /// Takes stock of every worker, of etcd, and of what Bulkhead's agents say, if they are there.
    pub fn of(cluster: &Cluster) -> Result<Self, LabError> {
        let mut all = BTreeMap::new();
        for node in cluster.workers() {
            let name = node.name();
            for (kind, words) in LISTS {
                let text = node.exec(words, &[])?;
                all.insert(format!("{name}: {kind}"), lines(&text));
            }
            all.insert(format!("{name}: link"), links(&node)?);
            all.insert(format!("{name}: map"), maps(&node)?);
            all.insert(format!("{name}: agent"), agent(cluster, name)?);
        }
        let keys = cluster.etcd().keys(BULKHEAD_PREFIX)?;
        all.insert("etcd: key".into(), keys.into_iter().filter(|key| !key.contains("/election/")).collect());
        Ok(Self(all))
    }

    /// Takes stock once two looks in a row see the same: what is to come by itself has come.
    pub fn settled(cluster: &Cluster) -> Result<Self, LabError> {
        let mut last = Self::of(cluster)?;
        wait::until_or("the cluster holding the same twice", SETTLED, || {
            let now = Self::of(cluster).map_err(|error| error.to_string())?;
            let difference = last.difference(&now);
            last = now;
            if difference.is_empty() { Ok(()) } else { Err(difference) }
        })?;
        Ok(last)
    }

    /// What is in one but not the other, one per line; empty if they are the same.
    pub fn difference(&self, after: &Self) -> String {
        let mut text = String::new();
        for (kind, before) in &self.0 {
            let now = after.0.get(kind).cloned().unwrap_or_default();
            text.extend(now.difference(before).map(|item| format!("{kind}: new {item}\n")));
            text.extend(before.difference(&now).map(|item| format!("{kind}: gone {item}\n")));
        }
        text
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn links(node: &Node) -> Result<BTreeSet<String>, LabError> {
    let text = node.exec(&["ip", "-j", "link"], &[])?;
    let links: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    Ok(links.iter().filter_map(|link| link["ifname"].as_str()).map(str::to_owned).collect())
}

/// `map: entries` of each pinned hash or LPM map; arrays have as many entries as they have places.
fn maps(node: &Node) -> Result<BTreeSet<String>, LabError> {
    let mut all = BTreeSet::new();
    let files = node.exec(&["sh", "-c", "find /sys/fs/bpf -type f"], &[])?;
    for file in files.lines() {
        let show =
            node.exec(&["sh", "-c", &format!("bpftool -j map show pinned {file} 2>/dev/null || echo '{{}}'")], &[])?;
        let map: Value = serde_json::from_str(&show).unwrap_or_default();
        if matches!(map["type"].as_str(), Some("hash" | "lpm_trie" | "percpu_hash")) {
            let dump = node.exec(&["bpftool", "-j", "map", "dump", "pinned", file], &[])?;
            let entries: Vec<Value> = serde_json::from_str(&dump).unwrap_or_default();
            all.insert(format!("{file} with {} entries", entries.len()));
        }
    }
    Ok(all)
}

fn agent(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>, LabError> {
    let kubectl = cluster.kubectl();
    let field = format!("spec.nodeName={node}");
    let select = ["-n", bulkhead::NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=agent"];
    let pods = kubectl.run(&[&select[..], &["--field-selector", &field, "-o", "name"]].concat())?;
    let Some(pod) = pods.lines().next() else { return Ok(BTreeSet::new()) };
    let status = kubectl.exec_ok(bulkhead::NAMESPACE, pod, &["bulkhead", "agent", "status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&status).unwrap_or_default();
    let said = ["pods", "free_addresses", "namespaces", "nodes", "problems"];
    Ok(said.iter().map(|field| format!("{field} {}", status[*field])).collect())
}
