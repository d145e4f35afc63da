//! `node remove` takes a node out at once, alive or not: whoever types it is asked first.

use std::io::{BufRead, IsTerminal, Write};

use super::{find, list};
use crate::error::CliError;
use crate::output::plain;
use crate::view::View;

/// Asks on a terminal whether this node is to go; refuses where nobody can answer.
pub fn removal(view: &View, node: &str) -> Result<(), CliError> {
    let ip = find(view, node)?;
    if view.node(ip).is_some_and(|owned| owned.uid.is_some()) {
        return Ok(()); // a Node of Kubernetes is not removed here, whatever the answer
    }
    let host = list::host(view, ip);
    let warning = format!("{host} ({ip}) loses its subnet at once; if it lives, it is cut off from all other nodes");
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Refused(format!("{warning}: confirm that with --yes")));
    }
    let mut terminal = std::io::stderr();
    write!(terminal, "{}.\nGo on? [y/N] ", plain(&warning))?;
    terminal.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(CliError::Refused("not confirmed".into()))
}
