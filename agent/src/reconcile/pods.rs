//! The pods' part of a turn: maps as the records say, and what a resync looks after.

use std::collections::BTreeSet;
use std::path::Path;

use super::StartError;
use super::gone::{has_device, is_netns_gone};
use crate::datapath::abi::Port;
use crate::kernel::{Link, MAIN_TABLE, Netlink, Op, Route};
use crate::live::{Live, locked};
use crate::pods::record::Stage;
use crate::pods::wire::{self, GROUP, PROTOCOL, WireError};
use crate::pods::{Record, limit::Shaper};

/// Writes every pod into the maps; `prune` also walks them and clears what no record stands behind. Returns how many entries
/// were stale.
pub(super) fn publish_all(live: &Live, prune: bool) -> Result<usize, crate::datapath::DatapathError> {
    // The books are read again behind each lock: a DEL between them must not be undone.
    for record in live.records.all() {
        live.exclusively(&record.id, || match live.records.get(&record.id) {
            Some(held) if held.stage == Stage::Attached => live.publish(&held),
            _ => Ok(()),
        })?;
    }
    if !prune {
        return Ok(0);
    }
    let mut endpoints = locked(&live.datapath.endpoints);
    let records = live.records.all();
    let strangers = live.records.strangers();
    let hosts = records.iter().map(|record| record.host).chain(strangers.values().copied()).collect();
    let own = records.iter().map(|record| record.ifindex).chain([live.overlay()]);
    let devices = own.chain(strangers.keys().copied()).collect();
    endpoints.set_port(live.overlay(), Port::Overlay)?;
    endpoints.prune(&hosts, &devices)
}

/// Puts this agent's programs on every pod's device, in the place of an earlier agent's.
pub(super) fn attach_all(live: &Live, host: &mut Netlink) -> Result<(), WireError> {
    for record in live.records.all() {
        if host.link_by_index(record.ifindex)?.is_some_and(|link| link.name == record.host_interface()) {
            host.batch(host_ops(live, &record)?)?;
        }
    }
    Ok(())
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
/// devices that no record names. Returns what was done, in words.
pub(super) fn look_after(live: &Live, host: &mut Netlink) -> Result<Vec<String>, WireError> {
    let mut done = Vec::new();
    let routes = host.routes(MAIN_TABLE, Some(PROTOCOL))?;
    for record in live.records.all() {
        let line = live.exclusively(&record.id, || match live.records.get(&record.id) {
            Some(held) if held.stage == Stage::Attached => repair(live, host, &routes, &held),
            _ => Ok(None),
        })?;
        done.extend(line);
    }
    done.extend(remove_orphans(live, host)?);
    Ok(done)
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

/// Removes pods' devices that no record names: of an ADD that a crash cut off before its answer. Returns which, in words.
pub(super) fn remove_orphans(live: &Live, host: &mut Netlink) -> Result<Vec<String>, WireError> {
    // Listed before the books are read, so a device of an ADD that runs now is in the books already.
    let links = host.links()?;
    let strangers = still_there(live, &links);
    let known: BTreeSet<u32> = live.records.all().iter().map(|record| record.ifindex).chain(strangers).collect();
    let orphans: Vec<&Link> = links.iter().filter(|link| link.group == GROUP && !known.contains(&link.index)).collect();
    for link in &orphans {
        host.apply(Op::link_delete(link.index).if_present())?;
    }
    Ok(orphans.iter().map(|link| format!("the device {} belonged to no pod and was removed", link.name)).collect())
}

fn repair(live: &Live, host: &mut Netlink, routes: &[Route], record: &Record) -> Result<Option<String>, WireError> {
    let device = record.host_interface();
    if !has_device(record, host)? {
        // The device went with its netns, and the netns is gone: two sources agree.
        if is_netns_gone(Path::new(&record.netns)) && live.forget(record).is_ok() {
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
    host.batch(host_ops(live, record)?)?;
    Ok(Some(format!("pod {}/{}: {}", record.namespace, record.pod, wrong.join(", "))))
}
