//! Events on Namespaces and Nodes, told by the leader.
//!
//! Promises: each is told once; what the API server does not answer is told again, [`TELLINGS`] times at most; no more than
//! [`MOST_UNTOLD`] wait.

use std::collections::VecDeque;
use std::time::Duration;

use bulkhead_core::{Namespace, NodeName};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::reporter::{LONGEST_WRITE, MANAGER};
use crate::plan::{Kind, Status};

/// How often an Event is tried, with a wait that begins with the next and doubles: two minutes in all.
const TELLINGS: u32 = 8;
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// More Events than that are not kept for later; the oldest go.
const MOST_UNTOLD: usize = 1024;
/// How long an Event's note may be (the API server's limit), in bytes.
const LONGEST_NOTE: usize = 1024;
/// Where Events of objects without a namespace are.
const CLUSTER_EVENTS: &str = "default";

/// An Event that is to be told.
#[derive(Debug)]
struct Untold {
    event: Event,
    /// How often it was tried.
    tries: u32,
    due: Instant,
}

/// Events that wait to be told.
#[derive(Debug, Default)]
pub(super) struct Events {
    untold: VecDeque<Untold>,
}

impl Events {
    /// Takes an Event on, for its namespace; it is due at once.
    pub(super) fn queue(&mut self, event: Event) {
        if self.untold.len() >= MOST_UNTOLD {
            self.untold.pop_front();
        }
        self.untold.push_back(Untold { event, tries: 0, due: Instant::now() });
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.untold.clear();
    }

    /// When the next is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.untold.iter().map(|untold| untold.due).min()
    }

    /// Tells one Event that is due; whether there was one. What may be mended by waiting is told again later.
    pub(super) async fn tell(&mut self, client: &Client, now: Instant) -> bool {
        let Some(place) = self.untold.iter().position(|untold| untold.due <= now) else { return false };
        let Some(mut untold) = self.untold.remove(place) else { return false };
        let namespace = untold.event.metadata.namespace.clone().unwrap_or_default();
        let reason = untold.event.reason.clone().unwrap_or_default();
        let events = Api::<Event>::namespaced(client.clone(), &namespace);
        let parameters = PostParams::default();
        let told = tokio::time::timeout(LONGEST_WRITE, events.create(&parameters, &untold.event));
        let failure = match told.await {
            Ok(Ok(_)) => return true,
            // A namespace that is being deleted takes none; one that is there already was told by a call that was not answered.
            Ok(Err(kube::Error::Api(answer))) if (400..500).contains(&answer.code) && answer.code != 429 => {
                if answer.message.contains("being terminated") || answer.code == 409 {
                    debug!(namespace, reason, %answer, "no Event");
                } else {
                    warn!(namespace, reason, %answer, "the API server refuses an Event");
                }
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        untold.tries += 1;
        if untold.tries < TELLINGS {
            debug!(namespace, reason, failure, "an Event is told again later");
            untold.due = Instant::now() + TELL_AGAIN * 2_u32.pow(untold.tries - 1);
            self.untold.push_back(untold);
        } else {
            warn!(namespace, reason, failure, "an Event could not be told");
        }
        true
    }
}

/// How a namespace stands, told in the namespace itself, where its own users may read.
pub(super) fn of_namespace(name: &Namespace, status: &Status, reason: &str) -> Event {
    let regarding = ObjectReference {
        kind: Some("Namespace".to_owned()),
        name: Some(name.to_string()),
        namespace: Some(name.to_string()),
        uid: Some(status.uid.clone()),
        ..ObjectReference::default()
    };
    let note = format!("VNI {}: {}", status.vni, status.text);
    event(name.as_str(), regarding, status.kind == Kind::InForce, reason, note, "SetNetwork")
}

/// Why a node can have no subnet.
pub(super) fn of_node(name: &NodeName, uid: &str, reason: &str, note: String) -> Event {
    let regarding = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.to_string()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    };
    event(CLUSTER_EVENTS, regarding, false, reason, note, "GiveSubnet")
}

fn event(
    namespace: &str,
    regarding: ObjectReference,
    normal: bool,
    reason: &str,
    mut note: String,
    action: &str,
) -> Event {
    let now = Timestamp::now();
    let about = regarding.name.clone().unwrap_or_default();
    while note.len() > LONGEST_NOTE {
        note.pop();
    }
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{about}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference { api_version: Some("v1".to_owned()), ..regarding }),
        reason: Some(reason.to_owned()),
        note: Some(note),
        action: Some(action.to_owned()),
        type_: Some(if normal { "Normal" } else { "Warning" }.to_owned()),
        reporting_controller: Some(format!("bulkhead.dev/{MANAGER}")),
        reporting_instance: Some(MANAGER.to_owned()),
        ..Event::default()
    }
}
