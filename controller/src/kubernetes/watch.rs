//! The reflectors: three lists kept up to date, given out as one value once all of them were whole.
//!
//! A watch that breaks is begun anew with a list, which replaces the one before in one go; until then the last one
//! holds. So the API server's absence changes nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::{Namespace, NodeName};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Node, Pod};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{KubernetesOptions, memory, read};
use crate::memory::Memory;
use crate::objects::{KUBE_SYSTEM, NamespaceObject, NodeObject, Objects};

/// The shortest and longest wait before a broken watch is begun anew.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Seconds after which a watch is asked anew where it stood. A connection that died without a word is noticed as late
/// (and 5 s later), so this bounds how long the leader is blind; kube's own choice is 290.
pub(super) const LONGEST: u32 = 30;

/// How long it is remembered that a Node left: the longest `--node-release-after`.
const LONGEST_AWAY: Duration = Duration::from_hours(7 * 24);

/// What was listed so far.
#[derive(Debug, Default)]
struct Lists {
    namespaces: Option<Arc<BTreeMap<Namespace, NamespaceObject>>>,
    nodes: Option<Arc<BTreeMap<NodeName, NodeObject>>>,
    agents: Option<Arc<BTreeMap<NodeName, bool>>>,
    away: Arc<BTreeMap<NodeName, Instant>>,
    memory: Option<Memory>,
    /// Whether the memory was looked for.
    recalled: bool,
}

/// The reflectors at work; dropping it ends them.
#[derive(Debug)]
pub struct Following {
    objects: watch::Receiver<Option<Objects>>,
    _tasks: JoinSet<()>,
}

impl Following {
    /// What Kubernetes has; none until everything was listed once.
    pub fn objects(&self) -> watch::Receiver<Option<Objects>> {
        self.objects.clone()
    }
}

/// Begins to follow namespaces, nodes and agents' pods. Must be called within a tokio runtime.
pub fn follow(client: &Client, options: &KubernetesOptions) -> Following {
    let (sender, objects) = watch::channel(None);
    let shared = Arc::new(Shared { lists: std::sync::Mutex::default(), sender });
    let mut tasks = JoinSet::new();

    let to = Arc::clone(&shared);
    tasks.spawn(reflect(Api::<ApiNamespace>::all(client.clone()), asked(), read::namespace, move |map| {
        to.update(|lists| lists.namespaces = Some(Arc::new(map.clone())));
    }));
    let (to, networks) = (Arc::clone(&shared), options.node_networks.clone());
    let read_node = move |object| read::node(object, &networks);
    tasks.spawn(reflect(Api::<Node>::all(client.clone()), asked(), read_node, move |map| {
        to.update(|lists| {
            lists.away = away(&lists.away, lists.nodes.as_deref(), map, Instant::now());
            lists.nodes = Some(Arc::new(map.clone()));
        });
    }));
    let (to, from, namespace) = (Arc::clone(&shared), client.clone(), options.agent_namespace.clone());
    tasks.spawn(async move {
        let memory = memory::recall(&from, &namespace).await;
        to.update(|lists| (lists.memory, lists.recalled) = (memory, true));
    });
    let pods = Api::<Pod>::namespaced(client.clone(), &options.agent_namespace);
    let selected = asked().labels(&options.agent_selector);
    tasks.spawn(reflect(pods, selected, read::agent, move |map| {
        let mut ready = BTreeMap::new();
        for (node, is_ready) in map.values() {
            *ready.entry(node.clone()).or_default() |= is_ready;
        }
        shared.update(|lists| lists.agents = Some(Arc::new(ready)));
    }));
    Following { objects, _tasks: tasks }
}

fn asked() -> watcher::Config {
    watcher::Config::default().timeout(LONGEST)
}

/// Since when Nodes that were there are not.
fn away(
    before: &Arc<BTreeMap<NodeName, Instant>>,
    had: Option<&BTreeMap<NodeName, NodeObject>>,
    has: &BTreeMap<NodeName, NodeObject>,
    now: Instant,
) -> Arc<BTreeMap<NodeName, Instant>> {
    let gone = had.into_iter().flat_map(BTreeMap::keys).map(|name| (name.clone(), now));
    // Those that were away before have the earlier time.
    let mut away: BTreeMap<NodeName, Instant> =
        gone.chain(before.iter().map(|(name, since)| (name.clone(), *since))).collect();
    away.retain(|name, since| !has.contains_key(name) && *since + LONGEST_AWAY > now);
    Arc::new(away)
}

struct Shared {
    lists: std::sync::Mutex<Lists>,
    sender: watch::Sender<Option<Objects>>,
}

impl Shared {
    /// Changes a list, and gives all out if they are whole and differ from what was given out before.
    fn update(&self, change: impl FnOnce(&mut Lists)) {
        let mut lists = self.lists.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut lists);
        let Lists {
            namespaces: Some(namespaces),
            nodes: Some(nodes),
            agents: Some(agents),
            away,
            memory,
            recalled: true,
        } = &*lists
        else {
            return;
        };
        if !namespaces.keys().any(|name| name.as_str() == KUBE_SYSTEM) {
            warn!(
                "the API server shows no namespace {KUBE_SYSTEM}, which every cluster has: nothing of it is believed until it does"
            );
            return;
        }
        let now = Objects {
            namespaces: Arc::clone(namespaces),
            nodes: Arc::clone(nodes),
            agents: Arc::clone(agents),
            away: Arc::clone(away),
            memory: memory.clone(),
        };
        self.sender.send_if_modified(|before| {
            if before.is_none() {
                info!(namespaces = now.namespaces.len(), nodes = now.nodes.len(), "Kubernetes was listed");
            }
            let differs = before.as_ref() != Some(&now);
            *before = Some(now);
            differs
        });
    }
}

/// Keeps one list up to date; gives it out after each whole list and each change that matters.
async fn reflect<K, N, V>(
    api: Api<K>,
    config: watcher::Config,
    read: impl Fn(K) -> Option<(N, V)>,
    give: impl Fn(&BTreeMap<N, V>),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    N: Ord + Clone,
    V: PartialEq + Clone,
{
    let kind = K::kind(&()).into_owned();
    let stream = watcher(api, config).backoff(Retry::default());
    pin_mut!(stream);
    let (mut held, mut fresh) = (BTreeMap::new(), BTreeMap::new());
    let mut failing = false;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if failing {
                    debug!(kind, %error, "the API server cannot be read");
                } else {
                    warn!(kind, %error, "the API server cannot be read: what it showed last holds until it can");
                }
                failing = true;
                continue;
            }
        };
        match event {
            watcher::Event::Init => fresh = BTreeMap::new(),
            watcher::Event::InitApply(object) => fresh.extend(read(object)),
            watcher::Event::InitDone => {
                held = std::mem::take(&mut fresh);
                debug!(kind, count = held.len(), "listed");
                give(&held);
            }
            watcher::Event::Apply(object) => {
                if let Some((name, value)) = read(object)
                    && held.get(&name) != Some(&value)
                {
                    held.insert(name, value);
                    give(&held);
                }
            }
            watcher::Event::Delete(object) => {
                if read(object).is_some_and(|(name, _)| held.remove(&name).is_some()) {
                    give(&held);
                }
            }
        }
        if failing {
            info!(kind, "the API server can be read again");
            failing = false;
        }
    }
}

/// Waits that double up to a limit.
#[derive(Debug)]
struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(RETRY.0)
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(RETRY.1);
        Some(wait)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = RETRY.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_away_since_the_list_that_missed_it_first() {
        let name = |text: &str| NodeName::new(text).unwrap();
        let list = |names: &[&str]| -> BTreeMap<NodeName, NodeObject> {
            names.iter().map(|text| (name(text), NodeObject::default())).collect()
        };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut known = away(&Arc::default(), None, &list(&["a", "b"]), start);
        assert!(known.is_empty());
        known = away(&known, Some(&list(&["a", "b"])), &list(&["b"]), start + second);
        known = away(&known, Some(&list(&["b"])), &list(&[]), start + 2 * second);
        let expected = [(name("a"), start + second), (name("b"), start + 2 * second)];
        assert_eq!(*known, expected.into());
        known = away(&known, Some(&list(&[])), &list(&["a"]), start + 3 * second);
        assert_eq!(known.keys().collect::<Vec<_>>(), [&name("b")], "who is back is not away");
        assert!(away(&known, Some(&list(&["a"])), &list(&["a"]), start + 3 * second + LONGEST_AWAY).is_empty());
    }
}
