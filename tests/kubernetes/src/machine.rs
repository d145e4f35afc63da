//! A node's machine: namespaces of all kinds around a disk. Switching it off ends every process in it at once, as a power cut
//! does; the disk stays, all that is in memory (`/run`, bpffs, the network) goes.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::process::Process;
use bulkhead_tests::worker::Worker;
use bulkhead_tests::{syscall, wait};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::disk::{Disk, PROGRAMS};

/// What the kubelet wants the kernel to be like. It writes these, and they are the whole machine's: each node has files of its
/// own in their place.
const WANTED_BY_KUBELET: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A machine that is on; dropped, it is off.
#[derive(Debug)]
pub struct Machine {
    // The first process of the PID namespace: the kernel ends all others with it.
    first: Child,
    worker: Worker,
}

impl Machine {
    /// Boots: enters the network namespace at that path, and makes all others.
    pub fn boot(name: &str, disk: &Disk, netns: &Path) -> Result<Self, LabError> {
        let file = fs::File::open(netns).tried(|| format!("open {}", netns.display()))?;
        let (disk, hostname) = (disk.clone(), name.to_owned());
        let worker = Worker::start(name, move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            syscall::unshare_machine()?;
            rustix::system::sethostname(hostname.as_bytes())?;
            build_tree(&disk)?;
            syscall::unshare_processes()
        })?;
        let mut first = Command::new("/bin/sh");
        // Orphans are the first process' children; the kernel reaps those of a parent that ignores their end.
        first.args(["-c", "mount -t proc proc /proc && trap '' CHLD && exec sleep infinity"]);
        let machine = Self { first: worker.spawn(first)?, worker };
        wait::until(&format!("/proc of {name}"), Duration::from_secs(30), || {
            machine.worker.run(|| Path::new("/proc/sys/vm").is_dir()).ok()?.then_some(())
        })?;
        machine.worker.run(shield_kernel)?.tried(|| format!("shield the kernel from {name}"))?;
        Ok(machine)
    }

    /// The first process, as the host numbers it: what `nsenter --target` wants.
    pub fn pid(&self) -> u32 {
        self.first.id()
    }

    /// A command in the node's own environment.
    pub fn command(program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", "/root").env("PATH", format!("{PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin"));
        command
    }

    /// Starts a program that runs until it is stopped.
    pub fn start(&self, name: &str, command: Command, log: &Path) -> Result<Process, LabError> {
        Process::start(&self.worker, name, command, log)
    }

    /// Runs a program to its end, whatever its exit status.
    pub fn output(&self, words: &[&str], input: &[u8]) -> Result<Output, LabError> {
        self.worker.output_of(Self::words(words), input)
    }

    /// Runs a program to its end; anything but success is an error.
    pub fn exec(&self, words: &[&str], input: &[u8]) -> Result<String, LabError> {
        self.worker.exec_of(Self::words(words), input)
    }

    fn words(words: &[&str]) -> Command {
        let (program, arguments) = words.split_first().unwrap_or((&"true", &[]));
        let mut command = Self::command(program);
        command.args(arguments);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.first.kill());
        drop(self.first.wait());
    }
}

/// Makes the disk the root of the calling thread's mount namespace, with everything below it that a booted system has but /proc.
fn build_tree(disk: &Disk) -> std::io::Result<()> {
    let (root, none) = (disk.root(), MountFlags::empty());
    let everywhere = |how| how | MountPropagationFlags::REC;
    mount_change("/", everywhere(MountPropagationFlags::PRIVATE))?;
    mount_bind(root, root)?;
    for (host, here) in disk.lent() {
        let here = disk.path(&here.to_string_lossy());
        mount_bind(host, &here)?;
        mount_remount(&here, MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    mount_bind_recursive("/dev", root.join("dev"))?;
    mount("tmpfs", root.join("dev/shm"), "tmpfs", none, None)?;
    mount("tmpfs", root.join("run"), "tmpfs", none, Some(c"mode=755"))?;
    fs::create_dir(root.join("run/netns"))?;
    // Which links sysfs shows depends on where it was mounted.
    mount("sysfs", root.join("sys"), "sysfs", none, None)?;
    mount_bind_recursive("/sys/fs/cgroup", root.join("sys/fs/cgroup"))?;
    mount("bpf", root.join("sys/fs/bpf"), "bpf", none, None)?;
    chdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    // As systemd does: what is mounted in a node is seen by the containers that asked for it.
    mount_change("/", everywhere(MountPropagationFlags::SHARED)).map_err(Into::into)
}

fn shield_kernel() -> std::io::Result<()> {
    let dir = Path::new("/run/kernel");
    fs::create_dir(dir)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let fresh = ("kernel/random/boot_id", boot_id.trim());
    for (key, value) in WANTED_BY_KUBELET.into_iter().chain([fresh]) {
        let file = dir.join(key.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        mount_bind(&file, Path::new("/proc/sys").join(key))?;
    }
    Ok(())
}
