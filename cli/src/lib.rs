//! The `bulkhead` command as a library: parse, carry out, print.
//!
//! Each verb reads the cluster's state at one revision, refuses what cannot work before anything is written, writes one
//! transaction, and waits until the leader has answered in the records. What is refused is taken back.
//!
//! Promises: exit codes 0 (done), 1 (refused or failed), 2 (usage); stdout carries results, stderr everything else; a
//! closed pipe ends the program quietly.

mod agent;
mod args;
mod backup;
mod certs;
mod cluster;
mod config;
mod confirm;
mod error;
mod etcd;
mod kubernetes;
mod node;
mod output;
mod pod;
mod purge;
mod restore;
mod tenant;
mod view;
mod wait;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use bulkhead_store::Store;
use clap::FromArgMatches;

pub use crate::args::command;
use crate::args::{Cli, Command, EtcdVerb, NodeVerb};
use crate::cluster::Etcd;
use crate::error::CliError;
use crate::output::Console;

/// Parses a command line and carries it out; `store` stands in for the etcd that the flags name. Returns the exit code.
pub async fn run(
    words: impl IntoIterator<Item = OsString>,
    store: Option<Store>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    let plugin = is_plugin(&words);
    let parsed = command(plugin).try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render();
            let _ = if error.use_stderr() { write!(err, "{text}") } else { write!(out, "{text}") };
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    let mut console = Console::new(cli.output, out);
    let (named, kubeconfig) = (cli.etcd.is_named(), cli.kubernetes.has_kubeconfig());
    match carry_out(cli, plugin, store, &mut console).await {
        Ok(()) => 0,
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let error = error.with_hint(named, kubeconfig);
            let _ = write!(err, "{}", error.lines());
            error.exit_code()
        }
    }
}

/// Whether kubectl, or somebody in its place, called the program as its plugin.
fn is_plugin(words: &[OsString]) -> bool {
    let name = words.first().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"))
}

async fn carry_out(cli: Cli, plugin: bool, store: Option<Store>, console: &mut Console<'_>) -> Result<(), CliError> {
    let flags = cli.etcd.clone();
    let etcd = Etcd::new(cli.etcd, store);
    match cli.command {
        Command::Tenant(verb) if cli.kubernetes.is_chosen(plugin) => {
            kubernetes::tenant(verb, &cli.kubernetes.connect().await?, console).await
        }
        Command::Tenant(verb) => tenant::carry_out(verb, &etcd, console).await,
        Command::Node(NodeVerb::List) if cli.kubernetes.is_chosen(plugin) => {
            kubernetes::node_list(&cli.kubernetes.connect().await?, console).await
        }
        Command::Node(verb) => node::carry_out(verb, &etcd.cluster().await?, console).await,
        Command::Config(verb) => config::carry_out(verb, &etcd, console).await,
        Command::Backup { file } => backup::backup(&etcd.cluster().await?, etcd.prefix()?, &file, console).await,
        Command::Restore { file: Some(file), force, yes, .. } => {
            backup::restore(&etcd, &file, force, yes, console).await
        }
        Command::Restore { file: None, yes, above, wait, .. } => {
            restore::restore(&etcd.cluster().await?, restore::Wish { yes, above }, wait, console).await
        }
        Command::Purge { yes } => purge::purge(&etcd, yes, console).await,
        Command::Pod(verb) => pod::carry_out(verb, &cli.agent_socket, console),
        Command::Agent(verb) => agent::carry_out(&verb, &cli.agent_socket, console),
        Command::Certs(args) => certs::carry_out(&args, console),
        Command::Etcd(EtcdVerb::Setup(args)) => etcd::setup(&cli.kubernetes.connect().await?, &args, console).await,
        Command::Etcd(EtcdVerb::Configure(args)) => etcd::configure(&args, &flags, console).await,
        Command::Etcd(EtcdVerb::RemoveData { folder }) => etcd::remove_data(&folder, console),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            let mut command = command(false);
            clap_complete::generate(shell, &mut command, "bulkhead", &mut script);
            console.raw(&script)
        }
    }
}
