//! The programs that run on a node beside its containers, and how they are configured. Files are in the node's /etc.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use bulkhead_tests::error::LabError;
use serde_json::{Value, json};

use crate::certificates::{Authority, Subject};
use crate::disk::Disk;
use crate::images;
use crate::kubeconfig::kubeconfig;
use crate::network::{CLUSTER_NETWORK, DNS_ADDRESS};

/// How kube-proxy programs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// Its default.
    Iptables,
    /// The successor.
    Nftables,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// A program of the lab that runs until it is stopped.
#[derive(Debug, Clone)]
pub struct Service {
    /// The program.
    pub name: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Service {
    /// One with arguments that are words.
    pub fn new(name: &'static str, arguments: &[&str]) -> Self {
        Self { name, arguments: arguments.iter().map(|&word| word.to_owned()).collect() }
    }
}

/// Who a node is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its control group in every hierarchy, without a leading slash.
    pub cgroup: String,
    /// Where the API server is.
    pub api: Ipv4Addr,
    /// Whether ordinary pods are kept off it.
    pub control_plane: bool,
}

/// containerd, which does as Debian's runc does.
pub fn containerd(disk: &Disk) -> Result<Service, LabError> {
    disk.write(
        "/etc/containerd/config.toml",
        &format!(
            r#"version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE runc may not write the -998 of a pod's sandbox.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#,
            pause = images::PAUSE
        ),
    )?;
    Ok(Service::new("containerd", &["--config", "/etc/containerd/config.toml"]))
}

/// The kubelet.
pub fn kubelet(disk: &Disk, authority: &Authority, node: &Identity) -> Result<Service, LabError> {
    let user = format!("system:node:{}", node.name);
    let config = kubeconfig(authority, node.api, &Subject::client(&user, Some("system:nodes")))?;
    disk.write("/etc/kubernetes/kubelet.conf", &config)?;
    disk.write("/etc/kubernetes/pki/ca.crt", &authority.credential().certificate)?;
    let (hosts, addresses) = ([node.name.as_str()], [IpAddr::V4(node.address)]);
    authority
        .issue(&Subject::server(&node.name, &hosts, &addresses))?
        .write(&disk.path("/etc/kubernetes/pki"), "kubelet")?;
    disk.write("/etc/kubernetes/kubelet.json", &kubelet_configuration(node).to_string())?;
    let address = node.address.to_string();
    Ok(Service::new(
        "kubelet",
        &[
            "--config=/etc/kubernetes/kubelet.json",
            "--kubeconfig=/etc/kubernetes/kubelet.conf",
            "--hostname-override",
            &node.name,
            "--node-ip",
            &address,
        ],
    ))
}

fn kubelet_configuration(node: &Identity) -> Value {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/pki/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/pki/kubelet.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.cgroup),
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "maxPods": 250,
        "serializeImagePulls": false,
        "staticPodPath": "/etc/kubernetes/manifests",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    });
    if node.control_plane {
        config["registerWithTaints"] =
            json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    }
    config
}

/// kube-proxy, a program of the node and not a pod. It knows the pods' network (`--cluster-cidr`), or nothing of pods, as kubeadm
/// sets it up without `--pod-network-cidr`.
pub fn kube_proxy(
    disk: &Disk,
    authority: &Authority,
    node: &Identity,
    (mode, knows_pods): (ProxyMode, bool),
) -> Result<Service, LabError> {
    let config = kubeconfig(authority, node.api, &Subject::client("system:kube-proxy", None))?;
    disk.write("/etc/kubernetes/kube-proxy.conf", &config)?;
    let mode = mode.to_string();
    let mut arguments = vec![
        "--kubeconfig=/etc/kubernetes/kube-proxy.conf",
        "--hostname-override",
        &node.name,
        "--proxy-mode",
        &mode,
        // The table's size is the whole machine's, not a node's.
        "--conntrack-max-per-core=0",
    ];
    if knows_pods {
        arguments.extend(["--cluster-cidr", CLUSTER_NETWORK]);
    }
    Ok(Service::new("kube-proxy", &arguments))
}
