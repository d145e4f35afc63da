//! `bulkhead pod list`: the pods of this node, as its agent knows them.

use std::path::Path;

use bulkhead_core::Bandwidth;
use bulkhead_core::protocol::{PodStatus, Reply, Request};
use serde::Serialize;

use crate::agent::{ask, unexpected};
use crate::args::PodVerb;
use crate::error::CliError;
use crate::output::{Console, Row};

/// One pod; its JSON is the agent's.
#[derive(Serialize)]
#[serde(transparent)]
struct PodRow(PodStatus);

impl Row for PodRow {
    const HEADER: &'static [&'static str] =
        &["NAMESPACE", "POD", "VNI", "NETID", "ADDRESSES", "INTERFACE", "LIMITS IN/OUT", "CONTAINER"];

    fn cells(&self) -> Vec<String> {
        let PodStatus { pod, namespace, container_id, host_interface, addresses, vni, net_id, .. } = &self.0;
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let limit = |bits: Option<u64>| match bits {
            None => "-".to_owned(),
            Some(bits) => Bandwidth::from_bits(bits).map_or_else(|_| bits.to_string(), |limit| limit.to_string()),
        };
        vec![
            namespace.clone(),
            if pod.is_empty() { "-".to_owned() } else { pod.clone() },
            vni.to_string(),
            net_id.map_or_else(|| "deleted".to_owned(), |id| id.to_string()),
            addresses.join(","),
            host_interface.clone(),
            format!("{}/{}", limit(self.0.ingress_bandwidth), limit(self.0.egress_bandwidth)),
            container_id.chars().take(12).collect(),
        ]
    }
}

/// Carries a verb out.
pub fn carry_out(verb: PodVerb, socket: &Path, console: &mut Console<'_>) -> Result<(), CliError> {
    let PodVerb::List { namespace } = verb;
    let Reply::Pods(pods) = ask(socket, &Request::Pods)? else { return Err(unexpected(socket)) };
    let wanted = |pod: &PodStatus| namespace.as_ref().is_none_or(|name| name.as_str() == pod.namespace);
    let mut rows: Vec<PodRow> = pods.into_iter().filter(wanted).map(PodRow).collect();
    rows.sort_by(|PodRow(a), PodRow(b)| {
        (&a.namespace, &a.pod, &a.container_id).cmp(&(&b.namespace, &b.pod, &b.container_id))
    });
    console.table(&rows, "there are no such pods on this node")
}
