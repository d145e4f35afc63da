//! CNI configs of other networks in the runtime's folder: the runtime takes the first file by name, and pods that another network
//! gets are no tenant's.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Obstacle;
use crate::node::cni_conf;

/// What a runtime takes for a CNI config (libcni, `ConfFiles`).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Plugins of the CNI project: distributions put configs of them there for hosts without a cluster.
const REFERENCE: [&str; 8] = ["bridge", "host-device", "ipvlan", "loopback", "macvlan", "ptp", "tuning", "vlan"];
/// Plugins that leave a pod's first device to another config, which they read themselves.
const DELEGATING: [&str; 2] = ["multus", "multus-shim"];

/// Configs of others in the runtime's folder. One behind ours is harmless if it is of a reference plugin.
pub(super) fn foreign(folder: &Path) -> Vec<Obstacle> {
    // No folder, no config; one that cannot be read fails when ours is written, which says so.
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| ENDINGS.contains(&ending)) && path.file_name() != Some(cni_conf::FILE.as_ref())
        })
        .collect();
    paths.sort();
    paths.into_iter().filter_map(judged).collect()
}

fn judged(path: PathBuf) -> Option<Obstacle> {
    let first = path.file_name() < Some(cni_conf::FILE.as_ref());
    let Some((network, plugin)) = fs::read(&path).ok().and_then(|text| named(&text)) else {
        // The runtime fails at one that it cannot read, if it is the first.
        return first.then(|| Obstacle::ForeignFirst { path, network: "which cannot be read".into() });
    };
    if DELEGATING.contains(&plugin.as_str()) {
        return None;
    }
    let said = format!("network {network}, plugin {plugin}");
    match (first, REFERENCE.contains(&plugin.as_str())) {
        (true, _) => Some(Obstacle::ForeignFirst { path, network: said }),
        (false, false) => Some(Obstacle::ForeignNetwork { path, network: said }),
        (false, true) => None,
    }
}

/// Name and first plugin of a CNI config or list.
fn named(text: &[u8]) -> Option<(String, String)> {
    let config: Value = serde_json::from_slice(text).ok()?;
    let of = |value: &Value| value.as_str().map(|text| text.chars().take(64).collect::<String>());
    let plugin = of(&config["plugins"][0]["type"]).or_else(|| of(&config["type"]))?;
    Some((of(&config["name"]).unwrap_or_default(), plugin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anothers_config_is_in_the_way_if_the_runtime_takes_it_or_a_network_left_it() {
        let list = |plugin: &str| format!(r#"{{"name":"old","plugins":[{{"type":"{plugin}"}},{{"type":"portmap"}}]}}"#);
        let single = |plugin: &str| format!(r#"{{"name":"old","type":"{plugin}"}}"#);
        let found = |name: &str, text: &str| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(cni_conf::FILE), list("bulkhead-cni")).unwrap();
            fs::write(folder.path().join(name), text).unwrap();
            foreign(folder.path()).first().map(ToString::to_string).unwrap_or_default()
        };
        for (name, text, words) in [
            ("05-old.conflist", list("bridge"), "network old, plugin bridge) sorts before"),
            ("10-aws.conf", single("aws-cni"), "plugin aws-cni) sorts before"),
            ("00-half.conflist", "{".to_owned(), "(which cannot be read) sorts before"),
            ("10-calico.conflist", list("calico"), "another network has left"),
            ("99-x.json", single("flannel"), "another network has left"),
        ] {
            assert!(found(name, &text).contains(words), "{name}: {}", found(name, &text));
        }
        for (name, text) in [
            ("11-crio-ipv4-bridge.conflist", list("bridge")),
            ("99-loopback.conf", single("loopback")),
            ("00-multus.conf", single("multus")),
            ("05-old.conflist.bak", list("bridge")),
            ("99-half.conflist", "{".to_owned()),
        ] {
            assert_eq!(found(name, &text), "", "{name}");
        }
        assert_eq!(foreign(Path::new("/nowhere")), []);
    }
}
