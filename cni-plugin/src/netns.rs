//! Opens the pod's network namespace and makes sure that it is one, and not the host's own.

use std::fmt;

use bulkhead_core::cni::{Code, Failure};
use rustix::fd::OwnedFd;
use rustix::fs::{FsWord, Mode, OFlags, Stat};

/// The type of the filesystem that namespaces live in (Linux, `magic.h`: `NSFS_MAGIC`).
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// Why a path is no pod's netns.
#[derive(Debug)]
pub enum NetnsError {
    /// There is nothing that can be opened.
    Gone(std::io::Error),
    /// It is no network namespace.
    NotANetns,
    /// It is the one that this program runs in.
    Host,
    /// It cannot be examined.
    Unknown(std::io::Error),
}

impl fmt::Display for NetnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(error) => write!(f, "it cannot be opened: {error}"),
            Self::NotANetns => f.write_str("it is not a network namespace"),
            Self::Host => f.write_str("it is the host's own network namespace"),
            Self::Unknown(error) => write!(f, "it cannot be examined, is /proc mounted? {error}"),
        }
    }
}

impl NetnsError {
    /// The failure of a call that needs the netns.
    pub fn into_failure(self, path: &str) -> Failure {
        Failure::new(Code::InvalidEnvironment, format!("CNI_NETNS {path:?}: {self}"), "")
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Opens a pod's netns.
pub fn open(path: &str) -> Result<OwnedFd, NetnsError> {
    // Non-blocking, so that a FIFO in its place cannot hold the call up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let netns = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| NetnsError::Gone(error.into()))?;
    let unknown = |error: rustix::io::Errno| NetnsError::Unknown(error.into());
    if rustix::fs::fstatfs(&netns).map_err(unknown)?.f_type != NSFS_MAGIC {
        return Err(NetnsError::NotANetns);
    }
    // A namespace of another kind is found by the agent, which enters it as a network namespace or not at all: the text of a
    // link to a bind mount, as runtimes make them, does not say the kind.
    let own = rustix::fs::stat("/proc/self/ns/net").map_err(unknown)?;
    if identity(&own) == identity(&rustix::fs::fstat(&netns).map_err(unknown)?) {
        return Err(NetnsError::Host);
    }
    Ok(netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pods_netns_is_refused() {
        assert!(matches!(open("/nonexistent/netns"), Err(NetnsError::Gone(_))));
        assert!(matches!(open("/dev/null"), Err(NetnsError::NotANetns)));
        assert!(matches!(open("/proc/self/ns/net"), Err(NetnsError::Host)));
    }

    #[test]
    fn a_fifo_does_not_hold_the_call_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(open(path.to_str().unwrap()), Err(NetnsError::NotANetns)));
    }
}
