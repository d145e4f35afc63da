//! `bulkhead-lab`: a cluster on this machine, its nodes network namespaces, its etcd and its binaries real.

mod demo;
mod run;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Bulkhead cluster on this machine: nodes are network namespaces, etcd and all binaries are real. Needs root.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a lab and leaves it up until Ctrl-C or `down`.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
        nodes: u8,
    },
    /// Shows join, isolate, global and a rate limit under running traffic, in less than a minute; leaves nothing behind.
    Demo,
    /// Ends the labs that `up` started.
    Down {
        /// This one only, by its number.
        #[arg(long)]
        lab: Option<u8>,
    },
    /// Removes what labs left whose process was killed.
    Sweep,
    /// Runs a program inside a node or pod of the running lab; without a name, lists them.
    Exec {
        /// In this lab, by its number, if several are up.
        #[arg(long)]
        lab: Option<u8>,
        /// A node (`n1`), a pod (`a/web`), `infra` or `outside`.
        name: Option<String>,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Up { nodes } => up::up(nodes).map(|()| ExitCode::SUCCESS),
        Verb::Demo => demo::demo(),
        Verb::Down { lab } => run::down(lab),
        Verb::Sweep => run::sweep(),
        Verb::Exec { lab, name, command } => run::exec(lab, name.as_deref(), &command),
    };
    done.unwrap_or_else(|error| {
        eprintln!("bulkhead-lab: {error}");
        ExitCode::FAILURE
    })
}
