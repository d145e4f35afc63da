//! A stand-in for the API server: Namespaces with annotations and labels, and a controller that answers at once. It knows as
//! much of the API as the command line asks; everything else is answered by 403, as RBAC would.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;

const NETWORK: &str = "bulkhead.dev/network";
const STATUS: &str = "bulkhead.dev/network-status";
const PREFIX: &str = "/api/v1/namespaces";

/// What the controller writes into the status of a namespace that declares this; none if it stays silent.
type Controller = fn(namespace: &str, declared: &str) -> Option<String>;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    nodes: Vec<Value>,
    /// In which namespaces the user has a `RoleBinding`; none: everything is allowed.
    bound: Option<Vec<String>>,
}

struct Shared {
    state: Mutex<State>,
    controller: Controller,
    /// Namespaces whose annotations admission lets nobody change.
    forbidden: Vec<String>,
}

/// The server; its threads end with the test.
pub struct Api {
    shared: Arc<Shared>,
    folder: TempDir,
}

/// A controller that finds everything good.
#[allow(clippy::unnecessary_wraps)] // it is a `Controller`
pub fn obliging(_: &str, declared: &str) -> Option<String> {
    Some(
        declared
            .strip_prefix("join:")
            .map_or_else(|| declared.to_owned(), |target| format!("joined to {target} (NetID 10)")),
    )
}

impl Api {
    /// One with these namespaces; `forbidden` ones cannot be changed.
    pub fn start(namespaces: &[(&str, &[(&str, &str)])], forbidden: &[&str], controller: Controller) -> Self {
        let forbidden = forbidden.iter().map(|&name| name.to_owned()).collect();
        let shared = Shared { state: Mutex::default(), controller, forbidden };
        let shared = Arc::new(shared);
        for (name, labels) in namespaces {
            let mut state = shared.state.lock().unwrap();
            let labels: BTreeMap<_, _> = labels.iter().copied().collect();
            let annotations = json!({"bulkhead.dev/vni": "10", STATUS: "isolated"});
            let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
            state.put(name, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let entry = |kind: &str, value: Value| json!([{"name": "x", kind: value}]);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": entry("cluster", json!({"server": format!("http://{}", listener.local_addr().unwrap())})),
            "users": entry("user", json!({})),
            "contexts": entry("context", json!({"cluster": "x", "user": "x"})),
        });
        std::fs::write(folder.path().join("config"), config.to_string()).unwrap();
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || drop(serve(&shared, stream)));
            }
        });
        Self { shared, folder }
    }

    /// For `--kubeconfig`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// A Node with this address and, if the controller has said anything, this condition `NetworkUnavailable`.
    pub fn node(&self, name: &str, address: &str, condition: Option<[&str; 3]>) {
        let conditions: Vec<Value> = condition
            .map(|[status, reason, message]| json!({"type": "NetworkUnavailable", "status": status, "reason": reason, "message": message}))
            .into_iter()
            .collect();
        let status = json!({"addresses": [{"type": "InternalIP", "address": address}], "conditions": conditions});
        self.shared.state.lock().unwrap().nodes.push(json!({"metadata": {"name": name}, "status": status}));
    }

    /// From now on the user has `RoleBindings` in these namespaces only.
    pub fn bind(&self, namespaces: &[&str]) {
        let bound = namespaces.iter().map(|&name| name.to_owned()).collect();
        self.shared.state.lock().unwrap().bound = Some(bound);
    }

    /// The controller says something of a namespace by itself.
    pub fn say(&self, name: &str, status: &str) {
        let mut state = self.shared.state.lock().unwrap();
        let mut object = state.objects[name].clone();
        object["metadata"]["annotations"][STATUS] = status.into();
        state.put(name, object);
    }

    /// How often anything was written.
    pub fn writes(&self) -> u64 {
        self.shared.state.lock().unwrap().version
    }

    /// What a namespace declares.
    pub fn declared(&self, name: &str) -> Option<String> {
        let state = self.shared.state.lock().unwrap();
        state.objects[name]["metadata"]["annotations"][NETWORK].as_str().map(str::to_owned)
    }
}

impl State {
    fn put(&mut self, name: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(name.to_owned(), object);
    }
}

/// Answers one request; the connection ends with it.
fn serve(shared: &Shared, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (mut length, mut header) = (0, String::new());
    while reader.read_line(&mut header)? > 2 {
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        header.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let name = path.strip_prefix(PREFIX).unwrap_or("?").trim_start_matches('/');
    let mut stream = reader.into_inner();
    let bound = shared.state.lock().unwrap().bound.clone();
    let allowed = bound.is_none_or(|bound| bound.iter().any(|bound| bound == name));
    let (code, answer) = match method {
        _ if !allowed => failure(403, &format!("namespaces is forbidden: User may not ask for {name:?}")),
        "GET" if path == "/api/v1/nodes" => (200, json!({"metadata": {}, "items": shared.state.lock().unwrap().nodes})),
        "GET" if name.is_empty() => (200, list(shared, query)),
        "GET" => found(shared.state.lock().unwrap().objects.get(name)),
        "PATCH" => patch(shared, name, &serde_json::from_slice(&body)?, query.contains("dryRun")),
        _ => failure(403, "not for you"),
    };
    let body = answer.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "Forbidden" };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message});
    let mut status = status;
    status["reason"] = reason.into();
    status["code"] = code.into();
    (code, status)
}

fn found(object: Option<&Value>) -> (u16, Value) {
    object.map_or_else(|| failure(404, "there is none"), |object| (200, object.clone()))
}

fn list(shared: &Shared, query: &str) -> Value {
    let state = shared.state.lock().unwrap();
    let wanted = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
    let has = |object: &&Value| {
        wanted.is_none_or(|pair| {
            let pair = pair.replace("%3D", "=");
            let (label, value) = pair.split_once('=').unwrap();
            object["metadata"]["labels"][label] == value
        })
    };
    let items: Vec<&Value> = state.objects.values().filter(has).collect();
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": state.version.to_string()}, "items": items,
    })
}

fn patch(shared: &Shared, name: &str, patch: &Value, dry: bool) -> (u16, Value) {
    if shared.forbidden.iter().any(|forbidden| forbidden == name) {
        return failure(403, "ValidatingAdmissionPolicy 'bulkhead-network-annotations' denied request");
    }
    let mut state = shared.state.lock().unwrap();
    let Some(mut object) = state.objects.get(name).cloned() else { return failure(404, "there is none") };
    if let Some(version) = patch["metadata"]["resourceVersion"].as_str()
        && object["metadata"]["resourceVersion"] != version
    {
        return failure(409, "the object has been modified");
    }
    let declared = patch["metadata"]["annotations"][NETWORK].as_str();
    let annotations = object["metadata"]["annotations"].as_object_mut().unwrap();
    match declared {
        Some(declared) => drop(annotations.insert(NETWORK.into(), declared.into())),
        None => drop(annotations.remove(NETWORK)),
    }
    if !dry {
        state.put(name, object.clone());
        if let Some(status) = (shared.controller)(name, declared.unwrap_or("isolated")) {
            object["metadata"]["annotations"][STATUS] = status.into();
            state.put(name, object.clone());
        }
    }
    (200, object)
}
