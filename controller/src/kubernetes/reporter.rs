//! The writer of reports: what Kubernetes does not show as it should is written there, one thing after another.
//!
//! Level-triggered. Promises: nothing is written but what differs; nothing while another leads; at most one write each
//! [`PACE`], and the same one again only after [`AGAIN`], however often somebody undoes it.

use std::collections::HashMap;
use std::time::Duration;

use bulkhead_core::annotation::{NETWORK_STATUS, SUBNET, VNI};
use bulkhead_core::{Namespace, NodeName};
use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Node};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::events::{self, Events};
use super::read::NETWORK_UNAVAILABLE;
use super::report::{REVISION_EVERY, Report, Standing, Subject, Write, differences};
use crate::memory::Memory;
use crate::memory::place::{Place, PlaceError};
use crate::objects::Objects;
use crate::plan::{Shown, Status};

/// The least time between two writes.
pub const PACE: Duration = Duration::from_millis(25);
/// How long a write is given to show before it is made again.
pub const AGAIN: Duration = Duration::from_secs(10);
/// How long the API server may take for one write.
pub(super) const LONGEST_WRITE: Duration = Duration::from_secs(10);
/// The name of the writer.
pub(crate) const MANAGER: &str = "bulkhead-controller";

/// Writes reports for as long as somebody makes them. Dropping the future ends it.
pub async fn report(
    client: Client,
    agent_namespace: &str,
    mut reports: watch::Receiver<Option<Report>>,
    mut objects: watch::Receiver<Option<Objects>>,
) {
    let mut reporter = Reporter::new(client, agent_namespace);
    loop {
        let now = Instant::now();
        let (wanted, shown) = (reports.borrow_and_update().clone(), objects.borrow_and_update().clone());
        let next = match (&wanted, &shown) {
            (Some(report), Some(shown)) => reporter.next(report, shown, now),
            _ => Next::Nothing,
        };
        if wanted.is_none() {
            // Another leads, and tells what it decides.
            reporter.events.clear();
        }
        let told = reporter.events.tell(&reporter.client, now).await;
        let until = match next {
            Next::Write(write) => {
                // What is refused, or never answered, is tried again like any other; it holds up nobody else's.
                match tokio::time::timeout(LONGEST_WRITE, reporter.write(&write)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(%error, ?write, "Kubernetes does not take it, trying again later"),
                    Err(_) => warn!(?write, "the API server does not answer, trying again later"),
                }
                reporter.note(write);
                tokio::time::sleep(PACE).await;
                continue;
            }
            _ if told => {
                tokio::time::sleep(PACE).await;
                continue;
            }
            Next::Later(time) => time,
            Next::Nothing => now + REVISION_EVERY,
        };
        let until = reporter.events.due().map_or(until, |due| due.min(until));
        tokio::select! {
            changed = reports.changed() => if changed.is_err() { return },
            changed = objects.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

enum Next {
    Write(Write),
    /// Something differs that was written a moment ago.
    Later(Instant),
    Nothing,
}

struct Reporter<'a> {
    client: Client,
    agent_namespace: &'a str,
    written: HashMap<Subject, (Write, Instant)>,
    remembered: Option<(Memory, Instant)>,
    events: Events,
}

impl<'a> Reporter<'a> {
    fn new(client: Client, agent_namespace: &'a str) -> Self {
        Self { client, agent_namespace, written: HashMap::new(), remembered: None, events: Events::default() }
    }

    fn next(&mut self, report: &Report, objects: &Objects, now: Instant) -> Next {
        self.written.retain(|_, (_, when)| *when + AGAIN > now);
        let mut later: Option<Instant> = None;
        for write in differences(report, objects, self.remembered.as_ref(), now) {
            match self.written.get(&write.subject()) {
                Some((before, when)) if before.shows_the_same(&write) => {
                    later = later.into_iter().chain([*when + AGAIN]).min();
                }
                _ => return Next::Write(write),
            }
        }
        later.map_or(Next::Nothing, Next::Later)
    }

    fn note(&mut self, write: Write) {
        self.written.insert(write.subject(), (write, Instant::now()));
    }

    async fn write(&mut self, write: &Write) -> Result<(), PlaceError> {
        match write {
            Write::Namespace { name, status, reason } => self.namespace(name, status, reason).await?,
            Write::Node { name, uid, standing } => self.node(name, uid, standing).await?,
            Write::Subnet { name, shown } => self.subnet(name, shown).await?,
            Write::Memory(memory) => {
                Place::config_map(&self.client, self.agent_namespace).write(memory).await?;
                self.remembered = Some((memory.clone(), Instant::now()));
            }
        }
        Ok(())
    }

    async fn namespace(&mut self, name: &Namespace, status: &Status, reason: &str) -> Result<(), kube::Error> {
        let api = Api::<ApiNamespace>::all(self.client.clone());
        // The UID makes it fail for one that was made anew meanwhile.
        let patch =
            json!({"metadata": {"uid": status.uid, "annotations": {VNI: status.vni, NETWORK_STATUS: status.text}}});
        match api.patch_metadata(name.as_str(), &params(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {
                debug!(namespace = %name, %answer, "the namespace is another one by now");
                return Ok(());
            }
            outcome => drop(outcome?),
        }
        info!(namespace = %name, vni = status.vni, status = status.text, "shown in Kubernetes");
        self.events.queue(events::of_namespace(name, status, reason));
        Ok(())
    }

    async fn node(&mut self, name: &NodeName, uid: &str, standing: &Standing) -> Result<(), kube::Error> {
        let api = Api::<Node>::all(self.client.clone());
        match api.patch_status(name.as_str(), &params(), &Patch::Strategic(node_status(standing))).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
            outcome => drop(outcome?),
        }
        let (status, reason) = standing.condition();
        info!(node = %name, status, reason, "condition {NETWORK_UNAVAILABLE}");
        if matches!(standing, Standing::NoSubnet(_)) {
            self.events.queue(events::of_node(name, uid, reason, standing.message()));
        }
        Ok(())
    }

    async fn subnet(&self, name: &NodeName, shown: &Shown) -> Result<(), kube::Error> {
        let api = Api::<Node>::all(self.client.clone());
        let patch = json!({"metadata": {"uid": shown.uid, "annotations": {SUBNET: shown.text}}});
        // By its status, for which the controller has a right already; the API server takes annotations there.
        match api.patch_status(name.as_str(), &params(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {
                debug!(node = %name, %answer, "the node is another one by now");
                return Ok(());
            }
            outcome => drop(outcome?),
        }
        info!(node = %name, subnets = shown.text, "shown in Kubernetes");
        Ok(())
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn node_status(standing: &Standing) -> Value {
    let (status, reason) = standing.condition();
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"status": {"conditions": [{
        "type": NETWORK_UNAVAILABLE, "status": status, "reason": reason, "message": standing.message(),
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}})
}
