//! One pod's attachment: what an ADD made, and the names and addresses that follow from it.

use std::net::{IpAddr, Ipv4Addr};

use bulkhead_core::Namespace;
use bulkhead_core::attachment::AttachmentId;
use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::limit::Limits;
use crate::kernel::Mac;

/// How far an ADD came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Not answered yet: what exists of it may be undone.
    Attaching,
    /// Answered.
    Attached,
}

/// One pod's attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Container and interface.
    pub id: AttachmentId,
    /// The pod's name, empty if the runtime did not say.
    pub pod: String,
    /// Its UID, empty if the runtime did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// The VNI that its namespace had at its birth: a namespace re-created under the name is another one.
    pub vni: u32,
    /// Where its netns is mounted.
    pub netns: String,
    /// The host part of its addresses.
    pub host: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host's side of its veth.
    pub ifindex: u32,
    /// Bytes.
    pub mtu: u32,
    /// Its limits.
    #[serde(default)]
    pub limits: Limits,
    /// Which run of the plugin asked for it.
    #[serde(default)]
    pub attempt: String,
    /// How far its ADD came.
    pub stage: Stage,
}

impl Record {
    /// Its MAC address: 0a:58 and its IPv4 address, so that nothing needs to remember it.
    pub fn mac(&self) -> Mac {
        let [a, b, c, d] = v4_of(&self.addresses).octets();
        Mac([0x0a, 0x58, a, b, c, d])
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        v4_of(&self.addresses)
    }

    /// The name of the host's side of its veth: `bh` and its IPv4 address in hexadecimal.
    pub fn host_interface(&self) -> String {
        format!("bh{:08x}", u32::from(self.ip4()))
    }

    /// What the names of the devices of all of a network's pods start with: `bh` and the digits that their addresses share.
    pub fn host_interface_prefix(network: Ipv4Network) -> String {
        let digits = format!("{:08x}", u32::from(network.network()));
        format!("bh{}", &digits[..usize::from(network.prefix() / 4)])
    }

    /// The address of the pod whose host device has this name.
    pub fn address_of(host_interface: &str) -> Option<Ipv4Addr> {
        let digits = host_interface.strip_prefix("bh").filter(|digits| digits.len() == 8)?;
        u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from)
    }
}

fn v4_of(addresses: &[IpAddr]) -> Ipv4Addr {
    let v4 = addresses.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    v4.unwrap_or(Ipv4Addr::UNSPECIFIED)
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_a_network_share_a_prefix() {
        let prefix = |text: &str| Record::host_interface_prefix(text.parse().unwrap());
        assert_eq!(prefix("10.77.0.0/16"), "bh0a4d");
        assert_eq!(prefix("10.128.0.0/14"), "bh0a8");
        assert_eq!(prefix("172.16.0.0/12"), "bhac1");
        assert_eq!(prefix("10.0.0.0/8"), "bh0a");
    }
}
