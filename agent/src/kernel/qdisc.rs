//! Queueing disciplines: the clsact hook point for filters, deletion, and reading back. Shaping is in `tbf.rs`.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::error::KernelError;
use super::op::{Op, REPLACE};
use super::reply::{Attributes, Reply, u32_at};
use super::socket::Netlink;
use super::tbf::Tbf;

/// `RTM_NEWQDISC` of `linux/rtnetlink.h`.
const RTM_NEWQDISC: u16 = 36;
/// Length of `struct tcmsg`.
pub(super) const HEADER_LEN: usize = 20;
/// `TCA_*` of `linux/rtnetlink.h`.
pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;

/// A queueing discipline as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// The device.
    pub index: u32,
    /// `tbf`, `clsact`, `noqueue`, ...
    pub kind: String,
    /// Whether it is the one that outgoing packets go through first.
    pub root: bool,
    /// The handle; 0 for the kernel's default discipline.
    pub handle: u32,
    /// The shaper's values, if it is a token bucket filter.
    pub tbf: Option<Tbf>,
}

impl Op<'_> {
    /// Makes sure that a device has the clsact hook point. Having one already is success, and leaves its filters as they are; an
    /// `ingress` qdisc in its place is `EINVAL`.
    pub fn clsact(index: u32) -> Self {
        // With the handle named and no options, the kernel takes the second creation as a change of nothing.
        let handle = TcHandle { major: u16::MAX, minor: 0 };
        let message = message(index, TcHandle::CLSACT, handle, "clsact");
        Self::new(format!("add clsact to link {index}"), RouteNetlinkMessage::NewQueueDiscipline(message), REPLACE)
    }

    /// Deletes the clsact hook point with all its filters.
    pub fn clsact_delete(index: u32) -> Self {
        let message = message(index, TcHandle::CLSACT, TcHandle::UNSPEC, "clsact");
        // Where a clsact once was, or an ingress qdisc is, the kind does not match: EINVAL.
        Self::new(format!("delete clsact of link {index}"), RouteNetlinkMessage::DelQueueDiscipline(message), 0)
            .absent_if_invalid()
    }

    /// Deletes the root discipline: the kernel's default takes its place. Packets in its queue are lost.
    pub fn qdisc_delete(index: u32) -> Self {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::ROOT;
        Self::new(format!("delete the root qdisc of link {index}"), RouteNetlinkMessage::DelQueueDiscipline(message), 0)
    }
}

impl Netlink {
    /// The queueing disciplines of a device, the kernel's default ones included.
    pub fn qdiscs(&mut self, index: u32) -> Result<Vec<Qdisc>, KernelError> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index.cast_signed()));
        let listed = self.dump(&format!("list qdiscs of link {index}"), &request, parse)?;
        // The kernel lists those of all devices whatever it is asked.
        Ok(listed.into_iter().filter(|qdisc| qdisc.index == index).collect())
    }
}

pub(super) fn message(index: u32, parent: TcHandle, handle: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

fn parse(reply: &Reply<'_>) -> Option<Qdisc> {
    if reply.kind != RTM_NEWQDISC {
        return None;
    }
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    let kind = attributes.text(TCA_KIND)?;
    let tbf = if kind == "tbf" { Tbf::parse(&attributes.nest(TCA_OPTIONS)) } else { None };
    Some(Qdisc {
        index: u32_at(reply.body, 4)?,
        kind,
        root: u32_at(reply.body, 12)? == u32::from(TcHandle::ROOT),
        handle: u32_at(reply.body, 8)?,
        tbf,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_netns, wired_pod};
    use super::*;

    #[test]
    fn clsact_is_added_once_however_often_it_is_asked_for() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            pod.host.batch(vec![Op::clsact(index), Op::clsact(index)]).unwrap();
            pod.host.apply(Op::clsact(index)).unwrap();
            let count = |host: &mut Netlink| host.qdiscs(index).unwrap().iter().filter(|q| q.kind == "clsact").count();
            assert_eq!(count(&mut pod.host), 1);
            pod.host.apply(Op::clsact_delete(index)).unwrap();
            assert_eq!(count(&mut pod.host), 0);
            pod.host.apply(Op::clsact_delete(index).if_present()).unwrap();
        });
    }

    #[test]
    fn deleting_no_root_qdisc_is_absence() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            assert!(pod.host.apply(Op::qdisc_delete(index)).unwrap_err().is_absent());
            pod.host.apply(Op::qdisc_delete(index).if_present()).unwrap();
        });
    }
}
