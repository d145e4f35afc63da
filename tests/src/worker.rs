//! A thread that lives in namespaces of its own and starts programs there.
//!
//! What it starts inherits its namespaces and dies with it: children are told to, by `PR_SET_PDEATHSIG`. It lives until it is
//! dropped.

use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use crate::error::{LabError, Tried};
use crate::syscall;

type Job = Box<dyn FnOnce() + Send>;

/// The thread, and the queue of what it is to do.
#[derive(Debug)]
pub struct Worker {
    name: String,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts a thread that first does `enter`; if that fails there is none.
    pub fn start(name: &str, enter: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<Self, LabError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, outcome) = mpsc::channel();
        let thread = thread::Builder::new()
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
            .tried(|| format!("start the thread of {name}"))?;
        outcome
            .recv()
            .map_err(|_| LabError::ThreadGone(name.to_owned()))?
            .tried(|| format!("enter the namespaces of {name}"))?;
        Ok(Self { name: name.to_owned(), jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a short job on the thread and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, LabError> {
        let gone = || LabError::ThreadGone(self.name.clone());
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || drop(answer.send(job())));
        let sent = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|jobs| jobs.send(job));
        sent.ok_or_else(gone)?.map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }

    /// Starts a program; it is killed with the thread.
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
        command.args(arguments);
        self.output_of(command, input)
    }

    /// As [`Self::output`] for a command with an environment of its own.
    pub fn output_of(&self, mut command: Command, input: &[u8]) -> Result<Output, LabError> {
        let what = format!("wait for {}", command.get_program().display());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input is no failure of ours.
            drop(stdin.write_all(input));
        }
        child.wait_with_output().tried(|| what)
    }

    /// Runs a program to its end; anything but success is an error.
    pub fn exec(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.exec_of(command, input)
    }

    /// As [`Self::exec`] for a command with an environment of its own.
    pub fn exec_of(&self, command: Command, input: &[u8]) -> Result<String, LabError> {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.display().to_string())
            .collect();
        let output = self.output_of(command, input)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::Program {
            program: format!("{} (in {})", words.join(" "), self.name),
            status: output.status.to_string(),
            output: format!(
                "{}{}{}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(input)
            ),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }
}
