//! Limits of running pods as their annotations say now: changed in place, so that no packet in a queue is lost.
//!
//! An annotation that the API server has told is the truth from then on, whatever the runtime said at ADD.

use std::os::fd::AsFd as _;
use std::path::Path;

use bulkhead_core::Bandwidth;

use super::Agent;
use crate::datapath::DatapathError;
use crate::kernel::Netns;
use crate::kernel::{BatchError, InterfaceName, InterfaceNameError, KernelError, Netlink, NetnsError, Op};
use crate::live::Live;
use crate::pods::limit::Shaper;
use crate::pods::record::Stage;
use crate::pods::{Limits, Record, RecordError, wire};

#[derive(Debug, thiserror::Error)]
enum ChangeError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Name(#[from] InterfaceNameError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Brings every pod's limits in line with what the API server says; returns what could not be, in words.
pub(super) fn apply(agent: &Agent, live: &Live) -> Vec<String> {
    let mut failed = Vec::new();
    for record in live.records.all() {
        if agent.api.limits(&record.uid, record.limits).is_none_or(|wanted| wanted == record.limits) {
            continue;
        }
        let done = live.exclusively(&record.id, || {
            let Some(held) = live.records.get(&record.id).filter(|held| held.stage == Stage::Attached) else {
                return Ok(());
            };
            match agent.api.limits(&held.uid, held.limits) {
                Some(wanted) if wanted != held.limits => change(live, &held, wanted),
                _ => Ok(()),
            }
        });
        if let Err(error) = done {
            failed.push(format!("the limits of pod {}/{} cannot be changed: {error}", record.namespace, record.pod));
        }
    }
    failed
}

/// The higher of two limits; none is the highest.
fn wider(a: Option<Bandwidth>, b: Option<Bandwidth>) -> Option<Bandwidth> {
    Some(a?.max(b?))
}

/// Kernel and maps first, the record last: what a crash leaves half done differs from the record and is done again.
fn change(live: &Live, held: &Record, wanted: Limits) -> Result<(), ChangeError> {
    let changed = Record { limits: wanted, ..held.clone() };
    // Opened before anything is changed: what the agent cannot reach must not be half done.
    let mut inside = None;
    if held.limits.egress != wanted.egress {
        let netns = Netns::open(Path::new(&held.netns))?;
        inside = Some(Netlink::within(netns.as_fd())?);
    }
    // The policer must not meet what a faster shaper lets out.
    let egress = wider(held.limits.egress, wanted.egress);
    live.publish(&Record { limits: Limits { egress, ..held.limits }, ..held.clone() })?;
    if held.limits.ingress != wanted.ingress {
        Netlink::here()?.apply(Op::tbf(&wire::shaper(held.ifindex, shaper(wanted.ingress))))?;
    }
    if let Some(mut inside) = inside
        // By its address: the path may be another pod's by now, whose DEL of the first is on its way.
        && let Some(link) = inside.link_by_name(&InterfaceName::try_from(held.id.interface())?)?
        && link.mac == Some(held.mac())
    {
        let shaper = shaper(wanted.egress);
        inside.batch(vec![
            Op::link_set_gso_max_size(link.index, shaper.segment()),
            Op::tbf(&wire::shaper(link.index, shaper)),
        ])?;
    }
    live.publish(&changed)?;
    live.records.update(&changed)?;
    let shown = |limit: Option<Bandwidth>| limit.map_or_else(|| "none".into(), |limit| limit.to_string());
    tracing::info!(
        pod = held.pod, namespace = %held.namespace,
        ingress = shown(wanted.ingress), egress = shown(wanted.egress), "the pod's limits changed"
    );
    Ok(())
}

/// The shaper for a limit that was changed. One that was removed is set wide open and stays: a device whose qdisc is taken away
/// loses packets for a moment.
fn shaper(limit: Option<Bandwidth>) -> Shaper {
    limit.map_or_else(Shaper::open, Shaper::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_the_widest() {
        let of = |bits| Bandwidth::from_bits(bits).ok();
        assert_eq!(wider(of(1_000), of(2_000)), of(2_000));
        assert_eq!(wider(of(1_000), None), None);
        assert_eq!(wider(None, None), None);
    }
}
