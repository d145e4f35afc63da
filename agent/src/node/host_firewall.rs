//! Firewalls of others that stop forwarded packets: Docker's `FORWARD` chain drops by policy, firewalld's ends with a reject.
//! Pods' traffic through the host's stack (services, the way out) would die there, and an accept in a table of our own does
//! not help: every base chain has to let a packet pass. So each of those chains gets our rules, just before what stops all.
//!
//! They pass what comes from or goes to our own devices and nothing else; which of it may pass is the programs' to judge.
//! Rules of others before that keep their say: kube-proxy rejects what has no endpoint there, an administrator drops what
//! they like. The chain may be iptables': its tools read all of these expressions, so that nobody's `iptables-save` breaks.

use ipnetwork::Ipv4Network;

use super::firewall::FirewallError;
use super::overlay;
use crate::kernel::nftables::{
    Chain, Expression as E, Family, Fate, InetHook, Meta, Nftables, Place, Rule, Transaction, Verdict,
};
use crate::pods::Record;

/// What our rules' comments start with.
const ABOUT: &str = "bulkhead: ";
/// The table that is ours, where nothing is in the way.
const OWN: (Family, &str) = (Family::Ip, "bulkhead");

/// Other firewalls of this host, seen with the pods' network.
#[derive(Debug, Clone, Copy)]
pub struct HostFirewall {
    /// The pods' network: its devices have names of it.
    pub network: Ipv4Network,
}

fn place(chain: &Chain) -> String {
    format!("{} {} {}", chain.family.name(), chain.table, chain.name)
}

fn is_ours(rule: &Rule) -> bool {
    rule.comment.as_ref().is_some_and(|comment| comment.starts_with(ABOUT))
}

/// Base chains of others in the way of forwarded packets, with their rules.
fn forward_chains(nftables: &mut Nftables) -> Result<Vec<(Chain, Vec<Rule>)>, FirewallError> {
    let hook = InetHook::Forward as u32;
    let others = nftables.chains()?.into_iter().filter(|chain| {
        chain.hook.is_some_and(|(number, _)| number == hook) && (chain.family, chain.table.as_str()) != OWN
    });
    let others: Vec<Chain> = others.collect();
    let with_rules = others.into_iter().map(|chain| {
        let rules = nftables.rules(chain.family, &chain.table, &chain.name)?;
        Ok((chain, rules))
    });
    with_rules.collect()
}

/// Whether nothing that goes through the chain of that name comes out of it again, but by a condition. The kernel sees to it
/// that chains do not call each other in a circle, and how deep they may.
fn stops(nftables: &mut Nftables, within: &Chain, name: &str) -> Result<bool, FirewallError> {
    for rule in nftables.rules(within.family, &within.table, name)? {
        match rule.fate {
            Some(Fate::Stopped) => return Ok(true),
            Some(Fate::Passed | Fate::Returned) => return Ok(false),
            Some(Fate::Goes(chain)) => return stops(nftables, within, &chain),
            Some(Fate::Jumps(chain)) if stops(nftables, within, &chain)? => return Ok(true),
            Some(Fate::Jumps(_)) | None => {}
        }
    }
    Ok(false)
}

/// Where pods' packets have to be let pass in a base chain: the place is before that many of others' rules. None if nothing
/// stops them.
fn end(nftables: &mut Nftables, chain: &Chain, others: &[&Rule]) -> Result<Option<usize>, FirewallError> {
    for (index, rule) in others.iter().enumerate() {
        let stopped = match &rule.fate {
            Some(Fate::Stopped) => true,
            Some(Fate::Passed) => return Ok(None),
            // What is behind it is reached by nobody; the policy decides.
            Some(Fate::Returned) => return Ok(chain.drops.then_some(index)),
            Some(Fate::Goes(name)) => return Ok((chain.drops || stops(nftables, chain, name)?).then_some(index)),
            Some(Fate::Jumps(name)) => stops(nftables, chain, name)?,
            None => false,
        };
        if stopped {
            return Ok(Some(index));
        }
    }
    Ok(chain.drops.then_some(others.len()))
}

impl HostFirewall {
    fn rules(self) -> [(String, Vec<E>); 4] {
        let rule = |about: &str, condition: Vec<E>| {
            let steps = [condition, E::counted(), E::verdict(Verdict::Accept)].concat();
            (format!("{ABOUT}{about}"), steps)
        };
        let prefix = Record::host_interface_prefix(self.network);
        [
            rule("from pods of this node", E::device_prefix(Meta::InputName, &prefix)),
            rule("to pods of this node", E::device_prefix(Meta::OutputName, &prefix)),
            rule("from other nodes' pods", E::device(Meta::InputName, overlay::NAME, true)),
            rule("to other nodes' pods", E::device(Meta::OutputName, overlay::NAME, true)),
        ]
    }

    /// Whether our rules are in the chain, all of them and nowhere else than behind that many of others' rules.
    fn passes(self, rules: &[Rule], end: usize) -> bool {
        let (ours, wanted) = (rules.iter().filter(|rule| is_ours(rule)).count(), self.rules());
        let here = rules.iter().skip(end).take(wanted.len()).map(|rule| rule.comment.as_deref());
        ours == wanted.len() && here.eq(wanted.iter().map(|(about, _)| Some(about.as_str())))
    }

    /// Puts our rules where they are needed, and takes them from where they are not any more. Returns what was done, in words.
    pub fn pass(self) -> Result<Vec<String>, FirewallError> {
        let mut nftables = Nftables::here()?;
        let (mut all, mut done) = (Transaction::default(), Vec::new());
        for (chain, rules) in forward_chains(&mut nftables)? {
            let (held, others): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| is_ours(rule));
            let end = end(&mut nftables, &chain, &others)?;
            if end.map_or(held.is_empty(), |end| self.passes(&rules, end)) {
                continue;
            }
            let at = (chain.family, chain.table.as_str(), chain.name.as_str());
            for rule in held {
                all.delete_rule(at, rule.handle);
            }
            let Some(end) = end else {
                done.push(format!(
                    "the host's firewall ({}) lets forwarded packets pass now; our rules left it",
                    place(&chain)
                ));
                continue;
            };
            let before = others.get(end).map_or(Place::Last, |rule| Place::Before(rule.handle));
            for (about, steps) in self.rules() {
                all.rule(at, before, &about, &steps);
            }
            done.push(format!(
                "the host's firewall ({}) stops forwarded packets; rules just before it does let pods' pass",
                place(&chain)
            ));
        }
        if !all.is_empty() {
            nftables.commit(&all).map_err(FirewallError::from)?;
        }
        Ok(done)
    }

    /// Takes our rules out of every chain of others.
    pub fn leave() -> Result<(), FirewallError> {
        let mut nftables = Nftables::here()?;
        let mut all = Transaction::default();
        for (chain, rules) in forward_chains(&mut nftables)? {
            for rule in rules.iter().filter(|rule| is_ours(rule)) {
                all.delete_rule((chain.family, &chain.table, &chain.name), rule.handle);
            }
        }
        if all.is_empty() { Ok(()) } else { Ok(nftables.commit(&all)?) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::kernel::fixture::in_new_netns;

    const HOST: HostFirewall = HostFirewall { network: NETWORK };
    const NETWORK: Ipv4Network = match Ipv4Network::new_checked(std::net::Ipv4Addr::new(10, 77, 0, 0), 16) {
        Some(network) => network,
        None => panic!(),
    };

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().expect("this test needs nft and iptables");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{program} {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn docker_s_chain_gets_our_rules_once_and_iptables_still_reads_it() {
        in_new_netns(|| {
            assert_eq!(HOST.pass().expect("this test needs root"), Vec::<String>::new());
            for rule in [
                &["-P", "FORWARD", "DROP"][..],
                &["-N", "DOCKER-USER"],
                &["-A", "FORWARD", "-j", "DOCKER-USER"],
                &[
                    "-A",
                    "FORWARD",
                    "-o",
                    "docker0",
                    "-m",
                    "conntrack",
                    "--ctstate",
                    "RELATED,ESTABLISHED",
                    "-j",
                    "ACCEPT",
                ],
                &["-A", "DOCKER-USER", "-j", "RETURN"],
            ] {
                run("iptables", rule);
            }
            let before = run("iptables-save", &["-t", "filter"]);
            let done = HOST.pass().unwrap();
            assert!(done.len() == 1 && done[0].contains("ip filter FORWARD"), "{done:?}");
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new(), "once is enough");
            let listed = run("iptables", &["-S", "FORWARD"]);
            let rules: Vec<&str> = listed.lines().collect();
            assert!(
                rules[3].starts_with("-A FORWARD -i bh0a4d+ -m comment --comment \"bulkhead: from pods"),
                "{listed}"
            );
            assert!(rules.len() == 7 && rules[6].starts_with("-A FORWARD -o bulkhead0 "), "{listed}");
            // What kube-proxy does all the time: to read all, to change something and to write it back.
            let saved = run("iptables-save", &["-t", "filter"]);
            run("iptables", &["-A", "FORWARD", "-j", "DOCKER-USER"]);
            let mut restore = Command::new("iptables-restore").stdin(std::process::Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut restore.stdin.take().unwrap(), saved.as_bytes()).unwrap();
            assert!(restore.wait().unwrap().success());
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new(), "rules that iptables wrote back are ours still");
            run("iptables", &["-D", "FORWARD", "4"]);
            assert_eq!(HOST.pass().unwrap().len(), 1, "one that is missing is put back");
            run("iptables", &["-I", "FORWARD", "-j", "DROP"]);
            assert_eq!(HOST.pass().unwrap().len(), 1, "and they come before what stops all");
            run("iptables", &["-D", "FORWARD", "-j", "DROP"]);
            HostFirewall::leave().unwrap();
            HostFirewall::leave().unwrap();
            let strip = |text: &str| text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
            assert_eq!(strip(&run("iptables-save", &["-t", "filter"])), strip(&before));
        });
    }

    #[test]
    fn rules_of_others_keep_their_say_whenever_they_come() {
        in_new_netns(|| {
            run("iptables", &["-P", "FORWARD", "DROP"]);
            assert_eq!(HOST.pass().expect("this test needs root").len(), 1);
            // kube-proxy starts later; it inserts, others append.
            let services = ["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-SERVICES"];
            run("iptables", &["-N", "KUBE-SERVICES"]);
            run("iptables", &["-A", "KUBE-SERVICES", "-d", "10.96.0.9", "-j", "REJECT"]);
            run("iptables", &[&["-I", "FORWARD"][..], &services].concat());
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new(), "it is before ours already");
            run("iptables", &["-A", "FORWARD", "-s", "10.77.1.7", "-j", "DROP"]);
            run("iptables", &["-N", "STRICT"]);
            run("iptables", &["-A", "FORWARD", "-j", "STRICT"]);
            assert_eq!(HOST.pass().unwrap().len(), 1, "ours go behind what was appended");
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new());
            let order = || -> Vec<String> {
                let listed = run("iptables", &["-S", "FORWARD"]);
                let name = |line: &str| {
                    ["KUBE-SERVICES", "bulkhead", "10.77.1.7", "STRICT", "REJECT"]
                        .into_iter()
                        .find(|word| line.contains(word))
                };
                let mut names: Vec<String> = listed.lines().filter_map(name).map(str::to_owned).collect();
                names.dedup();
                names
            };
            assert_eq!(order(), ["KUBE-SERVICES", "10.77.1.7", "STRICT", "bulkhead"]);
            run("iptables", &["-A", "STRICT", "-i", "eth0", "-j", "DROP"]);
            run("iptables", &["-A", "FORWARD", "-j", "REJECT"]);
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new(), "a condition is somebody's intent");
            assert_eq!(order(), ["KUBE-SERVICES", "10.77.1.7", "STRICT", "bulkhead", "REJECT"]);
            run("iptables", &["-A", "STRICT", "-j", "DROP"]);
            assert_eq!(HOST.pass().unwrap().len(), 1, "a chain that lets nothing out stops like a rule");
            assert_eq!(order(), ["KUBE-SERVICES", "10.77.1.7", "bulkhead", "STRICT", "REJECT"]);
            run("iptables", &["-I", "STRICT", "-j", "RETURN"]);
            assert_eq!(HOST.pass().unwrap().len(), 1);
            assert_eq!(order(), ["KUBE-SERVICES", "10.77.1.7", "STRICT", "bulkhead", "REJECT"]);
        });
    }

    /// firewalld 1.3, one zone: nothing gets as far as the last rule.
    #[test]
    fn a_zone_that_rejects_is_passed_before_it_is_called() {
        in_new_netns(|| {
            run(
                "nft",
                &["add table inet firewalld; \
                add chain inet firewalld filter_FWD_public; \
                add rule inet firewalld filter_FWD_public ct mark 7 accept; \
                add rule inet firewalld filter_FWD_public reject with icmpx admin-prohibited; \
                add chain inet firewalld filter_FORWARD_ZONES; \
                add rule inet firewalld filter_FORWARD_ZONES iifname eth0 goto filter_FWD_public; \
                add rule inet firewalld filter_FORWARD_ZONES goto filter_FWD_public; \
                add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }; \
                add rule inet firewalld filter_FORWARD ct state { established, related } accept; \
                add rule inet firewalld filter_FORWARD jump filter_FORWARD_ZONES; \
                add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited"],
            );
            assert_eq!(HOST.pass().expect("this test needs root").len(), 1);
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new());
            let listed = run("nft", &["list", "chain", "inet", "firewalld", "filter_FORWARD"]);
            let at = |text: &str| listed.lines().position(|line| line.contains(text)).unwrap();
            assert!(at("established") < at("from pods of this node"), "{listed}");
            assert!(at("to other nodes' pods") < at("jump filter_FORWARD_ZONES"), "{listed}");
            // An accept of all before it, and nothing is in the way any more.
            run("nft", &["insert rule inet firewalld filter_FORWARD accept"]);
            assert_eq!(HOST.pass().unwrap().len(), 1);
            assert!(!run("nft", &["list", "ruleset"]).contains("bulkhead"));
        });
    }

    #[test]
    fn a_final_reject_is_passed_and_an_open_chain_left_alone() {
        in_new_netns(|| {
            run(
                "nft",
                &["add table inet firewalld; \
                add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }; \
                add rule inet firewalld filter_FORWARD ct state { established, related } accept; \
                add rule inet firewalld filter_FORWARD ct state invalid drop; \
                add table inet open; add chain inet open f { type filter hook forward priority 0; policy accept; }; \
                add rule inet open f tcp dport 25 drop; \
                add rule inet open f ip saddr 192.0.2.1 counter reject"],
            );
            assert_eq!(HOST.pass().unwrap(), Vec::<String>::new(), "conditions are somebody's intent");
            run("nft", &["add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited"]);
            let done = HOST.pass().unwrap();
            assert!(done.len() == 1 && done[0].contains("inet firewalld filter_FORWARD"), "{done:?}");
            let listed = run("nft", &["list", "chain", "inet", "firewalld", "filter_FORWARD"]);
            let third = listed.lines().nth(5).unwrap_or_default();
            assert!(
                third.contains("iifname \"bh0a4d*\" counter") && third.contains("accept comment \"bulkhead: "),
                "{listed}"
            );
            assert!(!run("nft", &["list", "table", "inet", "open"]).contains("bulkhead"));
            run("nft", &["flush chain inet firewalld filter_FORWARD"]);
            run("nft", &["add rule inet firewalld filter_FORWARD counter reject"]);
            assert_eq!(HOST.pass().unwrap().len(), 1);
            let last = run("nft", &["-a", "list", "chain", "inet", "firewalld", "filter_FORWARD"]);
            let handle = last.lines().find(|line| line.contains("reject")).unwrap().rsplit(' ').next().unwrap();
            run("nft", &[&format!("delete rule inet firewalld filter_FORWARD handle {handle}")]);
            let done = HOST.pass().unwrap();
            assert!(done.len() == 1 && done[0].contains("pass now"), "{done:?}");
            assert!(!run("nft", &["list", "ruleset"]).contains("bulkhead"));
        });
    }
}
