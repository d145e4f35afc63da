//! The agent's look at the Kubernetes API server: this node's own pods, their metadata only, and Events about them.
//!
//! Nothing waits for it: while the API server is away running pods keep what they have and new ones start.

mod complaints;
mod pods;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::NodeName;
use bulkhead_core::annotation::CONFIG_MIRROR;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config};
use thiserror::Error;

use crate::args::ApiAccess;
use crate::intent::Shared;
use crate::pods::limit::{EGRESS, INGRESS};

pub use complaints::{Complaint, Complaints};
pub use pods::{ApiPod, ApiPods, Wanted};

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Seconds after which the watch is asked anew where it stood. A connection that died without a word, as one to an API
/// server that lost its power, is noticed as late. Thousands of nodes ask, so it is longer than the controller's.
const LONGEST: u32 = 60;
/// How long an answer, or the next byte of one, is waited for.
const SILENCE: Duration = Duration::from_secs(75);
/// How often an Event is tried: for some minutes, as a node that boots reaches the API server late.
const TRIES: u32 = 10;
/// The longest pause between two of these, in seconds.
const LONGEST_PAUSE: u64 = 32;
/// The longest note that the API server takes, in bytes (events.k8s.io/v1).
const LONGEST_NOTE: usize = 1_000;

/// Why the API server cannot be asked at all.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// No service account.
    #[error("--kubernetes: {0}; run the agent as a pod with a service account, or give --kubeconfig")]
    InCluster(#[from] InClusterError),
    /// The kubeconfig.
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// TLS, a proxy, ...
    #[error("--kubernetes: no client can be made of this configuration: {0}")]
    Client(#[from] kube::Error),
}

/// A client of the API server; nothing is sent yet.
pub async fn client(access: &ApiAccess) -> Result<Client, KubernetesError> {
    let mut config = match access {
        ApiAccess::InCluster => Config::incluster()?,
        ApiAccess::File(path) => {
            let failed = |source| KubernetesError::Kubeconfig { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?
        }
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}

/// Follows this node's pods and sends Events, for ever.
pub async fn run(client: Client, node: &NodeName, pods: &Arc<ApiPods>, shared: &Shared) {
    let follow = follow(client.clone(), node, pods, shared);
    let tell = tell(client, node, pods);
    futures::join!(follow, tell);
}

async fn follow(client: Client, node: &NodeName, pods: &ApiPods, shared: &Shared) {
    let api: Api<PartialObjectMeta<Pod>> = Api::all(client);
    // The list may come from the API server's cache: it is the watch behind it that counts.
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).any_semantic().timeout(LONGEST);
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        let changed = match event {
            Ok(watcher::Event::Init) => {
                pods.begin();
                false
            }
            Ok(watcher::Event::InitApply(pod)) => {
                let (key, pod) = read(pod);
                pods.list(key, pod);
                false
            }
            Ok(watcher::Event::InitDone) => {
                tracing::info!("the API server has told this node's pods");
                pods.done()
            }
            Ok(watcher::Event::Apply(pod)) => {
                let (key, pod) = read(pod);
                pods.put(key, pod)
            }
            Ok(watcher::Event::Delete(pod)) => {
                pods.remove(&read(pod).0);
                false
            }
            Err(error) => {
                let why = format!("the API server does not tell this node's pods: {error}");
                tracing::debug!("{why}");
                if pods.failed(why.clone()) {
                    tracing::warn!("{why}; running pods keep what they have");
                }
                false
            }
        };
        if changed {
            shared.nudge();
        }
    }
}

/// What of a pod's metadata is kept, under the UID by which the runtime knows it.
fn read(pod: PartialObjectMeta<Pod>) -> (String, ApiPod) {
    let metadata = pod.metadata;
    let annotations = metadata.annotations.unwrap_or_default();
    let of = |name: &str| Wanted::of(annotations.get(name).map(String::as_str));
    let uid = metadata.uid.unwrap_or_default();
    let (ingress, egress) = (of(INGRESS), of(EGRESS));
    let (namespace, name) = (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
    let key = annotations.get(CONFIG_MIRROR).unwrap_or(&uid).clone();
    (key, ApiPod { namespace, name, uid, ingress, egress })
}

async fn tell(client: Client, node: &NodeName, pods: &ApiPods) {
    let reporter = Reporter { controller: "bulkhead-agent".into(), instance: Some(node.to_string()) };
    loop {
        // One for each: it would take what says something else of the same object for a repetition.
        let recorder = Recorder::new(client.clone(), reporter.clone());
        let (event, reference) = match pods.complaints.next().await {
            Complaint::Pod { pod, text } => {
                tracing::warn!(pod = pod.name, namespace = pod.namespace, "{text}");
                (event("InvalidBandwidth", "Limit", &text), about_pod(&pod))
            }
            Complaint::Node { reason, text } => (event(reason, "TakeUp", &text), about_node(node)),
        };
        for attempt in 1..=TRIES {
            match recorder.publish(&event, &reference).await {
                Ok(()) => break,
                Err(error) if attempt == TRIES || is_final(&error) => {
                    tracing::warn!(event = ?event.note, %error, "an Event could not be written");
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_secs(LONGEST_PAUSE.min(1 << attempt))).await,
            }
        }
    }
}

/// Whether the API server will not take it later either: a namespace that is being deleted takes no Events.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(answer) if (400..500).contains(&answer.code) && answer.code != 429)
}

fn event(reason: &str, action: &str, text: &str) -> Event {
    let note = text.chars().scan(0, |length, c| {
        *length += c.len_utf8();
        (*length <= LONGEST_NOTE).then_some(c)
    });
    Event {
        type_: EventType::Warning,
        reason: reason.into(),
        note: Some(note.collect()),
        action: action.into(),
        secondary: None,
    }
}

fn about_pod(pod: &ApiPod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The kubelet, too, writes a node's name for its UID in Events; by that `kubectl describe node` finds them.
fn about_node(node: &NodeName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_string()),
        uid: Some(node.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(metadata: &serde_json::Value) -> (String, ApiPod) {
        let whole = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
        read(serde_json::from_value(whole).unwrap())
    }

    #[test]
    fn a_pod_is_known_by_the_uid_that_its_runtime_was_given() {
        let (key, pod) =
            of(&json!({"name": "p", "namespace": "a", "uid": "u1", "annotations": {INGRESS: "10M", "x": "y"}}));
        assert_eq!((key.as_str(), pod.uid.as_str()), ("u1", "u1"));
        assert!(matches!(pod.ingress, Wanted::Limit(limit) if limit.bits() == 10_000_000));
        assert_eq!(pod.egress, Wanted::Unlimited);
        let (key, pod) =
            of(&json!({"name": "p-n1", "namespace": "a", "uid": "u1", "annotations": {CONFIG_MIRROR: "static"}}));
        assert_eq!((key.as_str(), pod.uid.as_str()), ("static", "u1"), "a static pod has two UIDs");
    }

    #[tokio::test]
    async fn tls_to_the_api_server_needs_no_second_crypto_provider() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cluster = json!({"server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": true});
        let config = json!({
            "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x",
        });
        std::fs::write(file.path(), config.to_string()).unwrap();
        // rustls panics here if it has the choice between two.
        client(&ApiAccess::File(file.path().to_owned())).await.unwrap();
        let missing = client(&ApiAccess::File("/nowhere".into())).await.err().unwrap().to_string();
        assert!(missing.contains("--kubeconfig /nowhere"), "{missing}");
    }
}
