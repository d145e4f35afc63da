//! The chart, and what is made of it: lint, rendering, schema, documentation. Needs Helm, which `scripts/helm` builds with Go.
//!
//! `BULKHEAD_BLESS=1` writes the files instead of comparing them (`make manifest`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

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

#[track_caller]
fn keep(file: &str, wanted: &str) {
    let path = root().join(file);
    if std::env::var_os("BULKHEAD_BLESS").is_some() {
        fs::write(&path, wanted).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    if there != wanted {
        let differs = there.lines().zip(wanted.lines()).position(|(a, b)| a != b).unwrap_or(0) + 1;
        panic!("{file} is not what the chart makes of it, from line {differs} on; `make manifest` writes it anew");
    }
}

#[test]
fn the_manifest_is_the_chart_with_its_defaults() {
    keep("deploy/bulkhead.yaml", &run("render-manifest", &[]).unwrap());
}

#[test]
fn the_reference_is_made_of_the_values() {
    let values = fs::read_to_string(root().join("deploy/chart/values.yaml")).unwrap();
    keep("docs/values.md", &bulkhead_deploy::reference(&values).unwrap());
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let said = run("helm", &["lint", "--strict", "deploy/chart"]).unwrap();
    assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
}

#[test]
fn versions_are_pinned_and_the_projects_own() {
    let manifest = run("render-manifest", &[]).unwrap();
    let images: Vec<&str> = manifest.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert!(images.len() >= 4, "{images:?}");
    // What uninstalls is of the same version.
    let uninstall = fs::read_to_string(root().join("deploy/uninstall.yaml")).unwrap();
    assert_eq!(
        uninstall.matches(concat!("ghcr.io/bulkhead-net/bulkhead:", env!("CARGO_PKG_VERSION"), "\n")).count(),
        2
    );
    for image in images {
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest" && tag.chars().any(|c| c.is_ascii_digit())), "{image}");
    }
    let chart = fs::read_to_string(root().join("deploy/chart/Chart.yaml")).unwrap();
    assert!(chart.contains(concat!("\nversion: ", env!("CARGO_PKG_VERSION"), "\n")), "{chart}");
    assert!(chart.contains(concat!("\nappVersion: \"", env!("CARGO_PKG_VERSION"), "\"\n")), "{chart}");
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

/// RBAC as the issue of least rights has it: nobody but the setup touches Secrets, and no rule has a wildcard.
#[test]
fn rights_are_the_least() {
    let manifest = run("render-manifest", &[]).unwrap();
    let roles: Vec<&str> = manifest
        .split("\n---\n")
        .filter(|object| object.contains("kind: ClusterRole\n") || object.contains("kind: Role\n"))
        .collect();
    assert!(roles.len() >= 6, "{}", roles.len());
    for role in roles {
        assert!(!role.contains('*'), "{role}");
        assert!(!role.contains("secrets") || role.contains("bulkhead-etcd-setup"), "{role}");
    }
}
