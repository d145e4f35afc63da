//! The numbers of `/metrics`: CNI calls are counted as they come, everything else is read when it is asked for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_core::cni::Code;
use bulkhead_core::protocol::{AgentStatus, Command};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::datapath::REASONS;
use crate::reconcile::Agent;
use crate::server::status;

/// Bounds of a call's duration, seconds: ADD's budget is 1.5 ms of our own time.
const BOUNDS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    command: &'static str,
    /// CNI's error code; 0: it worked.
    code: u32,
}

/// CNI calls by command and outcome.
#[derive(Debug, Clone)]
pub struct CallMetrics {
    count: Family<CallLabels, Counter>,
    seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        Self { count: Family::default(), seconds: Family::new_with_constructor(|| Histogram::new(BOUNDS)) }
    }
}

impl CallMetrics {
    /// Counts a call. No code: it worked.
    pub fn observe(&self, command: Command, code: Option<Code>, took: Duration) {
        let command = match command {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
        };
        let labels = CallLabels { command, code: code.map_or(0, Code::number) };
        self.count.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// All of them, in `OpenMetrics` text.
pub(super) fn text(agent: &Arc<Agent>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("bulkhead_agent");
    registry.register("cni_calls", "CNI calls; code 0: it worked", agent.calls.count.clone());
    registry.register("cni_call_duration_seconds", "How long CNI calls took", agent.calls.seconds.clone());
    registry.register_collector(Box::new(Node(Arc::clone(agent))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

struct Node(Arc<Agent>);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

impl Node {
    /// Packets and bytes of each reason, those that never occurred too: a series that appears with its first drop hides it.
    fn drops(&self, encoder: &mut DescriptorEncoder<'_>, status: &AgentStatus) -> fmt::Result {
        let Some(live) = self.0.live.get() else { return Ok(()) };
        let help = "Packets that the datapath dropped; docs/drops.md tells what the reasons mean";
        let mut family = encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
        for reason in REASONS {
            let count = status.drops.get(reason.counter).copied().unwrap_or_default();
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason.counter)])?)?;
        }
        let bytes = live.datapath.drops.read().unwrap_or_default();
        let help = "Bytes of the packets that the programs dropped";
        let mut family = encoder.encode_descriptor("dropped_bytes", help, None, MetricType::Counter)?;
        for reason in REASONS {
            let count = bytes.get(reason.counter).map_or(0, |count| count.bytes);
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason.counter)])?)?;
        }
        Ok(())
    }

    fn pods(&self, encoder: &mut DescriptorEncoder<'_>, status: &AgentStatus) -> fmt::Result {
        gauge(encoder, "pods", "Pods attached", status.pods)?;
        gauge(encoder, "free_addresses", "Addresses of this node's subnet that are free", status.free_addresses)?;
        let records = self.0.live.get().map(|live| live.records.all()).unwrap_or_default();
        let (ingress, egress) = records.iter().fold((0_i64, 0_i64), |(ingress, egress), record| {
            let limits = record.limits;
            (ingress + i64::from(limits.ingress.is_some()), egress + i64::from(limits.egress.is_some()))
        });
        let help = "Pods with a bandwidth limit; each egress limit has a policer behind its shaper";
        let mut family = encoder.encode_descriptor("limited_pods", help, None, MetricType::Gauge)?;
        for (direction, count) in [("ingress", ingress), ("egress", egress)] {
            ConstGauge::new(count).encode(family.encode_family(&[("direction", direction)])?)?;
        }
        Ok(())
    }
}

impl Collector for Node {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let agent = &self.0;
        let status = status::agent(agent);
        let encoder = &mut encoder;
        let about = [("version", status.version.as_str()), ("node", &status.node), ("mode", &status.mode)];
        let info = encoder.encode_descriptor("build", "What runs here", None, MetricType::Info)?;
        encode_info(info, &about)?;
        let ready = agent.is_ready() && agent.is_announced();
        gauge(encoder, "ready", "Whether this node takes pods", ready.into())?;
        gauge(encoder, "problems", "Things that bulkhead agent status complains of", status.problems.len() as u64)?;
        self.pods(encoder, &status)?;
        gauge(encoder, "namespaces", "Namespaces known", status.namespaces)?;
        gauge(encoder, "nodes", "Nodes known, this one included", status.nodes)?;
        gauge(encoder, "etcd_connected", "Whether etcd answers", status.etcd_connected.into())?;
        gauge(encoder, "etcd_silent_seconds", "Seconds since etcd was last heard", status.etcd_silent_seconds)?;
        let revision = u64::try_from(status.revision).unwrap_or_default();
        gauge(encoder, "ledger_revision", "The revision of etcd that the node's state is of", revision)?;
        gauge(encoder, "ledger_epoch", "The ledger's epoch", status.epoch)?;
        counter(encoder, "repairs", "What resyncs had to repair", agent.repaired.load(Ordering::Relaxed))?;
        if agent.config.kubernetes.is_some() {
            let connected = agent.api.is_complete();
            gauge(encoder, "api_connected", "Whether the API server tells this node's pods", connected.into())?;
        }
        self.drops(encoder, &status)
    }
}

fn encode_info(
    mut encoder: prometheus_client::encoding::MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
) -> fmt::Result {
    encoder.encode_info(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_command_and_code() {
        let calls = CallMetrics::default();
        calls.observe(Command::Add, None, Duration::from_millis(3));
        calls.observe(Command::Add, Some(Code::AddressPoolFull), Duration::from_millis(1));
        let mut registry = Registry::default();
        registry.register("calls", "n", calls.count.clone());
        registry.register("seconds", "n", calls.seconds);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains(r#"calls_total{command="ADD",code="0"} 1"#), "{text}");
        assert!(text.contains(r#"calls_total{command="ADD",code="101"} 1"#), "{text}");
        assert!(text.contains(r#"seconds_bucket{le="0.005",command="ADD",code="0"} 1"#), "{text}");
    }
}
