//! Namespaces as tenants: made, annotated, and what Bulkhead says of them.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::binaries::Binaries;
use bulkhead_tests::cluster::netnamespace_key;
use bulkhead_tests::error::{LabError, promised};
use bulkhead_tests::wait;
use serde_json::json;

use crate::cluster::Cluster;
use crate::pod::{Pod, WEB};

/// How soon an annotation is in force, on a loaded machine and by what runs in pods by kubectl.
const SOON: Duration = Duration::from_mins(1);

/// Makes namespaces.
pub fn create(cluster: &Cluster, names: &[&str]) -> Result<(), LabError> {
    names.iter().try_for_each(|name| cluster.kubectl().run(&["create", "namespace", name]).map(drop))
}

/// Sets `bulkhead.dev/network`, or removes it.
pub fn declare(cluster: &Cluster, namespace: &str, network: Option<&str>) -> Result<(), LabError> {
    let words = network.map_or("bulkhead.dev/network-".to_owned(), |network| format!("bulkhead.dev/network={network}"));
    cluster.kubectl().run(&["annotate", "--overwrite", "namespace", namespace, &words]).map(drop)
}

/// What `bulkhead.dev/network-status` says.
pub fn status(cluster: &Cluster, namespace: &str) -> Result<String, LabError> {
    let object = cluster.kubectl().json(&["get", "namespace", namespace])?;
    Ok(object["metadata"]["annotations"]["bulkhead.dev/network-status"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the status begins so.
pub fn await_status(cluster: &Cluster, namespace: &str, beginning: &str) -> Result<String, LabError> {
    wait::until_or(&format!("{namespace}: {beginning}"), SOON, || {
        let found = status(cluster, namespace).map_err(|error| error.to_string())?;
        if found.starts_with(beginning) { Ok(found) } else { Err(found) }
    })
}

/// Where a namespace's network is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `kubectl annotate`.
    Annotation,
    /// `kubectl bulkhead`.
    Cli,
    /// A record with an action, as `etcdctl put` writes it. The namespace has no annotation.
    Etcd,
}

/// What becomes of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// In the network of another one.
    Join(&'a str),
    /// In a network of its own.
    Isolate,
    /// Open to all.
    Global,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::Cli => "kubectl bulkhead",
            Self::Etcd => "etcdctl",
        })
    }
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(target) => write!(f, "joins {target}"),
            Self::Isolate => f.write_str("is isolated"),
            Self::Global => f.write_str("is global"),
        }
    }
}

/// Asks for a change; [`Way::Cli`] waits until it is done, the others do not.
pub fn ask(cluster: &Cluster, way: Way, namespace: &str, change: Change<'_>) -> Result<(), LabError> {
    match (way, change) {
        (Way::Annotation, Change::Join(target)) => declare(cluster, namespace, Some(&format!("join:{target}"))),
        (Way::Annotation, Change::Isolate) => declare(cluster, namespace, Some("isolated")),
        (Way::Annotation, Change::Global) => declare(cluster, namespace, Some("global")),
        (Way::Cli, Change::Join(target)) => change_by_tool(cluster, &["join", namespace, "--to", target]).map(drop),
        (Way::Cli, Change::Isolate) => change_by_tool(cluster, &["isolate", namespace]).map(drop),
        (Way::Cli, Change::Global) => change_by_tool(cluster, &["global", namespace]).map(drop),
        (Way::Etcd, change) => {
            let (action, target) = match change {
                Change::Join(target) => ("join", target),
                Change::Isolate => ("isolate", ""),
                Change::Global => ("global", ""),
            };
            let record = json!({"NetName": namespace, "Action": action, "Namespace": target}).to_string();
            cluster.etcd().put(&netnamespace_key(namespace), &record)
        }
    }
}

/// Waits until a pod reaches an address, by echo and by the web.
pub fn await_reach(from: &Pod, to: IpAddr) -> Result<(), LabError> {
    wait::until_or(&format!("{to} being reached"), SOON, || {
        match (from.pings(to), from.fetches(&format!("{to}:{WEB}"))) {
            (Ok(true), Ok(true)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Waits until a pod reaches an address no more, neither by echo nor by the web.
pub fn await_silence(from: &Pod, to: IpAddr) -> Result<(), LabError> {
    wait::until_or(&format!("{to} being out of reach"), SOON, || {
        match (from.pings(to), from.fetches(&format!("{to}:{WEB}"))) {
            (Ok(false), Ok(false)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// An error if a pod reaches an address, by echo or by the web. Whom it does reach is shown beside it.
pub fn expect_silence(from: &Pod, to: IpAddr) -> Result<(), LabError> {
    let (pings, fetches) = (from.pings(to)?, from.fetches(&format!("{to}:{WEB}"))?);
    promised(!pings && !fetches, || {
        format!("{} reaches {to}, by echo: {pings}, by the web: {fetches}", from.full_name())
    })
}

/// Changes tenants by `kubectl bulkhead`, and waits until it is done.
pub fn change_by_tool(cluster: &Cluster, arguments: &[&str]) -> Result<String, LabError> {
    let limit = format!("--timeout={}s", SOON.as_secs());
    kubectl_bulkhead(cluster, &[&["tenant"], arguments, &[&limit]].concat())
}

/// Runs `kubectl bulkhead` as an administrator.
pub fn kubectl_bulkhead(cluster: &Cluster, arguments: &[&str]) -> Result<String, LabError> {
    let plugin = plugin(&cluster.dir())?;
    let mut command = Command::new(plugin);
    command.args(arguments).env("KUBECONFIG", cluster.kubectl().kubeconfig());
    cluster.underlay().infra.exec_of(command, &[])
}

/// The command line tool under the name by which kubectl finds it, in this folder of the lab.
pub fn plugin(dir: &Path) -> Result<std::path::PathBuf, LabError> {
    use bulkhead_tests::error::Tried;
    let link = dir.join("kubectl-bulkhead");
    if !link.exists() {
        let program = std::path::absolute(Binaries::find()?.cli()?).tried(|| "find bulkhead".into())?;
        std::os::unix::fs::symlink(program, &link).tried(|| format!("link {}", link.display()))?;
    }
    Ok(link)
}
