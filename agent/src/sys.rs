//! The one place of `unsafe`: system calls that no library wraps.
#![allow(unsafe_code)]

use std::thread;
use std::time::Duration;

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
