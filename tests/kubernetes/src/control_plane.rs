//! The programs of the node `control`: API server, controller manager, scheduler.

use std::net::{IpAddr, Ipv4Addr};

use bulkhead_tests::error::LabError;

use crate::certificates::{Authority, Subject, write_bare_key};
use crate::disk::Disk;
use crate::kubeconfig::kubeconfig;
use crate::network::{API_SERVICE, SERVICE_NETWORK};
use crate::service::{Identity, Service};

/// The API server's program.
pub const API_SERVER: &str = "kube-apiserver";
const PKI: &str = "/etc/kubernetes/pki";

/// The directory of the node with certificates and keys.
fn pki(file: &str) -> String {
    format!("{PKI}/{file}")
}

/// Writes what they need; gives them in the order of their start.
pub fn services(disk: &Disk, authority: &Authority, node: &Identity, etcd: &str) -> Result<Vec<Service>, LabError> {
    let dir = disk.path(PKI);
    authority.credential().write(&dir, "ca")?;
    write_bare_key(&dir, "sa")?;
    let hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let addresses = [node.address, Ipv4Addr::LOCALHOST, API_SERVICE].map(IpAddr::V4);
    authority.issue(&Subject::server("kube-apiserver", &hosts, &addresses))?.write(&dir, "apiserver")?;
    let masters = Some("system:masters");
    authority.issue(&Subject::client("kube-apiserver-kubelet-client", masters))?.write(&dir, "kubelet-client")?;
    authority.issue(&Subject::client("root", None))?.write(&dir, "etcd-client")?;
    authority.issue(&Subject::client("front-proxy-client", None))?.write(&dir, "front-proxy-client")?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let config = kubeconfig(authority, node.api, &Subject::client(&format!("system:{name}"), None))?;
        disk.write(&format!("/etc/kubernetes/{name}.conf"), &config)?;
    }
    Ok(vec![api_server(node, etcd), controller_manager(), scheduler()])
}

fn flags(name: &'static str, flags: &[(&str, &str)]) -> Service {
    Service { name, arguments: flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect() }
}

fn api_server(node: &Identity, etcd: &str) -> Service {
    let ca = pki("ca.crt");
    flags(
        API_SERVER,
        &[
            ("advertise-address", &node.address.to_string()),
            ("allow-privileged", "true"),
            ("authorization-mode", "Node,RBAC"),
            ("client-ca-file", &ca),
            ("enable-admission-plugins", "NodeRestriction"),
            ("etcd-servers", etcd),
            ("etcd-cafile", &ca),
            ("etcd-certfile", &pki("etcd-client.crt")),
            ("etcd-keyfile", &pki("etcd-client.key")),
            ("kubelet-certificate-authority", &ca),
            ("kubelet-client-certificate", &pki("kubelet-client.crt")),
            ("kubelet-client-key", &pki("kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP"),
            ("proxy-client-cert-file", &pki("front-proxy-client.crt")),
            ("proxy-client-key-file", &pki("front-proxy-client.key")),
            ("requestheader-allowed-names", "front-proxy-client"),
            ("requestheader-client-ca-file", &ca),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            ("requestheader-group-headers", "X-Remote-Group"),
            ("requestheader-username-headers", "X-Remote-User"),
            ("secure-port", &crate::kubeconfig::PORT.to_string()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            ("service-account-key-file", &pki("sa.pub")),
            ("service-account-signing-key-file", &pki("sa.key")),
            ("service-cluster-ip-range", SERVICE_NETWORK),
            ("tls-cert-file", &pki("apiserver.crt")),
            ("tls-private-key-file", &pki("apiserver.key")),
        ],
    )
}

fn controller_manager() -> Service {
    let config = "/etc/kubernetes/kube-controller-manager.conf";
    flags(
        "kube-controller-manager",
        &[
            ("kubeconfig", config),
            ("authentication-kubeconfig", config),
            ("authorization-kubeconfig", config),
            ("cluster-signing-cert-file", &pki("ca.crt")),
            ("cluster-signing-key-file", &pki("ca.key")),
            ("leader-elect", "false"),
            ("root-ca-file", &pki("ca.crt")),
            ("service-account-private-key-file", &pki("sa.key")),
            ("use-service-account-credentials", "true"),
        ],
    )
}

fn scheduler() -> Service {
    let config = "/etc/kubernetes/kube-scheduler.conf";
    flags(
        "kube-scheduler",
        &[
            ("kubeconfig", config),
            ("authentication-kubeconfig", config),
            ("authorization-kubeconfig", config),
            ("leader-elect", "false"),
        ],
    )
}
