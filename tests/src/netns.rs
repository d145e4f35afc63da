//! A network namespace with a thread that lives in it.
//!
//! Programs and threads that should run inside are started by that thread, so that they inherit the namespace (and die with
//! it: children are told to, by `PR_SET_PDEATHSIG`). `ip netns exec` is never used: it remounts /sys. The namespace has a path
//! (a bind mount) as container runtimes make them.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{LabError, Tried};
use crate::syscall;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    owned: bool,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
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
        let this = Self::start(name, path, true, enter)?;
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// Enters a namespace that exists; it outlives this value.
    pub fn open(path: &Path) -> Result<Self, LabError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).tried(|| format!("open {}", path.display()))?;
        let enter = move || Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?);
        Self::start(&name, path.to_owned(), false, enter)
    }

    fn start(
        name: &str,
        path: PathBuf,
        owned: bool,
        enter: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, LabError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, outcome) = mpsc::channel();
        let worker = thread::Builder::new()
            .name(format!("netns {name}"))
            .spawn(move || {
                let inside = enter();
                let failed = inside.is_err();
                if entered.send(inside).is_err() || failed {
                    return;
                }
                for job in queue {
                    job();
                }
            })
            .tried(|| format!("start the thread of namespace {name}"))?;
        outcome
            .recv()
            .map_err(|_| LabError::ThreadGone(name.to_owned()))?
            .tried(|| format!("enter network namespace {}", path.display()))?;
        let (jobs, worker) = (Mutex::new(Some(jobs)), Mutex::new(Some(worker)));
        Ok(Self { name: name.to_owned(), path, owned, jobs, worker })
    }

    /// Its name within the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, what a runtime gives as `CNI_NETNS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a short job in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, LabError> {
        let gone = || LabError::ThreadGone(self.name.clone());
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(answer.send(job())));
        let sent = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|jobs| jobs.send(job));
        sent.ok_or_else(gone)?.map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }

    /// Starts a thread in the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, LabError> {
        let builder = thread::Builder::new().name(format!("{name} in {}", self.name));
        self.run(move || builder.spawn(body))?.tried(|| format!("start a thread in {}", self.name))
    }

    /// Runs a job that may take long, on a thread of its own.
    pub fn aside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, LabError> {
        self.thread("job", job)?.join().map_err(|_| LabError::ThreadGone(self.name.clone()))
    }

    /// Starts a program in the namespace; it is killed with the namespace's thread.
    pub fn spawn(&self, mut command: Command) -> Result<Child, LabError> {
        syscall::die_with_parent(&mut command);
        self.spawn_bare(command)
    }

    /// As [`Self::spawn`] for programs that end by themselves: cheaper, and nothing ends them.
    pub fn spawn_bare(&self, mut command: Command) -> Result<Child, LabError> {
        let what = format!("start {} in {}", command.get_program().display(), self.name);
        self.run(move || command.spawn())?.tried(|| what)
    }

    /// Runs a program to its end and gives what it printed, whatever its exit status.
    pub fn output(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<Output, LabError> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input is no failure of ours.
            drop(stdin.write_all(input));
        }
        child.wait_with_output().tried(|| format!("wait for {program}"))
    }

    /// Runs a program to its end; anything but success is an error.
    pub fn exec(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<String, LabError> {
        let output = self.output(program, arguments, input)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::Program {
            program: format!("{program} {} (in {})", arguments.join(" "), self.name),
            status: output.status.to_string(),
            output: format!(
                "{}{}{}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(input)
            ),
        })
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
        let what = format!("write {path} in {}", self.name);
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
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(worker.join());
        }
        if self.owned {
            let _ = unmount(&self.path, UnmountFlags::DETACH);
            drop(std::fs::remove_file(&self.path));
        }
    }
}
