//! The one place of `unsafe`: system calls that no library wraps.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

/// The user at the other end of a unix socket: `SO_PEERCRED` of `unix(7)`. Its process may be in a PID namespace that is not
/// seen from here, as the host's is not in a container: then the kernel gives 0 for the process, which libraries refuse.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: `peer` is a `ucred` that lives through the call, `length` is its size, and the kernel writes no more than that.
    let answer = unsafe { libc::getsockopt(socket, level, option, (&raw mut peer).cast(), &raw mut length) };
    if answer == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

/// Waits until every eBPF program that was running when this was called has ended: `membarrier(2)` with
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` for user space.
pub fn wait_for_running_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier takes three integers and touches no memory of this process.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if answer != 0 {
        // A kernel without it: no program runs for anything near this long.
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_user_is_told() {
        let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&here).unwrap(), rustix::process::geteuid().as_raw());
        assert!(peer_uid(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
