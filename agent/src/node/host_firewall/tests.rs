//! With the real tools: nft and iptables-nft, in a network namespace.

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

/// What is changed, where nothing of an earlier agent's stays.
fn pass() -> Vec<String> {
    let Looked { changed, passed_over } = HOST.pass().expect("this test needs root");
    assert_eq!(passed_over, Vec::<String>::new());
    changed
}

#[test]
fn docker_s_chain_gets_our_rules_once_and_iptables_still_reads_it() {
    in_new_netns(|| {
        assert_eq!(pass(), Vec::<String>::new());
        for rule in [
            &["-P", "FORWARD", "DROP"][..],
            &["-N", "DOCKER-USER"],
            &["-A", "FORWARD", "-j", "DOCKER-USER"],
            &["-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"],
            &["-A", "DOCKER-USER", "-j", "RETURN"],
        ] {
            run("iptables", rule);
        }
        let before = run("iptables-save", &["-t", "filter"]);
        let done = pass();
        assert!(done.len() == 1 && done[0].contains("ip filter FORWARD"), "{done:?}");
        assert_eq!(pass(), Vec::<String>::new(), "once is enough");
        let listed = run("iptables", &["-S", "FORWARD"]);
        let rules: Vec<&str> = listed.lines().collect();
        assert!(rules[3].starts_with("-A FORWARD -i bh0a4d+ -m comment --comment \"bulkhead: from pods"), "{listed}");
        assert!(rules.len() == 7 && rules[6].starts_with("-A FORWARD -o bulkhead0 "), "{listed}");
        // What kube-proxy does all the time: to read all, to change something and to write it back.
        let saved = run("iptables-save", &["-t", "filter"]);
        run("iptables", &["-A", "FORWARD", "-j", "DOCKER-USER"]);
        let mut restore = Command::new("iptables-restore").stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut restore.stdin.take().unwrap(), saved.as_bytes()).unwrap();
        assert!(restore.wait().unwrap().success());
        assert_eq!(pass(), Vec::<String>::new(), "rules that iptables wrote back are ours still");
        run("iptables", &["-D", "FORWARD", "4"]);
        assert_eq!(pass().len(), 1, "one that is missing is put back");
        run("iptables", &["-I", "FORWARD", "-j", "DROP"]);
        assert_eq!(pass().len(), 1, "and they come before what stops all");
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
        assert_eq!(pass().len(), 1);
        // kube-proxy starts later; it inserts, others append.
        let services = ["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-SERVICES"];
        run("iptables", &["-N", "KUBE-SERVICES"]);
        run("iptables", &["-A", "KUBE-SERVICES", "-d", "10.96.0.9", "-j", "REJECT"]);
        run("iptables", &[&["-I", "FORWARD"][..], &services].concat());
        assert_eq!(pass(), Vec::<String>::new(), "it is before ours already");
        run("iptables", &["-A", "FORWARD", "-s", "10.77.1.7", "-j", "DROP"]);
        run("iptables", &["-N", "STRICT"]);
        run("iptables", &["-A", "FORWARD", "-j", "STRICT"]);
        assert_eq!(pass().len(), 1, "ours go behind what was appended");
        assert_eq!(pass(), Vec::<String>::new());
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
        assert_eq!(pass(), Vec::<String>::new(), "a condition is somebody's intent");
        assert_eq!(order(), ["KUBE-SERVICES", "10.77.1.7", "STRICT", "bulkhead", "REJECT"]);
        run("iptables", &["-A", "STRICT", "-j", "DROP"]);
        assert_eq!(pass().len(), 1, "a chain that lets nothing out stops like a rule");
        assert_eq!(order(), ["KUBE-SERVICES", "10.77.1.7", "bulkhead", "STRICT", "REJECT"]);
        run("iptables", &["-I", "STRICT", "-j", "RETURN"]);
        assert_eq!(pass().len(), 1);
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
        assert_eq!(pass().len(), 1);
        assert_eq!(pass(), Vec::<String>::new());
        let listed = run("nft", &["list", "chain", "inet", "firewalld", "filter_FORWARD"]);
        let at = |text: &str| listed.lines().position(|line| line.contains(text)).unwrap();
        assert!(at("established") < at("from pods of this node"), "{listed}");
        assert!(at("to other nodes' pods") < at("jump filter_FORWARD_ZONES"), "{listed}");
        // An accept of all before it, and nothing is in the way any more.
        run("nft", &["insert rule inet firewalld filter_FORWARD accept"]);
        assert_eq!(pass().len(), 1);
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
        assert_eq!(pass(), Vec::<String>::new(), "conditions are somebody's intent");
        run("nft", &["add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited"]);
        let done = pass();
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
        assert_eq!(pass().len(), 1);
        let last = run("nft", &["-a", "list", "chain", "inet", "firewalld", "filter_FORWARD"]);
        let handle = last.lines().find(|line| line.contains("reject")).unwrap().rsplit(' ').next().unwrap();
        run("nft", &[&format!("delete rule inet firewalld filter_FORWARD handle {handle}")]);
        let done = pass();
        assert!(done.len() == 1 && done[0].contains("pass now"), "{done:?}");
        assert!(!run("nft", &["list", "ruleset"]).contains("bulkhead"));
    });
}

/// Our rules as an agent wrote them that put them at the chain's head.
fn earlier_agent(chain: &str) {
    for (device, about) in [
        ("oifname bulkhead0", "to other nodes' pods"),
        ("iifname bulkhead0", "from other nodes' pods"),
        ("oifname bh0a4d*", "to pods of this node"),
        ("iifname bh0a4d*", "from pods of this node"),
    ] {
        run("nft", &[&format!("insert rule {chain} {device} counter accept comment \"bulkhead: {about}\"")]);
    }
}

#[test]
fn an_upgrade_leaves_rules_where_what_they_pass_would_be_stopped_else() {
    in_new_netns(|| {
        run("iptables", &["-P", "FORWARD", "DROP"]);
        run("iptables", &["-N", "STRICT"]);
        run("iptables", &["-A", "FORWARD", "-s", "10.77.1.7", "-j", "DROP"]);
        run("iptables", &["-A", "FORWARD", "-i", "docker0", "-j", "STRICT"]);
        run("iptables", &["-A", "FORWARD", "-o", "docker0", "-j", "ACCEPT"]);
        earlier_agent("ip filter FORWARD");
        let listed = || run("nft", &["-a", "list", "chain", "ip", "filter", "FORWARD"]);
        let before = listed();
        let handle = |text: &str| {
            let line = before.lines().find(|line| line.contains(text)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let drop = handle("10.77.1.7");
        for _ in 0..2 {
            let Looked { changed, passed_over } = HOST.pass().unwrap();
            assert_eq!(changed, Vec::<String>::new());
            assert!(passed_over.len() == 1 && passed_over[0].contains("ip filter FORWARD"), "{passed_over:?}");
            assert!(passed_over[0].contains(&format!("over pods: {drop} (handles in")), "{passed_over:?}");
            assert_eq!(listed(), before);
        }
        run("iptables", &["-A", "STRICT", "-p", "udp", "-j", "DROP"]);
        let told = HOST.pass().unwrap().passed_over.concat();
        assert!(told.contains(&format!("over pods: {drop}, {} (to STRICT) (handles in", handle("STRICT"))), "{told}");
        assert_eq!(listed(), before);
        // The administrator decides: one shall hold for pods, the other is gone.
        run("iptables", &["-I", "FORWARD", "-s", "10.77.1.7", "-j", "DROP"]);
        run("iptables", &["-F", "STRICT"]);
        run("nft", &["delete", "rule", "ip", "filter", "FORWARD", "handle", &drop]);
        assert_eq!(pass().len(), 1, "nothing is stopped by where they go");
        let after = listed();
        let at = |text: &str| after.lines().position(|line| line.contains(text)).unwrap();
        assert!(at("10.77.1.7") < at("STRICT") && at("oifname \"docker0\"") < at("bulkhead: from pods"), "{after}");
        assert_eq!(pass(), Vec::<String>::new());
        assert_eq!(listed(), after, "they are ours now");
        run("iptables", &["-A", "FORWARD", "-s", "10.77.1.8", "-j", "DROP"]);
        assert_eq!(pass().len(), 1, "what comes later has its say");
        run("iptables-save", &["-t", "filter"]);
        HostFirewall::leave().unwrap();
        earlier_agent("ip filter FORWARD");
        HostFirewall::leave().unwrap();
        assert!(!listed().contains("bulkhead"));
    });
}

#[test]
fn an_earlier_agents_rules_go_where_ours_do_if_nothing_before_that_may_stop() {
    in_new_netns(|| {
        let chain = "inet wall f";
        run("nft", &["add table inet wall"]);
        run("nft", &["add chain inet wall f { type filter hook forward priority 0; policy drop; }"]);
        run("nft", &["add rule inet wall f tcp dport 25 drop"]);
        earlier_agent(chain);
        assert_eq!(HOST.pass().unwrap().passed_over.len(), 1);
        run("nft", &["insert rule inet wall f drop"]);
        assert_eq!(pass().len(), 1, "nothing comes to them");
        // What leaves the chain meets its policy, whatever the called chain does; a map of verdicts may hold a drop.
        for rule in ["iifname eth0 return", "tcp dport vmap { 25 : drop, 80 : accept }", "ip daddr 192.0.2.1 goto c"] {
            run("nft", &["flush chain inet wall f"]);
            run("nft", &["add chain inet wall c"]);
            run("nft", &[&format!("add rule {chain} {rule}")]);
            earlier_agent(chain);
            let looked = HOST.pass().unwrap();
            assert!(looked.passed_over.len() == 1 && looked.changed.is_empty(), "{rule}: {looked:?}");
        }
        for rule in
            ["iifname eth0 accept", "tcp dport { 25, 80 } accept", "udp dport 53 counter", "ip daddr 192.0.2.1 jump c"]
        {
            run("nft", &["flush chain inet wall f"]);
            run("nft", &[&format!("add rule {chain} {rule}")]);
            earlier_agent(chain);
            assert_eq!(pass().len(), 1, "{rule}");
            let listed = run("nft", &["list", "chain", "inet", "wall", "f"]);
            assert!(
                listed.lines().nth(7).is_some_and(|line| line.contains("unless stopped before")),
                "{rule}: {listed}"
            );
        }
        // They stand where they belong: only their comments change.
        run("nft", &["flush chain inet wall f"]);
        earlier_agent(chain);
        for _ in 0..2 {
            assert_eq!(HOST.pass().unwrap(), Looked::default());
            assert_eq!(run("nft", &["list", "chain", "inet", "wall", "f"]).matches("unless stopped before").count(), 4);
        }
        // A chain that was opened behind them.
        run("nft", &["add chain inet wall f { policy accept; }"]);
        assert_eq!(pass().len(), 1);
        run("nft", &["add rule inet wall f tcp dport 25 drop"]);
        earlier_agent(chain);
        assert_eq!(HOST.pass().unwrap().passed_over.len(), 1);
        run("nft", &["add chain inet wall f { policy drop; }"]);
        // One of the four is missing.
        run("nft", &["flush chain inet wall f"]);
        run("nft", &["add rule inet wall f tcp dport 25 drop"]);
        run(
            "nft",
            &["insert rule inet wall f iifname bulkhead0 counter accept comment \"bulkhead: from other nodes' pods\""],
        );
        assert_eq!(pass().len(), 1);
    });
}
