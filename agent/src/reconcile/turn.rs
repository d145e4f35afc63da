//! The reconciler's loop.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::gone::Missing;
use super::pace::{Pace, Scope};
use super::{Agent, FIREWALL, apply_namespaces, limits, pods, start, tenants};
use crate::datapath::abi::{Port, StateValue};
use crate::intent::Intent;
use crate::kernel::Netlink;
use crate::kubernetes::Complaint;
use crate::live::{Live, locked};
use crate::node::cni_conf::Chained;
use crate::node::host_firewall::HostFirewall;
use crate::node::overlay;
use crate::node::{cni_conf, local_addresses, own_address, underlay};
use crate::preflight;
use crate::server;

/// The longest time without a look at drop events.
const EVENTS: Duration = Duration::from_secs(1);

/// The ledger has this node at another address of its own than the one that its programs and devices were made for.
#[derive(Debug, Error)]
#[error(
    "this node's address is {now} now, no more {before}: the agent must be started anew, which costs no packet of its pods"
)]
pub struct Moved {
    /// The address that it worked with.
    before: Ipv4Addr,
    /// The one that the ledger has.
    now: Ipv4Addr,
}

/// Works until the process ends, or the node's address is another one. `ready` is called once, when the node takes pods.
pub fn run(agent: &Agent, ready: impl FnOnce()) -> Option<Moved> {
    take_up(agent);
    let live = agent.live.get()?;
    ready();
    let mut seen = 0;
    let mut kept = Kept::default();
    let mut pace = Pace::new(agent.config.resync, Instant::now());
    loop {
        agent.beat();
        let generation = agent.shared.wait_past(seen, pace.next().min(Instant::now() + EVENTS));
        let changed = (generation > seen).then_some(Scope::Changes);
        if let Some(scope) = changed.max(pace.due(Instant::now())) {
            let outcome = turn(agent, live, &mut kept, scope == Scope::Resync);
            *locked(&agent.problems) = outcome.problems;
            pace.made(scope, outcome.failed, Instant::now());
            seen = generation;
            if let Some(moved) = moved(agent, live) {
                return Some(moved);
            }
        }
        for event in live.datapath.drops.take_events(100) {
            event.log();
        }
    }
}

/// Whether the ledger has this node at another of its addresses. A device may lose its address for a while; that alone
/// changes nothing.
fn moved(agent: &Agent, live: &Live) -> Option<Moved> {
    let before = live.geometry.node_ip;
    let is_there =
        |intent: &Intent| intent.nodes.get(&before.into()).is_some_and(|node| node.host == agent.config.node);
    let intent = agent.shared.read(|intent, _| (!is_there(intent)).then(|| intent.clone()))?;
    let own = own_address(&agent.config.node, Some(before), &intent, || local_addresses(&mut Netlink::here()?));
    let now = own.ok().flatten().filter(|now| *now != before)?;
    Some(Moved { before, now })
}

/// What one turn leaves for the next.
#[derive(Default)]
struct Kept {
    /// What was made of the nodes, if all of it worked.
    applied: Option<tenants::Nodes>,
    missing: Missing,
}

/// Tries to take the node up until it works; each reason is said once.
fn take_up(agent: &Agent) {
    let mut seen = 0;
    let mut said: Vec<String> = Vec::new();
    loop {
        agent.beat();
        match start::start(agent) {
            Ok(live) => {
                tracing::info!(
                    node = %agent.config.node, gateway = %live.gateway(), mtu = live.geometry.mtu,
                    pods = live.records.counts().0, "the node is up"
                );
                locked(&agent.problems).clear();
                drop(agent.live.set(live));
                agent.shared.nudge();
                return;
            }
            Err(error) => {
                let reasons = error.reasons();
                for text in reasons.iter().filter(|text| !said.contains(text)) {
                    if error.is_waiting() {
                        tracing::warn!("the node cannot take pods: {text}");
                    } else {
                        tracing::error!("the node cannot take pods: {text}");
                        let text = format!("Bulkhead does not take this node up: {text}");
                        agent.api.complaints.push(Complaint::Node { reason: "NodeUnfit", text });
                    }
                }
                said.clone_from(&reasons);
                *locked(&agent.problems) = reasons;
            }
        }
        seen = agent.shared.wait_past(seen, Instant::now() + Duration::from_secs(2));
    }
}

/// Tells the runtime that this node takes pods.
fn announce(agent: &Agent) -> Result<(), String> {
    let config = &agent.config;
    let (chain, missing) = Chained::present(&config.cni_chain, config.cni_bin_dir.as_deref());
    agent.note("CNI chain", missing);
    let (socket, spool) = (server::socket_path(&config.run_dir), server::spool_path(&config.run_dir));
    let written =
        config.cni_conf_dir.as_ref().map_or(Ok(false), |folder| cni_conf::write(folder, &socket, &spool, &chain));
    agent.announced.store(written.is_ok(), Ordering::Release);
    if written.as_ref().is_ok_and(|fresh| *fresh) {
        tracing::info!(folder = ?config.cni_conf_dir, ?chain, "the CNI config is in place");
    }
    written.map(drop).map_err(|error| {
        tracing::error!("{error}");
        error.to_string()
    })
}

/// What a turn came to.
struct Outcome {
    /// What is wrong, for a person.
    problems: Vec<String>,
    /// Whether something of it could not be applied; a standing problem is none such.
    failed: bool,
}

/// One turn. Unless the nodes changed, only a resync walks the maps and routes, which with thousands of nodes is the dear part.
fn turn(agent: &Agent, live: &Live, kept: &mut Kept, resync: bool) -> Outcome {
    let Kept { applied, missing } = kept;
    let first = applied.is_none();
    let mut problems = Vec::new();
    if resync {
        let repaired = locked(&live.datapath.namespaces).repair();
        match repaired {
            Ok(0) => {}
            Ok(count) => agent.repaired([format!("{count} entries of the namespaces' maps")]),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems.extend(apply_namespaces(live, &agent.shared).err().map(|error| error.to_string()));
    let nodes = agent.shared.read(|intent, _| tenants::Nodes::of(intent, &live.networks, &live.geometry));
    let kernel = applied.as_ref() != Some(&nodes) || resync;
    let mut host = None;
    if kernel {
        match Netlink::here() {
            Ok(socket) => host = Some(socket),
            Err(error) => problems.push(error.to_string()),
        }
        let mut routed = nodes.clone();
        if let Some(host) = &mut host {
            routed.ask_routes(host, live.geometry.mtu + overlay::HEADERS);
        }
        let written = locked(&live.datapath.peers).apply(&routed.blocks, &routed.addresses);
        problems.extend(written.err().map(|error| error.to_string()));
    }
    problems.extend(said(agent, pods::publish_all(live, resync)));
    if let Some(host) = &mut host {
        problems.extend(said(agent, pods::attach_rest(live, host)));
        // The device first: routes name it.
        if resync {
            problems.extend(repair(agent, live, host).err());
            problems.extend(said(agent, pods::look_after(live, host)));
            match preflight::look(&agent.config, Some(live.geometry.network), host) {
                Ok(found) => agent.doubt(&found.obstacles),
                Err(error) => problems.push(error.to_string()),
            }
            match missing.collect(agent, live, host) {
                Ok(gone) => agent.repaired(gone),
                Err(error) => problems.push(error.to_string()),
            }
        }
        problems.extend(routes(agent, live, host, &nodes, resync).err());
    }
    if first || resync || !agent.is_announced() {
        problems.extend(announce(agent).err());
    }
    problems.extend(limits::apply(agent, live));
    let failed = !problems.is_empty();
    problems.extend(nodes.unusable.iter().cloned());
    *applied = (!failed).then_some(nodes);
    if first || resync {
        match (HostFirewall { network: live.geometry.network }).pass() {
            Ok(looked) => {
                agent.repaired(looked.changed);
                agent.doubt_firewall(looked.passed_over);
            }
            Err(error) => {
                let text = format!("what of the host's firewall stops pods is not known: {error}");
                agent.note(FIREWALL, vec![text]);
            }
        }
    }
    problems.extend(standing(agent, live));
    Outcome { problems, failed }
}

/// Says what was repaired; returns what failed.
fn said(agent: &Agent, looked: pods::Looked) -> Vec<String> {
    agent.repaired(looked.repaired);
    looked.failed
}

fn routes(agent: &Agent, live: &Live, host: &mut Netlink, nodes: &tenants::Nodes, resync: bool) -> Result<(), String> {
    let changes = start::routes_of(live).apply(host, &nodes.remote_addresses()).map_err(|error| error.to_string())?;
    if resync {
        agent.repaired(changes.into_iter().map(|change| format!("missing: {change}")));
    }
    Ok(())
}

/// Looks at everything of the node, its pods aside, that somebody else might have changed.
fn repair(agent: &Agent, live: &Live, host: &mut Netlink) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let device = start::overlay_of(&agent.config, live);
    let (index, changes) = device.ensure(host).map_err(|e| text(&e))?;
    agent.repaired(changes);
    if index != live.overlay() {
        // Whatever names the device is brought in line below and by the next look at the maps.
        live.set_overlay(index);
        locked(&live.datapath.endpoints).set_port(index, Port::Overlay).map_err(|e| text(&e))?;
        agent.repaired(["the overlay device was deleted by something and is made anew".to_owned()]);
    }
    {
        // Held over both: an ADD of a new namespace switches the bank under it.
        let namespaces = locked(&live.datapath.namespaces);
        let (bank, origin) = (namespaces.bank(), namespaces.origin());
        let wanted = StateValue { bank, overlay_ifindex: live.overlay(), origin };
        if live.datapath.state().map_err(|e| text(&e))? != wanted {
            live.datapath.set_state(wanted).map_err(|e| text(&e))?;
            agent.repaired(["the datapath's state word".to_owned()]);
        }
    }
    agent.repaired(device.open(host, live.overlay(), &live.datapath.programs).map_err(|e| text(&e))?);
    if start::firewall_if_needed(live).map_err(|e| text(&e))? {
        agent.repaired(["the nftables rules".to_owned()]);
    }
    let unguarded = underlay::guard(host, &live.datapath.programs, false).map_err(|e| text(&e))?;
    agent.repaired(unguarded.into_iter().map(|device| format!("the program on the underlay device {device}")));
    Ok(())
}

/// What is wrong with the intent itself, though all of it was applied. How the agent stands with etcd changes without a turn:
/// whoever shows problems adds it.
fn standing(agent: &Agent, live: &Live) -> Vec<String> {
    let records = live.records.all();
    let moved = records.iter().filter(|record| !live.is_here(record));
    let moved: Vec<String> =
        moved.map(|record| format!("{}/{} ({})", record.namespace, record.pod, record.ip4())).collect();
    agent.shared.read(|intent, _| {
        let mut problems = Vec::new();
        let lost = live.records.strangers().len();
        if lost > 0 {
            problems.push(format!(
                "the records of {lost} pods are lost (was the --run-dir emptied?): they keep their network; delete them to have \
                 them known again"
            ));
        }
        if !moved.is_empty() {
            let pods = moved.join(", ");
            problems.push(format!("this node has another subnet than when these pods were attached; delete them: {pods}"));
        }
        problems.extend(tenants::misplaced(&records, intent));
        problems.extend(intent.unreadable.iter().map(|(key, error)| format!("{key}: {error}")));
        let own = std::net::IpAddr::V4(live.geometry.node_ip);
        match (&intent.cluster, intent.nodes.get(&own)) {
            (Some(_), Some(node)) if node.host != agent.config.node => problems.push(format!(
                "the ledger gives this node's address {own} to the node {}: two machines with one address? `bulkhead node remove {own}`, \
                 then restart the agent whose address it is",
                node.host
            )),
            (Some(cluster), Some(node)) => {
                if cluster.networks.block_of(node.subnets) != Ok(live.geometry.local_block)
                    || cluster.networks.pools().next() != live.networks.pools().next()
                {
                    problems.push("the ledger gives this node another subnet than its pods have; drain the node and restart the agent".into());
                }
            }
            (_, None) => problems.push("the ledger has no subnet for this node any more; its pods keep their addresses, other nodes do not reach them".into()),
            (None, _) => problems.push("the ledger has no cluster entry".into()),
        }
        problems
    })
}
