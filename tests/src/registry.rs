//! The labs of this machine: a lock each, and the removal of those whose lock is free.
//!
//! A lab holds an exclusive lock (flock(2)) on `/run/bulkhead-lab/<id>.lock` as long as its process lives, so that a lab whose
//! process was killed is told from one that runs. All else of it is below `/dev/shm/bhl<id>`, in namespaces whose paths
//! are there, and in control groups `bhl<id>`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup;
use crate::error::{LabError, Tried};
use crate::wait;

const LOCKS: &str = "/run/bulkhead-lab";
const STATE: &str = "/dev/shm";

/// The name of a lab: `bhl` and this number is the start of every name it gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabId(u8);

impl LabId {
    /// Its number, 1 to 250: also the third octet of its underlay.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The prefix of its names.
    pub fn prefix(self) -> String {
        format!("bhl{}", self.0)
    }

    /// Where everything of it is.
    pub fn dir(self) -> PathBuf {
        Path::new(STATE).join(self.prefix())
    }

    fn lock_path(self) -> PathBuf {
        Path::new(LOCKS).join(format!("{}.lock", self.0))
    }
}

/// The right to be a lab; given up when dropped.
#[derive(Debug)]
pub struct Claim {
    id: LabId,
    lock: File,
}

impl Claim {
    /// Removes what dead labs left, then claims a free number and an empty directory.
    pub fn take() -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        fs::create_dir_all(LOCKS).tried(|| format!("create {LOCKS}"))?;
        sweep()?;
        let start = u8::try_from(std::process::id() % 250).unwrap_or_default();
        for step in 0..250_u8 {
            let id = LabId((start.wrapping_add(step)) % 250 + 1);
            if let Some(lock) = try_lock(id)? {
                let claim = Self { id, lock };
                remove_remains(id)?;
                fs::create_dir_all(id.dir()).tried(|| format!("create {}", id.dir().display()))?;
                claim.record(std::process::id())?;
                return Ok(claim);
            }
        }
        Err(LabError::Refused { what: "claim a lab".into(), answer: "250 labs run already".into() })
    }

    /// The lab's name.
    pub fn id(&self) -> LabId {
        self.id
    }

    /// Writes the process that `down` must end.
    fn record(&self, pid: u32) -> Result<(), LabError> {
        let mut file = &self.lock;
        let written = file.rewind().and_then(|()| file.set_len(0)).and_then(|()| writeln!(file, "{pid}"));
        written.tried(|| format!("write {}", self.id.lock_path().display()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The lock file goes last: as long as it is there, a sweep can find what is left.
        if remove_remains(self.id).is_ok() {
            drop(fs::remove_file(self.id.lock_path()));
        }
    }
}

/// A lab whose process lives.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Its name.
    pub id: LabId,
    /// Its process.
    pub pid: i32,
}

/// The labs that run now.
pub fn running() -> Result<Vec<Running>, LabError> {
    let mut labs = Vec::new();
    for id in known()? {
        if try_lock(id)?.is_none() {
            let text = fs::read_to_string(id.lock_path()).unwrap_or_default();
            labs.extend(text.trim().parse().ok().map(|pid| Running { id, pid }));
        }
    }
    Ok(labs)
}

/// Removes everything of a lab that this process itself holds, before it exits on a signal.
pub fn abandon(id: LabId) -> Result<(), LabError> {
    remove_remains(id)?;
    drop(fs::remove_file(id.lock_path()));
    Ok(())
}

/// Removes all that is left of labs whose process is gone; says which.
pub fn sweep() -> Result<Vec<LabId>, LabError> {
    let mut swept = Vec::new();
    for id in known()? {
        if let Some(_lock) = try_lock(id)? {
            remove_remains(id)?;
            drop(fs::remove_file(id.lock_path()));
            swept.push(id);
        }
    }
    Ok(swept)
}

/// Labs with a lock, and those of which only a directory is left (a plugin that was called late makes its spool anew).
fn known() -> Result<BTreeSet<LabId>, LabError> {
    let mut ids = BTreeSet::new();
    for (dir, prefix, suffix) in [(LOCKS, "", ".lock"), (STATE, "bhl", "")] {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        for entry in entries {
            let name = entry.tried(|| format!("list {dir}"))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok());
            ids.extend(number.map(LabId));
        }
    }
    Ok(ids)
}

/// The lock if nobody holds it. The file may be removed by its last holder between open and lock: then it is another one.
fn try_lock(id: LabId) -> Result<Option<File>, LabError> {
    let path = id.lock_path();
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .tried(|| format!("open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let ours = file.metadata().map(|meta| meta.ino()).tried(|| format!("read {}", path.display()))?;
        if fs::metadata(&path).is_ok_and(|meta| meta.ino() == ours) {
            return Ok(Some(file));
        }
    }
}

/// Ends a lab's processes, unmounts and removes its directory. Does nothing when nothing is left.
fn remove_remains(id: LabId) -> Result<(), LabError> {
    let dir = id.dir();
    if !dir.exists() {
        return Ok(());
    }
    let spaces = namespaces_below(&dir);
    wait::until_or(&format!("the end of lab {}'s processes", id.0), Duration::from_mins(1), || {
        let alive: Vec<Pid> = processes_in(&spaces);
        for pid in &alive {
            let _ = kill_process(*pid, Signal::KILL);
        }
        if alive.is_empty() { Ok(()) } else { Err(format!("{alive:?}")) }
    })?;
    for mount in mounts_below(&dir) {
        unmount(&mount, UnmountFlags::DETACH).tried(|| format!("unmount {}", mount.display()))?;
    }
    cgroup::remove(Path::new(&id.prefix()))?;
    fs::remove_dir_all(&dir).tried(|| format!("remove {}", dir.display()))
}

/// Mount points below a directory, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(dir) && path != dir)
        .collect();
    mounts.sort();
    mounts.reverse();
    mounts
}

fn namespaces_below(dir: &Path) -> BTreeSet<(u64, u64)> {
    mounts_below(dir).iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| (meta.dev(), meta.ino())).collect()
}

/// Processes, other than this one, whose network namespace is one of `spaces`. Nobody but a lab's own is there.
fn processes_in(spaces: &BTreeSet<(u64, u64)>) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid).is_ok_and(|pid| pid != std::process::id()))
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|meta| spaces.contains(&(meta.dev(), meta.ino())) && !is_zombie(*pid))
        })
        .filter_map(Pid::from_raw)
        .collect()
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}
