//! The pair of devices between the host and a pod, made in one request with its peer born inside the pod's namespace.
//!
//! Born there, for a peer that is moved afterwards costs an unregister and a register under the kernel's one lock: tens of
//! milliseconds instead of half of one. The kernel makes both ends or none.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::interface_name::InterfaceName;
use super::mac::Mac;
use super::op::{CREATE, Op};

/// A veth pair that is wanted.
#[derive(Debug, Clone)]
pub struct VethSpec<'fd> {
    /// The host end's name.
    pub host_name: InterfaceName,
    /// The host end's index, or the kernel's choice.
    pub host_index: Option<u32>,
    /// The host end's address.
    pub host_mac: Mac,
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// The host end's group, 0 being everybody's.
    pub group: Option<u32>,
    /// The pod end's name.
    pub peer_name: InterfaceName,
    /// The pod end's index, or the kernel's choice. The kernel ignores it unless `host_index` is given too.
    pub peer_index: Option<u32>,
    /// The pod end's address.
    pub peer_mac: Mac,
    /// The pod's network namespace.
    pub peer_netns: BorrowedFd<'fd>,
    /// The largest segment that the pod's stack hands to its end, in bytes; the kernel's default (65536) if none.
    pub peer_gso_max_size: Option<u32>,
}

impl<'fd> Op<'fd> {
    /// Creates a veth pair: the host end up, the pod end down (the kernel refuses to set it up in this request; send
    /// [`Op::link_up`] in the pod's namespace). `EEXIST` if either name or index is taken, and then nothing was made.
    pub fn veth(spec: &VethSpec<'fd>) -> Self {
        let mut peer = LinkMessage::default();
        peer.header.index = spec.peer_index.unwrap_or_default();
        peer.attributes.extend([
            LinkAttribute::IfName(spec.peer_name.to_string()),
            LinkAttribute::Address(spec.peer_mac.0.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::NetNsFd(spec.peer_netns.as_raw_fd()),
        ]);
        peer.attributes.extend(spec.peer_gso_max_size.map(LinkAttribute::GsoMaxSize));

        let mut host = LinkMessage::default();
        host.header.index = spec.host_index.unwrap_or_default();
        host.header.flags = LinkFlags::Up;
        host.header.change_mask = LinkFlags::Up;
        host.attributes.extend([
            LinkAttribute::IfName(spec.host_name.to_string()),
            LinkAttribute::Address(spec.host_mac.0.to_vec()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        host.attributes.extend(spec.group.map(LinkAttribute::Group));
        let operation = format!("create veth {} with peer {}", spec.host_name, spec.peer_name);
        Self::new(operation, RouteNetlinkMessage::NewLink(host), CREATE)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::super::Netlink;
    use super::super::fixture::{in_new_netns, new_netns, veth_spec};
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn both_ends_are_as_asked() {
        in_new_netns(|| {
            let pod = new_netns();
            let spec = VethSpec {
                host_index: Some(4001),
                peer_index: Some(2),
                group: Some(77),
                peer_gso_max_size: Some(9000),
                mtu: 1450,
                ..veth_spec("vethtest0", pod.as_fd())
            };
            let mut host = Netlink::here().unwrap();
            host.apply(Op::veth(&spec)).unwrap();
            let mut inside = Netlink::within(pod.as_fd()).unwrap();

            let link = host.link_by_index(4001).unwrap().unwrap();
            assert_eq!((link.name.as_str(), link.mtu, link.group, link.up), ("vethtest0", 1450, 77, true));
            assert_eq!((link.mac, link.kind.as_deref(), link.peer_index), (Some(spec.host_mac), Some("veth"), Some(2)));
            assert!(link.peer_netns.is_some(), "the peer is elsewhere");

            let peer = inside.link_by_name(&spec.peer_name).unwrap().unwrap();
            assert_eq!((peer.index, peer.mtu, peer.up, peer.group), (2, 1450, false, 0));
            assert_eq!((peer.mac, peer.gso_max_size), (Some(spec.peer_mac), Some(9000)));
            assert_eq!(peer.gso_ipv4_max_size.unwrap_or(9000), 9000);
            inside.apply(Op::link_up(2)).unwrap();
            assert!(host.link_by_index(4001).unwrap().unwrap().running);
        });
    }

    #[test]
    fn a_taken_name_leaves_nothing_behind() {
        in_new_netns(|| {
            let pod = new_netns();
            let mut host = Netlink::here().unwrap();
            host.apply(Op::veth(&veth_spec("vethtest0", pod.as_fd()))).unwrap();
            // The peer's name is taken in the pod.
            let error = host.apply(Op::veth(&veth_spec("vethtest1", pod.as_fd()))).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EXIST));
            assert!(error.to_string().contains("create veth vethtest1 with peer eth0"), "{error}");
            assert_eq!(host.link_by_name(&"vethtest1".parse().unwrap()).unwrap(), None);
            // The host's name is taken: no second peer in the pod.
            let other = new_netns();
            host.apply(Op::veth(&veth_spec("vethtest0", other.as_fd()))).unwrap_err();
            assert_eq!(Netlink::within(other.as_fd()).unwrap().link_by_name(&"eth0".parse().unwrap()).unwrap(), None);
        });
    }

    #[test]
    fn a_bad_mtu_is_refused_with_the_operation_named() {
        in_new_netns(|| {
            let pod = new_netns();
            let spec = VethSpec { mtu: 7, ..veth_spec("vethtest0", pod.as_fd()) };
            let error = Netlink::here().unwrap().apply(Op::veth(&spec)).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::INVAL));
            assert!(error.to_string().starts_with("create veth vethtest0 with peer eth0: Invalid argument"), "{error}");
        });
    }
}
