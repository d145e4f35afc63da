//! `bulkhead-kubernetes-lab`: a real Kubernetes on this machine, its nodes network namespaces.

mod critest;
mod demo;
mod e2e;
mod inside;
mod up;

use std::process::ExitCode;

use bulkhead_kubernetes_tests::cluster::ClusterBuilder;
use bulkhead_kubernetes_tests::{Cluster, Network, ProxyMode, bulkhead, conformance, shipped};
use bulkhead_tests::{LabError, registry, signals, standing};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// A Kubernetes cluster on this machine: nodes are network namespaces, all programs are real. Needs root.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a cluster and leaves it up until Ctrl-C or `down`. It has Bulkhead only with `--network bulkhead`.
    Up(Shape),
    /// Installs Bulkhead on a new cluster, joins two tenants and parts them, under traffic.
    Demo,
    /// Runs the upstream tests on a cluster of their own, and says how they ended.
    E2e {
        #[command(flatten)]
        shape: Shape,
        /// Specs whose names match this.
        #[arg(long, default_value = conformance::SIG_NETWORK)]
        focus: String,
        /// But not these.
        #[arg(long)]
        skip: Option<String>,
        /// Where all that they say goes.
        #[arg(long, default_value = "e2e.log")]
        log: std::path::PathBuf,
    },
    /// Runs the upstream tests of a container runtime on a cluster of their own, and says how they ended.
    Critest {
        /// The program that tests/kubernetes/critest/build.sh makes.
        program: std::path::PathBuf,
        /// Specs whose names match this.
        #[arg(long, default_value = "Networking")]
        focus: String,
        /// What connects the pods.
        #[arg(long, value_enum, default_value_t = Connect::Bulkhead)]
        network: Connect,
    },
    /// Runs kubectl on the cluster that is up, as an administrator.
    Kubectl {
        /// kubectl's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs a program on a node (`control`, `n1`, ...) of the cluster that is up, or on `infra` or `outside`.
    Exec {
        /// Where.
        name: String,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Writes the image as it is shipped, made of static binaries; refuses one of more than 60 MB. Needs no lab and no root.
    Image {
        /// Where the binaries are.
        #[arg(long)]
        binaries: std::path::PathBuf,
        /// What they were built of, as git names it.
        #[arg(long)]
        revision: String,
        /// The OCI archive.
        #[arg(long)]
        out: std::path::PathBuf,
    },
    /// Ends the labs that are up.
    Down,
    /// Removes what labs left whose process was killed.
    Sweep,
}

#[derive(Debug, Args)]
struct Shape {
    /// How many worker nodes, beside the control plane's.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// kube-proxy's mode.
    #[arg(long, value_enum, default_value_t = Proxy::Iptables)]
    proxy: Proxy,
    /// What connects the pods; without a network, nodes stay `NotReady` until you install one.
    #[arg(long, value_enum, default_value_t = Connect::Reference)]
    network: Connect,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Proxy {
    Iptables,
    Nftables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Connect {
    /// The reference bridge plugin and static routes.
    Reference,
    /// Bulkhead, from this tree's chart and binaries.
    Bulkhead,
    /// Nothing.
    None,
}

impl Shape {
    fn builder(&self) -> ClusterBuilder {
        let proxy = match self.proxy {
            Proxy::Iptables => ProxyMode::Iptables,
            Proxy::Nftables => ProxyMode::Nftables,
        };
        let network = match self.network {
            Connect::Reference => Network::Reference,
            Connect::Bulkhead | Connect::None => Network::None,
        };
        Cluster::builder().workers(self.nodes).proxy(proxy).network(network)
    }

    fn start(&self) -> Result<Cluster, LabError> {
        let cluster = self.builder().start()?;
        if self.network == Connect::Bulkhead {
            let begin = std::time::Instant::now();
            bulkhead::install(&cluster, &[])?;
            println!("Bulkhead is installed after {:.1} s more", begin.elapsed().as_secs_f64());
        }
        Ok(cluster)
    }
}

fn image(binaries: &std::path::Path, revision: &str, out: &std::path::Path) -> Result<ExitCode, LabError> {
    let size = shipped::write(binaries, revision, out)?;
    println!("{}: {size} bytes, {} of revision {revision}", out.display(), bulkhead::IMAGE);
    Ok(ExitCode::SUCCESS)
}

fn down() -> Result<ExitCode, LabError> {
    for id in standing::down(None)? {
        println!("lab {} is down", id.number());
    }
    sweep()
}

fn sweep() -> Result<ExitCode, LabError> {
    for id in registry::sweep()? {
        println!("removed what was left of lab {}", id.number());
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Up(shape) => shape.start().and_then(up::up),
        Verb::E2e { shape, focus, skip, log } => {
            shape.start().and_then(|cluster| e2e::run(&cluster, &focus, skip.as_deref(), &log))
        }
        Verb::Critest { program, focus, network } => Shape { nodes: 1, proxy: Proxy::Iptables, network }
            .start()
            .and_then(|cluster| critest::run(&cluster, &program, &focus)),
        Verb::Demo => Cluster::builder().start().and_then(|cluster| {
            signals::remove_on_signal(cluster.id())?;
            demo::show(&cluster)
        }),
        Verb::Kubectl { arguments } => inside::kubectl(&arguments),
        Verb::Exec { name, command } => inside::exec(&name, &command),
        Verb::Image { binaries, revision, out } => image(&binaries, &revision, &out),
        Verb::Down => down(),
        Verb::Sweep => sweep(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("bulkhead-kubernetes-lab: {error}");
        ExitCode::FAILURE
    })
}
