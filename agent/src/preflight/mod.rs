//! Is this node fit for Bulkhead? Looked at before anything of the node is changed, and by each resync after.
//!
//! Nothing here changes the node: what the kernel can do is tried in a network namespace that nobody else sees. A node that
//! works already is never taken down by what is found: whoever asks decides by [`Found::taken_up`].
//!
//! Here is what may be found and who looks for it: `cni_configs` at the runtime's folder, `network` at addresses, routes and
//! ports, `features` at the kernel.

mod cni_configs;
mod features;
mod network;

use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;
use thiserror::Error;

use crate::args::Config;
use crate::kernel::{KernelError, Link, Netlink};
use crate::node::{cni_conf, overlay};
use crate::pods::wire::GROUP;

pub use features::{BTF, try_kernel};

/// The kernel's UDP sockets, those of the reader's network namespace.
const SOCKETS: [&str; 2] = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];

/// What is in Bulkhead's way on a node.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Obstacle {
    /// No types.
    #[error("the kernel shows no BTF at {}; boot a kernel that is built with CONFIG_DEBUG_INFO_BTF", .0.display())]
    NoBtf(PathBuf),
    /// A feature.
    #[error("the kernel refuses {what}: {error}")]
    Kernel {
        /// Which, with its modules.
        what: &'static str,
        /// In its own words, and what to do.
        error: String,
    },
    /// The runtime takes that file instead of ours.
    #[error(
        "the CNI config {} ({network}) sorts before {}, so the runtime gives pods to it; remove that network, and the file",
        .path.display(),
        cni_conf::FILE
    )]
    ForeignFirst {
        /// The file.
        path: PathBuf,
        /// What it says.
        network: String,
    },
    /// Another network's plugin.
    #[error(
        "another network has left its CNI config {} ({network}), and its pods would be no tenant's; remove that network, and \
         the file",
        .path.display()
    )]
    ForeignNetwork {
        /// The file.
        path: PathBuf,
        /// What it says.
        network: String,
    },
    /// The cluster network is here already.
    #[error(
        "the cluster's network {network} clashes with what this node has: {held}; remove that, or install with another \
         cluster.network"
    )]
    Clash {
        /// The pods' network.
        network: Ipv4Network,
        /// Addresses and routes.
        held: String,
    },
    /// The tunnel's port.
    #[error(
        "UDP port {port} is in use by {holder}; remove what uses it, or give all nodes another port (--vxlan-port, the \
         chart's vxlanPort)"
    )]
    PortTaken {
        /// UDP.
        port: u16,
        /// Who has it.
        holder: String,
    },
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What is in the way.
    pub obstacles: Vec<Obstacle>,
    /// Bulkhead works on this node: its overlay device is up, or pods are wired.
    pub taken_up: bool,
    /// Bulkhead worked on this node before it booted: its CNI config, which is written last, is there.
    pub known: bool,
}

impl Obstacle {
    /// Whether a node that worked with it before it booted goes on to: what is in the way of others, not of ours.
    pub const fn is_borne(&self) -> bool {
        matches!(self, Self::ForeignNetwork { .. } | Self::Clash { .. })
    }
}

/// Looks at the node. `network` is the pods' network, once it is known.
pub fn look(config: &Config, network: Option<Ipv4Network>, host: &mut Netlink) -> Result<Found, KernelError> {
    let links = host.links()?;
    let taken_up = links.iter().any(|link| link.group == GROUP || (is_overlay(link) && link.up));
    let mut obstacles: Vec<Obstacle> = features::btf(&config.kernel_btf).into_iter().collect();
    obstacles.extend(config.cni_conf_dir.iter().flat_map(|folder| cni_configs::foreign(folder)));
    obstacles.extend(network::port(config.vxlan_port, &links, &SOCKETS.map(Path::new)));
    if let Some(network) = network {
        let held = network::held(host, &links)?;
        obstacles.extend(network::clash(network, &held));
    }
    let known = config.cni_conf_dir.iter().any(|folder| folder.join(cni_conf::FILE).exists());
    Ok(Found { obstacles, taken_up, known })
}

fn is_overlay(link: &Link) -> bool {
    link.name == overlay::NAME && link.vxlan.is_some_and(|vxlan| vxlan.external)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::UdpSocket;

    use clap::Parser as _;

    use super::*;
    use crate::args::Args;
    use crate::kernel::fixture::in_new_netns;
    use crate::kernel::{MAIN_TABLE, Mac, Op, Route, VxlanSpec};
    use crate::pods::wire::PROTOCOL;

    fn network() -> Ipv4Network {
        "10.77.0.0/16".parse().unwrap()
    }

    #[test]
    fn a_node_is_known_by_the_config_that_is_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &Path| text.display().to_string();
        let flags =
            ["bulkhead-agent", "--node-name", "n1", "--node-ip", "10.0.0.1", "--cni-conf-dir", &of(folder.path())];
        let config = Args::try_parse_from(flags).unwrap().into_config(|| None).unwrap();
        fs::write(folder.path().join("99-other.conf"), r#"{"name":"o","type":"calico"}"#).unwrap();
        in_new_netns(|| {
            let mut host = Netlink::here().expect("this test needs root");
            let mut look = || look(&config, None, &mut host).unwrap();
            assert!(!look().known);
            fs::write(folder.path().join(cni_conf::FILE), "{}").unwrap();
            assert!(look().known && look().obstacles.iter().any(Obstacle::is_borne));
            fs::write(folder.path().join("01-first.conf"), r#"{"name":"o","type":"calico"}"#).unwrap();
            assert!(look().obstacles.iter().any(|obstacle| !obstacle.is_borne()));
        });
    }

    #[test]
    fn the_port_and_what_is_ours_is_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        fs::write(&path, [&features::BTF_MAGIC.to_ne_bytes()[..], &[1, 0]].concat()).unwrap();
        let flags = ["bulkhead-agent", "--node-name", "n1", "--node-ip", "10.0.0.1", "--kernel-btf"];
        let flags = flags.map(str::to_owned).into_iter().chain([path.display().to_string()]);
        let config = Args::try_parse_from(flags).unwrap().into_config(|| None).unwrap();
        in_new_netns(|| {
            let mut host = Netlink::here().expect("this test needs root");
            let said = |host: &mut Netlink| {
                let found = look(&config, Some(network()), host).unwrap();
                (found.obstacles.iter().map(ToString::to_string).collect::<String>(), found.taken_up)
            };
            assert_eq!(said(&mut host), (String::new(), false));
            let socket = UdpSocket::bind(("0.0.0.0", config.vxlan_port)).unwrap();
            assert!(said(&mut host).0.contains("UDP port 4789 is in use by a socket at 0.0.0.0"));
            drop(socket);
            let make = |host: &mut Netlink, name: &str| {
                let name = name.parse().unwrap();
                let spec = VxlanSpec { name, mac: Mac([2, 0, 0, 0, 0, 1]), port: 4789, mtu: 1_450 };
                host.apply(Op::vxlan(&spec)).unwrap();
                let index = host.link_by_name(&spec.name).unwrap().unwrap().index;
                host.apply(Op::link_up(index)).unwrap();
                index
            };
            let theirs = make(&mut host, "flannel.1");
            assert!(said(&mut host).0.contains("in use by the VXLAN device flannel.1"));
            host.apply(Op::link_delete(theirs)).unwrap();
            let ours = make(&mut host, overlay::NAME);
            host.apply(Op::address_add(ours, "10.77.1.1/32".parse().unwrap(), true)).unwrap();
            let route = Route { index: Some(ours), ..Route::to("10.77.0.0/16".parse().unwrap(), MAIN_TABLE, PROTOCOL) };
            host.apply(Op::route_add(&route)).unwrap();
            assert_eq!(said(&mut host), (String::new(), true));
            host.apply(Op::link_down(ours)).unwrap();
            assert!(!said(&mut host).1, "a start that was broken off is not a node that works");
        });
    }
}
