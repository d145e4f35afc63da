//! A small API server: lists, watches that stream, patches, Events; it can be away, and forget its history.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use futures::stream;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Everything it holds.
#[derive(Default)]
struct Held {
    revision: u64,
    /// By collection and name.
    objects: BTreeMap<(String, String), Value>,
    /// Revision, collection, type and object of each change.
    log: Vec<(u64, String, &'static str, Value)>,
    /// Watches from before this revision are told that it is gone.
    forgotten: u64,
    away: bool,
    /// Watches asked for before this many were say nothing more, and do not end.
    silenced: usize,
    watches: usize,
    events: Vec<Value>,
    /// How many Events are not taken.
    refusing: usize,
    patches: usize,
}

#[derive(Clone)]
pub struct Api {
    held: Arc<Mutex<Held>>,
    changed: watch::Sender<u64>,
    address: std::net::SocketAddr,
}

impl Api {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api =
            Self { held: Arc::default(), changed: watch::Sender::new(0), address: listener.local_addr().unwrap() };
        let router = Router::new()
            .route("/api/v1/{collection}", get(list))
            .route("/api/v1/{collection}/{name}", patch(change))
            .route("/api/v1/{collection}/{name}/status", patch(change))
            .route("/api/v1/namespaces/{namespace}/pods", get(pods))
            .route("/api/v1/namespaces/{namespace}/configmaps/{name}", get(configmap).patch(apply))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api.put("namespaces", "kube-system", json!({}));
        api
    }

    pub fn client(&self) -> Client {
        Client::try_from(Config::new(format!("http://{}", self.address).parse().unwrap())).unwrap()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        let (value, revision) = {
            let mut held = self.held.lock().unwrap();
            (work(&mut held), held.revision)
        };
        self.changed.send_replace(revision);
        value
    }

    /// Creates an object or merges into it; gives it as it is then.
    pub fn put(&self, collection: &str, name: &str, value: Value) -> Value {
        self.with(|held| held.put(collection, name, value))
    }

    pub fn delete(&self, collection: &str, name: &str) {
        self.with(|held| {
            held.revision += 1;
            if let Some(object) = held.objects.remove(&(collection.to_owned(), name.to_owned())) {
                held.log.push((held.revision, collection.to_owned(), "DELETED", object));
            }
        });
    }

    pub fn annotate(&self, namespace: &str, key: &str, value: &Value) {
        self.put("namespaces", namespace, json!({"metadata": {"annotations": {key: value}}}));
    }

    pub fn get(&self, collection: &str, name: &str) -> Value {
        let held = self.held.lock().unwrap();
        held.objects.get(&(collection.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    pub fn annotation(&self, namespace: &str, key: &str) -> String {
        self.get("namespaces", namespace)["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned()
    }

    /// The reasons and notes of a namespace's Events.
    pub fn events(&self, namespace: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let held = self.held.lock().unwrap();
        let own = held.events.iter().filter(|event| event["regarding"]["name"] == namespace);
        own.map(|event| (text(&event["reason"]), text(&event["note"]))).collect()
    }

    /// Takes none of the next Events.
    pub fn refuse_events(&self, count: usize) {
        self.with(|held| held.refusing = count);
    }

    pub fn patches(&self) -> usize {
        self.held.lock().unwrap().patches
    }

    /// Answers nothing and ends all watches.
    pub fn away(&self, away: bool) {
        self.with(|held| held.away = away);
    }

    /// The watches there are say nothing more, as if the machine at their other end had lost its power; new ones work.
    pub fn silence(&self) {
        self.with(|held| held.silenced = held.watches);
    }

    /// Nobody can go on with a watch from before now.
    pub fn forget(&self) {
        self.with(|held| held.forgotten = held.revision);
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        let outcome = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await;
        assert!(outcome.is_ok(), "not: {what}; {:?}", self.held.lock().unwrap().objects);
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, from) => *into = from,
    }
}

impl Held {
    fn put(&mut self, collection: &str, name: &str, value: Value) -> Value {
        self.revision += 1;
        let revision = self.revision;
        let key = (collection.to_owned(), name.to_owned());
        let fresh = !self.objects.contains_key(&key);
        let object = self.objects.entry(key).or_insert_with(|| json!({"metadata": {"uid": format!("u{revision}")}}));
        merge(object, value);
        merge(object, json!({"metadata": {"name": name, "resourceVersion": revision.to_string()}}));
        let object = object.clone();
        let kind = if fresh { "ADDED" } else { "MODIFIED" };
        self.log.push((revision, collection.to_owned(), kind, object.clone()));
        object
    }
}

type Parameters = Query<BTreeMap<String, String>>;

fn refusal(code: StatusCode) -> Response {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": reason, "code": code.as_u16()});
    (code, axum::Json(status)).into_response()
}

async fn list(State(api): State<Api>, Path(collection): Path<String>, Query(parameters): Parameters) -> Response {
    listed(&api, &collection, &parameters)
}

async fn pods(State(api): State<Api>, Path(_namespace): Path<String>, Query(parameters): Parameters) -> Response {
    assert_eq!(parameters["labelSelector"], "agent=yes");
    listed(&api, "pods", &parameters)
}

fn listed(api: &Api, collection: &str, parameters: &BTreeMap<String, String>) -> Response {
    let mut held = api.held.lock().unwrap();
    if held.away {
        return refusal(StatusCode::SERVICE_UNAVAILABLE);
    }
    if parameters.contains_key("watch") {
        held.watches += 1;
        let from = parameters["resourceVersion"].parse().unwrap();
        let watch = (api.clone(), collection.to_owned(), held.watches, from);
        return Body::from_stream(stream::unfold(watch, watched)).into_response();
    }
    let items: Vec<_> =
        held.objects.iter().filter(|((held, _), _)| held == collection).map(|(_, o)| o.clone()).collect();
    axum::Json(json!({"metadata": {"resourceVersion": held.revision.to_string()}, "items": items})).into_response()
}

/// The API server, a collection, which watch it is, and after which revision.
type Watched = (Api, String, usize, u64);

async fn watched((api, collection, number, from): Watched) -> Option<(Result<Bytes, std::io::Error>, Watched)> {
    let mut changed = api.changed.subscribe();
    loop {
        let next = {
            let held = api.held.lock().unwrap();
            if held.away {
                return None;
            }
            if number <= held.silenced {
                None
            } else if from < held.forgotten {
                let gone = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "message": "gone", "reason": "Expired", "code": 410}});
                Some((gone, held.revision))
            } else {
                let next = held.log.iter().find(|(revision, of, ..)| *revision > from && *of == collection);
                next.map(|(revision, _, kind, object)| (json!({"type": kind, "object": object}), *revision))
            }
        };
        if let Some((event, revision)) = next {
            return Some((Ok(Bytes::from(format!("{event}\n"))), (api, collection, number, revision)));
        }
        changed.changed().await.ok()?;
    }
}

async fn change(State(api): State<Api>, Path((collection, name)): Path<(String, String)>, body: Bytes) -> Response {
    let value: Value = serde_json::from_slice(&body).unwrap();
    let held = api.get(&collection, &name);
    if held.is_null() {
        return refusal(StatusCode::NOT_FOUND);
    }
    let uid = &value["metadata"]["uid"];
    if !uid.is_null() && *uid != held["metadata"]["uid"] {
        return refusal(StatusCode::CONFLICT);
    }
    if api.with(|held| held.away) {
        return refusal(StatusCode::SERVICE_UNAVAILABLE);
    }
    let object = api.with(|held| {
        held.patches += 1;
        held.put(&collection, &name, value)
    });
    axum::Json(object).into_response()
}

async fn configmap(State(api): State<Api>, Path((_, name)): Path<(String, String)>) -> Response {
    if api.with(|held| held.away) {
        return refusal(StatusCode::SERVICE_UNAVAILABLE);
    }
    let object = api.get("configmaps", &name);
    if object.is_null() { refusal(StatusCode::NOT_FOUND) } else { axum::Json(object).into_response() }
}

async fn apply(
    State(api): State<Api>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(headers["content-type"], "application/apply-patch+yaml");
    let mut value: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&value["kind"], &value["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    // What its one owner applies no more is gone.
    for key in api.get("configmaps", &name)["data"].as_object().into_iter().flat_map(|data| data.keys()) {
        value["data"].as_object_mut().unwrap().entry(key).or_insert(Value::Null);
    }
    axum::Json(api.put("configmaps", &name, value)).into_response()
}

async fn event(State(api): State<Api>, Path(namespace): Path<String>, body: Bytes) -> Response {
    let value: Value = serde_json::from_slice(&body).unwrap();
    let of = value["regarding"]["namespace"].as_str().unwrap_or("default");
    assert_eq!(of, namespace, "the API server refuses it otherwise");
    let refused = api.with(|held| {
        let refused = held.refusing > 0;
        held.refusing = held.refusing.saturating_sub(1);
        if !refused {
            held.events.push(value.clone());
        }
        refused
    });
    if refused {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR);
    }
    (StatusCode::CREATED, axum::Json(value)).into_response()
}
