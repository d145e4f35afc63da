//! The pods' part of a turn: maps as the records say, and what a resync looks after. One pod's failure keeps no other pod.

use std::collections::BTreeSet;
use std::path::Path;

use bulkhead_core::attachment::AttachmentId;

use super::StartError;
use crate::datapath::abi::Port;
use crate::kernel::{KernelError, Link, MAIN_TABLE, Netlink, Netns, NetnsError, Op, Route};
use crate::live::{Live, locked};
use crate::pods::record::Stage;
use crate::pods::wire::{self, GROUP, PROTOCOL, WireError};
use crate::pods::{Record, limit::Shaper};

/// What a look at all pods came to, in words.
#[derive(Debug, Default)]
pub struct Looked {
    /// What was changed.
    pub repaired: Vec<String>,
    /// What could not be: to be tried again.
    pub failed: Vec<String>,
}

impl Looked {
    fn add(&mut self, pod: &Record, outcome: Result<Option<String>, impl std::error::Error>) {
        match outcome {
            Ok(line) => self.repaired.extend(line),
            Err(error) => self.failed.push(format!("pod {}/{}: {error}", pod.namespace, pod.pod)),
        }
    }

    fn and(mut self, other: Self) -> Self {
        self.repaired.extend(other.repaired);
        self.failed.extend(other.failed);
        self
    }
}

impl From<KernelError> for Looked {
    fn from(error: KernelError) -> Self {
        Self { repaired: Vec::new(), failed: vec![error.to_string()] }
    }
}

/// Writes every pod of this node's subnet into the maps; `prune` also walks them and clears what no record stands behind.
pub fn publish_all(live: &Live, prune: bool) -> Looked {
    let mut looked = Looked::default();
    // The books are read again behind each lock: a DEL between them must not be undone.
    for record in live.records.all() {
        let published = live.exclusively(&record.id, || match live.records.get(&record.id) {
            Some(held) if held.stage == Stage::Attached => live.publish(&held),
            _ => Ok(()),
        });
        looked.add(&record, published.map(|()| None));
    }
    if !prune {
        return looked;
    }
    let mut endpoints = locked(&live.datapath.endpoints);
    let records = live.records.all();
    let strangers = live.records.strangers();
    let here = records.iter().filter(|record| live.is_here(record));
    let hosts = here.map(|record| record.host).chain(strangers.values().copied()).collect();
    let own = records.iter().map(|record| record.ifindex).chain([live.overlay()]);
    let devices = own.chain(strangers.keys().copied()).collect();
    let pruned = endpoints.set_port(live.overlay(), Port::Overlay).and_then(|()| endpoints.prune(&hosts, &devices));
    match pruned {
        Ok(0) => {}
        Ok(stale) => looked.repaired.push(format!("{stale} stale map entries cleared")),
        Err(error) => looked.failed.push(error.to_string()),
    }
    looked
}

/// Puts this agent's programs on every pod's device, in the place of an earlier agent's.
pub fn attach_all(live: &Live, host: &mut Netlink) -> Looked {
    locked(&live.unattached).extend(live.records.all().into_iter().map(|record| record.id));
    attach_rest(live, host)
}

/// As [`attach_all`], those pods for which it has not worked yet.
pub fn attach_rest(live: &Live, host: &mut Netlink) -> Looked {
    let mut looked = Looked::default();
    let waiting: Vec<AttachmentId> = locked(&live.unattached).iter().cloned().collect();
    for id in waiting {
        let attached = live.exclusively(&id, || {
            let record = live.records.get(&id)?;
            let attached = if is_there(host, &record) { attach(live, host, &record) } else { Ok(()) };
            Some((attached.or_else(|error| unless_gone(host, &record, error)), record))
        });
        if attached.as_ref().is_none_or(|(attached, _)| attached.is_ok()) {
            locked(&live.unattached).remove(&id);
        }
        if let Some((attached, record)) = attached {
            looked.add(&record, attached.map(|()| None));
        }
    }
    looked
}

/// Whether the pod's device is there. Who cannot be asked is taken to be: what is done next says why.
fn is_there(host: &mut Netlink, record: &Record) -> bool {
    let device = record.host_interface();
    host.link_by_index(record.ifindex).map_or(true, |link| link.is_some_and(|link| link.name == device))
}

/// A device may go at any time, with its pod: what failed for that has not failed.
fn unless_gone<T: Default>(host: &mut Netlink, record: &Record, error: WireError) -> Result<T, WireError> {
    if is_there(host, record) { Err(error) } else { Ok(T::default()) }
}

fn attach(live: &Live, host: &mut Netlink, record: &Record) -> Result<(), WireError> {
    Ok(host.batch(host_ops(live, record)?)?)
}

fn host_ops<'a>(live: &'a Live, record: &Record) -> Result<Vec<Op<'a>>, WireError> {
    let mut ops = vec![Op::clsact(record.ifindex).unless_present(), Op::link_up(record.ifindex)];
    ops.push(Op::link_set_mtu(record.ifindex, record.mtu));
    ops.extend(wire::pod_filters(&live.datapath.programs, record.ifindex)?);
    ops.extend(wire::host_side(record, live.geometry.node_ip));
    if let Some(limit) = record.limits.ingress {
        ops.push(Op::tbf(&wire::shaper(record.ifindex, Shaper::of(limit))));
    }
    Ok(ops)
}

/// Compares each pod's host side with its record and repairs it; forgets pods that two sources agree are gone; removes
/// devices that no record names.
pub fn look_after(live: &Live, host: &mut Netlink) -> Looked {
    let routes = match host.routes(MAIN_TABLE, Some(PROTOCOL)) {
        Ok(routes) => routes,
        Err(error) => return error.into(),
    };
    let mut looked = Looked::default();
    for record in live.records.all() {
        let repaired = live.exclusively(&record.id, || match live.records.get(&record.id) {
            Some(held) if held.stage == Stage::Attached => {
                repair(live, host, &routes, &held).or_else(|error| unless_gone(host, &held, error))
            }
            _ => Ok(None),
        });
        looked.add(&record, repaired);
    }
    looked.and(remove_orphans(live, host))
}

/// When the records are lost, nothing tells a running pod's device from one that an ADD left half-made: all of them stay,
/// with their addresses, until their pods are deleted.
pub(super) fn spare_strangers(live: &Live, host: &mut Netlink) -> Result<(), StartError> {
    if !live.records.is_fresh() {
        return Ok(());
    }
    let known: BTreeSet<u32> = live.records.all().iter().map(|record| record.ifindex).collect();
    let unknown = host.links()?.into_iter().filter(|link| link.group == GROUP && !known.contains(&link.index));
    let found = unknown.map(|link| {
        let place = Record::address_of(&link.name).and_then(|ip| live.networks.v4().locate(ip.into()));
        // One of another subnet keeps its device, too; its address is none that could be given out.
        (link.index, place.filter(|(block, _)| *block == live.geometry.local_block).map_or(0, |(_, part)| part))
    });
    Ok(live.records.adopt_strangers(&found.collect())?)
}

/// The strangers whose device is still there; the others are forgotten.
fn still_there(live: &Live, links: &[Link]) -> Vec<u32> {
    let strangers = live.records.strangers();
    let (there, gone): (Vec<u32>, Vec<u32>) =
        strangers.into_keys().partition(|index| links.iter().any(|link| link.index == *index));
    if !gone.is_empty()
        && let Err(error) = live.records.forget_strangers(&gone)
    {
        tracing::warn!(%error, "addresses of pods that are gone stay reserved; the next resync tries again");
    }
    there
}

/// Removes pods' devices that no record names: of an ADD that a crash cut off before its answer.
pub(super) fn remove_orphans(live: &Live, host: &mut Netlink) -> Looked {
    // Listed before the books are read, so a device of an ADD that runs now is in the books already.
    let links = match host.links() {
        Ok(links) => links,
        Err(error) => return error.into(),
    };
    let strangers = still_there(live, &links);
    let known: BTreeSet<u32> = live.records.all().iter().map(|record| record.ifindex).chain(strangers).collect();
    let mut looked = Looked::default();
    for link in links.iter().filter(|link| link.group == GROUP && !known.contains(&link.index)) {
        match host.apply(Op::link_delete(link.index).if_present()) {
            Ok(()) => looked.repaired.push(format!("the device {} belonged to no pod and was removed", link.name)),
            Err(error) => looked.failed.push(error.to_string()),
        }
    }
    looked
}

/// Whether no namespace is there. A runtime that dies between unmounting a netns and unlinking its file leaves an empty file.
fn is_gone(netns: &Path) -> bool {
    match Netns::open(netns) {
        Ok(_) => false,
        Err(NetnsError::NotNamespace { .. }) => true,
        // Anything else may be better tomorrow.
        Err(error) => error.is_absent(),
    }
}

fn repair(live: &Live, host: &mut Netlink, routes: &[Route], record: &Record) -> Result<Option<String>, WireError> {
    let device = record.host_interface();
    if !is_there(host, record) {
        // The device went with its netns, and the netns is gone: two sources agree.
        if is_gone(Path::new(&record.netns)) && live.forget(record).is_ok() {
            return Ok(Some(format!("the pod {}/{} is gone; its address is free again", record.namespace, record.pod)));
        }
        tracing::error!(
            pod = record.pod, namespace = %record.namespace, container_id = record.id.container_id(),
            "the device {device} is gone while the pod's netns lives: something deleted it; delete the pod"
        );
        return Ok(None);
    }
    let wrong = wire::host_differences(record, live.geometry.node_ip, routes, host)?;
    if wrong.is_empty() {
        return Ok(None);
    }
    // The routes were listed before this pod was looked up: it may be younger than the list.
    let now = host.routes(MAIN_TABLE, Some(PROTOCOL))?;
    let wrong = wire::host_differences(record, live.geometry.node_ip, &now, host)?;
    if wrong.is_empty() {
        return Ok(None);
    }
    attach(live, host, record)?;
    Ok(Some(format!("pod {}/{}: {}", record.namespace, record.pod, wrong.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netns_is_gone_when_no_namespace_is_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left");
        std::fs::write(&left, "").unwrap();
        assert!(is_gone(&left), "unmounted, not unlinked");
        assert!(is_gone(&folder.path().join("unlinked")));
        assert!(!is_gone(Path::new("/proc/self/ns/net")));
    }
}
