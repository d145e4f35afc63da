//! A node for one test: the loaded datapath, its maps filled by the agent's own code, and live devices to name.
//!
//! ```text
//! 10.42.0.0/16, a /24 for each node
//!   7  this node, 192.0.2.1 and 198.51.100.1    two pods of every tenant at 10.42.7.10 and up
//!   8  a peer, 192.0.2.2 and 198.51.100.2
//!   9  a peer, 192.0.2.3
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bulkhead_agent::datapath::abi::{EndpointValue, NS_NODE, NS_UNKNOWN, Peer, PolicerValue, Port, StateValue};
use bulkhead_agent::datapath::{Datapath, Geometry, Network};
use bulkhead_agent::kernel::{Mac, Netlink, Netns, Op, VethSpec, VxlanSpec};
use bulkhead_agent::live::locked;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

pub const GEOMETRY: Geometry = Geometry {
    network: match ipnetwork::Ipv4Network::new_checked(Ipv4Addr::new(10, 42, 0, 0), 16) {
        Some(network) => network,
        None => unreachable!(),
    },
    host_bits: 8,
    blocks: 256,
    local_block: 7,
    node_ip: Ipv4Addr::new(192, 0, 2, 1),
    vxlan_port: 4789,
    mtu: 1450,
};
pub const GATEWAY_MAC: Mac = Mac([0x0a, 0x58, 0, 0, 0, 1]);
/// This node's addresses.
pub const OWN: [Ipv4Addr; 3] = [Ipv4Addr::new(10, 42, 7, 1), GEOMETRY.node_ip, Ipv4Addr::new(198, 51, 100, 1)];
/// Another node's.
pub const PEER: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 42, 8, 1), Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(198, 51, 100, 2)];
/// A pod of that node.
pub const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 42, 8, 20);
/// In a subnet that no node holds.
pub const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 42, 200, 20);
/// Neither cluster nor node.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// An index that no VNI has.
pub const UNASSIGNED: u32 = 4000;

/// The namespaces that the node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tenant {
    /// Isolated.
    A,
    /// Isolated.
    B,
    /// Joined to A.
    C,
    Global,
    /// Deleted, with pods that still run.
    Gone,
    /// Another such.
    AlsoGone,
}

impl Tenant {
    pub const ALL: [Self; 6] = [Self::A, Self::B, Self::C, Self::Global, Self::Gone, Self::AlsoGone];

    pub const fn vni(self) -> u32 {
        10 + self as u32
    }

    /// Its network in [`Node`]'s first state.
    pub const fn network(self) -> Network {
        match self {
            Self::A | Self::C => Network::Id(10),
            Self::B => Network::Id(11),
            Self::Global => Network::Id(0),
            Self::Gone | Self::AlsoGone => Network::None,
        }
    }
}

/// A running pod.
#[derive(Debug, Clone, Copy)]
pub struct Pod {
    pub tenant: Tenant,
    pub host: u32,
    pub ip: Ipv4Addr,
    pub mac: Mac,
    pub ifindex: u32,
}

pub struct Node {
    pub datapath: Datapath,
    pub bpf_dir: PathBuf,
    pub pods: Vec<Pod>,
    pub overlay: u32,
    pub underlay: u32,
}

/// Live devices, for a program must be run at one: the overlay's, an underlay's and a veth for each pod.
struct Devices {
    netns: Netns,
    /// Where the veths' other ends are; without it they would be gone.
    _outside: Netns,
    overlay: u32,
    underlay: u32,
    pods: Vec<Pod>,
}

/// Runs a test on a node of its own. Devices are shared by all tests: it must not change them.
pub fn on_node(test: impl FnOnce(&Node) + Send) {
    static SHARED: LazyLock<Devices> = LazyLock::new(Devices::new);
    on(&SHARED, test);
}

/// Runs a test on a node whose devices are its own too.
pub fn on_node_alone(test: impl FnOnce(&Node) + Send) {
    on(&Devices::new(), test);
}

fn on(devices: &Devices, test: impl FnOnce(&Node) + Send) {
    on_bpf_fs(|bpf_dir| {
        move_into_link_name_space(devices.netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        test(&Node::start(bpf_dir, devices));
    });
}

/// Runs a test on a thread with a mount namespace of its own and an empty BPF file system in it.
pub fn on_bpf_fs(test: impl FnOnce(&Path) + Send) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = std::thread::scope(|scope| {
        let work = || {
            leave(UnshareFlags::NEWNS);
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            mount("bpf", folder.path(), "bpf", MountFlags::empty(), None).expect("a kernel with CONFIG_BPF_SYSCALL");
            test(folder.path());
        };
        scope.spawn(work).join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn leave(flags: UnshareFlags) {
    #[expect(deprecated, reason = "its successor is unsafe for CLONE_FILES and the like, which are not used here")]
    let done = rustix::thread::unshare(flags);
    done.expect("cannot make a namespace: this test needs root (CAP_SYS_ADMIN)");
}

/// Runs a test on this thread in a nameless network namespace; it is to be the thread's last work.
pub fn in_own_netns(test: impl FnOnce()) {
    leave(UnshareFlags::NEWNET);
    test();
}

/// Makes a nameless network namespace and works in it; it lives as long as the answer holds it.
pub fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        leave(UnshareFlags::NEWNET);
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).unwrap()
}

impl Devices {
    fn new() -> Self {
        let pods: Vec<Pod> = (0..12).map(Pod::nth).collect();
        let outside = in_new_netns(|| Netns::own().unwrap());
        in_new_netns(move || {
            let (name, port, mtu) = ("bulkhead0".parse().unwrap(), GEOMETRY.vxlan_port, GEOMETRY.mtu);
            let overlay = VxlanSpec { name, mac: Mac([0x0a, 0x59, 0, 0, 0, 1]), port, mtu };
            let underlay = 50;
            let mut ops = vec![Op::vxlan(&overlay), veth(underlay, Mac([0x0a, 0x5a, 0, 0, 0, 2]), &outside)];
            ops.extend(pods.iter().map(|pod| veth(pod.ifindex, pod.mac, &outside)));
            let mut netlink = Netlink::here().unwrap();
            netlink.batch(ops).unwrap();
            let overlay = netlink.link_by_name(&overlay.name).unwrap().unwrap().index;
            Self { netns: Netns::own().unwrap(), _outside: outside, overlay, underlay, pods }
        })
    }
}

/// The host's end of a veth whose other end nobody uses.
fn veth(index: u32, peer_mac: Mac, outside: &Netns) -> Op<'_> {
    Op::veth(&VethSpec {
        host_name: format!("vethtest{index}").parse().unwrap(),
        host_index: Some(index),
        host_mac: GATEWAY_MAC,
        mtu: 1500,
        group: None,
        peer_name: format!("peer{index}").parse().unwrap(),
        peer_index: Some(index),
        peer_mac,
        peer_netns: outside.as_fd(),
        peer_gso_max_size: None,
    })
}

impl Pod {
    /// Two for each tenant.
    fn nth(n: u32) -> Self {
        let host = 10 + n;
        let low = u8::try_from(host).unwrap();
        let (ip, mac) = (Ipv4Addr::new(10, 42, 7, low), Mac([0x0a, 0x58, 10, 42, 7, low]));
        Self { tenant: Tenant::ALL[n as usize / 2], host, ip, mac, ifindex: 100 + n }
    }
}

impl Node {
    fn start(bpf_dir: &Path, devices: &Devices) -> Self {
        let datapath = Datapath::load(bpf_dir, &GEOMETRY)
            .expect("cannot load the datapath: this test needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON)");
        let Devices { overlay, underlay, ref pods, .. } = *devices;
        let node = Self { datapath, bpf_dir: bpf_dir.to_owned(), pods: pods.clone(), overlay, underlay };
        node.datapath.set_state(StateValue { overlay_ifindex: overlay, ..StateValue::default() }).unwrap();
        node.apply(&first_networks());
        node.apply_peers();
        for pod in pods {
            node.publish(pod, false, None);
        }
        locked(&node.datapath.endpoints).set_port(overlay, Port::Overlay).unwrap();
        node
    }

    /// Writes a pod into the maps.
    pub fn publish(&self, pod: &Pod, shaped: bool, policer: Option<PolicerValue>) {
        let value = EndpointValue {
            ip4: pod.ip,
            ip6: None,
            ifindex: pod.ifindex,
            namespace: self.index(pod.tenant),
            mac: pod.mac,
            gateway_mac: GATEWAY_MAC,
            shaped,
            policed: policer.is_some(),
        };
        locked(&self.datapath.endpoints).publish(pod.host, value, policer).unwrap();
    }

    fn apply_peers(&self) {
        let peer = |address: Ipv4Addr, local| Peer { remote: address.into(), local, mtu: None };
        let (own, second, third) =
            (peer(GEOMETRY.node_ip, true), peer(PEER[1], false), peer(Ipv4Addr::new(192, 0, 2, 3), false));
        let blocks = BTreeMap::from([(GEOMETRY.local_block, own), (8, second), (9, third)]);
        let addresses =
            [(OWN[1], own), (OWN[2], own), (PEER[1], second), (PEER[2], second), (Ipv4Addr::new(192, 0, 2, 3), third)];
        let addresses = addresses.into_iter().map(|(address, peer)| (address.into(), peer)).collect();
        locked(&self.datapath.peers).apply(&blocks, &addresses).unwrap();
    }

    /// Applies one transaction as the agent does: prepare, switch. The VNIs of pods that run are kept.
    pub fn apply(&self, networks: &BTreeMap<u32, Network>) {
        if let Some(bank) = self.prepare(networks) {
            self.switch(bank);
        }
    }

    /// The first half of [`Self::apply`].
    pub fn prepare(&self, networks: &BTreeMap<u32, Network>) -> Option<u32> {
        let keep: BTreeSet<u32> = Tenant::ALL.iter().map(|tenant| tenant.vni()).collect();
        locked(&self.datapath.namespaces).prepare(networks, Network::None, Network::Id(0), &keep).unwrap()
    }

    /// The second half.
    pub fn switch(&self, bank: u32) {
        self.datapath.set_state(StateValue { bank, overlay_ifindex: self.overlay, ..StateValue::default() }).unwrap();
        let mut namespaces = locked(&self.datapath.namespaces);
        namespaces.switched(bank);
        namespaces.settle().unwrap();
    }

    pub fn pod(&self, tenant: Tenant) -> Pod {
        self.pods[2 * tenant as usize]
    }

    /// Another pod of that tenant.
    pub fn sibling(&self, tenant: Tenant) -> Pod {
        self.pods[2 * tenant as usize + 1]
    }

    /// The tenant's index.
    pub fn index(&self, tenant: Tenant) -> u32 {
        locked(&self.datapath.namespaces).index(tenant.vni()).unwrap()
    }

    /// Every index that a mark may carry, with its network and what to call it.
    pub fn sources(&self) -> Vec<(String, u32, Network)> {
        let tenants = Tenant::ALL.map(|tenant| (format!("{tenant:?}"), self.index(tenant), tenant.network()));
        let node = ("the node".into(), NS_NODE, Network::Id(0));
        let unknown = ("an unknown VNI".into(), NS_UNKNOWN, Network::None);
        tenants.into_iter().chain([node, unknown]).collect()
    }
}

/// The networks of [`Tenant::network`]; those that are gone are missing.
pub fn first_networks() -> BTreeMap<u32, Network> {
    let known = Tenant::ALL.iter().filter(|tenant| tenant.network() != Network::None);
    known.map(|tenant| (tenant.vni(), tenant.network())).collect()
}

/// The product's rule, said a second time: equal networks or a global one.
pub fn may_talk(a: Network, b: Network) -> bool {
    match (a, b) {
        (Network::Id(0), _) | (_, Network::Id(0)) => true,
        (Network::Id(a), Network::Id(b)) => a == b,
        _ => false,
    }
}
