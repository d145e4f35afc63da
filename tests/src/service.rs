//! Services as kube-proxy makes them in nftables: DNAT in prerouting and output, mark 0x4000 for what is to be masqueraded, and
//! its masquerade in postrouting.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::error::LabError;
use crate::netns::Netns;

/// One service with one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// `ClusterIP` and port.
    pub address: SocketAddrV4,
    /// The pod behind it.
    pub endpoint: SocketAddrV4,
    /// Masquerade what goes through it (as for a NodePort, or traffic from outside).
    pub masquerade: bool,
}

impl Service {
    /// A service as most are.
    pub fn new(address: Ipv4Addr, port: u16, endpoint: Ipv4Addr, endpoint_port: u16) -> Self {
        let endpoint = SocketAddrV4::new(endpoint, endpoint_port);
        Self { address: SocketAddrV4::new(address, port), endpoint, masquerade: false }
    }
}

/// Replaces a table that translates: `into` is how packets get into the chain of that name, which holds `rules`; `leaving` is
/// what happens to them behind the routing.
fn replace(
    netns: &Netns,
    table: &str,
    (into, chain): (&str, &str),
    rules: &str,
    leaving: &[&str],
) -> Result<(), LabError> {
    let mut script = format!(
        "add table ip {table}\n\
         delete table ip {table}\n\
         add table ip {table}\n\
         add chain ip {table} {chain}\n\
         add chain ip {table} prerouting {{ type nat hook prerouting priority dstnat; }}\n\
         add chain ip {table} output {{ type nat hook output priority -100; }}\n\
         add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; }}\n\
         {rules}\
         add rule ip {table} prerouting {into}\n\
         add rule ip {table} output {into}\n"
    );
    for rule in leaving {
        let _ = writeln!(script, "add rule ip {table} postrouting {rule}");
    }
    netns.nft(&script).map(drop)
}

/// Replaces the services of a node.
pub fn install(netns: &Netns, services: &[Service]) -> Result<(), LabError> {
    let mut rules = String::new();
    for service in services {
        let (vip, port) = (service.address.ip(), service.address.port());
        for proto in ["tcp", "udp"] {
            let matching = format!("ip daddr {vip} {proto} dport {port}");
            if service.masquerade {
                let _ = writeln!(rules, "add rule ip lab_proxy services {matching} meta mark set meta mark or 0x4000");
            }
            // Hairpin: a pod behind the service that calls it.
            let _ = writeln!(
                rules,
                "add rule ip lab_proxy services ip saddr {} {matching} meta mark set meta mark or 0x4000",
                service.endpoint.ip()
            );
            let _ = writeln!(rules, "add rule ip lab_proxy services {matching} dnat to {}", service.endpoint);
        }
    }
    let leaving =
        ["meta mark and 0x4000 != 0x4000 return", "meta mark set meta mark xor 0x4000", "masquerade fully-random"];
    replace(netns, "lab_proxy", ("jump services", "services"), &rules, &leaving)
}

/// Removes all services of a node.
pub fn remove(netns: &Netns) -> Result<(), LabError> {
    netns.nft("add table ip lab_proxy\ndelete table ip lab_proxy\n").map(drop)
}

/// A hostPort as the plugin `portmap` makes it with `snat`: DNAT of every address of the node, masqueraded (mark 0x2000) for the
/// pod itself and for what the node sends to 127.0.0.1. Replaces the node's other ones.
pub fn install_host_port(netns: &Netns, port: u16, endpoint: SocketAddrV4) -> Result<(), LabError> {
    let mut rules = String::new();
    for proto in ["tcp", "udp"] {
        for source in [endpoint.ip().to_string(), "127.0.0.1".into()] {
            let _ = writeln!(
                rules,
                "add rule ip lab_portmap dn {proto} dport {port} ip saddr {source} meta mark set meta mark or 0x2000"
            );
        }
        let _ = writeln!(rules, "add rule ip lab_portmap dn {proto} dport {port} dnat to {endpoint}");
    }
    let leaving = ["meta mark and 0x2000 == 0x2000 masquerade"];
    replace(netns, "lab_portmap", ("fib daddr type local jump dn", "dn"), &rules, &leaving)
}

/// A `NodePort` with `externalTrafficPolicy: Local`, as kube-proxy makes it: pods of `pods` and the node itself reach any endpoint,
/// others the node's own (none: dropped). Replaces the node's other ones.
pub fn install_local_node_port(
    netns: &Netns,
    pods: &str,
    port: u16,
    any: SocketAddrV4,
    own: Option<SocketAddrV4>,
) -> Result<(), LabError> {
    let mut rules = String::new();
    for proto in ["tcp", "udp"] {
        let matching = format!("add rule ip lab_local ext {proto} dport {port}");
        let _ = writeln!(rules, "{matching} ip saddr {pods} dnat to {any}");
        let _ = writeln!(rules, "{matching} fib saddr type local meta mark set meta mark or 0x4000");
        let _ = writeln!(rules, "{matching} fib saddr type local dnat to {any}");
        let verdict = own.map_or_else(|| "drop".to_owned(), |own| format!("dnat to {own}"));
        let _ = writeln!(rules, "{matching} {verdict}");
    }
    let leaving = ["meta mark and 0x4000 == 0x4000 masquerade fully-random"];
    replace(netns, "lab_local", ("fib daddr type local jump ext", "ext"), &rules, &leaving)
}
