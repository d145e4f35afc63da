//! A network namespace with a thread that lives in it.
//!
//! Programs and threads that should run inside are started by that thread, so that they inherit the namespace. `ip netns exec`
//! is never used: it remounts /sys. The namespace has a path (a bind mount) as container runtimes make them.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{LabError, Tried};
use crate::syscall;
use crate::worker::Worker;

/// A network namespace; what its thread can do, it can.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    owned: bool,
    worker: Worker,
}

impl Deref for Netns {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.worker
    }
}

impl Netns {
    /// Makes a namespace whose path is `dir/name`; its loopback is up.
    pub fn create(dir: &Path, name: &str) -> Result<Self, LabError> {
        let path = dir.join(name);
        File::create(&path).tried(|| format!("create {}", path.display()))?;
        let enter = {
            let path = path.clone();
            move || {
                syscall::unshare_network()?;
                Ok(mount_bind("/proc/thread-self/ns/net", &path)?)
            }
        };
        let this = Self { worker: Worker::start(name, enter)?, path, owned: true };
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// Enters a namespace that exists; it outlives this value.
    pub fn open(path: &Path) -> Result<Self, LabError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).tried(|| format!("open {}", path.display()))?;
        let enter = move || -> io::Result<()> {
            Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
        };
        Ok(Self { worker: Worker::start(&name, enter)?, path: path.to_owned(), owned: false })
    }

    /// Its path, what a runtime gives as `CNI_NETNS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a thread in the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, LabError> {
        let builder = thread::Builder::new().name(format!("{name} in {}", self.name()));
        self.run(move || builder.spawn(body))?.tried(|| format!("start a thread in {}", self.name()))
    }

    /// Runs a job that may take long, on a thread of its own.
    pub fn aside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, LabError> {
        self.thread("job", job)?.join().map_err(|_| LabError::ThreadGone(self.name().to_owned()))
    }

    /// Lines of `ip` commands, in one process.
    pub fn ip(&self, lines: &str) -> Result<String, LabError> {
        self.exec("ip", &["-batch", "-"], lines.as_bytes())
    }

    /// An nftables script, applied at once or not at all.
    pub fn nft(&self, script: &str) -> Result<String, LabError> {
        self.exec("nft", &["-f", "-"], script.as_bytes())
    }

    /// Sets a value below /proc/sys/net; `key` is a path such as `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        let (path, value) = (format!("/proc/sys/net/{key}"), value.to_owned());
        let what = format!("write {path} in {}", self.name());
        self.run(move || std::fs::write(path, value))?.tried(|| what)
    }

    /// Which source address the namespace's routes choose towards `to`, if it can be reached at all.
    pub fn source_towards(&self, to: Ipv4Addr) -> Result<Option<Ipv4Addr>, LabError> {
        let output = self.output("ip", &["-j", "route", "get", &to.to_string()], &[])?;
        let routes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok(routes[0]["prefsrc"].as_str().and_then(|text| text.parse().ok()))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.owned {
            let _ = unmount(&self.path, UnmountFlags::DETACH);
            drop(std::fs::remove_file(&self.path));
        }
    }
}
