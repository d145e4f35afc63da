//! Network devices: state, MTU, group, GSO size, deletion one by one or many at once, and reading them back.

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};

use super::error::KernelError;
use super::interface_name::InterfaceName;
use super::mac::Mac;
use super::nla::Nla;
use super::op::Op;
use super::reply::{Attributes, Reply, u32_at};
use super::socket::Netlink;

/// `RTM_NEWLINK` of `linux/rtnetlink.h`.
const RTM_NEWLINK: u16 = 16;
/// Length of `struct ifinfomsg`.
const HEADER_LEN: usize = 16;
/// `IFLA_*` of `linux/if_link.h`.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_GSO_MAX_SIZE: u16 = 41;
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const AF_INET: u16 = 2;
/// `IFF_*` of `linux/if.h`.
const IFF_UP: u32 = 1 << 0;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_RUNNING: u32 = 1 << 6;
const IFF_NOARP: u32 = 1 << 7;

/// `IPV4_DEVCONF_*` of `linux/ip.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InetSetting {
    /// Whether what comes in by the device is forwarded.
    Forwarding = 1,
    /// Reverse path filter: 0 none, 1 strict, 2 loose.
    RpFilter = 8,
}

impl InetSetting {
    /// The name of its file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::RpFilter => "rp_filter",
        }
    }
}

/// A network device as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the kernel's independent flags")]
pub struct Link {
    /// The interface index, unique in its network namespace.
    pub index: u32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// The hardware address, where it is an Ethernet one.
    pub mac: Option<Mac>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and with a carrier.
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// No ARP and neighbour discovery.
    pub noarp: bool,
    /// The group for joint operations; 0 is the default one.
    pub group: u32,
    /// The driver's kind (`veth`, `vxlan`, `bridge`); none for hardware.
    pub kind: Option<String>,
    /// The index of the veth's other end, or of the device below; counted in `peer_netns`.
    pub peer_index: Option<u32>,
    /// This namespace's number for the namespace of `peer_index`; none if it is this one.
    pub peer_netns: Option<i32>,
    /// The largest segment that the stack hands to the device, in bytes.
    pub gso_max_size: Option<u32>,
    /// The same for IPv4, where the kernel tells them apart (6.3 and newer).
    pub gso_ipv4_max_size: Option<u32>,
    /// What sets a VXLAN device apart.
    pub vxlan: Option<VxlanState>,
}

/// What the kernel shows of a VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanState {
    /// The UDP port.
    pub port: u16,
    /// Whether each packet brings its own VNI and peer (collect-metadata).
    pub external: bool,
    /// Whether the device learns peers from what it receives.
    pub learning: bool,
}

impl Op<'_> {
    /// Sets a device up.
    pub fn link_up(index: u32) -> Self {
        set_flag(format!("set link {index} up"), index, LinkFlags::Up, LinkFlags::Up)
    }

    /// Sets a device down.
    pub fn link_down(index: u32) -> Self {
        set_flag(format!("set link {index} down"), index, LinkFlags::empty(), LinkFlags::Up)
    }

    /// Takes ARP and neighbour discovery from a device.
    pub fn link_set_noarp(index: u32) -> Self {
        set_flag(format!("set link {index} noarp"), index, LinkFlags::Noarp, LinkFlags::Noarp)
    }

    /// Sets a device's MTU, in bytes.
    pub fn link_set_mtu(index: u32, mtu: u32) -> Self {
        set(format!("set the MTU of link {index} to {mtu}"), index, LinkAttribute::Mtu(mtu))
    }

    /// Sets the largest segment that the stack hands to a device, in bytes (up to 65536; the kernel refuses more than the driver
    /// takes). Holds for IPv4 and IPv6.
    pub fn link_set_gso_max_size(index: u32, size: u32) -> Self {
        set(format!("set the GSO size of link {index} to {size}"), index, LinkAttribute::GsoMaxSize(size))
    }

    /// Sets one of a device's IPv4 settings (`/proc/sys/net/ipv4/conf/<device>/`), without a file system that may be read-only.
    pub fn link_set_inet(index: u32, setting: InetSetting, value: u32) -> Self {
        let values = Nla::default().ne32(setting as u16, value);
        // Not `AfSpecInet`: that leaves out what is 0.
        let inet = Nla::default().nest(AF_INET, &Nla::default().nest(IFLA_INET_CONF, &values));
        let operation = format!("set {setting:?} of link {index} to {value}");
        let attribute = DefaultNla::new(IFLA_AF_SPEC | NLA_F_NESTED, inet.bytes().to_vec());
        set(operation, index, LinkAttribute::Other(attribute))
    }

    /// Puts a device into a group.
    pub fn link_set_group(index: u32, group: u32) -> Self {
        set(format!("put link {index} into group {group}"), index, LinkAttribute::Group(group))
    }

    /// Deletes a device (of a veth pair both ends). Takes tens of milliseconds: for many see [`Op::links_delete`].
    pub fn link_delete(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self::new(format!("delete link {index}"), RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Deletes every device of a group in one go. The kernel refuses group 0.
    pub fn link_group_delete(group: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        Self::new(format!("delete the links of group {group}"), RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Deletes many devices for the price of one: all are put into `group`, which is then deleted. Links that are gone already are
    /// passed over. Whatever else is in the group goes too, so it must be one that serves for nothing else.
    pub fn links_delete(indices: &[u32], group: u32) -> Vec<Self> {
        let marks = indices.iter().map(|&index| Self::link_set_group(index, group).if_present());
        marks.chain([Self::link_group_delete(group).if_present()]).collect()
    }
}

impl Netlink {
    /// All devices of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        self.dump("list links", &RouteNetlinkMessage::GetLink(message), parse)
    }

    /// The device of that index, if there is one.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(without_statistics());
        self.link(&format!("look up link {index}"), message)
    }

    /// The device of that name, if there is one.
    pub fn link_by_name(&mut self, name: &InterfaceName) -> Result<Option<Link>, KernelError> {
        let mut message = LinkMessage::default();
        message.attributes.extend([without_statistics(), LinkAttribute::IfName(name.to_string())]);
        self.link(&format!("look up link {name}"), message)
    }

    fn link(&mut self, operation: &str, message: LinkMessage) -> Result<Option<Link>, KernelError> {
        match self.ask(operation, &RouteNetlinkMessage::GetLink(message), parse) {
            Err(error) if error.is_absent() => Ok(None),
            answer => answer,
        }
    }
}

/// A listing without counters is a third of the size.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn set_flag(operation: String, index: u32, flags: LinkFlags, mask: LinkFlags) -> Op<'static> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = mask;
    Op::new(operation, RouteNetlinkMessage::SetLink(message), 0)
}

fn set(operation: String, index: u32, attribute: LinkAttribute) -> Op<'static> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    Op::new(operation, RouteNetlinkMessage::SetLink(message), 0)
}

fn parse(reply: &Reply<'_>) -> Option<Link> {
    if reply.kind != RTM_NEWLINK {
        return None;
    }
    let index = u32_at(reply.body, 4)?;
    let flags = u32_at(reply.body, 8)?;
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    let info = attributes.nest(IFLA_LINKINFO);
    let kind = info.text(IFLA_INFO_KIND);
    let data = info.nest(IFLA_INFO_DATA);
    let vxlan = (kind.as_deref() == Some("vxlan")).then(|| VxlanState {
        port: data.u16_be(IFLA_VXLAN_PORT).unwrap_or_default(),
        external: data.u8(IFLA_VXLAN_COLLECT_METADATA).is_some_and(|on| on != 0),
        learning: data.u8(IFLA_VXLAN_LEARNING).is_some_and(|on| on != 0),
    });
    Some(Link {
        index,
        name: attributes.text(IFLA_IFNAME)?,
        mac: attributes.bytes(IFLA_ADDRESS).and_then(Mac::from_bytes),
        mtu: attributes.u32(IFLA_MTU).unwrap_or_default(),
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        noarp: flags & IFF_NOARP != 0,
        group: attributes.u32(IFLA_GROUP).unwrap_or_default(),
        kind,
        peer_index: attributes.u32(IFLA_LINK),
        peer_netns: attributes.u32(IFLA_LINK_NETNSID).map(u32::cast_signed),
        gso_max_size: attributes.u32(IFLA_GSO_MAX_SIZE),
        gso_ipv4_max_size: attributes.u32(IFLA_GSO_IPV4_MAX_SIZE),
        vxlan,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::Errno;

    use super::super::VethSpec;
    use super::super::fixture::{in_new_netns, new_netns, veth_spec, wired_pod};
    use super::*;

    #[test]
    fn attributes_and_flags_are_set_and_read_back() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            pod.host
                .batch(vec![
                    Op::link_set_mtu(index, 1400),
                    Op::link_set_gso_max_size(index, 9000),
                    Op::link_set_group(index, 7),
                    Op::link_set_noarp(index),
                    Op::link_up(1),
                ])
                .unwrap();
            let link = pod.host.link_by_index(index).unwrap().unwrap();
            assert_eq!((link.mtu, link.gso_max_size, link.group), (1400, Some(9000), 7));
            assert_eq!(link.gso_ipv4_max_size.unwrap_or(9000), 9000);
            assert!(link.noarp && link.up && link.running && !link.loopback);
            let links = pod.host.links().unwrap();
            assert!(links.contains(&link) && links.iter().any(|link| link.loopback && link.up), "{links:?}");
            pod.host.apply(Op::link_down(index)).unwrap();
            assert!(!pod.host.link_by_index(index).unwrap().unwrap().up);
        });
    }

    #[test]
    fn ipv4_settings_are_set_without_a_file_system() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            for (setting, value) in
                [(InetSetting::RpFilter, 2), (InetSetting::Forwarding, 1), (InetSetting::Forwarding, 0)]
            {
                pod.host.apply(Op::link_set_inet(pod.host_index, setting, value)).unwrap();
                let name = pod.host.link_by_index(pod.host_index).unwrap().unwrap().name;
                let key = format!("net/ipv4/conf/{name}/{}", setting.name());
                assert_eq!(super::super::sysctl::read(&key).unwrap(), value.to_string(), "{key}");
            }
        });
    }

    #[test]
    fn deleting_one_end_deletes_both() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            pod.host.apply(Op::link_delete(pod.host_index)).unwrap();
            assert_eq!(pod.inside.link_by_index(pod.inside_index).unwrap(), None);
            assert_eq!(pod.host.link_by_name(&"vethtest0".parse().unwrap()).unwrap(), None);
            let error = pod.host.apply(Op::link_delete(pod.host_index)).unwrap_err();
            assert!(error.is_absent(), "{error}");
            pod.host.apply(Op::link_delete(pod.host_index).if_present()).unwrap();
        });
    }

    #[test]
    fn many_are_deleted_together_and_others_stay() {
        in_new_netns(|| {
            let pod = new_netns();
            let mut host = Netlink::here().unwrap();
            let specs: Vec<VethSpec<'_>> = (0..20)
                .map(|n| VethSpec {
                    host_index: Some(1000 + n),
                    peer_index: Some(1000 + n),
                    peer_name: format!("eth{n}").parse().unwrap(),
                    ..veth_spec(&format!("vethtest{n}"), pod.as_fd())
                })
                .collect();
            host.batch(specs.iter().map(Op::veth).collect()).unwrap();
            // Two are gone before, one stays, and a second time there is nothing to do.
            host.batch(vec![Op::link_delete(1003), Op::link_delete(1004)]).unwrap();
            let doomed: Vec<u32> = (1000..1019).collect();
            for _ in 0..2 {
                host.batch(Op::links_delete(&doomed, 4711)).unwrap();
                let left: Vec<u32> =
                    host.links().unwrap().iter().map(|link| link.index).filter(|&i| i >= 1000).collect();
                assert_eq!(left, [1019]);
            }
            assert_eq!(host.apply(Op::link_group_delete(4711)).unwrap_err().errno(), Some(Errno::NODEV));
            assert_eq!(host.apply(Op::link_group_delete(0)).unwrap_err().errno(), Some(Errno::PERM));
        });
    }
}
