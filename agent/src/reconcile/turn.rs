//! The reconciler's loop.

use std::time::{Duration, Instant};

use super::pace::{Pace, Scope};
use super::{Agent, apply_namespaces, pods, start, tenants};
use crate::datapath::abi::{Port, StateValue};
use crate::kernel::Netlink;
use crate::live::{Live, locked};
use crate::node::firewall::Firewall;
use crate::node::overlay;
use crate::node::{cni_conf, underlay};
use crate::server;

/// The longest time without a look at drop events.
const EVENTS: Duration = Duration::from_secs(1);

/// Works until the process ends. `ready` is called once, when the node takes pods.
pub fn run(agent: &Agent, ready: impl FnOnce()) {
    take_up(agent);
    let Some(live) = agent.live.get() else { return };
    ready();
    let mut seen = 0;
    let mut applied = None;
    let mut pace = Pace::new(agent.config.resync, Instant::now());
    loop {
        let generation = agent.shared.wait_past(seen, pace.next().min(Instant::now() + EVENTS));
        let changed = (generation > seen).then_some(Scope::Changes);
        if let Some(scope) = changed.max(pace.due(Instant::now())) {
            let outcome = turn(agent, live, &mut applied, scope == Scope::Resync);
            *locked(&agent.problems) = outcome.problems;
            pace.made(scope, outcome.failed, Instant::now());
            seen = generation;
        }
        for event in live.datapath.drops.take_events(100) {
            event.log();
        }
    }
}

/// Tries to take the node up until it works; each reason is said once.
fn take_up(agent: &Agent) {
    let mut seen = 0;
    let mut said = String::new();
    loop {
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
                let text = error.to_string();
                if text != said {
                    tracing::warn!("the node cannot take pods: {text}");
                    said.clone_from(&text);
                }
                *locked(&agent.problems) = vec![text];
            }
        }
        seen = agent.shared.wait_past(seen, Instant::now() + Duration::from_secs(2));
    }
}

/// Tells the runtime that this node takes pods.
fn announce(agent: &Agent) -> Result<(), String> {
    let config = &agent.config;
    let Some(folder) = &config.cni_conf_dir else { return Ok(()) };
    match cni_conf::write(folder, &server::socket_path(&config.run_dir), &server::spool_path(&config.run_dir)) {
        Ok(true) => tracing::info!(folder = %folder.display(), "the CNI config is in place"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!("{error}");
            return Err(error.to_string());
        }
    }
    Ok(())
}

/// What a turn came to.
struct Outcome {
    /// What is wrong, for a person.
    problems: Vec<String>,
    /// Whether something of it could not be applied; a standing problem is none such.
    failed: bool,
}

/// One turn. `applied` is what the last one made of the nodes: unless that changed, only a resync walks the maps and
/// routes, which with thousands of nodes is the dear part.
fn turn(agent: &Agent, live: &Live, applied: &mut Option<tenants::Nodes>, resync: bool) -> Outcome {
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
        }
        problems.extend(routes(agent, live, host, &nodes, resync).err());
    }
    if first || resync {
        problems.extend(announce(agent).err());
    }
    let failed = !problems.is_empty();
    problems.extend(nodes.unusable.iter().cloned());
    *applied = (!failed).then_some(nodes);
    if first || resync {
        *locked(&agent.foreign) = Firewall::foreign_drops();
    }
    problems.extend(locked(&agent.foreign).iter().cloned());
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
        problems.extend(tenants::orphaned(&records, intent));
        problems.extend(intent.unreadable.iter().map(|(key, error)| format!("{key}: {error}")));
        let own = std::net::IpAddr::V4(agent.config.node_ip);
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
