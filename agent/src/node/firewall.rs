//! What the host's stack must do for us: one nftables table, node-wide, applied as one transaction.
//!
//! Nothing in it depends on a pod, a tenant or another node, so it is written at start and looked at by each resync,
//! never on a pod's path. The programs judge tenants; these rules only keep the stack's conntrack and NAT out of the way:
//! see each chain's comment.

use std::io::Write as _;
use std::process::{Command, Stdio};

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use thiserror::Error;

/// Why the rules cannot be written.
#[derive(Debug, Error)]
pub enum FirewallError {
    /// nft cannot be started.
    #[error("nft cannot be started: {0}; install the package nftables")]
    Start(#[source] std::io::Error),
    /// nft refused.
    #[error("the kernel refused the nftables rules: {0}")]
    Refused(String),
}

/// What the rules depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firewall {
    /// The pods' network.
    pub network: Ipv4Network,
    /// This node's address in it.
    pub gateway: Ipv4Addr,
    /// UDP.
    pub vxlan_port: u16,
}

/// Changes when the rules' text does, so that an upgraded agent replaces them.
const TABLE: &str = "bulkhead";

impl Firewall {
    /// The rules as nft reads them: what was there before goes in the same transaction.
    pub fn rules(&self) -> String {
        let Self { network, gateway, vxlan_port } = self;
        format!(
            r#"table ip {TABLE} {{ }}
delete table ip {TABLE}
table ip {TABLE} {{
    comment "{id}"
    counter pod_vxlan {{ }}
    counter translated_vxlan {{ }}

    # The tunnel is not for conntrack: no service can translate it, whatever its addresses. Pod-to-pod packets that the
    # stack sees half of (fragments, replies of the fast path) must not be INVALID; those with a port of the translated
    # range, and errors that quote one, belong to a flow that this stack translates, and so may those of its own address.
    chain prerouting_raw {{
        type filter hook prerouting priority raw; policy accept;
        meta mark & 0xffff0000 == 0 udp dport {vxlan_port} fib daddr type local notrack accept
        ip saddr != {network} accept
        ip daddr != {network} accept
        ip saddr {gateway} accept
        ip daddr {gateway} accept
        icmp type {{ destination-unreachable, source-quench, time-exceeded, parameter-problem }} @th,224,32 != 0 accept
        meta l4proto {{ tcp, udp, sctp }} th sport >= 61000 accept
        meta l4proto {{ tcp, udp, sctp }} th dport >= 61000 accept
        notrack
    }}
    chain output_raw {{
        type filter hook output priority raw; policy accept;
        udp dport {vxlan_port} fib saddr type local notrack
    }}

    # No pod speaks VXLAN to a node, not even through a service; nobody does so through a translation.
    chain forward {{
        type filter hook forward priority filter; policy accept;
        udp dport {vxlan_port} meta mark & 0xffff0000 != 0 counter name pod_vxlan drop
        udp dport {vxlan_port} ct status dnat counter name translated_vxlan drop
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        udp dport {vxlan_port} meta mark & 0xffff0000 != 0 counter name pod_vxlan drop
        udp dport {vxlan_port} ct status dnat counter name translated_vxlan drop
    }}

    # Before kube-proxy's: a translated flow from a pod keeps its address but gets a port of the translated range, by which
    # the programs bring its replies back through this stack. What kube-proxy masquerades (0x4000) is left to it.
    chain postrouting_service {{
        type nat hook postrouting priority srcnat - 5; policy accept;
        ip saddr != {network} accept
        ct status & dnat == 0 accept
        meta mark & 0x4000 != 0 accept
        meta l4proto {{ tcp, udp, sctp }} ip daddr {network} snat to ip saddr : 61000-65535
        meta l4proto {{ tcp, udp, sctp }} oifname "bulkhead0" snat to ip saddr : 61000-65535
    }}

    # Pods' traffic that leaves the cluster and its nodes goes under the node's address.
    chain postrouting_leaving {{
        type nat hook postrouting priority srcnat + 5; policy accept;
        ip saddr {network} ip daddr != {network} oifname != "bulkhead0" fib daddr type != local masquerade
    }}
}}
"#,
            id = self.id()
        )
    }

    /// Tells this version of the rules and its parameters from another.
    fn id(self) -> String {
        format!("bulkhead rules 3, pods {}, gateway {}, vxlan {}", self.network, self.gateway, self.vxlan_port)
    }

    /// Whether the kernel's table is these rules: every chain with its policy, every rule by its place and its verdict.
    pub fn is_in_place(&self) -> Result<bool, FirewallError> {
        let listed = nft(&["list", "table", "ip", TABLE], "");
        Ok(listed.is_ok_and(|text| {
            text.contains(&self.id()) && !text.contains("flags dormant") && shape(&text) == shape(&self.rules())
        }))
    }

    /// Writes the rules, replacing what was there, in one transaction.
    pub fn apply(&self) -> Result<(), FirewallError> {
        nft(&["-f", "-"], &self.rules()).map(drop)
    }

    /// Packets that the two counters dropped.
    pub fn dropped() -> u64 {
        let listed = nft(&["list", "counters", "table", "ip", TABLE], "").unwrap_or_default();
        let packets = listed.split_whitespace().skip_while(|word| *word != "counter");
        packets
            .collect::<Vec<_>>()
            .windows(2)
            .filter(|pair| pair[0] == "packets")
            .filter_map(|pair| pair[1].parse::<u64>().ok())
            .sum()
    }

    /// Base chains of others that drop forwarded packets by policy, in words: our own accept cannot override them.
    pub fn foreign_drops() -> Vec<String> {
        let chains = nft(&["-j", "list", "chains"], "").unwrap_or_default();
        let listed: serde_json::Value = serde_json::from_str(&chains).unwrap_or_default();
        let entries = listed.get("nftables").and_then(serde_json::Value::as_array);
        let chains = entries.into_iter().flatten().filter_map(|entry| entry.get("chain"));
        let text =
            |chain: &serde_json::Value, field: &str| chain.get(field).and_then(|v| v.as_str()).unwrap_or("").to_owned();
        chains
            .filter(|chain| text(chain, "hook") == "forward" && text(chain, "policy") == "drop")
            .filter(|chain| ["ip", "inet"].contains(&text(chain, "family").as_str()))
            .filter_map(|chain| {
                let (family, table, name) = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
                let rules = nft(&["list", "chain", &family, &table, &name], "").unwrap_or_default();
                // As nft shows the advised rule.
                let passes = rules.lines().any(|rule| rule.contains("mark != 0x00000000/16") && rule.contains("accept"));
                let place = format!("{family} {table} {name}");
                (!passes).then(|| format!(
                    "the host's firewall drops forwarded packets by policy (chain {place}), which cuts services and pods' way \
                     out of this node; let pods pass: nft insert rule {place} meta mark and 0xffff0000 != 0 accept, and nft \
                     insert rule {place} ct state established,related accept"
                ))
            })
            .collect()
    }

    /// Removes the table, if it is there.
    pub fn remove() -> Result<(), FirewallError> {
        nft(&["-f", "-"], &format!("table ip {TABLE} {{ }}\ndelete table ip {TABLE}\n")).map(drop)
    }
}

/// Each chain's name, and the last word of each of its lines: of the first its policy, of a rule its verdict. nft rewrites
/// what stands before that.
fn shape(table: &str) -> Vec<(&str, Vec<&str>)> {
    let mut chains: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for line in table.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("chain ") {
            chains.push((name.trim_end_matches([' ', '{']), Vec::new()));
            inside = true;
        } else if line == "}" {
            inside = false;
        } else if let (true, Some((_, words)), Some(last)) = (inside, chains.last_mut(), line.rsplit([' ', ':']).next())
        {
            words.push(last);
        }
    }
    chains
}

fn nft(arguments: &[&str], input: &str) -> Result<String, FirewallError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(FirewallError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(FirewallError::Start)?;
    }
    let output = child.wait_with_output().map_err(FirewallError::Start)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(FirewallError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixture::in_new_netns;

    #[test]
    fn what_somebody_changes_in_the_rules_is_seen() {
        in_new_netns(|| {
            let firewall = Firewall {
                network: "10.77.0.0/16".parse().unwrap(),
                gateway: Ipv4Addr::new(10, 77, 1, 1),
                vxlan_port: 4789,
            };
            firewall.apply().expect("this test needs nft and root");
            let listed = nft(&["list", "table", "ip", TABLE], "").unwrap();
            assert_eq!(shape(&listed), shape(&firewall.rules()));
            let listed = nft(&["-a", "list", "table", "ip", TABLE], "").unwrap();
            let masquerading = listed.lines().find(|line| line.contains("ip daddr != 10.77.0.0/16 accept")).unwrap();
            let deleted = masquerading.rsplit(' ').next().unwrap();
            for change in [
                format!("delete rule ip bulkhead prerouting_raw handle {deleted}"),
                "insert rule ip bulkhead input accept".into(),
                "add rule ip bulkhead forward drop".into(),
                "flush chain ip bulkhead postrouting_leaving".into(),
                "chain ip bulkhead forward { policy drop; }".into(),
                "add table ip bulkhead { flags dormant; }".into(),
                "delete table ip bulkhead".into(),
            ] {
                nft(&["-f", "-"], &change).unwrap();
                assert!(!firewall.is_in_place().unwrap(), "{change}");
                firewall.apply().unwrap();
                assert!(firewall.is_in_place().unwrap(), "after {change}");
            }
            assert!(!Firewall { vxlan_port: 4790, ..firewall }.is_in_place().unwrap());
        });
    }
}
