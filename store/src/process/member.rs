//! One etcd process: how it is spawned, signalled, asked for its health, and ended.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::ProcessError;

/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 2000;
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Member {
    arguments: Vec<String>,
    /// For clients, peers and metrics.
    ports: [u16; 3],
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Member {
    pub(super) fn new(at: usize, data: &Path, scheme: &str, ports: [u16; 3], shared: &[String]) -> Self {
        let url = |scheme: &str, port: u16| format!("{scheme}://127.0.0.1:{port}");
        let mut arguments = vec![
            format!("--name=m{at}"),
            format!("--data-dir={}", data.join(format!("m{at}")).display()),
            format!("--listen-client-urls={}", url(scheme, ports[0])),
            format!("--advertise-client-urls={}", url(scheme, ports[0])),
            format!("--listen-peer-urls={}", url("http", ports[1])),
            format!("--initial-advertise-peer-urls={}", url("http", ports[1])),
            format!("--listen-metrics-urls={}", url("http", ports[2])),
        ];
        arguments.extend_from_slice(shared);
        Self { arguments, ports, data: data.join(format!("m{at}")), log: data.join(format!("m{at}.log")), child: None }
    }

    pub(super) fn client_port(&self) -> u16 {
        self.ports[0]
    }

    pub(super) fn spawn(&mut self) -> Result<(), ProcessError> {
        let failed = |what| move |source| ProcessError::System { what, source };
        let log = File::options().create(true).append(true).open(&self.log).map_err(failed("open etcd's log"))?;
        let output = log.try_clone().map_err(failed("open etcd's log"))?;
        // setpriv becomes etcd: the kernel kills it when the spawning thread ends, which lives as long as the process.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "etcd"])
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log);
        let child =
            spawn_forever(command).map_err(|source| ProcessError::Spawn { program: "setpriv (for etcd)", source })?;
        self.child = Some(child);
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let pid = self.child.as_ref().and_then(|child| {
            let pid = i32::try_from(child.id()).ok()?;
            Pid::from_raw(pid)
        });
        let Some(pid) = pid else {
            return Err(ProcessError::System {
                what: "signal a member that does not run",
                source: std::io::ErrorKind::NotFound.into(),
            });
        };
        kill_process(pid, signal).map_err(|error| ProcessError::System { what: "signal etcd", source: error.into() })
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only if it has exited already; then wait reaps it all the same.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it and removes what it stored.
    pub(super) fn wipe(&mut self) -> Result<(), ProcessError> {
        self.kill();
        std::fs::remove_dir_all(&self.data)
            .map_err(|source| ProcessError::System { what: "remove a member's data", source })
    }

    pub(super) fn has_exited(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => true,
        }
    }

    /// Asks the metrics port, which needs neither TLS nor a login.
    pub(super) fn is_healthy(&self) -> bool {
        self.ask_health().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
    }

    fn ask_health(&self) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[2]));
        let mut stream = TcpStream::connect_timeout(&address, HEALTH_LIMIT)?;
        stream.set_read_timeout(Some(HEALTH_LIMIT))?;
        stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub(super) fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL_BYTES);
        let tail = String::from_utf8_lossy(&log[from..]).into_owned();
        if tail.contains("failed to execute etcd") {
            format!("{tail}(is etcd installed? Debian: apt install etcd-server)")
        } else {
            tail
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// Spawns from a thread that never ends: a parent-death signal is sent when the *thread* that spawned ends.
fn spawn_forever(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let gone = || std::io::Error::other("the spawning thread has ended");
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                // An asker that is gone has no use for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, result) = channel();
    spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}
