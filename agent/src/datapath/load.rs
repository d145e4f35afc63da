//! Loading: adopt the pinned maps if their layout is ours, load the programs over them.
//!
//! A pinned map of another size is silently reused by the kernel's loader, so each one is compared first; any mismatch
//! starts the folder afresh (the running programs keep the old maps until they are replaced).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io};

use aya::maps::{Array, MapData, MapInfo};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use ipnetwork::IpNetwork;

use super::abi::{self, ABI_VERSION, StateValue};
use super::{DatapathError, Endpoints, Namespaces, Peers, drops, map_error};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.bpf.o"));

/// What the programs are told of this node before they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The cluster's IPv4 network.
    pub network: ipnetwork::Ipv4Network,
    /// Host bits of one node's subnet, 2 to 16.
    pub host_bits: u8,
    /// How many subnets the network is cut into.
    pub blocks: u32,
    /// This node's.
    pub local_block: u32,
    /// This node's underlay address.
    pub node_ip: std::net::Ipv4Addr,
    /// UDP.
    pub vxlan_port: u16,
    /// The pods' MTU: what fits the tunnel.
    pub mtu: u32,
}

/// The programs, loaded but not attached.
pub struct Programs {
    ebpf: Ebpf,
}

/// Program names, as in `bpf/datapath.bpf.c`.
pub const PROGRAMS: [&str; 5] = ["from_pod", "to_pod", "to_overlay", "from_overlay", "from_underlay"];

impl Programs {
    /// The named program, one of [`PROGRAMS`].
    pub fn program(&self, name: &'static str) -> Result<&SchedClassifier, DatapathError> {
        let program = self.ebpf.program(name).ok_or(DatapathError::Missing(name))?;
        program.try_into().map_err(|source| DatapathError::Program { name, source: Box::new(source) })
    }

    /// The named program's file descriptor.
    pub fn fd(&self, name: &'static str) -> Result<BorrowedFd<'_>, DatapathError> {
        let fd = self.program(name)?.fd();
        Ok(fd.map_err(|source| DatapathError::Program { name, source: Box::new(source) })?.as_fd())
    }
}

/// Everything of the datapath that the agent writes or reads.
pub struct Datapath {
    /// The programs.
    pub programs: Programs,
    /// VNIs and their networks.
    pub namespaces: Mutex<Namespaces>,
    /// This node's pods.
    pub endpoints: Mutex<Endpoints>,
    /// The other nodes.
    pub peers: Mutex<Peers>,
    /// Why packets were dropped.
    pub drops: drops::DropCounters,
    state: Mutex<Array<MapData, [u8; StateValue::SIZE]>>,
    folder: PathBuf,
}

/// Name, key size, value size and entries of a pinned map.
fn expected(geometry: &Geometry) -> [(&'static str, u32, u32, u32); 10] {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let addresses = 1 << geometry.host_bits;
    [
        ("state", 4, size(StateValue::SIZE), 1),
        ("namespaces", 4, size(abi::NamespaceValue::SIZE), abi::NS_MAX),
        ("vnis", 4, 4, abi::NS_MAX),
        ("nodes", 4, size(abi::Peer::NODE_SIZE), geometry.blocks),
        ("node_addresses", 16, size(abi::Peer::ADDRESS_SIZE), 131_072),
        ("endpoints", 4, size(abi::EndpointValue::SIZE), addresses),
        ("policers", 4, size(abi::PolicerValue::SIZE), addresses),
        ("ports", 4, 4, 131_072),
        ("drops", 4, size(abi::DropCount::SIZE), 64),
        ("events", 0, 0, 1 << 18),
    ]
}

/// Whether all pinned maps have the layout that this agent would make.
fn adoptable(folder: &Path, geometry: &Geometry) -> bool {
    expected(geometry).iter().all(|&(name, key, value, entries)| match MapInfo::from_pin(folder.join(name)) {
        Ok(info) => (info.key_size(), info.value_size(), info.max_entries()) == (key, value, entries),
        Err(_) => !folder.join(name).exists(),
    })
}

/// The statfs(2) type of a BPF file system.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

fn make_folder(folder: &Path) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Folder { path: folder.to_owned(), source };
    let mut existing = folder;
    while !existing.exists() {
        existing = existing.parent().unwrap_or(Path::new("/"));
    }
    let fs = rustix::fs::statfs(existing).map_err(|error| failed(error.into()))?;
    if u64::try_from(fs.f_type).is_ok_and(|magic| magic & 0xffff_ffff != BPF_FS_MAGIC) {
        return Err(DatapathError::NoBpfFs(folder.to_owned()));
    }
    fs::create_dir_all(folder).map_err(failed)
}

/// Removes every pin of a folder; the maps live on while programs use them.
fn clear_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn load_error(error: EbpfError) -> DatapathError {
    let text = format!("{error:?}");
    // aya reports a refusal at several depths; the errno is what they share.
    if text.contains("PermissionDenied") || text.contains("Operation not permitted") || text.contains("code: 1,") {
        DatapathError::NotAllowed
    } else {
        DatapathError::Load(Box::new(error))
    }
}

impl Datapath {
    /// Loads the programs over adopted or fresh maps below `bpf_dir`. Nothing is attached yet.
    pub fn load(bpf_dir: &Path, geometry: &Geometry) -> Result<Self, DatapathError> {
        let folder = bpf_dir.join(format!("v{ABI_VERSION}"));
        make_folder(&folder)?;
        if !adoptable(&folder, geometry) {
            tracing::warn!(folder = %folder.display(), "pinned maps of another layout are replaced");
            clear_folder(&folder).map_err(|source| DatapathError::Folder { path: folder.clone(), source })?;
        }
        let network = IpNetwork::V4(geometry.network);
        let size = 1u32.checked_shl(u32::from(32 - network.prefix())).unwrap_or(0);
        let (base, node_ip) = (u32::from(geometry.network.network()), u32::from(geometry.node_ip));
        let (host_bits, port) = (u32::from(geometry.host_bits), u32::from(geometry.vxlan_port));
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&folder)
            .override_global("NETWORK_BASE", &base, true)
            .override_global("NETWORK_SIZE", &size, true)
            .override_global("HOST_BITS", &host_bits, true)
            .override_global("LOCAL_BLOCK", &geometry.local_block, true)
            .override_global("NODE_IP", &node_ip, true)
            .override_global("VXLAN_PORT", &port, true)
            .override_global("OVERLAY_MTU", &geometry.mtu, true)
            .map_max_entries("nodes", geometry.blocks)
            .map_max_entries("endpoints", 1 << geometry.host_bits)
            .map_max_entries("policers", 1 << geometry.host_bits)
            .load(OBJECT)
            .map_err(load_error)?;
        for name in PROGRAMS {
            let program = ebpf.program_mut(name).ok_or(DatapathError::Missing(name))?;
            let failed = |source: ProgramError| DatapathError::Program { name, source: Box::new(source) };
            let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
        }
        let state: Array<_, [u8; StateValue::SIZE]> = take(&mut ebpf, "state")?;
        let now = StateValue::from_bytes(state.get(&0, 0).map_err(map_error("state", "read"))?);
        let namespaces = Namespaces::adopt(take(&mut ebpf, "namespaces")?, take(&mut ebpf, "vnis")?, now)?;
        let endpoints =
            Endpoints::adopt(take(&mut ebpf, "endpoints")?, take(&mut ebpf, "policers")?, take(&mut ebpf, "ports")?)?;
        let peers = Peers::new(take(&mut ebpf, "nodes")?, take(&mut ebpf, "node_addresses")?, geometry.blocks);
        let drops = drops::DropCounters::new(take(&mut ebpf, "drops")?, take(&mut ebpf, "events")?);
        Ok(Self {
            programs: Programs { ebpf },
            namespaces: Mutex::new(namespaces),
            endpoints: Mutex::new(endpoints),
            peers: Mutex::new(peers),
            drops,
            state: Mutex::new(state),
            folder,
        })
    }

    /// Tells the programs which device is the overlay's and which bank of `NetID`s holds from now on.
    pub fn set_state(&self, value: StateValue) -> Result<(), DatapathError> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.set(0, value.to_bytes(), 0).map_err(map_error("state", "written"))
    }

    /// What the programs are told now.
    pub fn state(&self) -> Result<StateValue, DatapathError> {
        let state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(StateValue::from_bytes(state.get(&0, 0).map_err(map_error("state", "read"))?))
    }

    /// Removes the pins: the first half of an uninstall; detaching the programs is the other.
    pub fn unpin(&self) -> Result<(), DatapathError> {
        fs::remove_dir_all(&self.folder).map_err(|source| DatapathError::Folder { path: self.folder.clone(), source })
    }
}

fn take<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, DatapathError> {
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    M::try_from(map).map_err(map_error(name, "opened"))
}
