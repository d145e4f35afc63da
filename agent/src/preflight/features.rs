//! What Bulkhead needs of the kernel, tried in a network namespace that nobody else sees: its types, VXLAN, hooks for programs,
//! nftables.

use std::net::Ipv4Addr;
use std::path::Path;
use std::{fs, io, thread};

use ipnetwork::Ipv4Network;
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::Obstacle;
use crate::kernel::{InterfaceName, Mac, Netlink, Op, VxlanSpec};
use crate::node::firewall::Firewall;
use crate::node::overlay;

/// Where the kernel shows its own types.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The first two bytes of BTF, in the kernel's byte order (`BTF_MAGIC` of `linux/btf.h`).
pub(super) const BTF_MAGIC: u16 = 0xeb9f;

pub(super) fn btf(path: &Path) -> Option<Obstacle> {
    let mut magic = [0; 2];
    let read = fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    let good = read.is_ok() && u16::from_ne_bytes(magic) == BTF_MAGIC;
    (!good).then(|| Obstacle::NoBtf(path.to_owned()))
}

/// Tries in a network namespace of its own what the node needs of the kernel. `port` is the tunnels' UDP port.
pub fn try_kernel(port: u16) -> Vec<Obstacle> {
    let tried = thread::Builder::new().name("preflight".into()).spawn(move || {
        #[expect(deprecated, reason = "its successor is unsafe for CLONE_FILES and the like, which are not used here")]
        let left = rustix::thread::unshare(UnshareFlags::NEWNET);
        // Only a thread that has left the host's namespace may go on.
        match left {
            Ok(()) => in_empty_namespace(port),
            Err(Errno::PERM) => Err(kernel("a network namespace", &"not permitted; the agent needs CAP_SYS_ADMIN")),
            Err(error) => Err(kernel("a network namespace", &io::Error::from(error))),
        }
    });
    let outcome = tried.and_then(|thread| thread.join().map_err(|_| io::Error::other("its thread broke off")));
    match outcome {
        Ok(Ok(())) => Vec::new(),
        Ok(Err(obstacle)) => vec![obstacle],
        Err(error) => vec![kernel("a thread", &error)],
    }
}

fn kernel(what: &'static str, error: &dyn std::fmt::Display) -> Obstacle {
    let error = error.to_string();
    // A process that may not do it learns nothing of the kernel.
    let hint = if error.contains("CAP_") { "" } else { "; load the module, or boot a kernel that has it" };
    Obstacle::Kernel { what, error: error + hint }
}

fn in_empty_namespace(port: u16) -> Result<(), Obstacle> {
    let socket = "netlink sockets";
    let mut host = Netlink::here().map_err(|error| kernel(socket, &error))?;
    let vxlan = "a VXLAN device (module vxlan)";
    let name = InterfaceName::try_from(overlay::NAME).map_err(|error| kernel(vxlan, &error))?;
    let spec = VxlanSpec { name, mac: Mac([0x0a, 0x59, 0, 0, 0, 1]), port, mtu: 1_450 };
    host.apply(Op::vxlan(&spec)).map_err(|error| kernel(vxlan, &error))?;
    let made = host.link_by_name(&spec.name).map_err(|error| kernel(vxlan, &error))?;
    if let Some(link) = made {
        let clsact = Op::clsact(link.index);
        host.apply(clsact).map_err(|error| kernel("hooks for programs (modules sch_ingress and cls_bpf)", &error))?;
    }
    let gateway = Ipv4Addr::new(192, 0, 2, 1);
    let network = Ipv4Network::from(gateway);
    let rules = Firewall { network, subnet: network, gateway, vxlan_port: port };
    let modules = "rules of nftables (modules nf_tables, nft_ct, nft_fib, nft_chain_nat, nft_masq)";
    rules.apply().map_err(|error| kernel(modules, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fixture::in_new_netns;

    #[test]
    fn btf_is_known_by_its_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinux");
        assert_eq!(btf(&path), Some(Obstacle::NoBtf(path.clone())));
        fs::write(&path, "").unwrap();
        assert!(btf(&path).is_some_and(|obstacle| obstacle.to_string().contains("CONFIG_DEBUG_INFO_BTF")));
        fs::write(&path, [&BTF_MAGIC.to_ne_bytes()[..], &[1, 0]].concat()).unwrap();
        assert_eq!(btf(&path), None);
    }

    #[test]
    fn the_kernel_is_tried_where_nobody_sees_it() {
        in_new_netns(|| {
            assert_eq!(try_kernel(4789), [], "this test needs root");
            let left: Vec<String> = Netlink::here().unwrap().links().unwrap().into_iter().map(|l| l.name).collect();
            assert_eq!(left, ["lo"]);
        });
    }
}
