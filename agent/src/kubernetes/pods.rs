//! What the API server says of this node's pods: that they are there, and their two limits. One writer, the watch; the
//! reconciler reads. It may be late or silent for any time: nothing is concluded from that.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_core::Bandwidth;
use bulkhead_core::bandwidth::BandwidthError;

use super::complaints::{Complaint, Complaints};
use crate::pods::Limits;
use crate::pods::limit::{EGRESS, INGRESS};

/// After an error of the watch its pods are not taken for all of them for so long: twice the longest pause between two attempts.
const DOUBT: Duration = Duration::from_mins(1);

/// What an annotation asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// There is none: no limit.
    Unlimited,
    /// This one.
    Limit(Bandwidth),
    /// It cannot be read; what is in force stays so.
    Bad(BandwidthError),
}

impl Wanted {
    /// Reads an annotation's value.
    pub fn of(value: Option<&str>) -> Self {
        match value.map(str::parse) {
            None => Self::Unlimited,
            Some(Ok(limit)) => Self::Limit(limit),
            Some(Err(error)) => Self::Bad(error),
        }
    }

    fn over(&self, held: Option<Bandwidth>) -> Option<Bandwidth> {
        match self {
            Self::Unlimited => None,
            Self::Limit(limit) => Some(*limit),
            Self::Bad(_) => held,
        }
    }
}

/// A pod as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiPod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Towards the pod.
    pub ingress: Wanted,
    /// From the pod.
    pub egress: Wanted,
}

#[derive(Debug)]
struct Entry {
    pod: ApiPod,
    told: bool,
}

type Pods = BTreeMap<String, Entry>;

#[derive(Debug, Default)]
struct State {
    pods: Pods,
    fresh: Option<Pods>,
    listed: bool,
    failed: Option<(Instant, String)>,
}

/// This node's pods at the API server, by what the runtime calls a pod's UID.
#[derive(Debug, Default)]
pub struct ApiPods {
    state: Mutex<State>,
    /// What is to be told by Events.
    pub complaints: Complaints,
}

impl ApiPods {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new list begins; what is known holds until it is whole.
    pub fn begin(&self) {
        self.lock().fresh = Some(Pods::new());
    }

    /// A pod of the list that began.
    pub fn list(&self, key: String, pod: ApiPod) {
        let mut state = self.lock();
        let told = state.pods.get(&key).is_some_and(|held| held.told && held.pod == pod);
        if let Some(fresh) = &mut state.fresh {
            fresh.insert(key, Entry { pod, told });
        }
    }

    /// The list is whole. Returns whether anything is different now.
    pub fn done(&self) -> bool {
        let mut state = self.lock();
        let Some(fresh) = state.fresh.take() else { return false };
        let same = state.listed
            && fresh.len() == state.pods.len()
            && fresh.iter().all(|(key, entry)| state.pods.get(key).is_some_and(|held| held.pod == entry.pod));
        state.pods = fresh;
        (state.listed, state.failed) = (true, None);
        !same
    }

    /// A pod came or changed. Returns whether it is different now in what matters here.
    pub fn put(&self, key: String, pod: ApiPod) -> bool {
        let mut state = self.lock();
        if state.pods.get(&key).is_some_and(|held| held.pod == pod) {
            return false;
        }
        state.pods.insert(key, Entry { pod, told: false });
        true
    }

    /// A pod is gone.
    pub fn remove(&self, key: &str) {
        self.lock().pods.remove(key);
    }

    /// The watch failed. Returns whether it has not been failing already.
    pub fn failed(&self, why: String) -> bool {
        let mut state = self.lock();
        state.fresh = None;
        state.failed.replace((Instant::now(), why)).is_none_or(|(when, _)| when.elapsed() > DOUBT)
    }

    /// Why the watch fails, if it did lately or has never worked.
    pub fn problem(&self) -> Option<String> {
        let state = self.lock();
        let (when, why) = state.failed.as_ref()?;
        (!state.listed || when.elapsed() <= DOUBT).then(|| why.clone())
    }

    /// Whether a pod that is not known here is unknown to the API server, too.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.listed && state.failed.as_ref().is_none_or(|(when, _)| when.elapsed() > DOUBT)
    }

    /// Whether the API server knows the pod.
    pub fn knows(&self, uid: &str) -> bool {
        self.lock().pods.contains_key(uid)
    }

    /// The limits of a pod that has `held`; none if the API server has not told of it. A bad annotation keeps what is held,
    /// and is complained of once.
    pub fn limits(&self, uid: &str, held: Limits) -> Option<Limits> {
        let mut state = self.lock();
        let Entry { pod, told } = state.pods.get_mut(uid)?;
        let limits = Limits { ingress: pod.ingress.over(held.ingress), egress: pod.egress.over(held.egress) };
        if !std::mem::replace(told, true) {
            let of = [(INGRESS, &pod.ingress, held.ingress), (EGRESS, &pod.egress, held.egress)];
            let bad = of.into_iter().filter_map(|(annotation, wanted, held)| match wanted {
                Wanted::Bad(error) => Some(format!("{annotation}: {error}; {}", in_force(held))),
                _ => None,
            });
            let text = bad.collect::<Vec<_>>().join(". ");
            if !text.is_empty() {
                self.complaints.push(Complaint::Pod { pod: pod.clone(), text });
            }
        }
        Some(limits)
    }
}

fn in_force(held: Option<Bandwidth>) -> String {
    held.map_or_else(|| "there is still no limit".into(), |limit| format!("the limit is still {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ingress: Option<&str>, egress: Option<&str>) -> ApiPod {
        let (ingress, egress) = (Wanted::of(ingress), Wanted::of(egress));
        ApiPod { namespace: "a".into(), name: "p".into(), uid: "u".into(), ingress, egress }
    }

    fn limits(ingress: Option<u64>, egress: Option<u64>) -> Limits {
        let of = |bits: Option<u64>| bits.map(|bits| Bandwidth::from_bits(bits).unwrap());
        Limits { ingress: of(ingress), egress: of(egress) }
    }

    fn complaints(pods: &ApiPods) -> Vec<String> {
        let text = |complaint| match complaint {
            Complaint::Pod { text, .. } | Complaint::Node { text, .. } => text,
        };
        std::iter::from_fn(|| pods.complaints.pop()).map(text).collect()
    }

    #[test]
    fn the_annotation_is_the_truth_once_it_is_seen() {
        let pods = ApiPods::default();
        let held = limits(Some(1_000_000), None);
        assert_eq!(pods.limits("u", held), None, "not seen yet");
        assert!(pods.put("u".into(), pod(Some("2M"), Some("10k"))));
        assert!(!pods.put("u".into(), pod(Some("2M"), Some("10k"))), "a change of something else is none");
        assert_eq!(pods.limits("u", held), Some(limits(Some(2_000_000), Some(10_000))));
        assert!(pods.put("u".into(), pod(None, None)));
        assert_eq!(pods.limits("u", held), Some(Limits::default()), "a removed annotation removes its limit");
        pods.remove("u");
        assert_eq!(pods.limits("u", held), None, "and a pod that is gone keeps what it has to its end");
    }

    #[test]
    fn a_bad_annotation_keeps_its_limit_and_is_told_once() {
        let pods = ApiPods::default();
        let held = limits(Some(1_000_000), None);
        pods.put("u".into(), pod(Some("10X"), Some("5M")));
        for _ in 0..2 {
            assert_eq!(pods.limits("u", held), Some(limits(Some(1_000_000), Some(5_000_000))));
        }
        let told = complaints(&pods);
        assert_eq!(told.len(), 1);
        for word in [INGRESS, "10X", "10M, 1.5G", "still 1M"] {
            assert!(told[0].contains(word), "{word} in {told:?}");
        }
        assert!(!told[0].contains(EGRESS));
        // A relist of the same pod is no news, another bad value is.
        pods.begin();
        pods.list("u".into(), pod(Some("10X"), Some("5M")));
        assert!(pods.done());
        pods.limits("u", held);
        assert_eq!(complaints(&pods).len(), 0);
        pods.put("u".into(), pod(Some("0"), Some("-1")));
        pods.limits("u", held);
        assert!(complaints(&pods)[0].contains(EGRESS));
    }

    #[test]
    fn nothing_is_complete_before_the_first_list_nor_after_an_error() {
        let pods = ApiPods::default();
        assert!(!pods.is_complete());
        pods.begin();
        pods.list("u".into(), pod(None, None));
        assert!(!pods.is_complete() && !pods.knows("u"));
        assert!(pods.done() && pods.is_complete() && pods.knows("u"));
        assert!(pods.failed("away".into()));
        assert!(!pods.failed("away".into()));
        assert!(!pods.is_complete() && pods.knows("u"));
        assert_eq!(pods.problem().as_deref(), Some("away"));
        // What began before the error is void.
        assert!(!pods.done());
        pods.begin();
        assert!(pods.done());
        assert!(pods.is_complete() && !pods.knows("u") && pods.problem().is_none());
    }
}
