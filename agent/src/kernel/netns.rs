//! Network namespaces as open files: opened safely from a path, compared by identity, entered by short-lived threads only.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::KernelError;

/// `NSFS_MAGIC` of `linux/magic.h`: the file system of namespace files.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open namespace. While it is open the namespace lives, even when its last process is gone and its file unmounted.
#[derive(Debug)]
pub struct Netns {
    file: OwnedFd,
    id: NetnsId,
}

/// Which namespace it is: two files with the same identity are the same namespace. Only valid while one of them is open, for the
/// kernel uses the number of a namespace that is gone again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// A namespace that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// The file cannot be opened or looked at.
    #[error("cannot open the network namespace {}: {source}; is the sandbox still there?", path.display())]
    Open {
        /// The path, or what stood for it.
        path: PathBuf,
        /// The system's answer.
        source: Errno,
    },
    /// The file is not a namespace.
    #[error("{} is no namespace file; a bind mount of /proc/<pid>/ns/net is expected there", path.display())]
    NotNamespace {
        /// The path, or what stood for it.
        path: PathBuf,
    },
}

impl NetnsError {
    /// Whether nothing is at the path any more.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Open { source: Errno::NOENT, .. })
    }
}

impl Netns {
    /// Opens the network namespace at `path`, after making sure that it is one: a FIFO or device there is neither waited for nor
    /// touched. A namespace of another kind (mount, user) passes here and is refused by [`inside`], which every use goes through.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Open { path: path.to_owned(), source };
        let handle = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        require_nsfs(&handle, path)?;
        // Opened again through the handle: it stays the file that was checked, whatever the path leads to by now.
        let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let file = openat(CWD, &again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        Self::checked(file, path)
    }

    /// Takes a namespace file that another process passed.
    pub fn from_file(file: OwnedFd) -> Result<Self, NetnsError> {
        Self::checked(file, Path::new("(passed file)"))
    }

    /// The calling thread's own.
    pub fn own() -> Result<Self, NetnsError> {
        let path = Path::new(OWN);
        let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Self::checked(file, path)
    }

    fn checked(file: OwnedFd, path: &Path) -> Result<Self, NetnsError> {
        require_nsfs(&file, path)?;
        let stat = fstat(&file).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Ok(Self { file, id: NetnsId { device: stat.st_dev, inode: stat.st_ino } })
    }

    /// Which namespace it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

fn require_nsfs(file: &OwnedFd, path: &Path) -> Result<(), NetnsError> {
    let stat = fstatfs(file).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    if stat.f_type == NSFS_MAGIC { Ok(()) } else { Err(NetnsError::NotNamespace { path: path.to_owned() }) }
}

/// Runs `task` on a short-lived thread inside `netns` and waits for it. `purpose` is what errors say was being done.
///
/// The calling thread never leaves its namespace, whatever `task` does.
pub fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    purpose: &str,
    task: impl FnOnce() -> T + Send,
) -> Result<T, KernelError> {
    let thread_failed = |detail: String| KernelError::Thread { operation: purpose.to_owned(), detail };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                    .map_err(|source| KernelError::Enter { operation: purpose.to_owned(), source })?;
                Ok(task())
            })
            .map_err(|error| thread_failed(error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(thread_failed("it panicked".into())))
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_netns, new_netns};
    use super::super::{Netlink, Op};
    use super::*;

    #[test]
    fn the_calling_thread_stays_where_it_is() {
        in_new_netns(|| {
            let before = Netns::own().unwrap().id();
            let pod = new_netns();
            assert_ne!(pod.id(), before);
            let mut inside = Netlink::within(pod.as_fd()).unwrap();
            assert_eq!(Netns::own().unwrap().id(), before);
            inside.apply(Op::link_up(1)).unwrap();
            assert!(!Netlink::here().unwrap().link_by_index(1).unwrap().unwrap().up);
        });
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netns");
        assert!(Netns::open(&file).unwrap_err().is_absent());
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Netns::open(&file), Err(NetnsError::NotNamespace { .. })));
        let other_kind = Netns::open(Path::new("/proc/self/ns/mnt")).unwrap();
        assert!(matches!(Netlink::within(other_kind.as_fd()), Err(KernelError::Enter { source: Errno::INVAL, .. })));
    }
}
