//! Is this node fit for Bulkhead? Looked at before anything of the node is changed, and by each resync after.
//!
//! Nothing here changes the node: what the kernel can do is tried in a network namespace that nobody else sees. A node that
//! works already is never taken down by what is found: whoever asks decides by [`Found::taken_up`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use ipnetwork::{IpNetwork, Ipv4Network};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;
use serde_json::Value;
use thiserror::Error;

use crate::args::Config;
use crate::kernel::{InterfaceName, KernelError, Link, MAIN_TABLE, Mac, Netlink, Op, Route, RouteKind, VxlanSpec};
use crate::node::firewall::Firewall;
use crate::node::{cni_conf, overlay};
use crate::pods::wire::{GROUP, PROTOCOL};

/// Where the kernel shows its own types.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The first two bytes of BTF, in the kernel's byte order (`BTF_MAGIC` of `linux/btf.h`).
const BTF_MAGIC: u16 = 0xeb9f;
/// The kernel's UDP sockets, those of the reader's network namespace.
const SOCKETS: [&str; 2] = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
/// What a runtime takes for a CNI config (libcni, `ConfFiles`).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Plugins of the CNI project: distributions put configs of them there for hosts without a cluster.
const REFERENCE: [&str; 8] = ["bridge", "host-device", "ipvlan", "loopback", "macvlan", "ptp", "tuning", "vlan"];
/// Plugins that leave a pod's first device to another config, which they read themselves.
const DELEGATING: [&str; 2] = ["multus", "multus-shim"];
/// How many addresses and routes a message names.
const NAMED: usize = 5;

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
    let mut obstacles: Vec<Obstacle> = btf(&config.kernel_btf).into_iter().collect();
    obstacles.extend(config.cni_conf_dir.iter().flat_map(|folder| foreign_configs(folder)));
    obstacles.extend(port(config.vxlan_port, &links, &SOCKETS.map(Path::new)));
    if let Some(network) = network {
        let held = held(host, &links)?;
        obstacles.extend(clash(network, &held));
    }
    let known = config.cni_conf_dir.iter().any(|folder| folder.join(cni_conf::FILE).exists());
    Ok(Found { obstacles, taken_up, known })
}

fn is_overlay(link: &Link) -> bool {
    link.name == overlay::NAME && link.vxlan.is_some_and(|vxlan| vxlan.external)
}

fn btf(path: &Path) -> Option<Obstacle> {
    let mut magic = [0; 2];
    let read = fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    let good = read.is_ok() && u16::from_ne_bytes(magic) == BTF_MAGIC;
    (!good).then(|| Obstacle::NoBtf(path.to_owned()))
}

/// Configs of others in the runtime's folder. One behind ours is harmless if it is of a reference plugin.
fn foreign_configs(folder: &Path) -> Vec<Obstacle> {
    // No folder, no config; one that cannot be read fails when ours is written, which says so.
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| ENDINGS.contains(&ending)) && path.file_name() != Some(cni_conf::FILE.as_ref())
        })
        .collect();
    paths.sort();
    paths.into_iter().filter_map(foreign).collect()
}

fn foreign(path: PathBuf) -> Option<Obstacle> {
    let first = path.file_name() < Some(cni_conf::FILE.as_ref());
    let Some((network, plugin)) = fs::read(&path).ok().and_then(|text| named(&text)) else {
        // The runtime fails at one that it cannot read, if it is the first.
        return first.then(|| Obstacle::ForeignFirst { path, network: "which cannot be read".into() });
    };
    if DELEGATING.contains(&plugin.as_str()) {
        return None;
    }
    let said = format!("network {network}, plugin {plugin}");
    match (first, REFERENCE.contains(&plugin.as_str())) {
        (true, _) => Some(Obstacle::ForeignFirst { path, network: said }),
        (false, false) => Some(Obstacle::ForeignNetwork { path, network: said }),
        (false, true) => None,
    }
}

/// Name and first plugin of a CNI config or list.
fn named(text: &[u8]) -> Option<(String, String)> {
    let config: Value = serde_json::from_slice(text).ok()?;
    let of = |value: &Value| value.as_str().map(|text| text.chars().take(64).collect::<String>());
    let plugin = of(&config["plugins"][0]["type"]).or_else(|| of(&config["type"]))?;
    Some((of(&config["name"]).unwrap_or_default(), plugin))
}

fn port(port: u16, links: &[Link], sockets: &[&Path]) -> Option<Obstacle> {
    let on_port = |link: &&Link| link.vxlan.is_some_and(|vxlan| vxlan.port == port);
    if let Some(other) = links.iter().filter(|link| !is_overlay(link)).find(on_port) {
        return Some(Obstacle::PortTaken { port, holder: format!("the VXLAN device {}", other.name) });
    }
    if links.iter().any(|link| is_overlay(link) && link.up && on_port(&link)) {
        // The kernel lets nobody else have it.
        return None;
    }
    let address = sockets.iter().find_map(|path| bound(&fs::read_to_string(path).ok()?, port))?;
    let holder = format!("a socket at {address} (`ss -ulpn sport = :{port}` names its process)");
    Some(Obstacle::PortTaken { port, holder })
}

/// The address of a socket with this local port in a table as `/proc/net/udp`: its second column is address and port, hexadecimal,
/// the address as words of the machine's byte order.
fn bound(table: &str, port: u16) -> Option<IpAddr> {
    table.lines().skip(1).find_map(|line| {
        let (address, local) = line.split_whitespace().nth(1)?.split_once(':')?;
        if u16::from_str_radix(local, 16) != Ok(port) {
            return None;
        }
        let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
        let mut bytes = [0; 16];
        if address.len() == 8 {
            return word(0).map(|word| Ipv4Addr::from(word).into());
        }
        for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
            chunk.copy_from_slice(&word(8 * at)?);
        }
        Some(IpAddr::from(bytes))
    })
}

/// What a node has without Bulkhead.
#[derive(Debug, Default)]
struct Held {
    /// With the device's name.
    addresses: Vec<(IpNetwork, String)>,
    /// Of the main table, with the device's name.
    routes: Vec<(Route, Option<String>)>,
}

fn held(host: &mut Netlink, links: &[Link]) -> Result<Held, KernelError> {
    let (ours, theirs): (Vec<&Link>, Vec<&Link>) =
        links.iter().partition(|link| link.group == GROUP || is_overlay(link));
    let ours: BTreeSet<u32> = ours.into_iter().map(|link| link.index).collect();
    let mut held = Held::default();
    for link in &theirs {
        let addresses = host.addresses(link.index)?.into_iter();
        held.addresses.extend(addresses.map(|address| (address.network, link.name.clone())));
    }
    for route in host.routes(MAIN_TABLE, None)? {
        if route.protocol == PROTOCOL || route.index.is_some_and(|index| ours.contains(&index)) {
            continue;
        }
        let device = theirs.iter().find(|link| Some(link.index) == route.index).map(|link| link.name.clone());
        held.routes.push((route, device));
    }
    Ok(held)
}

/// Addresses inside the network, routes to a part of it, and device networks that it lies in. A route of a wider network by a
/// gateway is none: ours is the narrower one.
fn clash(network: Ipv4Network, held: &Held) -> Option<Obstacle> {
    let inside = |other: IpNetwork| matches!(other, IpNetwork::V4(other) if other.prefix() >= network.prefix() && network.contains(other.network()));
    let around = |other: IpNetwork| matches!(other, IpNetwork::V4(other) if other.prefix() > 0 && other.contains(network.network()));
    let mut said: Vec<String> = Vec::new();
    let mut connected = BTreeSet::new();
    for (address, device) in &held.addresses {
        let own = matches!(address.ip(), IpAddr::V4(ip) if network.contains(ip));
        if own || around(*address) {
            said.push(format!("the address {address} of {device}"));
            connected.insert((address.network(), address.prefix(), device.clone()));
        }
    }
    for (route, device) in &held.routes {
        let on_link = route.kind == RouteKind::Unicast && route.via.is_none() && route.index.is_some();
        let known = device
            .as_ref()
            .is_some_and(|device| connected.contains(&(route.dst.network(), route.dst.prefix(), device.clone())));
        if !known && (inside(route.dst) || (on_link && around(route.dst))) {
            let by = device.as_ref().map(|device| format!(" by {device}")).unwrap_or_default();
            said.push(format!("the route to {}{by}", route.dst));
        }
    }
    let more = said.len().saturating_sub(NAMED);
    said.truncate(NAMED);
    if more > 0 {
        said.push(format!("{more} more"));
    }
    (!said.is_empty()).then(|| Obstacle::Clash { network, held: said.join(", ") })
}

/// Tries in a network namespace of its own what the node needs of the kernel. `port` is the tunnels' UDP port.
pub fn try_kernel(port: u16) -> Vec<Obstacle> {
    let tried = thread::Builder::new().name("preflight".into()).spawn(move || {
        #[expect(deprecated, reason = "its successor is unsafe for CLONE_FILES and the like, which are not used here")]
        let left = rustix::thread::unshare(UnshareFlags::NEWNET);
        // Only a thread that has left the host's namespace may go on.
        match left {
            Ok(()) => in_empty_namespace(port),
            Err(Errno::PERM) => Err(kernel("a network namespace", &"not permitted; the agent needs CAP_SYS_ADMIN")),
            Err(error) => Err(kernel("a network namespace", &io::Error::from(error))),
        }
    });
    let outcome = tried.and_then(|thread| thread.join().map_err(|_| io::Error::other("its thread broke off")));
    match outcome {
        Ok(Ok(())) => Vec::new(),
        Ok(Err(obstacle)) => vec![obstacle],
        Err(error) => vec![kernel("a thread", &error)],
    }
}

fn kernel(what: &'static str, error: &dyn std::fmt::Display) -> Obstacle {
    let error = error.to_string();
    // A process that may not do it learns nothing of the kernel.
    let hint = if error.contains("CAP_") { "" } else { "; load the module, or boot a kernel that has it" };
    Obstacle::Kernel { what, error: error + hint }
}

fn in_empty_namespace(port: u16) -> Result<(), Obstacle> {
    let socket = "netlink sockets";
    let mut host = Netlink::here().map_err(|error| kernel(socket, &error))?;
    let vxlan = "a VXLAN device (module vxlan)";
    let name = InterfaceName::try_from(overlay::NAME).map_err(|error| kernel(vxlan, &error))?;
    let spec = VxlanSpec { name, mac: Mac([0x0a, 0x59, 0, 0, 0, 1]), port, mtu: 1_450 };
    host.apply(Op::vxlan(&spec)).map_err(|error| kernel(vxlan, &error))?;
    let made = host.link_by_name(&spec.name).map_err(|error| kernel(vxlan, &error))?;
    if let Some(link) = made {
        let clsact = Op::clsact(link.index);
        host.apply(clsact).map_err(|error| kernel("hooks for programs (modules sch_ingress and cls_bpf)", &error))?;
    }
    let gateway = Ipv4Addr::new(192, 0, 2, 1);
    let network = Ipv4Network::from(gateway);
    let rules = Firewall { network, subnet: network, gateway, vxlan_port: port };
    let modules = "rules of nftables (modules nf_tables, nft_ct, nft_fib, nft_chain_nat, nft_masq)";
    rules.apply().map_err(|error| kernel(modules, &error))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use clap::Parser as _;

    use super::*;
    use crate::args::Args;
    use crate::kernel::fixture::in_new_netns;

    fn network() -> Ipv4Network {
        "10.77.0.0/16".parse().unwrap()
    }

    #[test]
    fn btf_is_known_by_its_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        assert_eq!(btf(&path), Some(Obstacle::NoBtf(path.clone())));
        fs::write(&path, "").unwrap();
        assert!(btf(&path).is_some_and(|obstacle| obstacle.to_string().contains("CONFIG_DEBUG_INFO_BTF")));
        fs::write(&path, [&BTF_MAGIC.to_ne_bytes()[..], &[1, 0]].concat()).unwrap();
        assert_eq!(btf(&path), None);
    }

    #[test]
    fn anothers_config_is_in_the_way_if_the_runtime_takes_it_or_a_network_left_it() {
        let list = |plugin: &str| format!(r#"{{"name":"old","plugins":[{{"type":"{plugin}"}},{{"type":"portmap"}}]}}"#);
        let single = |plugin: &str| format!(r#"{{"name":"old","type":"{plugin}"}}"#);
        let found = |name: &str, text: &str| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(cni_conf::FILE), list("bulkhead-cni")).unwrap();
            fs::write(folder.path().join(name), text).unwrap();
            foreign_configs(folder.path()).first().map(ToString::to_string).unwrap_or_default()
        };
        for (name, text, words) in [
            ("05-old.conflist", list("bridge"), "network old, plugin bridge) sorts before"),
            ("10-aws.conf", single("aws-cni"), "plugin aws-cni) sorts before"),
            ("00-half.conflist", "{".to_owned(), "(which cannot be read) sorts before"),
            ("10-calico.conflist", list("calico"), "another network has left"),
            ("99-x.json", single("flannel"), "another network has left"),
        ] {
            assert!(found(name, &text).contains(words), "{name}: {}", found(name, &text));
        }
        for (name, text) in [
            ("11-crio-ipv4-bridge.conflist", list("bridge")),
            ("99-loopback.conf", single("loopback")),
            ("00-multus.conf", single("multus")),
            ("05-old.conflist.bak", list("bridge")),
            ("99-half.conflist", "{".to_owned()),
        ] {
            assert_eq!(found(name, &text), "", "{name}");
        }
        assert_eq!(foreign_configs(Path::new("/nowhere")), []);
    }

    #[test]
    fn a_port_is_found_in_the_kernels_table() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        let four = format!("{head}  12: 0100007F:12B5 00000000:0000 07 0:0 0:0 00 0 0 77 2 0 0\n");
        let six = format!("{head} 9: 00000000000000000000000000000000:12B5 0:0 07\n");
        if cfg!(target_endian = "little") {
            assert_eq!(bound(&four, 4789), Some(IpAddr::from([127, 0, 0, 1])));
        }
        assert_eq!(bound(&six, 4789), Some(IpAddr::from([0; 16])));
        assert_eq!((bound(&four, 4790), bound("", 4789), bound("x\ny\nz :\n", 4789)), (None, None, None));
    }

    #[test]
    fn what_is_in_the_cluster_network_already_clashes() {
        in_new_netns(|| {
            let mut host = Netlink::here().expect("this test needs root");
            let name = "old0".parse().unwrap();
            let spec = VxlanSpec { name, mac: Mac([2, 0, 0, 0, 0, 1]), port: 4790, mtu: 1_450 };
            host.apply(Op::vxlan(&spec)).unwrap();
            let index = host.link_by_name(&spec.name).unwrap().unwrap().index;
            host.apply(Op::address_add(index, "10.0.0.1/24".parse().unwrap(), true)).unwrap();
            host.apply(Op::link_up(index)).unwrap();
            let via = Some("10.0.0.9".parse().unwrap());
            let to = |dst: &str| Route { index: Some(index), via, ..Route::to(dst.parse().unwrap(), MAIN_TABLE, 4) };
            for good in ["0.0.0.0/0", "10.64.0.0/10", "10.78.0.0/16"] {
                host.apply(Op::route_add(&to(good))).unwrap();
            }
            let ours = Route { protocol: PROTOCOL, ..to("10.77.0.0/16") };
            host.apply(Op::route_add(&ours)).unwrap();
            let said = |host: &mut Netlink| {
                let links = host.links().unwrap();
                let held = held(host, &links).unwrap();
                clash(network(), &held).map(|obstacle| obstacle.to_string()).unwrap_or_default()
            };
            assert_eq!(said(&mut host), "");
            host.apply(Op::route_add(&to("10.77.200.0/24"))).unwrap();
            let text = said(&mut host);
            assert!(text.contains("10.77.0.0/16 clashes") && text.contains("10.77.200.0/24 by old0"), "{text}");
            host.apply(Op::route_delete(&to("10.77.200.0/24"))).unwrap();
            for address in ["10.77.3.1/24", "10.99.0.1/8"] {
                host.apply(Op::address_add(index, address.parse().unwrap(), true)).unwrap();
                let text = said(&mut host);
                assert!(text.contains(&format!("the address {address} of old0")), "{text}");
                assert!(!text.contains("route"), "once is enough: {text}");
                host.apply(Op::address_del(index, address.parse().unwrap())).unwrap();
            }
            assert_eq!(said(&mut host), "");
        });
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
        fs::write(&path, [&BTF_MAGIC.to_ne_bytes()[..], &[1, 0]].concat()).unwrap();
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

    #[test]
    fn the_kernel_is_tried_where_nobody_sees_it() {
        in_new_netns(|| {
            assert_eq!(try_kernel(4789), [], "this test needs root");
            let left: Vec<String> = Netlink::here().unwrap().links().unwrap().into_iter().map(|l| l.name).collect();
            assert_eq!(left, ["lo"]);
        });
    }
}
