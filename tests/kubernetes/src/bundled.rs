//! The etcd that the chart brings along, on a cluster of the lab: its image, made without a daemon, and what an administrator
//! does with it from outside, by the Secret that the setup makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_tests::binaries::Binaries;
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::wait;
use serde_json::Value;

use crate::bulkhead::{self, NAMESPACE};
use crate::cluster::Cluster;
use crate::image::Archive;

/// The image that the chart names.
pub const IMAGE: &str = "registry.k8s.io/etcd:3.6.5-0";
/// Where members serve clients, and their health and metrics.
const CLIENT_SECRET: &str = "bulkhead-etcd-client";
/// How long members may take to be replaced.
const SETTLED: Duration = Duration::from_mins(5);
const METRICS: &str = "http://127.0.0.1:9474/metrics";

/// Installs Bulkhead with it and waits until the cluster works. `values` are further values of the chart.
pub fn install(cluster: &Cluster, values: &[&str]) -> Result<(), LabError> {
    cluster.import(&image(cluster)?)?;
    let values: Vec<&str> = ["etcd.mode=bundled"].iter().chain(values).copied().collect();
    bulkhead::install(cluster, &values)
}

/// Applies it with other values, as an upgrade does.
pub fn update(cluster: &Cluster, values: &[&str]) -> Result<(), LabError> {
    let values: Vec<&str> = ["etcd.mode=bundled"].iter().chain(values).copied().collect();
    cluster.kubectl().apply(&bulkhead::manifests(cluster, &values)?).map(drop)
}

/// Where `scripts/etcd` built this version of etcd; it builds it unless it has.
pub fn programs() -> Result<PathBuf, LabError> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/etcd");
    let output = Command::new(&script).output().tried(|| format!("run {}", script.display()))?;
    if output.status.success() {
        return Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let answer = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(LabError::Refused { what: "build etcd".into(), answer })
}

fn image(cluster: &Cluster) -> Result<PathBuf, LabError> {
    let programs = programs()?;
    let (etcd, etcdctl) = (programs.join("etcd"), programs.join("etcdctl"));
    let files = [(etcd.as_path(), "/usr/local/bin/etcd"), (etcdctl.as_path(), "/usr/local/bin/etcdctl")];
    let archive = cluster.dir().join("etcd.tar");
    Archive::of_files(IMAGE, &["/usr/local/bin/etcd"], &files, &[])?.write(&archive)?;
    Ok(archive)
}

/// Runs `bulkhead` on the infra machine with the client's certificate of the setup's Secret.
pub fn bulkhead(cluster: &Cluster, words: &[&str], input: &[u8]) -> Result<String, LabError> {
    let (endpoints, dir) = client(cluster)?;
    let mut command = Command::new(Binaries::find()?.cli()?);
    command
        .args(words)
        .env("BULKHEAD_ETCD_ENDPOINTS", endpoints)
        .env("BULKHEAD_ETCD_CA", dir.join("ca.crt"))
        .env("BULKHEAD_ETCD_CERT", dir.join("tls.crt"))
        .env("BULKHEAD_ETCD_KEY", dir.join("tls.key"));
    cluster.underlay().infra.exec_of(command, input)
}

/// The members that count, each with its number; all of them have started and answer with a quorum behind them.
pub fn members(cluster: &Cluster) -> Result<BTreeMap<String, u64>, LabError> {
    let (endpoints, dir) = client(cluster)?;
    let run = |words: &[&str]| {
        let mut command = Command::new(programs()?.join("etcdctl"));
        command.args(words).args(["--dial-timeout=5s", "--command-timeout=10s"]);
        for (flag, file) in [("--cacert", "ca.crt"), ("--cert", "tls.crt"), ("--key", "tls.key")] {
            command.arg(flag).arg(dir.join(file));
        }
        cluster.underlay().infra.exec_of(command, &[])
    };
    let broken = |answer: String| LabError::Refused { what: "list etcd's members".into(), answer };
    let listed = run(&["member", "list", "-w", "json", "--endpoints", &endpoints])?;
    let listed: Value = serde_json::from_str(&listed).map_err(|error| broken(format!("{error}: {listed}")))?;
    let mut members = BTreeMap::new();
    for member in listed["members"].as_array().into_iter().flatten() {
        let (name, id) = (member["name"].as_str().unwrap_or_default(), member["ID"].as_u64().unwrap_or_default());
        let Some(url) = member["clientURLs"][0].as_str().filter(|_| member["isLearner"] != true) else {
            return Err(broken(format!("not started, or a learner: {member}")));
        };
        run(&["endpoint", "health", "--endpoints", url])?;
        members.insert(name.to_owned(), id);
    }
    Ok(members)
}

/// Waits until these are the members, all of them well.
pub fn await_members(cluster: &Cluster, names: &[&str]) -> Result<BTreeMap<String, u64>, LabError> {
    wait::until_or(&format!("etcd's members being {names:?}"), SETTLED, || match members(cluster) {
        Ok(members) if members.keys().eq(names) => Ok(members),
        other => Err(format!("{other:?}")),
    })
}

/// Runs the setup again, as an administrator does. What it said.
pub fn set_up_again(cluster: &Cluster) -> Result<String, LabError> {
    let run = |words: &[&str]| cluster.kubectl().run(&[&["-n", NAMESPACE], words].concat());
    run(&["delete", "job", "etcd-setup", "--ignore-not-found"])?;
    run(&["create", "job", "etcd-setup", "--from=cronjob/bulkhead-etcd-setup"])?;
    let limit = format!("--timeout={}s", SETTLED.as_secs());
    let done = run(&["wait", "--for=condition=complete", "job/etcd-setup", &limit]);
    let said = run(&["logs", "job/etcd-setup"]).unwrap_or_else(|error| error.to_string());
    done.map_err(|error| LabError::Broken(format!("{error}\n{said}")))?;
    Ok(said)
}

/// Where clients find it, and the folder with what they show.
fn client(cluster: &Cluster) -> Result<(String, PathBuf), LabError> {
    let kubectl = cluster.kubectl();
    let dir = cluster.dir().join("etcd-client");
    fs::create_dir_all(&dir).tried(|| format!("create {}", dir.display()))?;
    let secret = kubectl.json(&["-n", NAMESPACE, "get", "secret", CLIENT_SECRET])?;
    for key in ["ca.crt", "tls.crt", "tls.key"] {
        let path = dir.join(key);
        let bytes = STANDARD.decode(secret["data"][key].as_str().unwrap_or_default()).map_err(|error| {
            LabError::Refused { what: format!("read {CLIENT_SECRET}"), answer: format!("{key}: {error}") }
        })?;
        fs::write(&path, bytes).tried(|| format!("write {}", path.display()))?;
    }
    let map = kubectl.json(&["-n", NAMESPACE, "get", "configmap", "bulkhead-etcd"])?;
    Ok((map["data"]["endpoints"].as_str().unwrap_or_default().to_owned(), dir))
}

/// One of a member's metrics; none if it does not answer or has none of that name.
pub fn metric(cluster: &Cluster, node: &str, name: &str) -> Option<f64> {
    let text = cluster.node(node).ok()?.exec(&["curl", "-sf", "-m", "5", METRICS], &[]).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
