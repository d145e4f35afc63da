//! What a node holds, to be compared before and after: links, addresses, routes, rules, files, entries of pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::error::LabError;
use crate::node::Node;
use crate::wait;

/// How long what ends by itself may take.
const GONE: Duration = Duration::from_secs(20);

/// Everything of a node that could leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings(BTreeMap<&'static str, BTreeSet<String>>);

impl Holdings {
    /// Takes stock.
    pub fn of(node: &Node) -> Result<Self, LabError> {
        let netns = node.netns();
        let mut all = BTreeMap::new();
        for (kind, arguments) in [
            ("links", &["-j", "link"][..]),
            ("addresses", &["-j", "address"]),
            // IPv6 link-local routes come seconds after their devices, from the kernel.
            ("routes", &["-4", "-j", "route", "show", "table", "all"]),
            ("rules", &["-j", "rule"]),
        ] {
            let text = netns.exec("ip", arguments, &[])?;
            let items: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
            all.insert(kind, items.iter().map(|item| describe(kind, item)).collect());
        }
        let mut files = BTreeSet::new();
        list(node.dir(), node.dir(), &mut files);
        let maps = files.iter().filter(|file| file.starts_with("bpf/"));
        all.insert("map entries", maps.filter_map(|file| entries(node, file)).collect());
        // The agent writes its state down at its own pace: one file, and for a moment the one that replaces it.
        files.retain(|file| !file.starts_with("state/intent."));
        all.insert("files", files);
        Ok(Self(all))
    }

    /// What is in one but not the other, one per line; empty if they are the same.
    pub fn difference(&self, after: &Self) -> String {
        let mut lines = String::new();
        for (kind, before) in &self.0 {
            let now = after.0.get(kind).cloned().unwrap_or_default();
            lines.extend(now.difference(before).map(|item| format!("new {kind}: {item}\n")));
            lines.extend(before.difference(&now).map(|item| format!("gone {kind}: {item}\n")));
        }
        lines
    }
}

/// Waits until a node holds what it held `before`: what others hold of it for a moment (a spooled call, a namespace that ends) goes by
/// itself, what leaked stays.
pub fn await_same(node: &Node, before: &Holdings) -> Result<(), LabError> {
    wait::until_or(&format!("{} holding what it held before", node.name()), GONE, || {
        let now = Holdings::of(node).map_err(|error| error.to_string())?;
        let difference = before.difference(&now);
        if difference.is_empty() { Ok(()) } else { Err(difference) }
    })
}

fn describe(kind: &str, item: &Value) -> String {
    let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
    match kind {
        "links" => format!("{} {}", text("ifname"), item["mtu"]),
        "addresses" => {
            let addresses: Vec<String> = item["addr_info"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|info| info["family"] == "inet")
                .map(|info| info["local"].as_str().unwrap_or_default().to_owned())
                .collect();
            format!("{} {}", text("ifname"), addresses.join(" "))
        }
        "routes" => format!(
            "{} {} via {} dev {} table {}",
            text("type"),
            text("dst"),
            text("gateway"),
            text("dev"),
            text("table")
        ),
        _ => item.to_string(),
    }
}

fn list(root: &Path, dir: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(root, &path, into);
        } else if let Ok(relative) = path.strip_prefix(root) {
            into.insert(relative.display().to_string());
        }
    }
}

/// `name: entries` of a pinned hash or LPM map; arrays have as many entries as they have places.
fn entries(node: &Node, file: &str) -> Option<String> {
    let path = node.dir().join(file);
    let path = path.to_str()?;
    let show = node.netns().output("bpftool", &["-j", "map", "show", "pinned", path], &[]).ok()?;
    let map: Value = serde_json::from_slice(&show.stdout).ok()?;
    if !matches!(map["type"].as_str()?, "hash" | "lpm_trie" | "percpu_hash") {
        return None;
    }
    let dump = node.netns().output("bpftool", &["-j", "map", "dump", "pinned", path], &[]).ok()?;
    let entries: Vec<Value> = serde_json::from_slice(&dump.stdout).ok()?;
    Some(format!("{file}: {}", entries.len()))
}
