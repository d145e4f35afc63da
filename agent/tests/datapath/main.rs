//! The eBPF programs by `BPF_PROG_TEST_RUN`: packet in; verdict, packet, mark and drop counters out.
//!
//! Each test loads the whole datapath over maps of its own, on a thread in a mount namespace of its own and a nameless
//! network namespace, so that nothing is left behind however it ends. Needs root, and says so. Where a redirect leads the
//! kernel does not tell; it shows in the frame (delivery gives it the pod's MAC addresses) and in the lab.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

mod banks;
mod from_overlay;
mod from_pod;
mod from_underlay;
mod hostile;
mod live;
mod namespaces;
mod node;
mod orphans;
mod overlay;
mod packet;
mod pinned;
mod pods;
mod policer;
mod run;
mod to_overlay;
mod to_pod;
mod verdicts;
