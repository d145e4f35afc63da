//! inotify instances: kubelet and containerd take a good dozen on each node, and the kernel counts them for the whole machine,
//! where 128 are common. The lab raises that limit, the one thing of the host that it changes and leaves so.

use std::fs;

use bulkhead_tests::error::{LabError, Tried};

const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Enough for several labs.
const WANTED: u32 = 8192;

/// Raises the limit if it is lower.
pub fn allow() -> Result<(), LabError> {
    let text = fs::read_to_string(LIMIT).tried(|| format!("read {LIMIT}"))?;
    if text.trim().parse::<u32>().is_ok_and(|limit| limit >= WANTED) {
        return Ok(());
    }
    println!("fs.inotify.max_user_instances is {WANTED} now, it was {}", text.trim());
    fs::write(LIMIT, WANTED.to_string()).tried(|| format!("write {LIMIT}"))
}
