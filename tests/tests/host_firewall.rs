//! A host whose firewall stops what it forwards (Docker, firewalld do so): pods, services and `NodePorts` work all the same, the
//! agent says what it did, repairs it, and takes it away with itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::expect_large;
use bulkhead_tests::probe::{PATIENCE, Proto, SILENCE, expect_reaches, reaches, reaches_with};
use bulkhead_tests::service::{self, Service};
use bulkhead_tests::{Lab, LabError, Node, wait};

const SOON: Duration = Duration::from_secs(40);

/// As dockerd 24 makes it.
const DOCKER: &str = "iptables -P FORWARD DROP
iptables -N DOCKER; iptables -N DOCKER-ISOLATION-STAGE-1; iptables -N DOCKER-ISOLATION-STAGE-2; iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -o docker0 -j DOCKER
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
iptables -A DOCKER-USER -j RETURN";

/// As firewalld 1.3 makes it, its zones left out.
const FIREWALLD: &str = r#"nft 'add table inet firewalld
add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }
add rule inet firewalld filter_FORWARD ct state { established, related } accept
add rule inet firewalld filter_FORWARD iifname "lo" accept
add rule inet firewalld filter_FORWARD ct state invalid drop
add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited'"#;

fn shell(node: &Node, script: &str) -> Result<String, LabError> {
    node.netns().exec("sh", &["-ec", script], &[])
}

#[test]
fn a_firewall_that_stops_forwarded_packets_is_passed_and_told() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(0, "a", "2")?, lab.pod(1, "a", "3")?, lab.pod(0, "b", "1")?];
    let [one, near, far, foreign] = [0, 1, 2, 3].map(|index: usize| pods[index].endpoint());
    let node = lab.node(0);
    let vip = Ipv4Addr::new(10, 96, 0, 1);
    let services = [
        Service::new(vip, 80, far.address(), 7),
        Service::new(node.address(), 30080, far.address(), 7),
        Service::new(node.address(), 30081, near.address(), 7),
    ];
    let [cluster_ip, mut to_far, to_near] = services;
    to_far.masquerade = true;
    service::install(node.netns(), &[cluster_ip, to_far, to_near])?;
    let slow_path = || -> Result<Option<String>, LabError> {
        let tries = [
            ("a service", reaches_with(one, vip, 80, Proto::Tcp, 32, PATIENCE)?),
            ("the outside", reaches(one, lab.outside().address(), Proto::Tcp, PATIENCE)?),
            ("a NodePort to far", reaches_with(lab.outside(), node.address(), 30080, Proto::Tcp, 32, PATIENCE)?),
            ("a NodePort to near", reaches_with(lab.outside(), node.address(), 30081, Proto::Tcp, 32, PATIENCE)?),
        ];
        Ok(tries.iter().find(|(_, works)| !works).map(|(what, _)| (*what).to_owned()))
    };
    let passed = |what: &str| {
        wait::until_or(what, SOON, || match slow_path() {
            Ok(None) => Ok(()),
            Ok(Some(dead)) => Err(format!("{dead} is dead")),
            Err(error) => Err(error.to_string()),
        })
    };
    passed("the slow path without a firewall")?;
    for (what, place, script) in [
        ("iptables -P FORWARD DROP", "ip filter FORWARD", "iptables -P FORWARD DROP"),
        ("Docker", "ip filter FORWARD", DOCKER),
        (
            "an nftables chain with policy drop",
            "inet wall f",
            "nft 'add table inet wall; add chain inet wall f { type filter hook forward priority 0; policy drop; }'",
        ),
        ("firewalld", "inet firewalld filter_FORWARD", FIREWALLD),
    ] {
        println!("{what}");
        shell(
            node,
            "iptables -P FORWARD ACCEPT; iptables -F; iptables -X; nft delete table inet wall 2>/dev/null || true",
        )?;
        let before = node.status()?.repairs.len();
        shell(node, script)?;
        expect_reaches(one, near)?;
        expect_reaches(one, far)?;
        expect_reaches(one, node.host())?;
        passed(&format!("{what} being passed"))?;
        wait::until_or(&format!("{what} being told"), SOON, || {
            let told = node.status().map_err(|error| error.to_string())?.repairs;
            let said = told.iter().skip(before.min(told.len().saturating_sub(1))).any(|text| text.contains(place));
            if said || what == "Docker" { Ok(()) } else { Err(format!("{told:?}")) }
        })?;
        expect_large(one, far, 9000)?;
        let crossed = reaches_with(foreign, vip, 80, Proto::Tcp, 32, SILENCE)?;
        promised(!crossed, || "a foreign tenant passes with our accept".into())?;
    }
    println!("everything together, and somebody flushes the chains");
    shell(node, DOCKER)?;
    passed("all of them being passed")?;
    shell(
        node,
        "iptables -F FORWARD; nft flush chain inet firewalld filter_FORWARD; \
        nft add rule inet firewalld filter_FORWARD reject",
    )?;
    passed("a repair")?;
    println!("a reject of others, as kube-proxy's for a service without endpoints, keeps its say");
    let empty = Ipv4Addr::new(10, 96, 0, 2);
    shell(node, &format!("iptables -A FORWARD -d {empty} -j REJECT"))?;
    wait::until_or("our rules going behind it", SOON, || {
        let rejected = format!("iptables -nvxL FORWARD | awk '$1 > 0' | grep -c 'REJECT .* {empty}'");
        let tried = reaches_with(one, empty, 80, Proto::Tcp, 32, SILENCE);
        tried.and_then(|_| shell(node, &rejected)).map(drop).map_err(|error| error.to_string())
    })?;
    passed("the rest still passing")?;
    println!("iptables' tools still read and write their table");
    let saved = shell(node, "iptables-save -t filter > /dev/null && iptables -S FORWARD")?;
    promised(saved.contains("bulkhead: from pods of this node"), || saved)?;
    println!("it goes with the agent");
    node.stop_agent()?;
    let command = node.agent_command()?;
    let mut flags: Vec<String> = command.get_args().map(|flag| flag.to_string_lossy().into_owned()).collect();
    flags.push("--uninstall".into());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    node.netns().exec(&command.get_program().to_string_lossy(), &flags, &[])?;
    let left = shell(node, "nft list ruleset")?;
    promised(!left.contains("bulkhead"), || left)
}
