//! Network namespaces for tests: nameless, so that nothing is left behind however a test ends. Needs root, and says so.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;

use rustix::thread::UnshareFlags;

use super::{Mac, Netlink, Netns, Op, VethSpec};

/// Runs a test in a network namespace of its own, on a thread of its own. Programs that it starts run there too.
pub fn in_new_netns(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                leave_for_new_netns();
                test();
            })
            .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A new, empty network namespace, which lives as long as the answer.
pub fn new_netns() -> Netns {
    std::thread::spawn(|| {
        leave_for_new_netns();
        Netns::own().unwrap()
    })
    .join()
    .unwrap()
}

fn leave_for_new_netns() {
    #[expect(deprecated, reason = "its successor is unsafe for CLONE_FILES and the like, which are not used here")]
    let done = rustix::thread::unshare(UnshareFlags::NEWNET);
    done.expect("cannot make a network namespace: this test needs root (CAP_SYS_ADMIN)");
}

/// A veth to a pod's `eth0` with an MTU of 1500 and the kernel's choice of indices.
pub fn veth_spec<'fd>(host_name: &str, peer_netns: BorrowedFd<'fd>) -> VethSpec<'fd> {
    VethSpec {
        host_name: host_name.parse().unwrap(),
        host_index: None,
        host_mac: Mac([0x0a, 0x58, 0, 0, 0, 1]),
        mtu: 1500,
        group: None,
        peer_name: "eth0".parse().unwrap(),
        peer_index: None,
        peer_mac: Mac([0x0a, 0x58, 0, 0, 0, 2]),
        peer_netns,
        peer_gso_max_size: None,
    }
}

/// The calling thread's namespace wired to a pod's: `vethtest0` to `eth0`, both up.
pub struct WiredPod {
    pub host: Netlink,
    pub host_index: u32,
    pub inside: Netlink,
    pub inside_index: u32,
}

pub fn wired_pod() -> WiredPod {
    let netns = new_netns();
    let mut host = Netlink::here().unwrap();
    let mut inside = Netlink::within(netns.as_fd()).unwrap();
    host.apply(Op::veth(&veth_spec("vethtest0", netns.as_fd()))).unwrap();
    let host_index = host.link_by_name(&"vethtest0".parse().unwrap()).unwrap().unwrap().index;
    let inside_index = inside.link_by_name(&"eth0".parse().unwrap()).unwrap().unwrap().index;
    inside.apply(Op::link_up(inside_index)).unwrap();
    // The open socket keeps the pod's namespace alive.
    WiredPod { host, host_index, inside, inside_index }
}

/// What a program prints as JSON, run in the calling thread's namespace.
pub fn json_of(program: &str, args: &[&str]) -> serde_json::Value {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("this test needs `{program}`: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
