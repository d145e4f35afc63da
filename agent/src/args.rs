//! The agent's flags, parsed once into a valid [`Config`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::NodeName;
use bulkhead_core::keys::{PrefixError, check_prefix};
use bulkhead_core::name::NameError;
use bulkhead_store::Settings;
use bulkhead_store::args::{ArgsError, EtcdArgs};
use clap::{Parser, ValueEnum};
use thiserror::Error;

use crate::node::cni_binary::CniBinary;
use crate::node::cni_conf::Chained;

/// Why the flags cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The etcd flags.
    #[error(transparent)]
    Etcd(#[from] ArgsError),
    /// `--etcd-prefix`.
    #[error("--etcd-prefix: {0}")]
    Prefix(#[from] PrefixError),
    /// `--node-name`.
    #[error("--node-name: {0}")]
    Name(#[from] NameError),
    /// `--node-ip`.
    #[error("--node-ip {0} cannot end a tunnel; give the node's own unicast IPv4 address on the underlay")]
    Address(IpAddr),
    /// `--node-ip` is missing and cannot be found.
    #[error("this node has no default route, so its address is not known; give it with --node-ip")]
    NoAddress,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The MTU of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// Worked out from the underlay.
    Auto,
    /// Bytes.
    Fixed(u32),
}

fn parse_mtu(text: &str) -> Result<Mtu, String> {
    if text == "auto" {
        return Ok(Mtu::Auto);
    }
    let bytes = text.parse().ok().filter(|bytes| (576..=65_485).contains(bytes));
    bytes.map(Mtu::Fixed).ok_or_else(|| "give `auto` or bytes from 576 to 65485".into())
}

/// Where HTTP is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At this address.
    At(SocketAddr),
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    text.parse().map(Listen::At).map_err(|_| "give `off` or address and port, such as 127.0.0.1:9470".into())
}

/// Where the API server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAccess {
    /// By this pod's service account.
    InCluster,
    /// By a kubeconfig file.
    File(PathBuf),
}

/// Bulkhead's node agent: programs tunnels, isolation and rate limits
#[derive(Debug, Parser)]
#[command(name = "bulkhead-agent", version)]
pub struct Args {
    #[command(flatten)]
    etcd: EtcdArgs,
    /// This node's name [default: the host name]
    #[arg(long, env = "BULKHEAD_NODE_NAME")]
    node_name: Option<String>,
    /// This node's address on the underlay, at which tunnels end [default: the source of the default route]
    #[arg(long, env = "BULKHEAD_NODE_IP")]
    node_ip: Option<IpAddr>,
    /// Ask for this machine's subnet itself: an external machine, or a node without Kubernetes
    #[arg(long, env = "BULKHEAD_REGISTER")]
    register: bool,
    /// Folder of the socket, the spool and the pods' records; belongs on a tmpfs
    #[arg(long, env = "BULKHEAD_RUN_DIR", default_value = "/run/bulkhead")]
    run_dir: PathBuf,
    /// Folder of the state that outlives a reboot
    #[arg(long, env = "BULKHEAD_STATE_DIR", default_value = "/var/lib/bulkhead")]
    state_dir: PathBuf,
    /// Folder of the pinned maps, on a BPF file system
    #[arg(long, env = "BULKHEAD_BPF_DIR", default_value = "/sys/fs/bpf/bulkhead")]
    bpf_dir: PathBuf,
    /// UDP port of VXLAN, the same on all nodes
    #[arg(long, env = "BULKHEAD_VXLAN_PORT", default_value_t = 4789, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
    /// MTU of pods: `auto` (the underlay's less 50) or bytes
    #[arg(long, env = "BULKHEAD_MTU", default_value = "auto", value_parser = parse_mtu)]
    mtu: Mtu,
    /// Folder into which the CNI config is written when the node is ready, and removed from on `--uninstall`
    #[arg(long, env = "BULKHEAD_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder of the runtime's CNI plugins, as this process sees it: chained ones are looked for there, and `--uninstall` removes
    /// `bulkhead-cni` from it
    #[arg(long, env = "BULKHEAD_CNI_BIN_DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// Plugins that run behind `bulkhead-cni`, if their binaries are in --cni-bin-dir; `portmap` makes hostPort work
    #[arg(long, env = "BULKHEAD_CNI_CHAIN", value_enum, value_delimiter = ',', requires = "cni_bin_dir")]
    cni_chain: Vec<Chained>,
    /// Address and port of /healthz, /readyz and /metrics, or `off`
    #[arg(long, env = "BULKHEAD_LISTEN", default_value = "127.0.0.1:9470", value_parser = parse_listen)]
    listen: Listen,
    /// Watch this node's pods at the Kubernetes API server: limits change with their annotations
    #[arg(long, env = "BULKHEAD_KUBERNETES")]
    kubernetes: bool,
    /// Kubeconfig for --kubernetes [default: this pod's service account]
    #[arg(long, env = "BULKHEAD_KUBECONFIG", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// Seconds for which a freed address is not given to another pod
    #[arg(long, env = "BULKHEAD_ADDRESS_REST", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    address_rest: u64,
    /// Seconds between two repairs of what others may have broken
    #[arg(long, env = "BULKHEAD_RESYNC", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    resync: u64,
    /// The kernel's BTF; elsewhere only where a test plays a kernel without it
    #[arg(long, env = "BULKHEAD_KERNEL_BTF", default_value = crate::preflight::BTF, hide = true)]
    kernel_btf: PathBuf,
    /// Remove everything of Bulkhead from this node's kernel and its folders, and end; stop the agent first
    #[arg(long)]
    uninstall: bool,
    /// Copy the plugin `bulkhead-cni` into this folder, and end: the first step on a node
    #[arg(long, value_name = "DIR", conflicts_with = "uninstall")]
    install_cni: Option<PathBuf>,
    /// The plugin to copy [default: the one beside this program]
    #[arg(long, value_name = "PATH", requires = "install_cni")]
    cni_binary: Option<PathBuf>,
    /// Log filter, such as `info` or `bulkhead_agent=debug`
    #[arg(long, env = "BULKHEAD_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Log format
    #[arg(long, env = "BULKHEAD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// What the agent runs by. One that exists is valid.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach etcd.
    pub etcd: Settings,
    /// Prefix of all keys.
    pub prefix: String,
    /// This node's name.
    pub node: NodeName,
    /// This node's underlay address as it was given; the ledger may have the node at another one of its addresses. None if
    /// it is no IPv4 address.
    pub node_ip: Option<Ipv4Addr>,
    /// The address under which it asks for its own subnet; none if it does not.
    pub register: Option<Ipv4Addr>,
    /// Socket, spool, records.
    pub run_dir: PathBuf,
    /// Cached intent.
    pub state_dir: PathBuf,
    /// Pinned maps.
    pub bpf_dir: PathBuf,
    /// UDP.
    pub vxlan_port: u16,
    /// Of pods.
    pub mtu: Mtu,
    /// Where the CNI config goes.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where the runtime's plugins are.
    pub cni_bin_dir: Option<PathBuf>,
    /// What runs behind our plugin; none without `cni_bin_dir`.
    pub cni_chain: Vec<Chained>,
    /// HTTP.
    pub listen: Listen,
    /// The API server, where this node's pods are watched.
    pub kubernetes: Option<ApiAccess>,
    /// How long a freed address rests.
    pub address_rest: Duration,
    /// Between two resyncs.
    pub resync: Duration,
    /// The kernel's BTF.
    pub kernel_btf: PathBuf,
    /// Remove everything and end.
    pub uninstall: bool,
}

impl Args {
    /// What `--install-cni` asks for; all other flags are without meaning then.
    pub fn install(&self) -> Option<CniBinary> {
        let folder = self.install_cni.clone()?;
        Some(CniBinary { source: self.cni_binary.clone(), folder })
    }

    /// Checks all flags. `default_source` finds the source address of the default route.
    pub fn into_config(self, default_source: impl FnOnce() -> Option<IpAddr>) -> Result<Config, ConfigError> {
        let node_ip = match self.node_ip.or_else(default_source) {
            Some(IpAddr::V4(ip))
                if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() =>
            {
                return Err(ConfigError::Address(ip.into()));
            }
            Some(IpAddr::V4(ip)) => Some(ip),
            // A kubelet may put IPv6 first; who asks for a subnet must say at which address.
            Some(ip) if self.register => return Err(ConfigError::Address(ip)),
            Some(_) => None,
            // An uninstall has no use for the address, and may come when the node has none any more.
            None if self.uninstall => None,
            None => return Err(ConfigError::NoAddress),
        };
        let node = match self.node_name {
            Some(name) => name,
            None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        Ok(Config {
            etcd: self.etcd.settings()?,
            prefix: check_prefix(&self.etcd.etcd_prefix)?.to_owned(),
            node: NodeName::new(node)?,
            node_ip,
            register: node_ip.filter(|_| self.register),
            run_dir: self.run_dir,
            state_dir: self.state_dir,
            bpf_dir: self.bpf_dir,
            vxlan_port: self.vxlan_port,
            mtu: self.mtu,
            cni_conf_dir: self.cni_conf_dir,
            cni_bin_dir: self.cni_bin_dir,
            cni_chain: self.cni_chain,
            listen: self.listen,
            kubernetes: self.kubernetes.then(|| self.kubeconfig.map_or(ApiAccess::InCluster, ApiAccess::File)),
            address_rest: Duration::from_secs(self.address_rest),
            resync: Duration::from_secs(self.resync),
            kernel_btf: self.kernel_btf,
            uninstall: self.uninstall,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let flags = [&["bulkhead-agent", "--node-name", "n1"], flags].concat();
        Args::try_parse_from(flags).unwrap().into_config(|| None)
    }

    #[test]
    fn flags_are_sound_and_make_a_valid_config() {
        Args::command().debug_assert();
        assert_eq!(config(&["--node-ip", "10.0.0.1"]).unwrap().vxlan_port, 4789);
        assert!(matches!(config(&[]), Err(ConfigError::NoAddress)));
        assert!(matches!(config(&["--node-ip", "127.0.0.1"]), Err(ConfigError::Address(_))));
        assert!(matches!(config(&["--node-ip", "fd00::1", "--register"]), Err(ConfigError::Address(_))));
        assert_eq!(config(&["--node-ip", "fd00::1"]).unwrap().node_ip, None, "the ledger says it");
        for bad in [
            ["--mtu", "100"],
            ["--vxlan-port", "0"],
            ["--resync", "0"],
            ["--mtu", "x"],
            ["--listen", "9470"],
            ["--cni-chain", "portmap"],
            ["--kubeconfig", "/k"],
            ["--cni-binary", "/b"],
        ] {
            assert!(Args::try_parse_from([&["bulkhead-agent"], &bad[..]].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn kubernetes_is_off_unless_asked_for() {
        let of = |flags: &[&str]| config(&[&["--node-ip", "10.0.0.1"], flags].concat()).unwrap();
        assert_eq!((of(&[]).kubernetes, of(&[]).cni_chain), (None, vec![]));
        assert_eq!(of(&["--kubernetes"]).kubernetes, Some(ApiAccess::InCluster));
        let file = of(&["--kubernetes", "--kubeconfig", "/k"]).kubernetes;
        assert_eq!(file, Some(ApiAccess::File("/k".into())));
        assert_eq!(of(&["--listen", "off"]).listen, Listen::Off);
        let chained = of(&["--cni-bin-dir", "/opt/cni/bin", "--cni-chain", "portmap"]);
        assert_eq!(chained.cni_chain, [Chained::Portmap]);
    }

    #[test]
    fn an_installation_needs_no_other_flag() {
        let args = Args::try_parse_from(["bulkhead-agent", "--install-cni", "/opt/cni/bin"]).unwrap();
        let asked = args.install().unwrap();
        assert_eq!((asked.folder, asked.source), ("/opt/cni/bin".into(), None));
        assert!(Args::try_parse_from(["bulkhead-agent"]).unwrap().install().is_none());
    }
}
