//! What the chart brings, judged by the API server of a cluster that it is installed on: the rendered manifest, the admission
//! policies, the command line tool on several namespaces, a running pod's bandwidth. Needs root and the programs of
//! `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_kubernetes_tests::tenants::{
    await_reach, await_silence, await_status, change_by_tool, create, expect_silence, kubectl_bulkhead,
};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

/// Mbit/s that a limited pod may send.
const LIMIT: f64 = 20.0;
/// How soon a loaded machine brings a thing to pass.
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn chart_holds_before_a_real_api_server() -> Result<(), LabError> {
    let cluster = Cluster::builder().start()?;
    bulkhead::install(&cluster, &[])?;
    manifest_is_taken(&cluster)?;
    what_cannot_be_followed_is_refused(&cluster)?;
    values_make_what_is_taken(&cluster)?;
    policies_hold(&cluster, &[])?;
    cluster.kubectl().apply(&bulkhead::manifests(&cluster, &["policies.hostNetwork.enabled=true"])?)?;
    policies_hold(&cluster, &["host-network"])?;
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

/// Values that make other objects than the defaults do: the API server takes these, too.
const VARIANTS: [&[&str]; 7] = [
    &[
        "etcd.mode=external",
        "etcd.prefix=/x/y",
        "etcd.external.authSecret=login",
        "etcd.external.agentAuthSecret=agents",
    ],
    &["etcd.mode=bundled", "etcd.bundled.members=5", "etcd.bundled.seLinuxOptions=null", "namespace.create=true"],
    &[
        "policies.hostNetwork.enabled=true",
        "policies.hostNetwork.namespaces={kube-system,b}",
        "policies.exemptUsers={system:serviceaccount:velero:velero,a b}",
        "policies.serviceAddresses.nodeNetworks={192.0.2.0/24,2001:db8::/64}",
        "policies.serviceAddresses.loadBalancerUsers={k3s-cloud-controller-manager,other}",
        "policies.validationActions={Warn,Audit}",
    ],
    &["cluster.serviceNetwork=10.96.0.0/12\\,fd00:96::/112", "cluster.nodeNetworks={192.0.2.0/24,198.51.100.0/24}"],
    &[
        "agent.privileged=true",
        "agent.listen=node",
        "agent.maxUnavailable=2",
        "agent.hostPaths.run=/run/other",
        "agent.podAnnotations.example\\.com/x=y",
        "agent.tolerations=null",
        "agent.priorityClassName=",
        "agent.extraArgs={--resync=3}",
    ],
    &[
        "controller.replicas=1",
        "controller.listen=node",
        "controller.priorityClassName=",
        "controller.tolerations[0].key=x",
        "controller.tolerations[0].operator=Exists",
        "controller.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=zone",
        "controller.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    ],
    &[
        "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "imagePullSecrets[0].name=login",
        "apiServer.host=192.0.2.1",
        "requireJoinConsent=true",
        "mtu=1400",
        "vxlanPort=8472",
        "rbac.networkAdminRole=false",
    ],
];

fn values_make_what_is_taken(cluster: &Cluster) -> Result<(), LabError> {
    let file = cluster.dir().join("variant.yaml");
    let path = file.to_str().unwrap();
    for values in VARIANTS {
        std::fs::write(&file, bulkhead::manifests(cluster, values)?).unwrap();
        let taken = cluster.kubectl().run(&["apply", "--dry-run=server", "--validate=strict", "-f", path])?;
        assert!(taken.contains("daemonset.apps/bulkhead-agent"), "{values:?}: {taken}");
    }
    println!("{} sets of other values: all taken", VARIANTS.len());
    Ok(())
}

/// Runs `deploy/tests/policies` with these further arguments.
fn policies_hold(cluster: &Cluster, part: &[&str]) -> Result<(), LabError> {
    let programs = cluster.programs().get("kubectl")?.parent().unwrap().display().to_string();
    let mut command = Command::new(deploy().join("tests/policies"));
    command
        .arg(bulkhead::NAMESPACE)
        .args(part)
        .env("KUBECONFIG", cluster.kubectl().kubeconfig())
        .env("HOME", cluster.dir())
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
    let said = cluster.underlay().infra.exec_of(command, &[])?;
    println!("the policies {part:?}: {}", said.lines().last().unwrap_or_default());
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
    change_by_tool(cluster, &["join", "--selector", "team=red", "--to", "a"])?;
    await_reach(&of_a, of_b.address())?;
    await_reach(&of_a, of_c.address())?;
    expect_silence(&of_a, of_d.address())?;
    println!("{}", kubectl_bulkhead(cluster, &["tenant", "list"])?);
    change_by_tool(cluster, &["isolate", "--selector", "team=red"])?;
    await_status(cluster, "c", "isolated")?;
    await_silence(&of_a, of_c.address())
}

/// Measures what one pod sends another until it is as wanted, in Mbit/s, over three seconds behind the first.
fn await_sent(what: &str, from: &Pod, to: &Pod, wanted: RangeInclusive<f64>) -> Result<f64, LabError> {
    let address = to.address().to_string();
    wait::until_or(what, PATIENCE, || {
        // Its server may not listen yet, nor be done with the last one.
        let report = from.exec_ok(&["iperf3", "-J", "-O", "1", "-t", "3", "-c", &address]);
        let report = report.map_err(|error| error.to_string())?;
        let report: serde_json::Value = serde_json::from_str(&report).map_err(|error| error.to_string())?;
        let sent = report["end"]["sum_received"]["bits_per_second"].as_f64().ok_or_else(|| report.to_string())? / 1e6;
        if wanted.contains(&sent) { Ok(sent) } else { Err(format!("{sent} Mbit/s")) }
    })
}

fn running_pod_is_limited(cluster: &Cluster) -> Result<(), LabError> {
    let kubectl = cluster.kubectl();
    let (client, server) = (Pod::start(cluster, "d", "client", "n1")?, Pod::start(cluster, "d", "server", "n1")?);
    server.exec_ok(&["iperf3", "-s", "-D"])?;
    let annotate = |value: &str| {
        let words = format!("kubernetes.io/egress-bandwidth={value}");
        kubectl.run(&["-n", "d", "annotate", "--overwrite", "pod", "client", &words]).map(drop)
    };
    let free = await_sent("what is not limited", &client, &server, LIMIT * 5.0..=f64::INFINITY)?;
    annotate("20M")?;
    // Less is a machine that stood still: it is measured again.
    let limited = await_sent("the limit being in force", &client, &server, LIMIT * 0.8..=LIMIT * 1.1)?;
    println!("a running pod: {free:.0} Mbit/s, then {limited:.1} with a limit of {LIMIT}");
    annotate("5X")?;
    let event = ["-n", "d", "get", "events", "--field-selector", "reason=InvalidBandwidth,involvedObject.name=client"];
    wait::until_or("an Event on the pod", PATIENCE, || match kubectl.run(&event) {
        Ok(said) if said.contains("5X") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let still = await_sent("a measurement", &client, &server, 0.0..=f64::INFINITY)?;
    assert!(still < LIMIT * 1.1, "a bad value changed the limit: {still}");
    Ok(())
}
