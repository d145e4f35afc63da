//! `node list` and `node show`: which machine has which subnet.

use std::net::IpAddr;

use bulkhead_core::ledger::NodeEntry;
use serde::Serialize;

use crate::error::CliError;
use crate::output::{Console, Row};
use crate::view::{Mail, View};

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// It has its subnet.
    Ok,
    /// It waits for one.
    Pending,
    /// Its record was refused.
    Error,
    /// Its record is gone, its subnet not yet.
    Leaving,
}

/// One node, as `-o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRow {
    host: String,
    ip: IpAddr,
    /// Empty while it has none; IPv4 first.
    subnets: Vec<String>,
    /// All its underlay addresses; empty while it has no subnet.
    addresses: Vec<IpAddr>,
    status: Status,
    /// What waits or is wrong; empty if nothing.
    detail: String,
}

impl Row for NodeRow {
    const HEADER: &'static [&'static str] = &["HOST", "IP", "SUBNET", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let word = match self.status {
            Status::Ok => "ok",
            Status::Pending => "pending",
            Status::Error => "error",
            Status::Leaving => "leaving",
        };
        let status = if self.detail.is_empty() { word.to_owned() } else { format!("{word}: {}", self.detail) };
        vec![or_dash(self.host.clone()), self.ip.to_string(), or_dash(self.subnets.join(",")), status]
    }
}

/// The node's name: the ledger's, else what its record says.
pub fn host(view: &View, host_ip: IpAddr) -> String {
    match view.node(host_ip) {
        Some(node) => node.host.to_string(),
        None => view.subnet(host_ip).record().map(|record| record.host.clone()).unwrap_or_default(),
    }
}

/// A node's subnets as text, IPv4 first.
pub fn subnets(node: &NodeEntry) -> Vec<String> {
    node.subnets.iter().map(|subnet| subnet.to_string()).collect()
}

fn row(view: &View, ip: IpAddr) -> NodeRow {
    let node = view.node(ip);
    let (status, detail) = match (view.subnet(ip), &node) {
        (Mail::Absent, _) => (Status::Leaving, "its subnet is not released yet".to_owned()),
        (Mail::Broken(error, _), _) => (Status::Error, error.to_string()),
        (Mail::Read(record, _), _) if !record.error.is_empty() => (Status::Error, record.error),
        (Mail::Read(..), None) => (Status::Pending, "waits for its subnet".to_owned()),
        (Mail::Read(..), Some(_)) => (Status::Ok, String::new()),
    };
    NodeRow {
        host: host(view, ip),
        ip,
        subnets: node.as_ref().map(subnets).unwrap_or_default(),
        addresses: node.map(|node| node.addresses).unwrap_or_default(),
        status,
        detail,
    }
}

/// Prints all nodes.
pub fn list(view: &View, console: &mut Console<'_>) -> Result<(), CliError> {
    let rows: Vec<NodeRow> = view.nodes().into_iter().map(|ip| row(view, ip)).collect();
    console.table(&rows, "there are no nodes yet; each bulkhead-agent asks for its node's subnet when it starts")
}

/// Prints one node.
pub fn show(view: &View, ip: IpAddr, console: &mut Console<'_>) -> Result<(), CliError> {
    let row = row(view, ip);
    let [host, address, subnet, status] = <[String; 4]>::try_from(row.cells()).unwrap_or_default();
    let addresses: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
    let lines =
        [("Host", host), ("IP", address), ("Addresses", addresses.join(", ")), ("Subnet", subnet), ("Status", status)];
    console.card(&row, &lines)
}
