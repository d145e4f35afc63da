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
        "cluster.serviceNetwork=10.96.0.0/12\\,",
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

/// The object of a rendered manifest that begins so.
fn object<'a>(manifest: &'a str, kind: &str, name: &str) -> &'a str {
    let head = format!("kind: {kind}\nmetadata:\n  name: {name}\n");
    manifest.split("\n---\n").find(|object| object.contains(&head)).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The paths of a container's mounts by their volumes, and those of volumes of the node by their names.
fn paths(object: &str, key: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = object.lines().map(str::trim).collect();
    let mut named = "";
    let mut found = Vec::new();
    for line in lines {
        if let Some(name) = line.strip_prefix("- name: ") {
            named = name;
        } else if let Some(path) = line.strip_prefix(key) {
            found.push((named.to_owned(), path.trim().to_owned()));
        }
    }
    found
}

/// A dual-stack API server has two networks of services: no policy leaves one of them out.
#[test]
fn both_networks_of_services_are_covered() {
    for value in ["10.96.0.0/12\\,fd00:96::/112", "10.96.0.0/12\\, fd00:96::/112"] {
        let manifest = template(&[&format!("cluster.serviceNetwork={value}")]).unwrap();
        for name in ["bulkhead-endpoints", "bulkhead-service-addresses"] {
            let policy = object(&manifest, "ValidatingAdmissionPolicy", name);
            assert!(policy.contains("cidr('10.96.0.0/12'), cidr('fd00:96::/112')]"), "{policy}");
        }
        assert!(object(&manifest, "Deployment", "bulkhead-controller").contains("- --service-network=10.96.0.0/12,"));
    }
}

/// The CNI config names the agent's socket and spool by the run folder's path, and it is read on the node.
#[test]
fn the_run_folder_has_one_path_in_the_agent_and_on_the_node() {
    for (settings, run) in
        [(&[][..], "/run/bulkhead"), (&["agent.hostPaths.run=/run/elsewhere/bulkhead"], "/run/elsewhere/bulkhead")]
    {
        let manifest = template(settings).unwrap();
        let agent = object(&manifest, "DaemonSet", "bulkhead-agent");
        let run = ("run".to_owned(), run.to_owned());
        assert!(paths(agent, "mountPath: ").contains(&run), "{agent}");
        assert!(paths(agent, "path: ").contains(&run), "{agent}");
        assert!(agent.contains(&format!("- --run-dir={}\n", run.1)), "{agent}");
        assert!(agent.contains(&format!("value: {}/agent.sock\n", run.1)), "{agent}");
    }
}

/// As `container_t` they could write none of their folders on a node that enforces a policy of `SELinux`.
#[test]
fn what_writes_on_the_node_says_its_selinux_type() {
    let off = ["agent.seLinuxOptions=null", "etcd.bundled.seLinuxOptions=null"];
    for (settings, agents, members) in [(&[][..], 2, 1), (&off[..], 0, 0)] {
        let manifest = template(settings).unwrap();
        for (name, count) in [("bulkhead-agent", agents), ("bulkhead-etcd", members)] {
            let set = object(&manifest, "DaemonSet", name);
            let labels = set.matches("seLinuxOptions:\n              level: s0\n              type: spc_t\n").count();
            assert_eq!((labels, set.matches("seLinuxOptions").count()), (count, count), "{settings:?}: {set}");
        }
    }
}

/// Where pods may run is the administrator's to say; that no two controllers are on one node stays.
#[test]
fn where_and_how_pods_run_is_set_by_values() {
    let parts = [
        ("agent", "DaemonSet", "bulkhead-agent"),
        ("controller", "Deployment", "bulkhead-controller"),
        ("etcd.bundled", "DaemonSet", "bulkhead-etcd"),
    ];
    let defaults = template(&[]).unwrap();
    for (values, kind, name) in parts {
        // Any taint is tolerated, so that there is a network.
        assert!(object(&defaults, kind, name).contains("\n        - operator: Exists\n"), "{name}");
        let manifest = template(&[
            &format!("{values}.tolerations[0].key=example.com/dedicated"),
            &format!("{values}.tolerations[0].operator=Exists"),
            &format!("{values}.priorityClassName=important"),
            &format!("{values}.podAnnotations.example\\.com/x=y"),
        ])
        .unwrap();
        let changed = object(&manifest, kind, name);
        let lines: Vec<&str> = changed.lines().map(str::trim).collect();
        for line in ["- key: example.com/dedicated", "priorityClassName: important", "example.com/x: \"y\""] {
            let quoted = line.replace('"', "");
            assert!(lines.iter().any(|there| *there == line || *there == quoted), "{line}: {changed}");
        }
        assert!(!lines.contains(&"- operator: Exists"), "{changed}");
    }
    let place =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]";
    for (values, kind, name) in &parts[..2] {
        let (key, operator) = (format!("{values}.{place}.key=zone"), format!("{values}.{place}.operator=Exists"));
        let manifest = template(&[&key, &operator]).unwrap();
        let changed = object(&manifest, kind, name);
        assert!(changed.contains("key: zone") && changed.contains("nodeSelectorTerms:"), "{changed}");
        assert_eq!(changed.contains("podAntiAffinity:"), *values == "controller", "{changed}");
    }
}

/// What stands in docs/install.md for an etcd with logins.
#[test]
fn an_existing_etcd_is_reached_by_prefix_and_login() {
    let manifest = template(&[
        "etcd.mode=external",
        "etcd.external.endpoints={https://10.0.0.1:2379}",
        "etcd.prefix=/tenants/bulkhead",
        "etcd.external.authSecret=etcd-login",
        "etcd.external.agentAuthSecret=etcd-agent-login",
    ])
    .unwrap();
    for (kind, name, secret) in
        [("Deployment", "bulkhead-controller", "etcd-login"), ("DaemonSet", "bulkhead-agent", "etcd-agent-login")]
    {
        let object = object(&manifest, kind, name);
        let lines: Vec<&str> = object.lines().map(str::trim).collect();
        let after = |name: &str| lines[lines.iter().position(|line| *line == format!("- name: {name}")).unwrap() + 1];
        assert!(after("BULKHEAD_ETCD_PREFIX").contains("/tenants/bulkhead"), "{object}");
        assert!(lines.contains(&format!("name: {secret}").as_str()), "{object}");
        assert_eq!(after("BULKHEAD_ETCD_PASSWORD_FILE"), "value: /etc/bulkhead/etcd-auth/password");
        assert!(lines.contains(&format!("secretName: {secret}").as_str()), "{object}");
    }
}
