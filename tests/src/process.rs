//! A long-running program of the lab, its output in a file.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{LabError, Tried};
use crate::wait;
use crate::worker::Worker;

/// A program that runs until it is stopped; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in a worker's namespaces; what it prints is appended to `log`.
    pub fn start(place: &Worker, name: &str, mut command: Command, log: &Path) -> Result<Self, LabError> {
        let open = || File::options().create(true).append(true).open(log).tried(|| format!("open {}", log.display()));
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        let child = place.spawn(command)?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its last output.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Is an error as soon as the program has ended.
    pub fn check(&mut self) -> Result<(), LabError> {
        match self.child.try_wait().tried(|| format!("wait for {}", self.name))? {
            None => Ok(()),
            Some(status) => {
                Err(LabError::Died { name: self.name.clone(), status: status.to_string(), log: self.log_tail(20) })
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        kill_process(pid, signal).tried(|| format!("signal {}", self.name))
    }

    /// SIGSTOP: it is there but does nothing.
    pub fn freeze(&self) -> Result<(), LabError> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<(), LabError> {
        self.signal(Signal::CONT)
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(mut self) -> Result<(), LabError> {
        self.child.kill().tried(|| format!("kill {}", self.name))?;
        self.child.wait().tried(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM; gives its exit status, or fails if it does not end in time.
    pub fn terminate(mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// Waits for its end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, limit, || self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0xff00))))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
