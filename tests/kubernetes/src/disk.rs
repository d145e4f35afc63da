//! A node's disk: a root file system of its own whose programs are the host's, read only. It outlives a power cut.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bulkhead_tests::error::{LabError, Tried};

/// Where the lab's programs are in a node.
pub const PROGRAMS: &str = "/opt/kubernetes/bin";
/// What the host lends if it is there: programs, libraries, and how Debian chooses among them.
const LENT: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc/alternatives"];
/// Small files that programs expect.
const COPIED: [&str; 9] = [
    "etc/passwd",
    "etc/group",
    "etc/nsswitch.conf",
    "etc/protocols",
    "etc/services",
    "etc/ethertypes",
    "etc/ld.so.cache",
    "etc/ld.so.conf",
    "etc/os-release",
];
const DIRECTORIES: [&str; 24] = [
    "dev",
    "etc/cni/net.d",
    "etc/kubernetes/manifests",
    "etc/kubernetes/pki",
    "home",
    "mnt",
    "opt/cni/bin",
    "opt/kubernetes/bin",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var/cache",
    "var/lib/bulkhead",
    "var/lib/cni",
    "var/lib/containerd",
    "var/lib/kubelet",
    "var/log/containers",
    "var/log/pods",
    "var/spool",
    "var/tmp",
];
/// The reference plugins that a node has; Debian's package has them all.
const PLUGINS: [&str; 7] = ["bandwidth", "bridge", "host-local", "loopback", "portmap", "ptp", "tuning"];
const PLUGIN_SOURCE: &str = "/usr/lib/cni";

/// A fresh random number each time it is read.
const UUID: &str = "/proc/sys/kernel/random/uuid";

/// The disk, and what is lent to it.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
    /// Directory of the host, directory of the disk (absolute in the node).
    lent: Vec<(PathBuf, PathBuf)>,
}

impl Disk {
    /// Lays out an empty directory as a node's disk. `nameserver` is what pods of the node's own DNS policy ask.
    pub fn create(root: &Path, name: &str, programs: &Path, nameserver: &str) -> Result<Self, LabError> {
        let at = |path: &str| root.join(path);
        for path in DIRECTORIES {
            fs::create_dir_all(at(path)).tried(|| format!("create {}", at(path).display()))?;
        }
        for path in ["tmp", "var/tmp"] {
            fs::set_permissions(at(path), fs::Permissions::from_mode(0o1777))
                .tried(|| format!("open {} to all", at(path).display()))?;
        }
        symlink("/run", at("var/run")).tried(|| format!("link {}", at("var/run").display()))?;
        let mut lent = vec![(programs.to_owned(), PathBuf::from(PROGRAMS))];
        for path in LENT {
            let (host, here) = (Path::new("/").join(path), at(path));
            if let Ok(target) = fs::read_link(&host) {
                symlink(&target, &here).tried(|| format!("link {}", here.display()))?;
            } else if host.is_dir() {
                fs::create_dir_all(&here).tried(|| format!("create {}", here.display()))?;
                lent.push((host.clone(), host));
            }
        }
        for path in COPIED {
            let host = Path::new("/").join(path);
            if host.is_file() {
                fs::copy(&host, at(path)).tried(|| format!("copy {}", host.display()))?;
            }
        }
        for plugin in PLUGINS {
            let from = Path::new(PLUGIN_SOURCE).join(plugin);
            fs::copy(&from, at("opt/cni/bin").join(plugin))
                .tried(|| format!("copy {} (run `scripts/setup kubernetes`)", from.display()))?;
        }
        let disk = Self { root: root.to_owned(), lent };
        disk.write("etc/hostname", &format!("{name}\n"))?;
        disk.write("etc/hosts", &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
        disk.write("etc/resolv.conf", &format!("nameserver {nameserver}\n"))?;
        let uuid = fs::read_to_string(UUID).tried(|| format!("read {UUID}"))?;
        disk.write("etc/machine-id", &uuid.replace('-', ""))?;
        Ok(disk)
    }

    /// Where it is on the host.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the host lends: its directory, and the same in the node.
    pub fn lent(&self) -> &[(PathBuf, PathBuf)] {
        &self.lent
    }

    /// A path of the node as the host sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Writes a file of the node, and the directories that lead to it.
    pub fn write(&self, path: &str, text: &str) -> Result<(), LabError> {
        crate::certificates::write(&self.path(path), text, 0o644)
    }

    /// As [`Self::write`], by rename: who watches the directory sees it whole.
    pub fn publish(&self, path: &str, text: &str) -> Result<(), LabError> {
        let hidden = format!("{path}.new");
        self.write(&hidden, text)?;
        fs::rename(self.path(&hidden), self.path(path)).tried(|| format!("publish {path}"))
    }
}
