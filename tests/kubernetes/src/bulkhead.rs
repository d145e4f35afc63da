//! Bulkhead on a cluster of the lab, installed as an administrator does: the chart, an image, an etcd with TLS.
//!
//! The image holds the binaries of this tree and is made without a daemon. Promises: when [`install`] returns, every node is
//! ready, all of Bulkhead's pods are, and names are resolved.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_tests::binaries::Binaries;
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::etcd::Etcd;
use bulkhead_tests::wait;
use serde_json::json;

use crate::cluster::Cluster;
use crate::image::Archive;
use crate::network::{CLUSTER_NETWORK, SERVICE_NETWORK};

/// The namespace that it is installed in.
pub const NAMESPACE: &str = "bulkhead-system";
/// The image that the chart names.
pub const IMAGE: &str = concat!("ghcr.io/bulkhead-net/bulkhead:", env!("CARGO_PKG_VERSION"));
const TLS_SECRET: &str = "bulkhead-etcd-client";
const ROLLED_OUT: Duration = Duration::from_mins(5);

/// The chart of this tree.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart")
}

/// Installs it and waits until the cluster works. `values` are further values of the chart, as `--set` takes them.
pub fn install(cluster: &Cluster, values: &[&str]) -> Result<(), LabError> {
    apply(cluster, values)?;
    await_ready(cluster)
}

/// Installs it, whatever becomes of it.
pub fn apply(cluster: &Cluster, values: &[&str]) -> Result<(), LabError> {
    cluster.import(&image(cluster)?)?;
    prepare(cluster, values)?;
    cluster.kubectl().apply(&manifests(cluster, values)?).map(drop)
}

/// Makes what an installation finds there: its namespace, and the certificates for etcd.
pub(crate) fn prepare(cluster: &Cluster, values: &[&str]) -> Result<(), LabError> {
    cluster
        .kubectl()
        .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string())?;
    // The setup of the bundled etcd makes its own, and takes for it what is there.
    if !values.contains(&"etcd.mode=bundled") {
        cluster.kubectl().apply(&secret(cluster)?)?;
    }
    Ok(())
}

/// Removes it as an administrator does, with `deploy/uninstall`. Returns what that said.
pub fn uninstall(cluster: &Cluster) -> Result<String, LabError> {
    let kubectl = cluster.programs().get("kubectl")?;
    let programs = kubectl.parent().unwrap_or(Path::new("/"));
    let mut command = Command::new(chart().join("../uninstall"));
    command
        .env_clear()
        // Helm is there too; it knows of a release only where it has installed one.
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("KUBECONFIG", cluster.kubectl().kubeconfig())
        .env("HOME", cluster.dir().join("home"));
    cluster.underlay().infra.exec_of(command, &[])
}

/// The agent's pod on a node, once it is there.
pub fn agent_on(cluster: &Cluster, node: &str) -> Result<String, LabError> {
    let (component, place) = ("app.kubernetes.io/component=agent", format!("spec.nodeName={node}"));
    let pods = ["-n", NAMESPACE, "get", "pods", "-l", component, "--field-selector", &place];
    let name = [&pods[..], &["-o", "jsonpath={.items[0].metadata.name}"]].concat();
    wait::until_or(&format!("the agent's pod on {node}"), ROLLED_OUT, || {
        cluster.kubectl().run(&name).map_err(|error| error.to_string())
    })
}

/// As [`install`], with an etcd that nobody else uses: it and the API server can be away one without the other.
pub fn install_with_own_etcd(cluster: &Cluster) -> Result<Etcd, LabError> {
    let etcd = cluster.start_another_etcd()?;
    install(cluster, &[&format!("etcd.external.endpoints={{{}}}", etcd.endpoints())])?;
    Ok(etcd)
}

/// How often the agent on a node was started again.
pub fn agent_restarts(cluster: &Cluster, node: &str) -> Result<u64, LabError> {
    let of_node = format!("spec.nodeName={node}");
    let select = ["-l", "app.kubernetes.io/component=agent", "--field-selector", &of_node];
    let pods = cluster.kubectl().json(&[&["-n", NAMESPACE, "get", "pods"][..], &select].concat())?;
    Ok(pods["items"][0]["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
}

/// The image with this tree's binaries, as an archive.
pub fn image(cluster: &Cluster) -> Result<PathBuf, LabError> {
    image_named(cluster, IMAGE)
}

/// The same under another name.
pub fn image_named(cluster: &Cluster, name: &str) -> Result<PathBuf, LabError> {
    let binaries = Binaries::find()?;
    let programs = [
        (binaries.agent()?, "/usr/bin/bulkhead-agent"),
        (binaries.controller()?, "/usr/bin/bulkhead-controller"),
        (binaries.cli()?, "/usr/bin/bulkhead"),
        (binaries.cni()?, "/usr/bin/bulkhead-cni"),
    ];
    let files: Vec<(&Path, &str)> = programs.iter().map(|(from, to)| (from.as_path(), *to)).collect();
    let archive = cluster.dir().join(format!("{}.tar", name.replace(['/', ':'], "-")));
    let labels = [("org.opencontainers.image.title", "bulkhead")];
    Archive::of_files(name, &["/usr/bin/bulkhead"], &files, &labels)?.write(&archive)?;
    Ok(archive)
}

fn secret(cluster: &Cluster) -> Result<String, LabError> {
    let etcd = cluster.etcd_client();
    let read = |path: &Path| {
        std::fs::read(path).map(|bytes| STANDARD.encode(bytes)).tried(|| format!("read {}", path.display()))
    };
    let data = json!({
        "ca.crt": read(&etcd.authority)?,
        "tls.crt": read(&etcd.certificate)?,
        "tls.key": read(&etcd.key)?,
    });
    let metadata = json!({"name": TLS_SECRET, "namespace": NAMESPACE});
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}).to_string())
}

/// The values that the chart needs here, as `--set` takes them.
pub fn values(cluster: &Cluster) -> [String; 5] {
    [
        "etcd.mode=external".to_owned(),
        format!("etcd.external.endpoints={{{}}}", cluster.etcd_client().endpoints),
        format!("etcd.external.tlsSecret={TLS_SECRET}"),
        format!("cluster.network={CLUSTER_NETWORK}"),
        format!("cluster.serviceNetwork={SERVICE_NETWORK}"),
    ]
}

/// What the chart makes for this cluster.
pub fn manifests(cluster: &Cluster, values: &[&str]) -> Result<String, LabError> {
    let own = self::values(cluster);
    let helm = cluster.programs().get("helm")?;
    let mut command = Command::new(&helm);
    command.args(["template", "bulkhead"]).arg(chart()).args(["--namespace", NAMESPACE, "--kube-version", "1.34.4"]);
    command.env_clear().env("HOME", cluster.dir());
    for value in own.iter().map(String::as_str).chain(values.iter().copied()) {
        command.args(["--set", value]);
    }
    let output = command.output().tried(|| format!("run {}", helm.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let answer = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(LabError::Refused { what: "render the chart".into(), answer })
}

/// Waits until all of it is rolled out, the nodes are ready and names are resolved.
pub fn await_ready(cluster: &Cluster) -> Result<(), LabError> {
    let limit = format!("--timeout={}s", ROLLED_OUT.as_secs());
    for what in ["deployment/bulkhead-controller", "daemonset/bulkhead-agent"] {
        cluster
            .kubectl()
            .run(&["-n", NAMESPACE, "rollout", "status", what, &limit])
            .map_err(|error| explain(cluster, &error))?;
    }
    cluster.await_nodes_ready().and_then(|()| cluster.await_dns()).map_err(|error| explain(cluster, &error))
}

/// Waits until one node is ready, whatever the others are.
pub fn await_node(cluster: &Cluster, node: &str) -> Result<(), LabError> {
    let ready = cluster.kubectl().wait("condition=Ready", &["node", node], ROLLED_OUT);
    ready.map(drop).map_err(|error| explain(cluster, &error))
}

/// An error with what the pods say.
fn explain(cluster: &Cluster, error: &LabError) -> LabError {
    let mut text = error.to_string();
    for arguments in [
        &[
            "get",
            "nodes",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}{': '}{.status.conditions[?(@.type=='Ready')].message}{'\\n'}{end}",
        ][..],
        &["get", "pods", "-A", "-o", "wide"],
        &["-n", NAMESPACE, "get", "events", "--sort-by=.lastTimestamp"],
        &[
            "-n",
            NAMESPACE,
            "logs",
            "-l",
            "app.kubernetes.io/name=bulkhead",
            "--all-containers",
            "--prefix",
            "--tail=15",
        ],
    ] {
        let said = cluster.kubectl().run(arguments).unwrap_or_else(|error| error.to_string());
        text = format!("{text}\n$ kubectl {}\n{said}", arguments.join(" "));
    }
    LabError::Broken(text)
}
