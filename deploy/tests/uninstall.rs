//! What `deploy/uninstall` decides, by a kubectl that answers from a folder and writes down what it was told to do. What its
//! steps do to a cluster, and that a real kubectl reads its questions so, is for the suite `install` on a real Kubernetes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use bulkhead_deploy::kept::root;
use tempfile::TempDir;

/// Answers what is asked by the files of its folder: what is not there is an object that is not there. What changes something is
/// a line of `told`; what is read from its standard input goes to a file by what it says.
const KUBECTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
answer() { cat "$here/$1" 2>/dev/null || true; }
case "$*" in
"get namespace "*) ;;
"get daemonset,deployment -A "*) answer everywhere ;;
"get nodes "*NetworkUnavailable*) ;;
"get nodes "*) answer nodes ;;
*"get deployment/bulkhead-controller "*ENDPOINTS*) answer controller.etcd ;;
*"get deployment/bulkhead-controller "*PREFIX*) answer controller.prefix ;;
*"get deployment/bulkhead-controller "*release-name*) answer controller.release ;;
*"get deployment/bulkhead-controller "*) answer controller.spec ;;
*"get daemonset/bulkhead-agent "*ENDPOINTS*) answer agent.etcd ;;
*"get daemonset/bulkhead-agent "*.image*) answer agent.image ;;
*"get daemonset/bulkhead-agent "*cni-bin*) answer agent.cni-bin ;;
*"get daemonset/bulkhead-etcd "*) answer etcd.data ;;
*"get configmap/bulkhead-uninstall "*) name=${*##*.data.}; answer "kept.${name%\}}" ;;
*" get "*) ;;
*" create configmap "*) echo "$*" >"$here/record"; echo record >>"$here/told"; echo record ;;
"patch --local "*) cat >/dev/null; echo purge ;;
"apply -f -" | "delete -f - "*)
    input=$(cat)
    case $input in
    *DaemonSet*) printf '%s\n' "$input" >"$here/clean"; echo "$1 clean" >>"$here/told" ;;
    *) echo "$1 $input" >>"$here/told" ;;
    esac
    ;;
*"wait pod/bulkhead-purge "*) echo "$*" >>"$here/told"; [ ! -e "$here/no-purge" ] ;;
*) echo "$*" >>"$here/told" ;;
esac
"#;

/// A cluster with these answers.
struct Cluster(TempDir);

impl Cluster {
    fn new(answers: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubectl = folder.path().join("kubectl");
        fs::write(&kubectl, KUBECTL).unwrap();
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("nodes"), "n1 True\nn2 False\n").unwrap();
        for (name, text) in answers {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    /// Whether it was done, what it said, and what it told kubectl to do.
    fn uninstall(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(root().join("deploy/uninstall"));
        command.args(arguments).env_clear().env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()));
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        (done.status.success(), said, self.file("told"))
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }
}

const EXTERNAL: [(&str, &str); 4] = [
    ("controller.spec", r#"{"containers":[{}]}"#),
    ("controller.etcd", "https://10.0.0.1:2379"),
    ("controller.prefix", "/tenants/bulkhead"),
    ("agent.etcd", "https://10.0.0.1:2379"),
];
const BUNDLED: [(&str, &str); 4] = [
    ("controller.spec", r#"{"containers":[{}]}"#),
    ("controller.etcd", "bulkhead-etcd"),
    ("controller.prefix", "/k8s.ovs.com/ovs/network"),
    ("agent.etcd", "bulkhead-etcd"),
];
const SECRETS: &str = "delete secret bulkhead-etcd-ca";

#[test]
fn the_keys_go_from_an_existing_etcd_and_its_secrets_stay() {
    let cluster = Cluster::new(&EXTERNAL);
    let (done, said, told) = cluster.uninstall(&[]);
    assert!(done && said.ends_with("uninstall: done\n"), "{said}");
    assert!(said.contains("etcd is https://10.0.0.1:2379: the keys below /tenants/bulkhead/ are removed"), "{said}");
    // What has to be known to go on is kept before anything is removed.
    assert!(told.starts_with("record\napply record\n-n bulkhead-system delete daemonset,"), "{told}");
    assert!(told.contains("apply purge\n") && told.contains(r#"{"data":{"removed":"yes"}}"#), "{told}");
    assert!(!told.contains(SECRETS), "{told}");
    assert!(told.ends_with("delete namespace bulkhead-system --ignore-not-found\n"), "{told}");
}

#[test]
fn the_bundled_etcd_goes_with_its_data() {
    let cluster = Cluster::new(&BUNDLED);
    let (done, said, told) = cluster.uninstall(&["net"]);
    assert!(done && said.contains("etcd is the bundled one"), "{said}");
    assert!(!told.contains("purge") && told.contains(SECRETS), "{told}");
    assert!(!told.contains("delete namespace"), "another namespace stays: {told}");
    assert!(told.ends_with("delete configmap bulkhead-uninstall --ignore-not-found\n"), "{told}");
}

#[test]
fn what_was_broken_off_goes_on() {
    let kept = [
        ("kept.etcd", "https://10.0.0.1:2379"),
        ("kept.prefix", "/p"),
        ("kept.controller", r#"{"containers":[{}]}"#),
        ("kept.clean", "kind: DaemonSet\nkept: yes\n"),
    ];
    let (done, said, told) = Cluster::new(&kept).uninstall(&[]);
    assert!(done && said.contains("goes on") && told.contains("apply purge\n"), "{said}\n{told}");
    let removed = Cluster::new(&[&kept[..], &[("kept.removed", "yes")]].concat());
    let (done, said, told) = removed.uninstall(&[]);
    assert!(done && !told.contains("purge"), "{said}\n{told}");
    assert!(removed.file("clean").contains("kept: yes"));
    // What runs counts more: installed again since, with another etcd.
    let (done, said, told) = Cluster::new(&[&kept[..], &BUNDLED].concat()).uninstall(&[]);
    assert!(done && said.contains("bundled one") && !told.contains("purge"), "{said}\n{told}");
    let (done, said, told) = Cluster::new(&[&kept[..], &BUNDLED[3..]].concat()).uninstall(&[]);
    assert!(done && said.contains("bundled one") && !told.contains("purge"), "{said}\n{told}");
}

#[test]
fn keys_that_stay_are_said() {
    let nothing = Cluster::new(&[]);
    let (done, said, told) = nothing.uninstall(&[]);
    assert!(!done && said.contains("keys in one stay") && said.contains("etcdctl del --prefix PREFIX"), "{said}");
    assert!(told.contains("apply clean\n") && !told.contains("purge") && !told.contains(SECRETS), "{told}");
    let away = Cluster::new(&[&EXTERNAL[..], &[("no-purge", "")]].concat());
    let (done, said, told) = away.uninstall(&[]);
    assert!(!done && said.contains("in https://10.0.0.1:2379: etcdctl del --prefix /tenants/bulkhead/"), "{said}");
    assert!(told.contains("apply clean\n") && !told.contains(r#""removed""#), "{told}");
}

#[test]
fn nothing_is_touched_where_it_cannot_be_done() {
    for (answer, why) in [
        (("everywhere", "bulkhead-system\nbulkhead-uninstall\nnet\n"), "deploy/uninstall net"),
        (("nodes", "n1 True\nn2 Unknown\n"), "these nodes are away"),
        (("nodes", "n1 True\nn2 \n"), "these nodes are away"),
    ] {
        let (done, said, told) = Cluster::new(&[&EXTERNAL[..], &[answer]].concat()).uninstall(&[]);
        assert!(!done && said.contains(why) && told.is_empty(), "{said}\n{told}");
    }
}

#[test]
fn nodes_are_cleaned_with_the_image_and_the_folders_that_are_installed() {
    let plain = Cluster::new(&EXTERNAL);
    assert!(plain.uninstall(&[]).0);
    assert_eq!(plain.file("clean"), fs::read_to_string(root().join("deploy/uninstall.yaml")).unwrap());
    let own = [
        ("agent.image", "registry.local/bulkhead:0.1.0"),
        ("agent.cni-bin", "/var/lib/rancher/k3s/data/cni"),
        ("etcd.data", "/data/etcd"),
    ];
    let other = Cluster::new(&[&BUNDLED[..], &own].concat());
    assert!(other.uninstall(&[]).0);
    let clean = other.file("clean");
    assert_eq!(clean.matches("image: registry.local/bulkhead:0.1.0\n").count(), 2, "{clean}");
    for line in [
        "- --cni-bin-dir=/host/var/lib/rancher/k3s/data/cni\n",
        "- --cni-conf-dir=/host/etc/cni/net.d\n",
        "- --bpf-dir=/host/sys/fs/bpf/bulkhead\n",
        "[etcd, remove-data, /host/data/etcd]\n",
    ] {
        assert!(clean.contains(line), "{line}: {clean}");
    }
    assert!(other.file("record").contains("--from-literal=data=/data/etcd"));
}
