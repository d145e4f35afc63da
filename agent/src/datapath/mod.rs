//! The datapath from the agent's side: the loaded programs and what the agent writes into their maps.
//!
//! The maps are the kernel's copy of the intent. They are pinned and outlive the agent; a new agent adopts them, brings
//! them in line, and only then replaces the programs, so that no packet of a running pod is judged by an empty map.

pub mod abi;
mod drops;
mod endpoints;
mod load;
mod namespaces;
mod peers;

use std::path::PathBuf;

use aya::maps::MapError;
use thiserror::Error;

pub use drops::{REASONS, Reason};
pub use endpoints::Endpoints;
pub use load::{Datapath, Geometry, Programs};
pub use namespaces::{Namespaces, Network, ORPHANS};
pub use peers::Peers;

/// Why the datapath cannot be loaded or changed.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// The folder is not in a BPF file system.
    #[error(
        "{0} is not on a BPF file system; mount one (`mount -t bpf bpf /sys/fs/bpf`) or name another folder with --bpf-dir"
    )]
    NoBpfFs(PathBuf),
    /// The folder cannot be made or changed.
    #[error("the folder of pinned maps {path} cannot be used: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel refuses eBPF to this process.
    #[error(
        "the kernel does not let this process load eBPF programs; run the agent as root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or CAP_SYS_ADMIN)"
    )]
    NotAllowed,
    /// Loading failed.
    #[error("the eBPF programs cannot be loaded: {0}; Linux 5.10 or newer with CONFIG_DEBUG_INFO_BTF is needed")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error("the eBPF program {name} was refused: {source}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks something: a build that does not fit this agent.
    #[error("the eBPF object has no {0}; the agent was built wrongly")]
    Missing(&'static str),
    /// A map operation failed.
    #[error("the eBPF map {map} cannot be {doing}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// read, written, cleared.
        doing: &'static str,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// More namespaces than the mark can name.
    #[error("this node knows more than 65533 namespaces; delete some")]
    TooManyNamespaces,
}

/// Removing what is not there is done: aya reports a missing key as a failed system call.
fn removed(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Maps an aya error onto ours, naming the map.
fn map_error(map: &'static str, doing: &'static str) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map { map, doing, source: Box::new(source) }
}
