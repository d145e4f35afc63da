//! The overlay device `bulkhead0`: a VXLAN device in collect-metadata mode, made once, adopted by each next agent.

use std::net::Ipv4Addr;

use ipnetwork::{IpNetwork, Ipv4Network};
use rustix::io::Errno;
use thiserror::Error;

use crate::args::Mtu;
use crate::datapath::{DatapathError, Programs};
use crate::kernel::{
    BatchError, Hook, InetSetting, InterfaceName, InterfaceNameError, KernelError, Link, Mac, Netlink, Op, SysctlError,
    VxlanSpec, sysctl,
};
use crate::pods::wire::filter;

/// Its name.
pub const NAME: &str = "bulkhead0";
/// Ethernet, VXLAN, UDP and IPv4 headers: what the tunnel adds (RFC 7348).
pub const HEADERS: u32 = 50;
/// The smallest MTU that pods can live with (RFC 791 asks every host for 576).
pub const SMALLEST_MTU: u32 = 576;

/// Why there is no overlay device.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// The address is on no device.
    #[error("no device of this node has the address {0}; give the node's own address with --node-ip")]
    NoSuchAddress(Ipv4Addr),
    /// The underlay cannot carry the pods' packets.
    #[error(
        "the underlay device {device} has an MTU of {underlay}, which leaves {room} for pods: {wanted} are needed; raise \
         the device's MTU or give a smaller --mtu"
    )]
    MtuTooSmall {
        /// Which device.
        device: String,
        /// Its MTU.
        underlay: u32,
        /// Less the headers.
        room: u32,
        /// What was asked for, or the smallest that is sane.
        wanted: u32,
    },
    /// Somebody else's VXLAN device or socket has the port.
    #[error("UDP port {0} is in use{1}; remove what uses it, or give all nodes another --vxlan-port")]
    PortTaken(u16, String),
    /// A device of that name that is not ours.
    #[error(
        "there is a device {NAME} that is not Bulkhead's ({0}); remove it (`ip link delete {NAME}`) and start again"
    )]
    NotOurs(String),
    /// Netlink.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A batch.
    #[error("the overlay device cannot be set up: {0}")]
    Batch(#[from] BatchError),
    /// The programs.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A name.
    #[error(transparent)]
    Name(#[from] InterfaceNameError),
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// The device that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Overlay {
    /// UDP.
    pub port: u16,
    /// Bytes.
    pub mtu: u32,
    /// This node's underlay address: the device's MAC address is made of it, unique for the node.
    pub node_ip: Ipv4Addr,
    /// This node's address on it.
    pub gateway: Ipv4Addr,
}

/// The MTU of pods on this node, and the underlay device with the node's address.
pub fn pod_mtu(netlink: &mut Netlink, node_ip: Ipv4Addr, asked: Mtu) -> Result<(u32, Link), OverlayError> {
    let mut underlay = None;
    for link in netlink.links()? {
        if netlink.addresses(link.index)?.iter().any(|address| address.network.ip() == node_ip) {
            underlay = Some(link);
            break;
        }
    }
    let link = underlay.ok_or(OverlayError::NoSuchAddress(node_ip))?;
    let room = link.mtu.saturating_sub(HEADERS);
    let wanted = match asked {
        Mtu::Fixed(bytes) => bytes,
        Mtu::Auto => room.clamp(SMALLEST_MTU, 65_485),
    };
    if wanted > room {
        let device = link.name;
        return Err(OverlayError::MtuTooSmall { device, underlay: link.mtu, room, wanted });
    }
    Ok((wanted, link))
}

impl Overlay {
    /// 0a:59 and the node's address.
    pub fn mac(&self) -> Mac {
        let [a, b, c, d] = self.node_ip.octets();
        Mac([0x0a, 0x59, a, b, c, d])
    }

    /// Makes the device, or adopts it. Returns its index and what had to be changed.
    pub fn ensure(&self, netlink: &mut Netlink) -> Result<(u32, Vec<String>), OverlayError> {
        let name = InterfaceName::try_from(NAME)?;
        let mut changes = Vec::new();
        if let Some(link) = netlink.link_by_name(&name)? {
            match self.judge(&link)? {
                Judgement::Fine => {}
                Judgement::Adjust => {
                    changes.push(format!("{NAME}: its MTU or state"));
                    netlink.batch(vec![Op::link_set_mtu(link.index, self.mtu), Op::link_up(link.index)])?;
                }
                Judgement::Replace => {
                    changes.push(format!("{NAME}: made anew, its port or address was another"));
                    netlink.apply(Op::link_delete(link.index))?;
                }
            }
        }
        let link = if let Some(link) = netlink.link_by_name(&name)? {
            link
        } else {
            self.create(netlink)?;
            netlink.link_by_name(&name)?.ok_or_else(|| OverlayError::NotOurs("it vanished".into()))?
        };
        let own = IpNetwork::V4(Ipv4Network::from(self.gateway));
        let held = netlink.addresses(link.index)?;
        let mut ops: Vec<Op<'_>> = held
            .iter()
            .filter(|address| address.network.is_ipv4() && address.network != own)
            .map(|address| Op::address_del(link.index, address.network).if_present())
            .collect();
        if !held.iter().any(|address| address.network == own) {
            changes.push(format!("{NAME}: its address {}", self.gateway));
            ops.push(Op::address_add(link.index, own, true).unless_present());
        }
        if !ops.is_empty() {
            netlink.batch(ops)?;
        }
        changes.extend(Self::settings(netlink, link.index)?);
        Ok((link.index, changes))
    }

    fn create(&self, netlink: &mut Netlink) -> Result<(), OverlayError> {
        let name = InterfaceName::try_from(NAME)?;
        let vxlan = Op::vxlan(&VxlanSpec { name, mac: self.mac(), port: self.port, mtu: self.mtu });
        match netlink.apply(vxlan) {
            Ok(()) => {}
            Err(error) => return Err(self.taken(netlink, error)),
        }
        let name = InterfaceName::try_from(NAME)?;
        let link = netlink.link_by_name(&name)?.ok_or_else(|| OverlayError::NotOurs("it vanished".into()))?;
        // The UDP socket is opened when the device goes up: only now it shows that the port is taken.
        if let Err(error) = netlink.apply(Op::link_up(link.index)) {
            let error = self.taken(netlink, error);
            netlink.apply(Op::link_delete(link.index).if_present())?;
            return Err(error);
        }
        Ok(())
    }

    fn taken(&self, netlink: &mut Netlink, error: KernelError) -> OverlayError {
        if ![Some(Errno::ADDRINUSE), Some(Errno::EXIST)].contains(&error.errno()) {
            return error.into();
        }
        let links = netlink.links().unwrap_or_default();
        let holder = links
            .iter()
            .find(|link| link.name != NAME && link.vxlan.as_ref().is_some_and(|vxlan| vxlan.port == self.port));
        OverlayError::PortTaken(
            self.port,
            holder.map(|link| format!(" by the VXLAN device {}", link.name)).unwrap_or_default(),
        )
    }

    fn judge(&self, link: &Link) -> Result<Judgement, OverlayError> {
        let Some(vxlan) = &link.vxlan else {
            return Err(OverlayError::NotOurs(link.kind.clone().unwrap_or_else(|| "a physical device".into())));
        };
        if !vxlan.external {
            return Err(OverlayError::NotOurs("a VXLAN device with a VNI of its own".into()));
        }
        if vxlan.port != self.port || link.mac != Some(self.mac()) || !link.noarp {
            return Ok(Judgement::Replace);
        }
        Ok(if link.mtu == self.mtu && link.up { Judgement::Fine } else { Judgement::Adjust })
    }

    /// The host forwards, and believes packets of other nodes' addresses that come by the tunnel.
    fn settings(netlink: &mut Netlink, index: u32) -> Result<Vec<String>, OverlayError> {
        let mut changes = Vec::new();
        changes.extend(sysctl::ensure("net/ipv4/ip_forward", "1")?);
        // By netlink: in a container that is not privileged /proc/sys is there to be read only.
        for (setting, wanted) in [(InetSetting::RpFilter, 2), (InetSetting::Forwarding, 1)] {
            let key = format!("net/ipv4/conf/{NAME}/{}", setting.name());
            let held = sysctl::read(&key)?;
            if held != wanted.to_string() {
                netlink.apply(Op::link_set_inet(index, setting, wanted))?;
                changes.push(format!("{key}: from {held} to {wanted}"));
            }
        }
        Ok(changes)
    }

    /// Attaches the two programs, or puts them in the place of those that are there. Returns whether one was missing.
    pub fn attach(netlink: &mut Netlink, index: u32, programs: &Programs) -> Result<bool, OverlayError> {
        let mut missing = false;
        for (hook, program) in [(Hook::Egress, "bulkhead_to_overlay"), (Hook::Ingress, "bulkhead_from_overlay")] {
            let filters = netlink.filters(index, hook)?;
            missing |= !filters.iter().any(|filter| filter.name.as_deref() == Some(program));
        }
        let ops = vec![
            Op::clsact(index).unless_present(),
            filter(programs, index, Hook::Egress, "to_overlay")?,
            filter(programs, index, Hook::Ingress, "from_overlay")?,
        ];
        netlink.batch(ops)?;
        Ok(missing)
    }

    /// Removes the device, if it is there and ours.
    pub fn remove(netlink: &mut Netlink) -> Result<(), OverlayError> {
        let name = InterfaceName::try_from(NAME)?;
        match netlink.link_by_name(&name)? {
            Some(link) if link.vxlan.as_ref().is_some_and(|vxlan| vxlan.external) => {
                Ok(netlink.apply(Op::link_delete(link.index).if_present())?)
            }
            _ => Ok(()),
        }
    }
}

enum Judgement {
    Fine,
    Adjust,
    Replace,
}
