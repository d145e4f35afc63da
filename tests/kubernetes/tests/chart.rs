//! What the chart brings, judged by the API server of a cluster that it is installed on: the rendered manifest, the admission
//! policies, the command line tool on several namespaces, a running pod's bandwidth. Needs root and the programs of
//! `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_kubernetes_tests::tenants::{await_reach, await_silence, await_status, create, kubectl_bulkhead};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

/// Mbit/s that a limited pod may send.
const LIMIT: f64 = 20.0;

#[test]
fn chart_holds_before_a_real_api_server() -> Result<(), LabError> {
    let cluster = Cluster::builder().start()?;
    bulkhead::install(&cluster, &[])?;
    manifest_is_taken(&cluster)?;
    what_cannot_be_followed_is_refused(&cluster)?;
    policies_hold(&cluster)?;
    tool_moves_several(&cluster)?;
    running_pod_is_limited(&cluster)
}

fn deploy() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn manifest_is_taken(cluster: &Cluster) -> Result<(), LabError> {
    let manifest = deploy().join("bulkhead.yaml");
    let manifest = manifest.to_str().unwrap();
    let taken = cluster.kubectl().run(&["apply", "--dry-run=server", "--validate=strict", "-f", manifest])?;
    println!("the rendered manifest: {} objects, all taken", taken.lines().count());
    assert!(taken.contains("daemonset.apps/bulkhead-agent"), "{taken}");
    Ok(())
}

/// What Helm makes of the chart, or why it refuses, with a look at what runs, as `helm upgrade` has it.
fn looked(cluster: &Cluster, values: &[&str]) -> Result<String, LabError> {
    let own = bulkhead::values(cluster);
    let mut command = Command::new(cluster.programs().get("helm")?);
    command.args(["template", "bulkhead"]).arg(bulkhead::chart()).args(["--dry-run=server", "--is-upgrade"]);
    command.args(["--namespace", bulkhead::NAMESPACE, "--kube-version", "1.34.4"]);
    command.env("KUBECONFIG", cluster.kubectl().kubeconfig()).env("HOME", cluster.dir());
    for value in own.iter().map(String::as_str).chain(values.iter().copied()) {
        command.args(["--set", value]);
    }
    cluster.underlay().infra.exec_of(command, &[])
}

fn what_cannot_be_followed_is_refused(cluster: &Cluster) -> Result<(), LabError> {
    let mtu = looked(cluster, &["mtu=1400", "cluster.mode=flat", "etcd.external.endpoints={https://192.0.2.1:2379}"])?;
    assert!(mtu.contains("--mtu=1400"), "{mtu}");
    for (value, why) in [
        ("cluster.network=10.64.0.0/12", "cluster.network is "),
        ("cluster.hostSubnetLength=9", "cluster.hostSubnetLength is 10 "),
        ("cluster.name=other", "cluster.name is k8ssdn "),
        ("etcd.mode=bundled", "etcd.mode is external "),
        ("etcd.prefix=/other", "etcd.prefix is /k8s.ovs.com/ovs/network "),
    ] {
        let error = looked(cluster, &[value]).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("docs/install.md"), "{value}: {error}");
    }
    println!("an upgrade to another network or etcd is refused");
    Ok(())
}

fn policies_hold(cluster: &Cluster) -> Result<(), LabError> {
    let programs = cluster.programs().get("kubectl")?.parent().unwrap().display().to_string();
    let mut command = Command::new(deploy().join("tests/policies"));
    command
        .arg(bulkhead::NAMESPACE)
        .env("KUBECONFIG", cluster.kubectl().kubeconfig())
        .env("HOME", cluster.dir())
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
    let said = cluster.underlay().infra.exec_of(command, &[])?;
    println!("the policies: {}", said.lines().last().unwrap_or_default());
    assert!(said.contains(" 0 failed"), "{said}");
    Ok(())
}

fn tool_moves_several(cluster: &Cluster) -> Result<(), LabError> {
    create(cluster, &["a", "b", "c", "d"])?;
    let labelled = |name: &str| cluster.kubectl().run(&["label", "namespace", name, "team=red"]).map(drop);
    ["b", "c"].iter().try_for_each(|name| labelled(name))?;
    let of_a = Pod::start(cluster, "a", "web", "n1")?;
    let of_b = Pod::start(cluster, "b", "web", "n1")?;
    let of_c = Pod::start(cluster, "c", "web", "n2")?;
    let of_d = Pod::start(cluster, "d", "web", "n2")?;
    kubectl_bulkhead(cluster, &["tenant", "join", "--selector", "team=red", "--to", "a"])?;
    await_reach(&of_a, of_b.address())?;
    await_reach(&of_a, of_c.address())?;
    await_silence(&of_a, of_d.address())?;
    println!("{}", kubectl_bulkhead(cluster, &["tenant", "list"])?);
    kubectl_bulkhead(cluster, &["tenant", "isolate", "--selector", "team=red"])?;
    await_status(cluster, "c", "isolated")?;
    await_silence(&of_a, of_c.address())
}

/// What one pod sends another, in Mbit/s, over three seconds behind the first.
fn sent(from: &Pod, to: &Pod) -> Result<f64, LabError> {
    let address = to.address().to_string();
    let report = from.exec_ok(&["iperf3", "-J", "-O", "1", "-t", "3", "-c", &address])?;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    Ok(report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6)
}

fn running_pod_is_limited(cluster: &Cluster) -> Result<(), LabError> {
    let kubectl = cluster.kubectl();
    let (client, server) = (Pod::start(cluster, "d", "client", "n1")?, Pod::start(cluster, "d", "server", "n1")?);
    server.exec_ok(&["iperf3", "-s", "-D"])?;
    let annotate = |value: &str| {
        let words = format!("kubernetes.io/egress-bandwidth={value}");
        kubectl.run(&["-n", "d", "annotate", "--overwrite", "pod", "client", &words]).map(drop)
    };
    let free = sent(&client, &server)?;
    annotate("20M")?;
    let limited =
        wait::until_or("the limit being in force", Duration::from_mins(1), || match sent(&client, &server) {
            Ok(rate) if rate < LIMIT * 1.1 => Ok(rate),
            other => Err(format!("{other:?}")),
        })?;
    println!("a running pod: {free:.0} Mbit/s, then {limited:.1} with a limit of {LIMIT}");
    assert!(limited > LIMIT * 0.8 && free > LIMIT * 5.0, "{free} then {limited}");
    annotate("5X")?;
    let event = ["-n", "d", "get", "events", "--field-selector", "reason=InvalidBandwidth,involvedObject.name=client"];
    wait::until_or("an Event on the pod", Duration::from_secs(30), || match kubectl.run(&event) {
        Ok(said) if said.contains("5X") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let still = sent(&client, &server)?;
    assert!(still < LIMIT * 1.1, "a bad value changed the limit: {still}");
    Ok(())
}
