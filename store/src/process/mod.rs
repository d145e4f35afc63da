//! Real etcd members for tests: one or three of them on random loopback ports, gone with their owner.
//!
//! Behind the feature `etcd-process`. Assumes the programs `etcd` (Debian: etcd-server) and `setpriv` (util-linux), and
//! fails by name without them. Promises that members die with this process, even when it is killed, and that their data
//! goes with the [`Cluster`]. Its calls block, for a few seconds at most: tests may call them from async code.

mod data;
mod member;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use data::DataDirectory;
use member::Member;

/// How long a cluster may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Starts anew when somebody took one of the ports in between.
const START_ATTEMPTS: usize = 3;

/// Why a member does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// A program is missing.
    #[error("cannot start {program}: install it (Debian: apt install etcd-server util-linux)")]
    Spawn {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file, port or signal failed.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The cluster does not get ready.
    #[error("etcd is not ready after {after:?}; its log ends with:\n{log}")]
    NotReady {
        /// How long it was waited for.
        after: Duration,
        /// The end of the first member's log.
        log: String,
    },
}

/// TLS of the client port, as PEM files.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The server's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// If set, clients must show a certificate of this CA.
    pub client_ca: Option<PathBuf>,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Number of members, 1 to 7.
    pub members: usize,
    /// https on the client ports.
    pub tls: Option<ServerTls>,
    /// More arguments for every member.
    pub arguments: Vec<String>,
}

impl Default for ClusterOptions {
    /// One member, plain http.
    fn default() -> Self {
        Self { members: 1, tls: None, arguments: Vec::new() }
    }
}

/// A running etcd cluster. Dropping it kills its members and removes their data.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    scheme: &'static str,
    _data: DataDirectory,
}

impl Cluster {
    /// Starts that many members over plain http and waits until they serve.
    pub fn start(members: usize) -> Result<Self, ProcessError> {
        Self::start_with(&ClusterOptions { members, ..ClusterOptions::default() })
    }

    /// Starts a cluster and waits until it serves.
    pub fn start_with(options: &ClusterOptions) -> Result<Self, ProcessError> {
        let mut attempt = 1;
        loop {
            match Self::try_start(options) {
                Err(ProcessError::NotReady { log, .. })
                    if attempt < START_ATTEMPTS && log.contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn try_start(options: &ClusterOptions) -> Result<Self, ProcessError> {
        let data = DataDirectory::new()?;
        let count = options.members.clamp(1, 7);
        let ports = free_ports(3 * count)?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let peers: Vec<String> = (0..count).map(|at| format!("m{at}=http://127.0.0.1:{}", ports[3 * at + 1])).collect();
        let mut arguments = vec![
            "--unsafe-no-fsync".to_owned(),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--initial-cluster={}", peers.join(",")),
            "--initial-cluster-state=new".to_owned(),
            // Its own token, so that each cluster has its own cluster id.
            format!("--initial-cluster-token={}", data.path().display()),
        ];
        if let Some(tls) = &options.tls {
            arguments.push(format!("--cert-file={}", tls.cert.display()));
            arguments.push(format!("--key-file={}", tls.key.display()));
            if let Some(ca) = &tls.client_ca {
                arguments.push(format!("--trusted-ca-file={}", ca.display()));
                arguments.push("--client-cert-auth".to_owned());
            }
        }
        arguments.extend(options.arguments.iter().cloned());
        let members = (0..count)
            .map(|at| {
                let ports = [ports[3 * at], ports[3 * at + 1], ports[3 * at + 2]];
                Member::new(at, data.path(), scheme, ports, &arguments)
            })
            .collect();
        let mut cluster = Self { members, scheme, _data: data };
        for member in &mut cluster.members {
            member.spawn()?;
        }
        for at in 0..count {
            cluster.wait_ready(at)?;
        }
        Ok(cluster)
    }

    /// Every member's client URL, as [`Settings`](crate::Settings) take them.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|at| self.endpoint(at)).collect()
    }

    /// One member's client URL.
    pub fn endpoint(&self, at: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[at].client_port())
    }

    /// Kills a member at once, as a power cut does; its data stays.
    pub fn kill(&mut self, at: usize) {
        self.members[at].kill();
    }

    /// Kills every member and removes all data. Started again (with [`Cluster::spawn`] and [`Cluster::wait_ready`], or
    /// [`Cluster::restart`] for one member), the cluster is empty, at revision 1, under the same cluster id.
    pub fn wipe(&mut self) -> Result<(), ProcessError> {
        self.members.iter_mut().try_for_each(Member::wipe)
    }

    /// Starts a killed member again and waits until it serves.
    pub fn restart(&mut self, at: usize) -> Result<(), ProcessError> {
        self.members[at].kill();
        self.members[at].spawn()?;
        self.wait_ready(at)
    }

    /// Starts a killed member again without waiting.
    pub fn spawn(&mut self, at: usize) -> Result<(), ProcessError> {
        self.members[at].kill();
        self.members[at].spawn()
    }

    /// Stops a member in its tracks: its connections stay open and silent.
    pub fn freeze(&self, at: usize) -> Result<(), ProcessError> {
        self.members[at].signal(rustix::process::Signal::STOP)
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, at: usize) -> Result<(), ProcessError> {
        self.members[at].signal(rustix::process::Signal::CONT)
    }

    /// Waits until a member serves with a majority behind it.
    pub fn wait_ready(&mut self, at: usize) -> Result<(), ProcessError> {
        let started = Instant::now();
        while !self.members[at].is_healthy() {
            if started.elapsed() > START_LIMIT || self.members[at].has_exited() {
                return Err(ProcessError::NotReady { after: started.elapsed(), log: self.members[at].log_tail() });
            }
            // Polling a foreign process: there is nothing to await.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Ports that were free a moment ago; all are held until the last is found, so they differ.
fn free_ports(count: usize) -> Result<Vec<u16>, ProcessError> {
    let error = |source| ProcessError::System { what: "find a free port on 127.0.0.1", source };
    let listeners =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>().map_err(error)?;
    listeners.iter().map(|listener| Ok(listener.local_addr().map_err(error)?.port())).collect()
}
