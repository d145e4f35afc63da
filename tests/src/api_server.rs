//! A stand-in for the Kubernetes API server, for one node's agent: it lists and watches pods' metadata, takes Events, and can
//! be away. It knows of the API only what an agent may ask; anything else is answered by 403, as RBAC would.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{LabError, Tried};
use crate::netns::Netns;

/// How often a watch looks whether its server is still there.
const STEP: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    version: u64,
    pods: BTreeMap<String, Value>,
    changes: Vec<(u64, &'static str, Value)>,
    events: Vec<Value>,
    refused: Vec<String>,
    away: bool,
    stopped: bool,
    open: Vec<TcpStream>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server in one namespace; stopped when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
    netns: Arc<Netns>,
}

impl ApiServer {
    /// Starts it on 127.0.0.1 of the namespace, for the agent of this node.
    pub fn start(netns: &Arc<Netns>, node: &str) -> Result<Self, LabError> {
        let what = || format!("listen in {}", netns.name());
        let listener = netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?.tried(what)?;
        let address = listener.local_addr().tried(what)?;
        let shared = Arc::<Shared>::default();
        shared.lock().version = 100;
        let (theirs, selector) = (Arc::clone(&shared), format!("fieldSelector=spec.nodeName%3D{node}"));
        let thread = thread::spawn(move || accept(&listener, &theirs, &selector));
        Ok(Self { shared, address, thread: Some(thread), netns: Arc::clone(netns) })
    }

    /// For `--kubeconfig`.
    pub fn kubeconfig(&self) -> String {
        let entry = |kind: &str, value: Value| json!([{"name": "lab", kind: value}]);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": entry("cluster", json!({"server": format!("http://{}", self.address)})),
            "users": entry("user", json!({"token": "lab"})),
            "contexts": entry("context", json!({"cluster": "lab", "user": "lab"})),
            "current-context": "lab",
        })
        .to_string()
    }

    /// Creates a pod or changes its annotations.
    pub fn put(&self, uid: &str, namespace: &str, name: &str, annotations: &Value) {
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        let pod = json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid, "annotations": annotations,
                "resourceVersion": version.to_string(),
            },
        });
        let kind = if state.pods.insert(uid.to_owned(), pod.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        state.changes.push((version, kind, pod));
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Deletes a pod.
    pub fn delete(&self, uid: &str) {
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        if let Some(mut pod) = state.pods.remove(uid) {
            pod["metadata"]["resourceVersion"] = version.to_string().into();
            state.changes.push((version, "DELETED", pod));
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Goes away: every connection is closed, and each new one. Or comes back.
    pub fn set_away(&self, away: bool) {
        let mut state = self.shared.lock();
        state.away = away;
        for stream in std::mem::take(&mut state.open) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// The Events that were written.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().events.clone()
    }

    /// Requests that no agent may make.
    pub fn refused(&self) -> Vec<String> {
        self.shared.lock().refused.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.set_away(true);
        let address = self.address;
        // Wakes the accepting thread.
        drop(self.netns.run(move || TcpStream::connect(address)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, selector: &str) {
    for stream in listener.incoming().flatten() {
        let mut state = shared.lock();
        if state.stopped {
            return;
        }
        if state.away {
            continue;
        }
        state.open.extend(stream.try_clone().ok());
        drop(state);
        let (shared, selector) = (Arc::clone(shared), selector.to_owned());
        thread::spawn(move || converse(&stream, &shared, &selector));
    }
}

struct Request {
    line: String,
    accept: String,
    body: Vec<u8>,
}

fn read(from: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    from.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let (mut length, mut accept) = (0, String::new());
    loop {
        let mut header = String::new();
        from.read_line(&mut header).ok()?;
        match header.trim().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some((name, value)) if name.eq_ignore_ascii_case("accept") => value.clone_into(&mut accept),
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some(Request { line: line.trim().to_owned(), accept, body })
}

fn reply(to: &mut &TcpStream, status: &str, body: &Value) -> Option<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    to.write_all(format!("{head}{body}").as_bytes()).ok()
}

fn converse(stream: &TcpStream, shared: &Shared, selector: &str) {
    let mut from = BufReader::new(stream);
    let mut to = stream;
    while let Some(request) = read(&mut from) {
        let pods = request.line.starts_with("GET /api/v1/pods?") && request.line.contains(selector);
        let frugal = pods && request.accept.contains("PartialObjectMetadata");
        let event = request.line.starts_with("POST /apis/events.k8s.io/v1/namespaces/");
        let done = if frugal && request.line.contains("watch=true") {
            watch(&mut to, shared, version_of(&request.line))
        } else if frugal {
            let state = shared.lock();
            let items: Vec<&Value> = state.pods.values().collect();
            let list = json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
            });
            drop(state);
            reply(&mut to, "200 OK", &list)
        } else if event {
            let event: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            shared.lock().events.push(event.clone());
            reply(&mut to, "201 Created", &event)
        } else {
            shared.lock().refused.push(request.line.clone());
            let status = json!({"kind": "Status", "status": "Failure", "code": 403, "message": "forbidden", "reason": "Forbidden"});
            reply(&mut to, "403 Forbidden", &status)
        };
        if done.is_none() {
            return;
        }
    }
}

fn version_of(line: &str) -> u64 {
    let digits = line.split("resourceVersion=").nth(1).unwrap_or_default();
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Sends every change behind a version, for as long as somebody listens.
fn watch(to: &mut &TcpStream, shared: &Shared, mut seen: u64) -> Option<()> {
    to.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").ok()?;
    let mut state = shared.lock();
    loop {
        let news: Vec<_> = state.changes.iter().filter(|(version, ..)| *version > seen).cloned().collect();
        if state.stopped || state.away {
            return None;
        }
        drop(state);
        for (version, kind, object) in news {
            let line = format!("{}\n", json!({"type": kind, "object": object}));
            to.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).ok()?;
            seen = version;
        }
        state = shared.lock();
        if !state.changes.iter().any(|(version, ..)| *version > seen) {
            state = shared.changed.wait_timeout(state, STEP).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
