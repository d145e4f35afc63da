//! What the host's stack must do for us: one nftables table, node-wide, applied as one transaction.
//!
//! Nothing in it depends on a pod, a tenant or another node, so it is written at start and looked at by each resync,
//! never on a pod's path. The programs judge tenants; these rules only keep the stack's conntrack and NAT out of the way:
//! see each chain's comment.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use thiserror::Error;

use crate::kernel::KernelError;
use crate::kernel::nftables::{
    BaseChain, Direction, Expression as E, Family, Field, InetHook, Meta, Nftables, Place, Transaction, Verdict,
};
use crate::node::overlay;
use crate::pods::Record;

/// Why the rules cannot be read or written.
#[derive(Debug, Error)]
#[error(
    "the nftables rules cannot be looked at or changed: {0}; the kernel needs nf_tables with nat, fib and masquerade"
)]
pub struct FirewallError(#[from] KernelError);

/// What the rules depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firewall {
    /// The pods' network.
    pub network: Ipv4Network,
    /// This node's part of it.
    pub subnet: Ipv4Network,
    /// This node's address in it.
    pub gateway: Ipv4Addr,
    /// UDP.
    pub vxlan_port: u16,
}

const TABLE: &str = "bulkhead";
const FAMILY: Family = Family::Ip;
/// The upper half of a packet's mark: its namespace, where it came in by one of our devices.
const NAMESPACE: u32 = 0xffff_0000;
/// What kube-proxy (0x4000) and the plugin portmap (0x2000) mark for their own masquerading; both are ours to masquerade.
const MASQUERADED: u32 = 0x6000;
/// Ports of this range stand for flows that this stack translates; as in `bpf/packet.h`.
const TRANSLATED: (u16, u16) = (61_000, u16::MAX);
/// Priorities of nft(8): raw, filter, srcnat.
const RAW: i32 = -300;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;
const UDP: u8 = 17;
/// Protocols with ports where ours expects them.
const WITH_PORTS: [(&str, u8); 3] = [("tcp", 6), ("udp", UDP), ("sctp", 132)];
/// ICMP's errors (RFC 792).
const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];
const COUNTERS: [&str; 2] = ["pod_vxlan", "translated_vxlan"];

struct Rule {
    about: String,
    steps: Vec<E>,
}

struct Chain {
    base: BaseChain<'static>,
    rules: Vec<Rule>,
}

fn chain(name: &'static str, kind: &'static str, hook: InetHook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { base: BaseChain { name, kind, hook, priority }, rules }
}

fn rule(about: impl Into<String>, steps: impl IntoIterator<Item = Vec<E>>) -> Rule {
    Rule { about: about.into(), steps: steps.into_iter().flatten().collect() }
}

impl Firewall {
    fn chains(&self) -> Vec<Chain> {
        let forward_and_input = |mut before: Vec<Rule>| {
            before.extend(self.no_vxlan());
            before
        };
        vec![
            chain("prerouting_raw", "filter", InetHook::Prerouting, RAW, self.untracked()),
            chain("output_raw", "filter", InetHook::Output, RAW, vec![self.own_tunnel()]),
            chain("forward", "filter", InetHook::Forward, FILTER, forward_and_input(self.returning())),
            chain("input", "filter", InetHook::Input, FILTER, forward_and_input(Vec::new())),
            chain("postrouting_service", "nat", InetHook::Postrouting, SRCNAT - 5, self.services()),
            chain("postrouting_leaving", "nat", InetHook::Postrouting, SRCNAT + 5, vec![self.leaving()]),
        ]
    }

    fn tunnel_port(&self) -> Vec<E> {
        [E::protocol(UDP), E::port(Field::DestinationPort, self.vxlan_port)].concat()
    }

    /// The tunnel is not for conntrack: no service can translate it, whatever its addresses. Pod-to-pod packets that the
    /// stack sees half of (fragments, replies of the fast path) must not be INVALID; those with a port of the translated
    /// range, and errors that quote one, belong to a flow that this stack translates, and so may those of its own address.
    fn untracked(&self) -> Vec<Rule> {
        let accept = || E::verdict(Verdict::Accept);
        let tunnel = [
            E::mark(NAMESPACE, false),
            self.tunnel_port(),
            E::is_local(Direction::Destination, true),
            E::notrack(),
            accept(),
        ];
        let mut rules = vec![
            rule("the tunnel, from other nodes", tunnel),
            rule("not from pods", [E::in_network(Field::Source, self.network, false), accept()]),
            rule("not to pods", [E::in_network(Field::Destination, self.network, false), accept()]),
            rule("from this node", [E::is_address(Field::Source, self.gateway), accept()]),
            rule("to this node", [E::is_address(Field::Destination, self.gateway), accept()]),
        ];
        rules.extend(ICMP_ERRORS.map(|kind| {
            rule(
                format!("ICMP error {kind} of a flow"),
                [E::protocol(1), E::icmp_type(kind), E::quotes_ports(), accept()],
            )
        }));
        for (name, protocol) in WITH_PORTS {
            for (which, field) in [("from", Field::SourcePort), ("to", Field::DestinationPort)] {
                let steps = [E::protocol(protocol), E::port_from(field, TRANSLATED.0), accept()];
                rules.push(rule(format!("translated {name}, {which}"), steps));
            }
        }
        rules.push(rule("from pod to pod", [E::notrack()]));
        rules
    }

    fn own_tunnel(&self) -> Rule {
        rule("the tunnel, to other nodes", [self.tunnel_port(), E::is_local(Direction::Source, true), E::notrack()])
    }

    /// Translated flows to this node's pods whose replies would not come back through this stack by themselves: a pod that
    /// reaches itself, and another node, whose address the programs answer by the tunnel. Those nodes are the ones to which
    /// packets with a namespace in their mark are routed by the overlay device, so the packet gets one for the question;
    /// `to_pod` clears it.
    fn returning(&self) -> Vec<Rule> {
        let prefix = Record::host_interface_prefix(self.network);
        let translated =
            || [E::device_prefix(Meta::OutputName, &prefix), E::is_translated(true), E::is_original()].concat();
        let from_itself =
            [translated(), E::in_network(Field::Source, self.network, true), E::turns_back(), E::set_mark(MASQUERADED)];
        let ask = [translated(), E::mark(NAMESPACE, false), E::set_mark(NAMESPACE)];
        let from_node = [
            translated(),
            E::in_network(Field::Source, self.network, false),
            E::mark_has(NAMESPACE),
            E::comes_from_behind(overlay::NAME),
            E::set_mark(MASQUERADED),
        ];
        vec![
            rule("a pod to itself, translated: to be masqueraded", from_itself),
            rule("from outside this node's pods, translated: from a node?", ask),
            rule("from another node, translated: to be masqueraded", from_node),
        ]
    }

    /// No pod speaks VXLAN to a node, not even through a service; nobody does so through a translation.
    fn no_vxlan(&self) -> Vec<Rule> {
        let [pod, translated] = COUNTERS;
        let drop = || E::verdict(Verdict::Drop);
        let from_pod = [self.tunnel_port(), E::mark(NAMESPACE, true), E::counted_in(pod), drop()];
        let by_service = [self.tunnel_port(), E::is_translated(true), E::counted_in(translated), drop()];
        vec![rule("VXLAN from a pod", from_pod), rule("VXLAN through a service", by_service)]
    }

    /// Before kube-proxy's: a translated flow from a pod of this node keeps its address but gets a port of the translated range, by which
    /// the programs bring its replies back through this stack. What others masquerade is left to them.
    fn services(&self) -> Vec<Rule> {
        let accept = || E::verdict(Verdict::Accept);
        let mut rules = vec![
            rule("not translated", [E::is_translated(false), accept()]),
            rule("to be masqueraded, see forward", [E::mark_has(MASQUERADED), E::masquerade()]),
            rule("masqueraded by others", [E::mark(MASQUERADED, true), accept()]),
            rule("not from pods", [E::in_network(Field::Source, self.network, false), accept()]),
            // By a port of this node: their own node would take the backend's answer for another flow.
            rule("from other nodes' pods", [E::in_network(Field::Source, self.subnet, false), E::masquerade()]),
        ];
        let device = || E::device(Meta::OutputName, overlay::NAME, true);
        for (name, protocol) in WITH_PORTS {
            let snat = || E::source_port_of(TRANSLATED.0, TRANSLATED.1);
            let to_pod = E::in_network(Field::Destination, self.network, true);
            rules.push(rule(format!("{name} to a pod"), [E::protocol(protocol), to_pod, snat()]));
            rules.push(rule(format!("{name} into the tunnel"), [E::protocol(protocol), device(), snat()]));
        }
        rules
    }

    /// Pods' traffic that leaves the cluster and its nodes goes under the node's address.
    fn leaving(&self) -> Rule {
        rule(
            "from pods to the outside",
            [
                E::in_network(Field::Source, self.network, true),
                E::in_network(Field::Destination, self.network, false),
                E::device(Meta::OutputName, overlay::NAME, false),
                E::is_local(Direction::Destination, false),
                E::masquerade(),
            ],
        )
    }

    /// Tells this version of the rules and its parameters from another.
    fn id(self) -> String {
        format!(
            "bulkhead rules 4, pods {}, subnet {}, gateway {}, vxlan {}",
            self.network, self.subnet, self.gateway, self.vxlan_port
        )
    }

    /// Whether the kernel's table is these rules: every chain with its place and policy, every rule by its place and comment.
    pub fn is_in_place(&self) -> Result<bool, FirewallError> {
        let mut nftables = Nftables::here()?;
        let table = nftables.table(FAMILY, TABLE)?;
        if table.is_none_or(|table| table.dormant || table.comment != Some(self.id())) {
            return Ok(false);
        }
        let held = nftables.chains()?.into_iter().filter(|held| held.family == FAMILY && held.table == TABLE);
        let held: Vec<_> = held.collect();
        let wanted = self.chains();
        if held.len() != wanted.len() {
            return Ok(false);
        }
        for Chain { base, rules } in wanted {
            let hook = Some((base.hook as u32, base.priority));
            let same = |held: &crate::kernel::nftables::Chain| {
                held.name == base.name && held.hook == hook && held.kind == base.kind && !held.drops
            };
            let abouts = nftables.rules(FAMILY, TABLE, base.name)?.into_iter().map(|rule| rule.comment);
            if !held.iter().any(same) || !abouts.eq(rules.into_iter().map(|rule| Some(rule.about))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the rules, replacing what was there, in one transaction.
    pub fn apply(&self) -> Result<(), FirewallError> {
        let mut all = Transaction::default();
        all.table(FAMILY, TABLE, "");
        all.delete_table(FAMILY, TABLE);
        all.table(FAMILY, TABLE, &self.id());
        for counter in COUNTERS {
            all.counter(FAMILY, TABLE, counter);
        }
        for Chain { base, rules } in self.chains() {
            all.chain(FAMILY, TABLE, &base);
            for Rule { about, steps } in rules {
                all.rule((FAMILY, TABLE, base.name), Place::Last, &about, &steps);
            }
        }
        Ok(Nftables::here()?.commit(&all)?)
    }

    /// Packets that the two counters dropped.
    pub fn dropped() -> u64 {
        let listed = Nftables::here().and_then(|mut nftables| nftables.counters(FAMILY, TABLE));
        listed.unwrap_or_default().into_iter().map(|(_, packets)| packets).sum()
    }

    /// Removes the table, if it is there.
    pub fn remove() -> Result<(), FirewallError> {
        let mut all = Transaction::default();
        all.table(FAMILY, TABLE, "");
        all.delete_table(FAMILY, TABLE);
        Ok(Nftables::here()?.commit(&all)?)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::kernel::fixture::in_new_netns;

    fn nft(arguments: &[&str]) -> String {
        let output = Command::new("nft").args(arguments).output().expect("this test needs nft");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn firewall() -> Firewall {
        let network = "10.77.0.0/16".parse().unwrap();
        let subnet = "10.77.1.0/24".parse().unwrap();
        Firewall { network, subnet, gateway: Ipv4Addr::new(10, 77, 1, 1), vxlan_port: 4789 }
    }

    /// The same rules in nft's own words.
    const MEANT: &str = r#"table ip meant {
        counter pod_vxlan { }
        counter translated_vxlan { }
        chain prerouting_raw {
            type filter hook prerouting priority raw; policy accept;
            meta mark & 0xffff0000 == 0 udp dport 4789 fib daddr type local notrack accept
            ip saddr != 10.77.0.0/16 accept
            ip daddr != 10.77.0.0/16 accept
            ip saddr 10.77.1.1 accept
            ip daddr 10.77.1.1 accept
            icmp type destination-unreachable @th,224,32 != 0 accept
            icmp type source-quench @th,224,32 != 0 accept
            icmp type time-exceeded @th,224,32 != 0 accept
            icmp type parameter-problem @th,224,32 != 0 accept
            tcp sport >= 61000 accept
            tcp dport >= 61000 accept
            udp sport >= 61000 accept
            udp dport >= 61000 accept
            sctp sport >= 61000 accept
            sctp dport >= 61000 accept
            notrack
        }
        chain output_raw {
            type filter hook output priority raw; policy accept;
            udp dport 4789 fib saddr type local notrack
        }
        chain forward {
            type filter hook forward priority filter; policy accept;
            oifname "bh0a4d*" ct status & dnat != 0 ct direction original ip saddr 10.77.0.0/16 fib daddr . iif oif != 0 meta mark set meta mark or 0x6000
            oifname "bh0a4d*" ct status & dnat != 0 ct direction original meta mark & 0xffff0000 == 0 meta mark set meta mark or 0xffff0000
            oifname "bh0a4d*" ct status & dnat != 0 ct direction original ip saddr != 10.77.0.0/16 meta mark & 0xffff0000 == 0xffff0000 fib saddr . mark oifname "bulkhead0" meta mark set meta mark or 0x6000
            udp dport 4789 meta mark & 0xffff0000 != 0 counter name pod_vxlan drop
            udp dport 4789 ct status & dnat != 0 counter name translated_vxlan drop
        }
        chain input {
            type filter hook input priority filter; policy accept;
            udp dport 4789 meta mark & 0xffff0000 != 0 counter name pod_vxlan drop
            udp dport 4789 ct status & dnat != 0 counter name translated_vxlan drop
        }
        chain postrouting_service {
            type nat hook postrouting priority srcnat - 5; policy accept;
            ct status & dnat == 0 accept
            meta mark & 0x6000 == 0x6000 masquerade
            meta mark & 0x6000 != 0 accept
            ip saddr != 10.77.0.0/16 accept
            ip saddr != 10.77.1.0/24 masquerade
            meta l4proto tcp ip daddr 10.77.0.0/16 snat to ip saddr:61000-65535
            meta l4proto tcp oifname "bulkhead0" snat to ip saddr:61000-65535
            meta l4proto udp ip daddr 10.77.0.0/16 snat to ip saddr:61000-65535
            meta l4proto udp oifname "bulkhead0" snat to ip saddr:61000-65535
            meta l4proto sctp ip daddr 10.77.0.0/16 snat to ip saddr:61000-65535
            meta l4proto sctp oifname "bulkhead0" snat to ip saddr:61000-65535
        }
        chain postrouting_leaving {
            type nat hook postrouting priority srcnat + 5; policy accept;
            ip saddr 10.77.0.0/16 ip daddr != 10.77.0.0/16 oifname != "bulkhead0" fib daddr type != local masquerade
        }
    }"#;

    #[test]
    fn nft_reads_the_rules_as_they_are_meant() {
        in_new_netns(|| {
            firewall().apply().expect("this test needs root");
            nft(&[MEANT]);
            let rules = |table: &str| {
                let listed = nft(&["list", "table", "ip", table]);
                let lines =
                    listed.lines().map(|line| line.split("comment \"").next().unwrap_or(line).trim().to_owned());
                lines.skip(1).filter(|line| !line.is_empty()).collect::<Vec<_>>()
            };
            assert_eq!(rules(TABLE), rules("meant"));
            assert_eq!(Firewall::dropped(), 0);
            nft(&["delete table ip meant"]);
            Firewall::remove().unwrap();
            Firewall::remove().unwrap();
            assert_eq!(nft(&["list", "ruleset"]), "");
        });
    }

    #[test]
    fn what_somebody_changes_in_the_rules_is_seen() {
        in_new_netns(|| {
            let firewall = firewall();
            assert!(!firewall.is_in_place().unwrap());
            firewall.apply().expect("this test needs root");
            assert!(firewall.is_in_place().unwrap());
            let listed = nft(&["-a", "list", "table", "ip", TABLE]);
            let untracked = listed.lines().find(|line| line.contains("ip daddr != 10.77.0.0/16 accept")).unwrap();
            let deleted = untracked.rsplit(' ').next().unwrap();
            for change in [
                format!("delete rule ip bulkhead prerouting_raw handle {deleted}"),
                "insert rule ip bulkhead input accept".into(),
                "add rule ip bulkhead forward drop".into(),
                "flush chain ip bulkhead postrouting_leaving".into(),
                "chain ip bulkhead forward { policy drop; }".into(),
                "add chain ip bulkhead more { type filter hook forward priority 0; }".into(),
                "add table ip bulkhead { flags dormant; }".into(),
                "delete table ip bulkhead".into(),
            ] {
                nft(&[&change]);
                assert!(!firewall.is_in_place().unwrap(), "{change}");
                firewall.apply().unwrap();
                assert!(firewall.is_in_place().unwrap(), "after {change}");
            }
            assert!(!Firewall { vxlan_port: 4790, ..firewall }.is_in_place().unwrap());
        });
    }
}
