//! `node remove` takes a node out at once, alive or not: whoever types it is asked first.

use super::{find, list};
use crate::confirm;
use crate::error::CliError;
use crate::view::View;

/// Asks on a terminal whether this node is to go; refuses where nobody can answer.
pub fn removal(view: &View, node: &str) -> Result<(), CliError> {
    let ip = find(view, node)?;
    if view.node(ip).is_some_and(|owned| owned.uid.is_some()) {
        return Ok(()); // a Node of Kubernetes is not removed here, whatever the answer
    }
    let host = list::host(view, ip);
    let warning = format!("{host} ({ip}) loses its subnet at once; if it lives, it is cut off from all other nodes");
    match confirm::asked(&format!("{warning}."))? {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::Refused("not confirmed".into())),
        None => Err(CliError::Refused(format!("{warning}: confirm that with --yes"))),
    }
}
