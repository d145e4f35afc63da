//! The command line: one struct per verb group, checked by types as far as they can.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_core::protocol::DEFAULT_SOCKET;
use bulkhead_core::{Mode, Namespace, NetId, NodeName};
use bulkhead_store::args::EtcdArgs;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::certs::CertsArgs;
use crate::etcd::{ConfigureArgs, SetupArgs};
use crate::kubernetes::KubernetesArgs;

/// Administers Bulkhead, the tenant network for Kubernetes
///
/// Every namespace is a network of its own. `bulkhead tenant join` connects namespaces, `isolate` parts them again,
/// `global` opens one to all. Changes are written to etcd, or with --kubernetes as annotations, and carried out by the leading
/// bulkhead-controller; the command waits for that, and takes back what was refused. Called as kubectl-bulkhead it is
/// `kubectl bulkhead` and means --kubernetes.
///
/// Exit codes: 0 done, 1 refused or failed, 2 usage.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// How results are printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Everywhere")]
    pub output: Format,
    /// Where the agent of this node listens
    #[arg(long, env = "BULKHEAD_AGENT_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET, help_heading = "Everywhere")]
    pub agent_socket: PathBuf,
    /// Which etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// Which Kubernetes, if any.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The whole command: its flags may stand before or after the verb. `plugin`: it is called as kubectl's.
pub fn command(plugin: bool) -> clap::Command {
    let command = if plugin { Cli::command().bin_name("kubectl bulkhead") } else { Cli::command() };
    // The short help of every verb would be mostly of etcd and the socket otherwise.
    command.mut_args(|arg| {
        let hidden = arg.get_id() != "output";
        arg.global(true).hide_short_help(hidden)
    })
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs; the fields are stable
    Json,
}

/// The verb groups.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Namespaces as tenant networks: list, create, join, isolate
    #[command(subcommand)]
    Tenant(TenantVerb),
    /// Nodes and external machines with their subnets
    #[command(subcommand)]
    Node(NodeVerb),
    /// The cluster's configuration in etcd
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Save the cluster's keys in etcd as a file
    ///
    /// JSON, all of one revision. `bulkhead restore FILE` writes them back.
    Backup {
        /// The file; - for stdout
        file: PathBuf,
    },
    /// After etcd was restored from a snapshot or replaced: let the agents believe it again; with a file, put a backup back
    ///
    /// An etcd that goes back in time has forgotten numbers that pods still carry, so agents keep their last state until
    /// the ledger's epoch rises. The leading controller raises it by itself when it saw the break; where it was started
    /// afterwards, or etcd had passed the old revision already, this tells it to. It raises the epoch and passes by the
    /// next 1048576 VNIs, so that those given out after the snapshot are not given out again. Namespaces and nodes that
    /// the snapshot has keep their numbers and subnets. On a healthy cluster it does no harm but use numbers up.
    ///
    /// With a file of `bulkhead backup`, its keys are written first. Stop all controllers before; when they are started again, the
    /// leader raises the epoch before anything else.
    Restore {
        /// A backup to put back; - for stdin
        file: Option<PathBuf>,
        /// Replace what is below the prefix by the backup
        #[arg(long, requires = "file")]
        force: bool,
        /// Do not ask on a terminal
        #[arg(short, long)]
        yes: bool,
        /// Raise the epoch above this one, which an agent has seen (`bulkhead agent status`)
        #[arg(long, value_name = "EPOCH", conflicts_with = "file")]
        above: Option<u64>,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove every key of the cluster from etcd, once nothing of it runs
    ///
    /// Stop all controllers before, and agents on external machines.
    Purge {
        /// Do not ask on a terminal
        #[arg(short, long)]
        yes: bool,
    },
    /// Pods of this node, as its agent knows them
    #[command(subcommand)]
    Pod(PodVerb),
    /// The agent of this node
    #[command(subcommand)]
    Agent(AgentVerb),
    /// Make the certificates of an etcd with mutual TLS
    ///
    /// One authority signs `server` (etcd towards clients), `peer` (members among themselves) and one certificate for each client.
    Certs(CertsArgs),
    /// The etcd that the chart brings along
    #[command(subcommand)]
    Etcd(EtcdVerb),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What can be done to the bundled etcd.
#[derive(Debug, Subcommand)]
pub enum EtcdVerb {
    /// Choose the members' nodes and make their certificates; later, bring the members in line with the nodes that there are
    ///
    /// The chart's Job does so. It labels the nodes, and writes the config map bulkhead-etcd and the Secrets bulkhead-etcd-ca,
    /// -server, -peer and -client. A member stays on its node as long as there is a Node of that name; one whose Node was deleted
    /// moves to another one, without a moment in which etcd has no quorum. Fewer members than wanted become more.
    Setup(SetupArgs),
    /// Write the config file with which this node's member starts
    ///
    /// The member's pod does so before etcd starts. A member that has lost its data is taken in anew; it waits while the others
    /// do not answer.
    Configure(ConfigureArgs),
    /// Remove a member's data from this node: the last step of an uninstall
    RemoveData {
        /// The folder (the chart's etcd.bundled.dataDir)
        folder: PathBuf,
    },
}

/// Whether and how long to wait for the controller.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Do not wait for the controller's answer
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for it, such as 500ms, 10s or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, conflicts_with = "no_wait")]
    pub timeout: Duration,
}

/// What can be done to tenants.
#[derive(Debug, Subcommand)]
pub enum TenantVerb {
    /// List all namespaces with their networks
    #[command(visible_alias = "ls")]
    List {
        /// Only those with these labels, in Kubernetes
        #[arg(short = 'l', long, value_name = "LABEL=VALUE,...")]
        selector: Option<String>,
    },
    /// Show one namespace and who shares its network
    Show {
        /// The namespace
        namespace: Namespace,
    },
    /// Create a namespace (where Kubernetes does not)
    Create {
        /// Its name
        namespace: Namespace,
        /// Open it to all from birth
        #[arg(long, conflicts_with = "net_id")]
        global: bool,
        /// Ask for this free number, 10 to 16777215
        #[arg(long, value_name = "NUMBER", value_parser = own_net_id)]
        net_id: Option<NetId>,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete namespaces (where Kubernetes does not); pods that still run reach global ones only
    #[command(visible_alias = "rm")]
    Delete {
        /// The namespaces
        #[arg(required = true)]
        namespaces: Vec<Namespace>,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Move namespaces into the network of another one, all at once
    ///
    /// In etcd the target's network at this moment is joined: a target that later leaves it does not take the others along. In
    /// Kubernetes the annotation is written, which holds: they follow the target.
    Join {
        /// Which.
        #[command(flatten)]
        those: Those,
        /// The namespace whose network they join
        #[arg(long, value_name = "NAMESPACE")]
        to: Namespace,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Give each namespace a network of its own again
    Isolate {
        /// Which.
        #[command(flatten)]
        those: Those,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Open namespaces to all others
    Global {
        /// Which.
        #[command(flatten)]
        those: Those,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
}

/// Several namespaces.
#[derive(Debug, Clone, Args)]
pub struct Those {
    /// The namespaces
    #[arg(required_unless_present = "selector", conflicts_with = "selector")]
    pub namespaces: Vec<Namespace>,
    /// Those with these labels, in Kubernetes
    #[arg(short = 'l', long, value_name = "LABEL=VALUE,...")]
    pub selector: Option<String>,
}

/// What can be done to nodes.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// List nodes and external machines with their subnets
    #[command(visible_alias = "ls")]
    List,
    /// Show one node
    Show {
        /// Its name or address
        #[arg(value_name = "HOST|IP")]
        node: String,
    },
    /// Give a machine outside the cluster a subnet, so that it reaches pods directly
    AddExternal {
        /// Its name
        host: NodeName,
        /// Its address, at which tunnels end
        #[arg(long, value_name = "ADDRESS", value_parser = host_ip)]
        ip: IpAddr,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
    /// Release a node's subnet, at once; only for nodes that are gone: one that lives is cut off from the others
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name or address
        #[arg(value_name = "HOST|IP")]
        node: String,
        /// Do not ask on a terminal; needed where there is none
        #[arg(short, long)]
        yes: bool,
        /// How to wait.
        #[command(flatten)]
        wait: Wait,
    },
}

/// What can be done to the config.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Write the cluster's configuration; one that exists is never overwritten
    Init {
        /// The cluster's name, a part of every key
        #[arg(long)]
        name: String,
        /// The pods' network; for dual-stack one of each family, separated by a comma
        #[arg(long, value_name = "CIDR")]
        network: String,
        /// Host bits of one node's subnet: 10 gives each node a /22
        #[arg(long, value_name = "BITS", default_value_t = 10)]
        host_subnet_length: u64,
        /// The services' network, as the API server has it
        #[arg(long, value_name = "CIDR", default_value = "", hide_default_value = true)]
        service_network: String,
        /// Whether namespaces are kept apart
        #[arg(long, value_enum, default_value_t)]
        mode: ModeName,
    },
    /// Show the configuration and what holds of it
    Show,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ModeName {
    /// Each namespace is a network of its own
    #[default]
    Multitenant,
    /// One network for all
    Flat,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Multitenant => Self::Multitenant,
            ModeName::Flat => Self::Flat,
        }
    }
}

/// What can be asked about pods.
#[derive(Debug, Subcommand)]
pub enum PodVerb {
    /// List the pods of this node
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this namespace
        #[arg(short, long)]
        namespace: Option<Namespace>,
    },
}

/// What can be asked about the agent.
#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Show how the agent is; fails unless it is ready
    Status,
}

pub fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let total = number.parse::<u64>().ok().zip(milliseconds).and_then(|(number, unit)| number.checked_mul(unit));
    total
        .filter(|total| (1..=3_600_000).contains(total))
        .map(Duration::from_millis)
        .ok_or_else(|| "write a time such as 500ms, 10s or 2m, at most 60m".to_owned())
}

fn own_net_id(text: &str) -> Result<NetId, String> {
    let number: u64 = text.parse().map_err(|_| "use a number from 10 to 16777215".to_owned())?;
    let narrow = u32::try_from(number).map_err(|_| "the largest number is 16777215".to_owned())?;
    match NetId::new(narrow) {
        Ok(NetId::GLOBAL) => Err("0 is the global network: use --global".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

fn host_ip(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| "write an address such as 10.0.0.9".to_owned())?;
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err("a tunnel cannot end at this address; use one of the machine's own".to_owned());
    }
    Ok(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command(false).debug_assert();
        command(true).debug_assert();
    }

    #[test]
    fn times_and_numbers_are_bounded() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "0s", "-1s", "1h", "s", "61m", "99999999999999999999s", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(own_net_id("300924").map(NetId::get), Ok(300_924));
        for bad in ["0", "9", "16777216", "4294967306", "x"] {
            assert!(own_net_id(bad).is_err(), "{bad}");
        }
        for bad in ["0.0.0.0", "127.0.0.1", "::1", "224.0.0.1", "host"] {
            assert!(host_ip(bad).is_err(), "{bad}");
        }
    }
}
