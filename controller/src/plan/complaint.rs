//! What is wrong and cannot be answered in a record: it is logged, once per revision of the key.

use super::{cluster, restore, seats};
use crate::state::{Mail, State};

/// What to do about a ledger entry that cannot be read.
const REMEDY: &str =
    "Delete the key: a controller that knew what it said puts it back, another one makes it anew from the record.";

/// Something that a person should know of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The key.
    pub key: String,
    /// Its mod revision; 0 if it is absent.
    pub revision: i64,
    /// What is wrong and what to do.
    pub text: String,
}

/// Everything to complain of, in no particular order.
pub fn complaints(state: &State) -> Vec<Complaint> {
    let keys = state.keys();
    let mut all = Vec::new();
    let mut complain = |key: String, revision: i64, text: String| all.push(Complaint { key, revision, text });

    if let Some(reason) = cluster::wanted(state).1 {
        complain(keys.config(), state.config.as_ref().map_or(0, |held| held.revision), reason.to_string());
    }
    if let Some((held, Err(error))) = state.cluster.as_ref().map(|held| (held, &held.value)) {
        complain(keys.ledger_cluster(), held.revision, format!("nothing is done: {error} {REMEDY}"));
    }
    if let Some((held, Err(error))) = state.numbers.as_ref().map(|held| (held, &held.value)) {
        complain(
            keys.numbers(),
            held.revision,
            format!("no namespace is born, moved or removed and no subnet is given out: {error} {REMEDY}"),
        );
    }
    if let Some(held) = &state.restore
        && let Some(reason) = restore::obstacle(state)
    {
        complain(keys.restore(), held.revision, format!("the restore waits: {reason}"));
    }
    for (namespace, held) in &state.ledger {
        if let Err(error) = &held.value {
            let text = format!("no namespace is born, moved or removed: {error} {REMEDY}");
            complain(keys.ledger_namespace(namespace), held.revision, text);
        }
    }
    for (address, held) in &state.nodes {
        if let Err(error) = &held.value {
            let text = format!("no node gets a subnet: {error} {REMEDY}");
            complain(keys.ledger_node(*address), held.revision, text);
        }
        if let (Ok(node), Some(Ok(cluster))) = (&held.value, state.cluster.as_ref().map(|held| &held.value))
            && let Err(error) = cluster.networks.block_of(node.subnets)
        {
            let text =
                format!("no node gets a subnet, for the one that {address} has is none of the cluster's: {error}");
            complain(keys.ledger_node(*address), held.revision, text);
        }
    }
    for (key, stranger) in &state.strangers {
        complain(key.clone(), stranger.revision, format!("the key is ignored: {}", stranger.problem));
    }
    for (namespace, held) in &state.records {
        if let Mail::Broken(broken) = &held.value
            && broken.object.is_none()
            && !state.ledger.contains_key(namespace)
        {
            complain(keys.netnamespace(namespace), held.revision, broken.problem.clone());
        }
    }
    for (segment, held) in &state.subnets {
        let known = segment.parse().is_ok_and(|address| state.nodes.contains_key(&address));
        if let Mail::Broken(broken) = &held.value
            && broken.object.is_none()
            && !known
        {
            complain(format!("{}{segment}", keys.subnets()), held.revision, broken.problem.clone());
        }
    }
    if let Some(Ok(cluster)) = state.cluster.as_ref().map(|held| &held.value) {
        for (node, problem) in seats::problems(state, &cluster.networks) {
            all.push(Complaint {
                key: format!("Node/{node}"),
                revision: 0,
                text: format!("no subnet for it: {problem}"),
            });
        }
        for (node, address, problem) in seats::disbelieved(state, &cluster.networks) {
            all.push(Complaint {
                key: format!("Node/{node}/{address}"),
                revision: 0,
                text: format!("this address of it is not believed: {problem}"),
            });
        }
    }
    all.extend(same_host(state));
    all
}

/// Nodes that are in the ledger twice: one machine that changed its address, or two of one name.
fn same_host(state: &State) -> Vec<Complaint> {
    let mut seen = std::collections::BTreeMap::new();
    let mut twice = Vec::new();
    for (&address, held) in &state.nodes {
        let Ok(node) = &held.value else { continue };
        if let Some(other) = seen.insert(node.host.clone(), address) {
            let text = format!(
                "the node {} is registered as {other} and {address}; if its address changed, remove the old one (bulkhead node remove)",
                node.host
            );
            twice.push(Complaint { key: state.keys().ledger_node(address), revision: held.revision, text });
        }
    }
    twice
}
