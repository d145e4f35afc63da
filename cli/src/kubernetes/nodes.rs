//! `node list` in Kubernetes: what the Nodes' conditions say of their network.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;

use crate::error::CliError;
use crate::output::{Console, Row};

/// The condition that the controller writes.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// One Node, as `-o json` prints it.
#[derive(Serialize)]
struct NodeRow {
    host: String,
    /// Its internal addresses, in the kubelet's order.
    addresses: Vec<IpAddr>,
    /// Whether its network is there; absent until the controller has said anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<bool>,
    /// The condition's reason; empty without one.
    reason: String,
    /// Its message: why there is no network.
    detail: String,
}

impl Row for NodeRow {
    const HEADER: &'static [&'static str] = &["HOST", "IP", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let address = self.addresses.first().map_or_else(|| "-".to_owned(), ToString::to_string);
        let status = match self.ready {
            Some(true) => "ok".to_owned(),
            Some(false) => format!("no network: {}", self.detail),
            None => "-".to_owned(),
        };
        vec![self.host.clone(), address, status]
    }
}

fn row(node: Node) -> NodeRow {
    let status = node.status.unwrap_or_default();
    let internal = status.addresses.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
    let condition = status.conditions.into_iter().flatten().find(|condition| condition.type_ == NETWORK_UNAVAILABLE);
    let ready = condition.as_ref().map(|condition| condition.status == "False");
    let (reason, message) = condition.map(|condition| (condition.reason, condition.message)).unwrap_or_default();
    NodeRow {
        host: node.metadata.name.unwrap_or_default(),
        addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
        ready,
        reason: reason.unwrap_or_default(),
        detail: message.unwrap_or_default(),
    }
}

/// Prints all Nodes.
pub async fn list(client: &Client, console: &mut Console<'_>) -> Result<(), CliError> {
    let api: Api<Node> = Api::all(client.clone());
    let mut rows: Vec<NodeRow> = api.list(&ListParams::default()).await?.items.into_iter().map(row).collect();
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    console.table(&rows, "there are no nodes")
}
