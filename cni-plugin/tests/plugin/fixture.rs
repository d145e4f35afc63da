//! A runtime that starts the program, the netns it hands over, and a fake agent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;

use bulkhead_core::cni::Attachment;
use bulkhead_core::protocol::{CniCall, Reply, Request, receive, send};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A network namespace that lives as long as this does, and no longer than the test's process.
pub struct Netns {
    // Ends when its stdin does, so it goes even if the test is killed.
    holder: Child,
}

impl Netns {
    pub fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo ready; exec cat >/dev/null"]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare(1) is needed");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no network namespace could be made: this test needs root");
        Self { holder }
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// What a container runtime does: a folder of its own, an environment, a config.
pub struct Runtime {
    folder: TempDir,
    netns: Netns,
}

impl Runtime {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), netns: Netns::new() }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    pub fn netns(&self) -> PathBuf {
        self.netns.path()
    }

    /// A config with the fields of `extra` added.
    pub fn config(&self, version: &str, extra: &Value) -> Value {
        let mut config = json!({
            "cniVersion": version,
            "name": "k8ssdn",
            "type": "bulkhead-cni",
            "socket": self.socket(),
            "spool": self.spool(),
        });
        for (field, value) in extra.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        config
    }

    /// A call as a runtime makes it, not started yet.
    pub fn call(&self, command: &str, config: &Value) -> Call {
        let variables = [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", "c1".to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_NETNS", self.netns().display().to_string()),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=blue;K8S_POD_NAME=web".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
        ];
        Call { variables: variables.into(), stdin: config.to_string().into_bytes() }
    }
}

/// A call that can be changed before it is made.
pub struct Call {
    variables: BTreeMap<&'static str, String>,
    stdin: Vec<u8>,
}

impl Call {
    pub fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.insert(name, value.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub fn start(&self) -> Child {
        self.start_as(Command::new(env!("CARGO_BIN_EXE_bulkhead-cni")))
    }

    /// As a runtime that pins each netns by a bind mount, below `/run/netns` or so. The mount is in a mount namespace
    /// of its own, so that it goes with the call.
    pub fn start_with_pinned_netns(&self, file: &Path) -> Child {
        std::fs::write(file, "").unwrap();
        let mut program = Command::new("/usr/bin/unshare");
        program.args(["--mount", "/bin/sh", "-c"]);
        program.arg(r#"/usr/bin/mount --bind "$CNI_NETNS" "$1" && CNI_NETNS=$1 exec "$2""#);
        program.arg("sh").arg(file).arg(env!("CARGO_BIN_EXE_bulkhead-cni"));
        self.start_as(program)
    }

    fn start_as(&self, mut program: Command) -> Child {
        program.env_clear().envs(&self.variables);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        // A program that refuses early need not read all of it.
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child
    }

    pub fn run(&self) -> Answer {
        Answer::of(self.start())
    }
}

/// What the runtime gets.
#[derive(Debug)]
pub struct Answer {
    pub stdout: String,
    pub stderr: String,
    pub success: bool,
}

impl Answer {
    pub fn of(child: Child) -> Self {
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { stdout: text(stdout), stderr: text(stderr), success: status.success() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error's code; none if the call worked.
    pub fn code(&self) -> Option<u64> {
        if self.success {
            assert_eq!(self.stderr, "");
            return None;
        }
        assert!(!self.stderr.is_empty(), "{self:?}");
        Some(self.json()["code"].as_u64().unwrap())
    }

    pub fn msg(&self) -> String {
        self.json()["msg"].as_str().unwrap().to_owned()
    }
}

/// A fake agent: takes so many connections, one after the other, and gives each to `serve`.
pub struct Agent<T> {
    thread: JoinHandle<Vec<T>>,
}

impl<T: Send + 'static> Agent<T> {
    pub fn start(socket: &Path, connections: usize, mut serve: impl FnMut(UnixStream) -> T + Send + 'static) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let socket = socket.to_owned();
        let thread = std::thread::spawn(move || {
            let served = (0..connections).map(|_| serve(listener.accept().unwrap().0)).collect();
            drop(listener);
            std::fs::remove_file(socket).unwrap();
            served
        });
        Self { thread }
    }

    /// What each connection came to.
    pub fn served(self) -> Vec<T> {
        self.thread.join().unwrap()
    }
}

/// Reads a call and the netns beside its first byte.
pub fn take(connection: &mut UnixStream) -> (CniCall, Option<OwnedFd>) {
    let mut first = [0; 100];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut first)];
    let got = recvmsg(&*connection, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let mut netns = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            netns.extend(descriptors);
        }
    }
    assert!(netns.len() <= 1);
    match receive(&first[..got], connection).unwrap() {
        Request::Cni(call) => (call, netns.pop()),
        other => panic!("{other:?}"),
    }
}

/// Serves a connection: takes the call and gives the reply.
pub fn reply(mut connection: UnixStream, reply: &Reply) -> (CniCall, Option<OwnedFd>) {
    let taken = take(&mut connection);
    send(&mut connection, reply).unwrap();
    taken
}

/// A dual-stack attachment.
pub fn attachment() -> Attachment {
    Attachment {
        host_interface: "bh1a2b3c".into(),
        host_mac: "ee:ee:ee:ee:ee:ee".into(),
        interface: "eth0".into(),
        mac: "0a:58:ac:0b:00:02".into(),
        netns: "/run/netns/x".into(),
        mtu: 1450,
        addresses: vec![
            ("172.11.0.2/22".parse().unwrap(), "172.11.0.1".parse().unwrap()),
            ("fd00:77::2/118".parse().unwrap(), "fd00:77::1".parse().unwrap()),
        ],
    }
}
