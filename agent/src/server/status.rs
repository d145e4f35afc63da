//! What the command line asks: this node's pods, and how the agent is.

use std::time::Instant;

use bulkhead_core::protocol::{AgentStatus, PodStatus, Reply};
use bulkhead_core::{Bandwidth, Mode};

use crate::live::locked;
use crate::node::firewall::Firewall;
use crate::pods::Record;
use crate::reconcile::Agent;

/// The pods, by namespace and name.
pub(super) fn pods(agent: &Agent) -> Reply {
    let records = agent.live.get().map(|live| live.records.all()).unwrap_or_default();
    let mut pods: Vec<PodStatus> = records.iter().map(|record| pod(agent, record)).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.pod, &a.container_id).cmp(&(&b.namespace, &b.pod, &b.container_id)));
    Reply::Pods(pods)
}

fn pod(agent: &Agent, record: &Record) -> PodStatus {
    let tenant = agent.shared.read(|intent, _| intent.namespaces.get(&record.namespace).cloned());
    PodStatus {
        pod: record.pod.clone(),
        namespace: record.namespace.to_string(),
        container_id: record.id.container_id().to_owned(),
        interface: record.id.interface().to_owned(),
        host_interface: record.host_interface(),
        addresses: record.addresses.clone(),
        vni: record.vni,
        net_id: tenant.filter(|tenant| tenant.vni.get() == record.vni).map(|tenant| tenant.net_id.get()),
        ingress_bandwidth: record.limits.ingress.map(Bandwidth::bits),
        egress_bandwidth: record.limits.egress.map(Bandwidth::bits),
    }
}

/// How the agent is.
pub fn agent(agent: &Agent) -> AgentStatus {
    let own = agent.live.get().map(|live| live.geometry.node_ip).or(agent.config.node_ip);
    let mut status = AgentStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: agent.config.node.to_string(),
        host_ip: own.map(|ip| ip.to_string()).unwrap_or_default(),
        ready: agent.is_ready(),
        problems: agent.all_problems(),
        repairs: locked(&agent.repairs).iter().cloned().collect(),
        ..AgentStatus::default()
    };
    agent.shared.read(|intent, connection| {
        status.etcd_connected = connection.connected;
        status.etcd_silent_seconds = match connection.heard {
            _ if connection.connected => 0,
            Some(heard) => Instant::now().saturating_duration_since(heard).as_secs(),
            None => 0,
        };
        status.revision = intent.revision;
        status.epoch = intent.epoch();
        status.namespaces = intent.namespaces.len() as u64;
        status.nodes = intent.nodes.len() as u64;
        let mode = match intent.cluster.as_ref().map(|cluster| cluster.mode) {
            Some(Mode::Multitenant) => "multitenant",
            Some(Mode::Flat) => "flat",
            None => "",
        };
        mode.clone_into(&mut status.mode);
        if let Some(node) = own.and_then(|ip| intent.nodes.get(&std::net::IpAddr::V4(ip))) {
            status.subnets = node.subnets.iter().map(|subnet| subnet.to_string()).collect();
        }
        for problem in connection.problems() {
            if !status.problems.contains(problem) {
                status.problems.push(problem.clone());
            }
        }
    });
    status.problems.extend(agent.api.problem());
    if let Some(live) = agent.live.get() {
        let (pods, free) = live.records.counts();
        (status.pods, status.free_addresses, status.mtu) = (pods as u64, free.into(), live.geometry.mtu);
        status.problems.extend(live.records.problems());
        match live.datapath.drops.read() {
            Ok(drops) => status.drops = drops.iter().map(|(name, count)| ((*name).to_owned(), count.packets)).collect(),
            Err(error) => status.problems.push(error.to_string()),
        }
        // Two reasons have their counters in the host's stack: VXLAN by way of a service.
        let translated = Firewall::dropped();
        if translated > 0 {
            *status.drops.entry("pod-vxlan".to_owned()).or_default() += translated;
        }
    }
    status
}
