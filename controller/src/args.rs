//! The flags, parsed once into validated options.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::keys::check_prefix;
use bulkhead_core::network::parse_network;
use bulkhead_core::record::ConfigRecord;
use bulkhead_core::{ClusterConfig, Mode, Namespace};
use bulkhead_store::args::EtcdArgs;
use clap::{Args, Parser, ValueEnum};

use crate::kubernetes::KubernetesOptions;
use crate::plan::Policy;
use crate::run::Options;

/// Gives out VNIs and node subnets and carries tenant actions out, one leader at a time
#[derive(Debug, Parser)]
#[command(name = "bulkhead-controller", version, about)]
pub struct ControllerArgs {
    /// Where etcd is.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// How this controller is known [default: host name and process id]
    #[arg(long, env = "BULKHEAD_IDENTITY", value_name = "NAME", value_parser = parse_identity)]
    pub identity: Option<String>,
    /// Seconds that etcd keeps the lead for a leader that it does not hear of, 2 to 60
    #[arg(long, env = "BULKHEAD_LEASE_TTL", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=60))]
    pub lease_ttl: u64,
    /// Namespaces that are global at birth, separated by commas; empty for none
    #[arg(long, env = "BULKHEAD_GLOBAL_NAMESPACES", value_name = "NAME,...", default_value = "kube-system")]
    pub global_namespaces: String,
    /// Folder that keeps what was seen of etcd's history, so that a restore of etcd is noticed across a restart; empty for none
    #[arg(
        long,
        env = "BULKHEAD_CONTROLLER_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/bulkhead-controller"
    )]
    pub state_dir: OsString,
    /// Where health and metrics are served [default: 127.0.0.1:9471, if it is free]
    #[arg(long, env = "BULKHEAD_CONTROLLER_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Form of the log
    #[arg(long, env = "BULKHEAD_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged: a level, or levels by module as in `info,bulkhead_store=debug`
    #[arg(long, env = "BULKHEAD_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    // What is flattened with a heading comes last: the heading would be that of the flags behind it as well.
    /// Kubernetes.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// The config to create.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Whether namespaces and nodes come from Kubernetes, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Take namespaces and nodes from Kubernetes; without it they come from etcd alone
    #[arg(long, env = "BULKHEAD_KUBERNETES")]
    pub kubernetes: bool,
    /// How to reach the API server [default: the pod's service account]
    #[arg(long, env = "BULKHEAD_KUBECONFIG", value_name = "PATH", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Let a namespace join by annotation only if the target's bulkhead.dev/allow-join-from names it
    #[arg(long, env = "BULKHEAD_REQUIRE_JOIN_CONSENT")]
    pub require_join_consent: bool,
    /// Namespace of the agents' pods, and of what the controller keeps in Kubernetes
    #[arg(long, env = "BULKHEAD_AGENT_NAMESPACE", value_name = "NAME", default_value = "bulkhead-system")]
    pub agent_namespace: String,
    /// Labels of the agents' pods
    #[arg(
        long,
        env = "BULKHEAD_AGENT_SELECTOR",
        value_name = "LABEL=VALUE,...",
        default_value = "app.kubernetes.io/name=bulkhead,app.kubernetes.io/component=agent"
    )]
    pub agent_selector: String,
    /// Seconds for which a subnet is kept for a node that left Kubernetes, 0 to 604800
    #[arg(long, env = "BULKHEAD_NODE_RELEASE_AFTER", value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pub node_release_after: u64,
    /// Networks in CIDR form, separated by commas: an `InternalIP` outside of them is not believed; empty for any
    #[arg(long, env = "BULKHEAD_NODE_NETWORKS", value_name = "CIDR,...", default_value = "")]
    pub node_networks: String,
}

impl KubernetesArgs {
    /// The options; none standalone.
    pub fn options(&self) -> Result<Option<KubernetesOptions>, String> {
        if !self.kubernetes {
            return Ok(None);
        }
        let agent_namespace =
            Namespace::new(self.agent_namespace.as_str()).map_err(|error| format!("--agent-namespace: {error}"))?;
        if self.agent_selector.trim().is_empty() {
            return Err("--agent-selector is empty: name a label that only the agents' pods have".to_owned());
        }
        let networks = self.node_networks.split(',').map(str::trim).filter(|part| !part.is_empty());
        let node_networks = networks.map(parse_network).collect::<Result<_, _>>();
        let node_networks = node_networks.map_err(|error| format!("--node-networks: {error}"))?;
        Ok(Some(KubernetesOptions {
            kubeconfig: self.kubeconfig.clone(),
            agent_namespace: agent_namespace.into(),
            agent_selector: self.agent_selector.clone(),
            node_release_after: Duration::from_secs(self.node_release_after),
            node_networks,
        }))
    }
}

/// Forms of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Values of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Each namespace is a network of its own.
    Multitenant,
    /// One flat network.
    Flat,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Multitenant => Self::Multitenant,
            ModeArg::Flat => Self::Flat,
        }
    }
}

/// The config that is created if etcd has none. One that exists is never overwritten.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Config to create if there is none")]
pub struct ConfigArgs {
    /// Name of the cluster, a segment of its keys
    #[arg(long, env = "BULKHEAD_CLUSTER_NAME", value_name = "NAME", requires = "network")]
    pub cluster_name: Option<String>,
    /// Pods' network in CIDR form; for dual-stack one of each family, separated by a comma
    #[arg(long, env = "BULKHEAD_NETWORK", value_name = "CIDR", requires = "cluster_name")]
    pub network: Option<String>,
    /// Host bits of one node's subnet: 10 gives each node a /22
    #[arg(long, env = "BULKHEAD_HOST_SUBNET_LENGTH", value_name = "BITS", default_value_t = 10)]
    pub host_subnet_length: u64,
    /// Services' network in CIDR form
    #[arg(long, env = "BULKHEAD_SERVICE_NETWORK", value_name = "CIDR", default_value = "")]
    pub service_network: String,
    /// Whether namespaces are kept apart
    #[arg(long, env = "BULKHEAD_MODE", value_enum, default_value = "multitenant")]
    pub mode: ModeArg,
}

impl ConfigArgs {
    /// The record, checked; none without a name and a network.
    fn record(&self) -> Result<Option<ConfigRecord>, String> {
        let (Some(name), Some(network)) = (&self.cluster_name, &self.network) else { return Ok(None) };
        let record = ConfigRecord {
            name: name.clone(),
            network: network.clone(),
            host_subnet_length: self.host_subnet_length,
            service_network: self.service_network.clone(),
            plugin_name: Mode::from(self.mode).plugin_name().to_owned(),
            unknown: serde_json::Map::new(),
        };
        ClusterConfig::try_from(&record).map_err(|error| format!("the config to create: {error}"))?;
        Ok(Some(record))
    }
}

fn parse_identity(text: &str) -> Result<String, String> {
    let sane = !text.is_empty() && text.len() <= 253 && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    sane.then(|| text.to_owned()).ok_or_else(|| "use 1 to 253 characters without white space".to_owned())
}

/// The host's name and the process's id.
fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{}", if host.is_empty() { "controller" } else { host }, std::process::id())
}

impl ControllerArgs {
    /// The options, or what is wrong with a flag.
    pub fn options(&self) -> Result<Options, String> {
        let prefix = check_prefix(&self.etcd.etcd_prefix).map_err(|error| format!("--etcd-prefix: {error}"))?;
        let names = self.global_namespaces.split(',').map(str::trim).filter(|name| !name.is_empty());
        let global_at_birth = names.map(Namespace::new).collect::<Result<_, _>>();
        let global_at_birth = global_at_birth.map_err(|error| format!("--global-namespaces: {error}"))?;
        Ok(Options {
            prefix: prefix.to_owned(),
            identity: self.identity.clone().unwrap_or_else(default_identity),
            lease_ttl: Duration::from_secs(self.lease_ttl),
            policy: Policy { global_at_birth, require_join_consent: self.kubernetes.require_join_consent },
            config: self.config.record()?,
            state_dir: (!self.state_dir.is_empty()).then(|| PathBuf::from(&self.state_dir)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args = ControllerArgs::try_parse_from(std::iter::once(&"bulkhead-controller").chain(args));
        args.map_err(|error| error.to_string())?.options()
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.prefix, bulkhead_core::keys::DEFAULT_PREFIX);
        assert_eq!(options.lease_ttl, Duration::from_secs(10));
        assert_eq!(options.policy.global_at_birth, [Namespace::new("kube-system").unwrap()].into());
        assert!(options.config.is_none() && options.identity.ends_with(&std::process::id().to_string()));
        assert!(parse(&["--global-namespaces", ""]).unwrap().policy.global_at_birth.is_empty());
    }

    #[test]
    fn a_config_is_made_of_name_and_network() {
        let config =
            parse(&["--cluster-name", "k8ssdn", "--network", "172.11.0.0/16", "--mode", "flat"]).unwrap().config;
        assert_eq!(config.unwrap().plugin_name, "k8s-ovs-subnet");
        assert!(parse(&["--network", "172.11.0.0/16"]).is_err());
    }

    #[test]
    fn node_networks_are_a_list() {
        let parse = |text: &str| {
            let args = ["bulkhead-controller", "--kubernetes", "--node-networks", text];
            ControllerArgs::try_parse_from(args)
                .unwrap()
                .kubernetes
                .options()
                .map(|options| options.unwrap().node_networks)
        };
        assert_eq!(parse("10.0.0.0/8, fd00::/64").unwrap().len(), 2);
        assert_eq!(parse("").unwrap(), []);
        assert!(parse("10.0.0.1").unwrap_err().starts_with("--node-networks: "));
    }

    #[test]
    fn a_bad_value_names_itself() {
        for (args, named) in [
            (&["--lease-ttl", "1"][..], "lease-ttl"),
            (&["--lease-ttl", "61"], "lease-ttl"),
            (&["--global-namespaces", "a,B"], "\"B\""),
            (&["--etcd-prefix", "x"], "etcd-prefix"),
            (&["--identity", "a b"], "identity"),
            (&["--cluster-name", "a", "--network", "172.11.5.0/16"], "172.11.5.0/16"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(named), "{args:?}: {error}");
        }
    }
}
