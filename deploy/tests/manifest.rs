//! The chart, and what is made of it: lint, rendering, schema. Needs Helm, which `scripts/helm` builds with Go (feature `helm`).
//!
//! `BULKHEAD_BLESS=1` writes the files instead of comparing them (`make manifest`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use bulkhead_deploy::kept::{keep, root};

/// Runs a script of the project; its output, or its errors.
fn run(script: &str, arguments: &[&str]) -> Result<String, String> {
    let done = Command::new(root().join("scripts").join(script)).args(arguments).current_dir(root()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stdout) + &text(&done.stderr)) }
}

fn template(settings: &[&str]) -> Result<String, String> {
    let mut arguments = vec!["template", "bulkhead", "deploy/chart", "--namespace", "bulkhead-system"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    run("helm", &arguments)
}

#[test]
fn the_manifest_is_the_chart_with_its_defaults() {
    keep("deploy/bulkhead.yaml", &run("render-manifest", &[]).unwrap(), "make manifest").unwrap();
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let said = run("helm", &["lint", "--strict", "deploy/chart"]).unwrap();
    assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
}

#[test]
fn wrong_values_are_refused() {
    for good in
        ["mtu=1400", "etcd.bundled.members=5", "agent.maxUnavailable=1", "globalNamespaces={kube-system,default}"]
    {
        template(&[good]).unwrap();
    }
    for bad in [
        "image.tag=latest",
        "cluster.network=172.11.0.0",
        "etcd.mode=none",
        "etcd.mode=external",
        "etcd.bundled.members=2",
        "etcd.prefix=x",
        "mtu=9",
        "vxlanPort=0",
        "agent.listen=0.0.0.0",
        "policies.validationActions={}",
        "policies.exemptUsers={a'b}",
        "unknown=1",
    ] {
        let error = template(&[bad]).unwrap_err();
        assert!(error.contains("specifications of the schema"), "{bad}: {error}");
    }
}

#[test]
fn each_policy_and_the_bundled_etcd_can_be_left_out() {
    let all = template(&["policies.hostNetwork.enabled=true"]).unwrap();
    for (setting, name) in [
        ("policies.networkAnnotations.enabled=false", "bulkhead-network-annotations"),
        ("policies.networkAdmins.enabled=false", "bulkhead-network-admins"),
        ("policies.endpoints.enabled=false", "bulkhead-endpoints"),
        ("policies.serviceAddresses.enabled=false", "bulkhead-service-addresses"),
        ("policies.serviceAddresses.enabled=false", "bulkhead-service-node-addresses"),
        ("policies.hostPorts.enabled=false", "bulkhead-host-ports"),
        ("policies.probeHosts.enabled=false", "bulkhead-probe-hosts"),
        ("policies.hostNetwork.enabled=false", "bulkhead-host-network"),
    ] {
        let line = format!("\n  name: {name}\n");
        assert_eq!(all.matches(&line).count(), 2, "a policy and its binding: {name}");
        assert!(!template(&[setting]).unwrap().contains(&line), "{setting}");
    }
    let external = template(&["etcd.mode=external", "etcd.external.endpoints={https://10.0.0.1:2379}"]).unwrap();
    assert!(all.contains("bulkhead-etcd") && !external.contains("bulkhead-etcd"));
    assert!(external.contains("value: \"https://10.0.0.1:2379\""));
}
