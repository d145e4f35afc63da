//! `bulkhead agent`, and how the agent of this node is asked.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bulkhead_core::protocol::{AgentStatus, Reply, Request, receive, send};

use crate::args::AgentVerb;
use crate::error::CliError;
use crate::output::Console;

/// How long the agent may take: it answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Carries a verb out.
pub fn carry_out(verb: &AgentVerb, socket: &Path, console: &mut Console<'_>) -> Result<(), CliError> {
    match verb {
        AgentVerb::Status => match ask(socket, &Request::Status)? {
            Reply::Status(status) => show(socket, &status, console),
            _ => Err(unexpected(socket)),
        },
    }
}

fn failed(socket: &Path, problem: impl Into<String>) -> CliError {
    CliError::Agent { socket: socket.display().to_string(), problem: problem.into() }
}

/// The failure of an answer that belongs to another question.
pub fn unexpected(socket: &Path) -> CliError {
    failed(socket, "its answer is to another question; report this as a defect")
}

/// Asks the agent.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, CliError> {
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => failed(socket, "permission denied; the socket is open to root only"),
        _ => failed(socket, format!("{error}; does bulkhead-agent run on this node? --agent-socket names its socket")),
    };
    let mut agent = UnixStream::connect(socket).map_err(refused)?;
    agent.set_read_timeout(Some(PATIENCE)).map_err(refused)?;
    agent.set_write_timeout(Some(PATIENCE)).map_err(refused)?;
    let exchange = send(&mut agent, request).and_then(|()| receive(&[], &mut agent));
    match exchange.map_err(|error| failed(socket, error.to_string()))? {
        Reply::Failed(failure) => Err(failed(socket, format!("{} {}", failure.msg, failure.details))),
        reply => Ok(reply),
    }
}

fn show(socket: &Path, status: &AgentStatus, console: &mut Console<'_>) -> Result<(), CliError> {
    let etcd = if status.etcd_connected {
        format!("connected, revision {}, epoch {}", status.revision, status.epoch)
    } else {
        format!(
            "not connected for {} s; the state of revision {}, epoch {} holds",
            status.etcd_silent_seconds, status.revision, status.epoch
        )
    };
    let drops: Vec<String> = status.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let mut lines = vec![
        ("Node", format!("{} ({})", status.node, status.host_ip)),
        ("Version", status.version.clone()),
        ("Ready", if status.ready { "yes" } else { "no" }.to_owned()),
        ("Mode", status.mode.clone()),
        ("Subnets", status.subnets.join(", ")),
        ("etcd", etcd),
        ("Namespaces", status.namespaces.to_string()),
        ("Nodes", status.nodes.to_string()),
        ("Pods", format!("{}, {} addresses free", status.pods, status.free_addresses)),
        ("MTU", status.mtu.to_string()),
        ("Drops", if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }),
    ];
    lines.extend(status.problems.iter().map(|problem| ("Problem", problem.clone())));
    lines.extend(status.repairs.iter().map(|repair| ("Repaired", repair.clone())));
    console.card(status, &lines)?;
    if status.ready { Ok(()) } else { Err(failed(socket, "it runs, but cannot attach pods; see its problems")) }
}
