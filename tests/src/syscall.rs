//! The few system calls that have no safe form in the crates we use: leaving a network namespace, a child that dies with
//! its parent, and packet sockets. Test code only; the product's own unsafe code is in the agent.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Puts the calling thread into a fresh network namespace.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: only UnshareFlags::FILES is dangerous (descriptors that other threads expect); it is not given.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Puts the calling thread into a mount, UTS and IPC namespace of its own: copies of what they were.
pub fn unshare_machine() -> io::Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC) }?;
    Ok(())
}

/// The calling thread's next child is the first process of a new PID namespace; all later ones are born in it too.
pub fn unshare_processes() -> io::Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    Ok(())
}

/// The child gets SIGKILL when the thread that spawned it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl(2) is async-signal-safe; the closure touches no memory of the parent.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
}

/// Binds a packet socket to a device, all protocols.
pub fn bind_packet(socket: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be(),
        sll_ifindex: i32::try_from(ifindex).unwrap_or_default(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: the pointer is to a live sockaddr_ll, the length is its own.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends of this packet socket skip the device's qdisc (`PACKET_QDISC_BYPASS`, packet(7)).
pub fn bypass_qdisc(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the pointer is to a live int, the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Each send of this UDP socket is cut into datagrams of `size` bytes by the kernel, as late as it can (`UDP_SEGMENT`, udp(7)).
pub fn segment_datagrams(socket: BorrowedFd<'_>, size: u16) -> io::Result<()> {
    let value = libc::c_int::from(size);
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the pointer is to a live int, the length is its own.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
