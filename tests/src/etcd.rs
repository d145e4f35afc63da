//! Real etcd members in the lab's infra namespace, one address each.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::error::{LabError, Tried};
use crate::netns::Netns;
use crate::process::Process;
use crate::wait;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const HEALTH_PORT: u16 = 2381;
const START: Duration = Duration::from_mins(1);

/// The files of members that serve clients with certificates only.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The authority of both sides.
    pub authority: PathBuf,
    /// The members' certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificate that `etcdctl` shows.
    pub client_certificate: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
}

/// One, three or five members that form a cluster.
#[derive(Debug)]
pub struct Etcd {
    netns: Arc<Netns>,
    addresses: Vec<Ipv4Addr>,
    members: Vec<Option<Process>>,
    dir: PathBuf,
    tls: Option<EtcdTls>,
}

impl Etcd {
    /// Starts a member at each address and waits until they take writes.
    pub fn start(netns: Arc<Netns>, addresses: Vec<Ipv4Addr>, dir: &Path) -> Result<Self, LabError> {
        Self::start_with(netns, addresses, dir, None)
    }

    /// As [`Self::start`], for clients with certificates.
    pub fn start_with(
        netns: Arc<Netns>,
        addresses: Vec<Ipv4Addr>,
        dir: &Path,
        tls: Option<EtcdTls>,
    ) -> Result<Self, LabError> {
        let members = addresses.iter().map(|_| None).collect();
        let mut etcd = Self { netns, addresses, members, dir: dir.to_owned(), tls };
        etcd.start_all()?;
        Ok(etcd)
    }

    /// For `--etcd-endpoints`.
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = self.addresses.iter().map(|address| self.client_url(*address)).collect();
        urls.join(",")
    }

    fn client_url(&self, address: Ipv4Addr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}:{CLIENT_PORT}")
    }

    /// Starts the members that do not run, their data as it was.
    pub fn start_all(&mut self) -> Result<(), LabError> {
        for index in 0..self.addresses.len() {
            self.start_member(index)?;
        }
        for index in 0..self.addresses.len() {
            self.await_healthy(index)?;
        }
        Ok(())
    }

    /// Starts one member without waiting for it.
    pub fn start_member(&mut self, index: usize) -> Result<(), LabError> {
        if self.members[index].is_some() {
            return Ok(());
        }
        let name = format!("etcd{index}");
        let at = |address: Ipv4Addr, port: u16| format!("http://{address}:{port}");
        let address = self.addresses[index];
        let cluster = self.initial_cluster();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &name, "--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--data-dir")
            .arg(self.dir.join(&name))
            .args(["--listen-client-urls", &self.client_url(address)])
            .args(["--advertise-client-urls", &self.client_url(address)])
            .args(["--listen-metrics-urls", &at(address, HEALTH_PORT)])
            .args(["--listen-peer-urls", &at(address, PEER_PORT)])
            .args(["--initial-advertise-peer-urls", &at(address, PEER_PORT)])
            .args(["--initial-cluster", &cluster]);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.authority);
            command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
        }
        let log = self.dir.join(format!("{name}.log"));
        self.members[index] = Some(Process::start(&self.netns, &name, command, &log)?);
        Ok(())
    }

    fn await_healthy(&mut self, index: usize) -> Result<(), LabError> {
        let address = SocketAddr::from((self.addresses[index], HEALTH_PORT));
        if let Some(member) = &mut self.members[index] {
            wait::until(&format!("etcd at {address} taking writes"), START, || {
                if let Err(died) = member.check() {
                    return Some(Err(died));
                }
                self.netns.aside(move || is_healthy(address)).is_ok_and(|healthy| healthy).then_some(Ok(()))
            })??;
        }
        Ok(())
    }

    /// Stops every member; their data stays.
    pub fn stop_all(&mut self) -> Result<(), LabError> {
        (0..self.members.len()).try_for_each(|index| self.stop_member(index))
    }

    /// Kills one member.
    pub fn stop_member(&mut self, index: usize) -> Result<(), LabError> {
        self.members[index].take().map_or(Ok(()), Process::kill)
    }

    /// Saves a snapshot, as an administrator does before an upgrade.
    pub fn save_snapshot(&self, file: &Path) -> Result<(), LabError> {
        self.ctl(&["snapshot", "save", &file.display().to_string()]).map(drop)
    }

    /// Kills every member and starts them on what the snapshot holds: what was written since is lost.
    pub fn restore_snapshot(&mut self, file: &Path) -> Result<(), LabError> {
        self.stop_all()?;
        let cluster = self.initial_cluster();
        for (index, address) in self.addresses.iter().enumerate() {
            let name = format!("etcd{index}");
            let (data, peer) = (self.dir.join(&name), format!("http://{address}:{PEER_PORT}"));
            fs::remove_dir_all(&data).tried(|| format!("remove {}", data.display()))?;
            let (file, data) = (file.display().to_string(), data.display().to_string());
            let words =
                ["ETCDCTL_API=3", "etcdctl", "snapshot", "restore", &file, "--name", &name, "--data-dir", &data];
            let more = ["--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer];
            self.netns.exec("env", &[&words[..], &more[..]].concat(), &[])?;
        }
        self.start_all()
    }

    fn initial_cluster(&self) -> String {
        let members = self.addresses.iter().enumerate();
        let members: Vec<String> =
            members.map(|(index, address)| format!("etcd{index}=http://{address}:{PEER_PORT}")).collect();
        members.join(",")
    }

    /// A member's process, to freeze it.
    pub fn member(&self, index: usize) -> Option<&Process> {
        self.members.get(index)?.as_ref()
    }

    /// Runs `etcdctl`.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, LabError> {
        self.ctl_with_input(arguments, &[])
    }

    fn ctl_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<String, LabError> {
        let endpoints = format!("--endpoints={}", self.endpoints());
        let tls: Vec<String> = self.tls.iter().flat_map(EtcdTls::client_flags).collect();
        let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
        let all = [&["ETCDCTL_API=3", "etcdctl", &endpoints], &tls[..], arguments].concat();
        self.netns.exec("env", &all, input)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<Option<String>, LabError> {
        let text = self.ctl(&["get", key, "--print-value-only"])?;
        let text = text.trim_end_matches('\n');
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// The value of a key as JSON; null if there is none.
    pub fn get_json(&self, key: &str) -> Result<Value, LabError> {
        Ok(self.get(key)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Keys below a prefix.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, LabError> {
        let text = self.ctl(&["get", "--prefix", "--keys-only", prefix])?;
        Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Writes a key, as a user of etcdctl does.
    pub fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.ctl_with_input(&["put", key], value.as_bytes()).map(drop)
    }

    /// Writes several keys in one transaction.
    pub fn put_all(&self, pairs: &[(String, String)]) -> Result<(), LabError> {
        let quoted: Vec<String> =
            pairs.iter().map(|(key, value)| format!("put {key} {}", serde_json::json!(value))).collect();
        self.ctl_with_input(&["txn"], format!("\n{}\n\n\n", quoted.join("\n")).as_bytes()).map(drop)
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) -> Result<(), LabError> {
        self.ctl(&["del", key]).map(drop)
    }
}

impl EtcdTls {
    fn client_flags(&self) -> [String; 3] {
        [("cacert", &self.authority), ("cert", &self.client_certificate), ("key", &self.client_key)]
            .map(|(flag, file)| format!("--{flag}={}", file.display()))
    }
}

fn is_healthy(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    ask().is_ok_and(|answer: String| answer.contains(r#""health":"true""#))
}
