//! `bulkhead node`: nodes and external machines with their subnets.

mod confirm;
mod list;
mod seat;

use std::net::IpAddr;

use crate::args::NodeVerb;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;
use crate::view::View;

/// Carries a verb out.
pub async fn carry_out(verb: NodeVerb, cluster: &Cluster, console: &mut Console<'_>) -> Result<(), CliError> {
    match verb {
        NodeVerb::List => list::list(&cluster.view().await?, console),
        NodeVerb::Show { node } => {
            let view = cluster.view().await?;
            let host_ip = find(&view, &node)?;
            list::show(&view, host_ip, console)
        }
        NodeVerb::AddExternal { host, ip, wait } => seat::add_external(cluster, &host, ip, wait, console).await,
        NodeVerb::Remove { node, yes, wait } => {
            if !yes {
                confirm::removal(&cluster.view().await?, &node)?;
            }
            seat::remove(cluster, &node, wait, console).await
        }
    }
}

/// The node of that name or address.
fn find(view: &View, node: &str) -> Result<IpAddr, CliError> {
    let nodes = view.nodes();
    if let Some(ip) = node.parse().ok().filter(|ip| nodes.contains(ip)) {
        return Ok(ip);
    }
    let found: Vec<IpAddr> = nodes.into_iter().filter(|ip| list::host(view, *ip) == node).collect();
    match found[..] {
        [ip] => Ok(ip),
        [] => Err(CliError::Refused(format!("no such node: {node}; `bulkhead node list` shows all"))),
        _ => {
            let addresses: Vec<String> = found.iter().map(ToString::to_string).collect();
            Err(CliError::Refused(format!("{node} has several addresses; name one of {}", addresses.join(", "))))
        }
    }
}
