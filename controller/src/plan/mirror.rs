//! Mirrors: records that say what the ledger says.
//!
//! A record that was edited by hand is restored; one that could not be read is, too, with a notice that stays in its
//! `Error` until the record is written again. Records with an action are not judged here.

use std::net::IpAddr;

use bulkhead_core::ledger::NodeEntry;
use bulkhead_core::record::{NetNamespaceRecord, Record, SubnetRecord};
use bulkhead_core::{Namespace, Tenant};

use super::note::Note;
use super::step::Step;
use crate::source;
use crate::state::{Mail, State};

/// How an `Error` begins that says why a record was restored.
pub const NOTICE: &str = "restored by the controller: ";

const NETNAMESPACE_FIELDS: [&str; 5] = ["NetName", "NetID", "Action", "Namespace", "Error"];
const SUBNET_FIELDS: [&str; 5] = ["Host", "HostIP", "Subnet", "Assign", "Error"];

fn notice(reason: &str) -> String {
    format!("{NOTICE}{reason}")
}

/// The notice that a record bears, if any.
fn standing_notice(error: &str) -> String {
    if error.starts_with(NOTICE) { error.to_owned() } else { String::new() }
}

/// Restores the namespaces' records.
pub(super) fn namespaces(state: &State) -> Option<Step> {
    let mut step = Step::default();
    for (namespace, entry) in &state.ledger {
        let Ok(tenant) = &entry.value else { continue };
        let held = state.records.get(namespace);
        let record = match held {
            Some(held) => namespace_mirror(namespace, tenant, &held.value),
            // Deleted by hand: the namespace is where Kubernetes has it.
            None if state.source.is_kubernetes() && !source::is_gone(state, namespace) => {
                let net_id = Some(tenant.net_id.get().into());
                Some(NetNamespaceRecord { net_id, ..NetNamespaceRecord::asking(namespace) })
            }
            None => None,
        };
        let Some(record) = record else { continue };
        let mut item = Step::default();
        item.expect(state.keys().netnamespace(namespace), held.map_or(0, |held| held.revision));
        item.expect(state.keys().ledger_namespace(namespace), entry.revision);
        item.put(state.keys().netnamespace(namespace), record.to_json());
        let (what, name) = ("namespace", namespace.to_string());
        let damaged = held.and_then(|held| held.value.record()).is_none_or(|old| {
            old.net_id.is_some_and(|old| Some(old) != record.net_id) || record.error.starts_with(NOTICE)
        });
        item.note(if damaged { Note::Restored { what, name } } else { Note::Mirrored { what, name } });
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// The record as it should be; none if it is so, or has an action.
fn namespace_mirror(
    namespace: &Namespace,
    tenant: &Tenant,
    mail: &Mail<NetNamespaceRecord>,
) -> Option<NetNamespaceRecord> {
    let mut mirror = NetNamespaceRecord::asking(namespace);
    mirror.net_id = Some(tenant.net_id.get().into());
    match mail {
        Mail::Record(record) if !record.action.is_empty() => return None,
        Mail::Record(record) => {
            mirror.unknown.clone_from(&record.unknown);
            mirror.error =
                source::check_name(namespace, record).map_or_else(|e| notice(&e), |()| standing_notice(&record.error));
            if mirror == *record {
                return None;
            }
        }
        Mail::Broken(broken) => {
            mirror.unknown = broken.unknown(&NETNAMESPACE_FIELDS);
            mirror.error = notice(&broken.problem);
        }
    }
    Some(mirror)
}

/// Restores the nodes' records.
pub(super) fn nodes(state: &State) -> Option<Step> {
    let mut step = Step::default();
    for (&address, entry) in &state.nodes {
        let segment = address.to_string();
        let Ok(node) = &entry.value else { continue };
        let held = state.subnets.get(&segment);
        let record = match held {
            Some(held) => node_mirror(address, node, &held.value),
            None => (state.source.is_kubernetes() && node.uid.is_some()).then(|| node_record(address, node)),
        };
        let Some(record) = record else { continue };
        let mut item = Step::default();
        item.expect(state.keys().subnet(address), held.map_or(0, |held| held.revision));
        item.expect(state.keys().ledger_node(address), entry.revision);
        item.put(state.keys().subnet(address), record.to_json());
        let what = "node";
        // An agent that asks again is no damage.
        let damaged = held.and_then(|held| held.value.record()).is_none_or(|old| {
            !(old.subnet.is_empty() || old.subnet == record.subnet) || record.error.starts_with(NOTICE)
        });
        let name = segment;
        item.note(if damaged { Note::Restored { what, name } } else { Note::Mirrored { what, name } });
        if !step.absorb(&item) {
            break;
        }
    }
    step.some()
}

/// A node's record as the ledger has it.
pub(super) fn node_record(address: IpAddr, node: &NodeEntry) -> SubnetRecord {
    let subnets: Vec<_> = node.subnets.iter().map(|subnet| subnet.to_string()).collect();
    SubnetRecord { subnet: subnets.join(","), assign: false, ..SubnetRecord::asking(node.host.as_str(), address) }
}

fn node_mirror(address: IpAddr, node: &NodeEntry, mail: &Mail<SubnetRecord>) -> Option<SubnetRecord> {
    let mut mirror = node_record(address, node);
    match mail {
        Mail::Record(record) => {
            mirror.unknown.clone_from(&record.unknown);
            mirror.error = match foreign(address, node, record) {
                Some(reason) => notice(&reason),
                None => standing_notice(&record.error),
            };
            if mirror == *record {
                return None;
            }
        }
        Mail::Broken(broken) => {
            mirror.unknown = broken.unknown(&SUBNET_FIELDS);
            mirror.error = notice(&broken.problem);
        }
    }
    Some(mirror)
}

/// Why a record is about another node than the one that has the address.
fn foreign(address: IpAddr, node: &NodeEntry, record: &SubnetRecord) -> Option<String> {
    if !record.host.is_empty() && record.host != node.host.as_str() {
        let host: String = record.host.chars().take(80).collect();
        return Some(format!(
            "Host {host:?} is not {}, the node that has the address {address}; remove that node first (bulkhead node remove {address}), or keep its name",
            node.host
        ));
    }
    if !record.host_ip.is_empty() && record.host_ip.parse() != Ok(address) {
        let host_ip: String = record.host_ip.chars().take(80).collect();
        return Some(format!("HostIP {host_ip:?} differs from {address}, the address in the key"));
    }
    None
}
