//! The underlay devices: every device of the host's netns that has an IPv4 address and is not ours. On each, one
//! program keeps the cluster network inside the tunnel.

use std::collections::BTreeSet;

use crate::datapath::{DatapathError, Programs};
use crate::kernel::{BatchError, Hook, KernelError, Link, Netlink, Op};
use crate::pods::wire::{FILTER_HANDLE, FILTER_PRIORITY, GROUP, filter};

const PROGRAM: &str = "bulkhead_from_underlay";

/// Why the underlay cannot be guarded.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// Listing.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Attaching.
    #[error("the program cannot be attached to the underlay device {device}: {source}")]
    Attach {
        /// Which device.
        device: String,
        /// What the kernel said.
        source: BatchError,
    },
    /// The program.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

fn is_candidate(link: &Link) -> bool {
    !link.loopback && link.group != GROUP && link.name != super::overlay::NAME
}

/// The devices that are to be guarded now.
pub fn devices(netlink: &mut Netlink) -> Result<Vec<Link>, UnderlayError> {
    let mut found = Vec::new();
    for link in netlink.links()?.into_iter().filter(is_candidate) {
        if netlink.addresses(link.index)?.iter().any(|address| address.network.is_ipv4()) {
            found.push(link);
        }
    }
    Ok(found)
}

/// Guards every underlay device. `replace` puts this agent's program in the place of an earlier one's; without it only
/// what is missing is attached. Returns the names of devices that had no program.
pub fn guard(netlink: &mut Netlink, programs: &Programs, replace: bool) -> Result<Vec<String>, UnderlayError> {
    let mut changed = Vec::new();
    for link in devices(netlink)? {
        let filters = netlink.filters(link.index, Hook::Ingress)?;
        let there = filters.iter().any(|filter| filter.name.as_deref() == Some(PROGRAM));
        if there && !replace {
            continue;
        }
        let ops = vec![
            Op::clsact(link.index).unless_present(),
            filter(programs, link.index, Hook::Ingress, "from_underlay")?,
        ];
        netlink.batch(ops).map_err(|source| UnderlayError::Attach { device: link.name.clone(), source })?;
        if !there {
            changed.push(link.name);
        }
    }
    Ok(changed)
}

/// Takes our program off every device of the host; a qdisc that somebody else uses too stays.
pub fn release(netlink: &mut Netlink) -> Result<BTreeSet<String>, UnderlayError> {
    let mut released = BTreeSet::new();
    for link in netlink.links()?.into_iter().filter(is_candidate) {
        let ours = |filters: Vec<crate::kernel::Filter>| filters.iter().any(|f| f.name.as_deref() == Some(PROGRAM));
        if netlink.filters(link.index, Hook::Ingress).is_ok_and(ours) {
            let delete = Op::bpf_filter_delete(link.index, Hook::Ingress, FILTER_PRIORITY, FILTER_HANDLE);
            netlink.apply(delete.if_present())?;
            let others = !netlink.filters(link.index, Hook::Ingress)?.is_empty()
                || !netlink.filters(link.index, Hook::Egress)?.is_empty();
            if !others {
                netlink.apply(Op::clsact_delete(link.index).if_present())?;
            }
            released.insert(link.name);
        }
    }
    Ok(released)
}
