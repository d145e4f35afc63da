//! One CNI call: which operation, on which attachment, and how its outcome is told to the runtime.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bulkhead_core::Namespace;
use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cni::{Attachment, Code, Failure};
use bulkhead_core::protocol::{CniCall, Command, Reply};
use serde_json::Value;

use super::desk::{Desk, PendingAdd};
use super::{attach, detach};
use crate::kernel::{Netlink, Netns};
use crate::live::Live;
use crate::pods::wire;
use crate::reconcile::Agent;

/// Carries out a call.
pub(super) fn answer(agent: &Agent, desk: &Desk, call: &CniCall, netns: Option<OwnedFd>) -> Reply {
    let span = tracing::info_span!(
        "cni",
        command = ?call.command,
        container_id = call.container_id,
        namespace = call.args.get("K8S_POD_NAMESPACE").map_or("", String::as_str),
        pod = call.args.get("K8S_POD_NAME").map_or("", String::as_str),
    );
    let _entered = span.enter();
    let begin = Instant::now();
    let answer = carry_out(agent, desk, call, netns);
    agent.calls.observe(call.command, answer.as_ref().err().map(|failure| failure.code), begin.elapsed());
    match answer {
        Ok(reply) => {
            tracing::debug!("done");
            reply
        }
        Err(failure) => {
            tracing::warn!(code = failure.code.number(), details = failure.details, "{}", failure.msg);
            Reply::Failed(failure)
        }
    }
}

/// How long a call waits for a node that is coming up: an agent that restarts is back well within it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an ADD waits for its namespace's numbers: the first pod of a new namespace may be faster than they are.
const NAMESPACE: Duration = Duration::from_secs(10);

fn carry_out(agent: &Agent, desk: &Desk, call: &CniCall, netns: Option<OwnedFd>) -> Result<Reply, Failure> {
    match call.command {
        Command::Add => {
            let (id, netns) = (named(call)?, passed(netns)?);
            let pending = desk.pending_add(&id);
            let live = ready(agent, desk)?;
            // Not under the lock: the reconciler and this container's DEL come by there.
            await_namespace(agent, desk, call, &pending);
            // A runtime may use a container ID again before its old DEL was carried out.
            super::spool::drain_one(agent, live, &id);
            live.exclusively(&id, || add(agent, live, call, &netns, (&id, &pending))).map(Reply::Attached)
        }
        Command::Del => {
            let id = named(call)?;
            if desk.overtake(&id) {
                agent.shared.nudge();
            }
            let Ok(live) = ready(agent, desk) else {
                // A node that is not up has to be told later; the runtime need not wait for that.
                return super::spool::keep(agent, &id, call).map(|()| Reply::Done);
            };
            live.exclusively(&id, || detach::del(live, &id))
                .map(|()| Reply::Done)
                .map_err(|error| detach::failure(&error))
        }
        Command::Check => {
            let (id, netns) = (named(call)?, passed(netns)?);
            let live = ready(agent, desk)?;
            live.exclusively(&id, || check(live, call, &id, &netns)).map(|()| Reply::Done)
        }
        Command::Gc => collect(ready(agent, desk)?, call).map(|()| Reply::Done),
        Command::Status => status(agent).map(|()| Reply::Done),
    }
}

fn named(call: &CniCall) -> Result<AttachmentId, Failure> {
    call.attachment().map_err(|error| Failure::new(Code::InvalidEnvironment, error.to_string(), ""))
}

fn passed(netns: Option<OwnedFd>) -> Result<Netns, Failure> {
    let missing = || Failure::new(Code::InvalidEnvironment, "no network namespace came with the call", "");
    let netns = Netns::from_file(netns.ok_or_else(missing)?);
    netns.map_err(|error| Failure::new(Code::InvalidEnvironment, error.to_string(), ""))
}

fn not_ready(agent: &Agent, code: Code) -> Failure {
    Failure::new(code, "this node's network is not ready", agent.all_problems().join("; "))
}

/// The node, which is waited for unless too many calls wait already.
fn ready<'agent>(agent: &'agent Agent, desk: &Desk) -> Result<&'agent Live, Failure> {
    let wait = agent.live.get().map_or_else(|| desk.wait(), |_| None);
    let patience = wait.as_ref().map_or(Duration::ZERO, |_| PATIENCE);
    agent.wait_live(Instant::now() + patience).ok_or_else(|| not_ready(agent, Code::TryAgainLater))
}

/// Waits until the intent has the pod's namespace; whoever needs it looks again. A DEL ends the wait.
fn await_namespace(agent: &Agent, desk: &Desk, call: &CniCall, pending: &PendingAdd<'_>) {
    let Some(Ok(namespace)) = call.args.get("K8S_POD_NAMESPACE").map(|name| Namespace::new(name.as_str())) else {
        return;
    };
    let is_known = || agent.shared.read(|intent, _| intent.namespaces.contains_key(&namespace));
    if !is_known()
        && let Some(_wait) = desk.wait()
    {
        agent.shared.wait_for(Instant::now() + NAMESPACE, |intent| {
            (pending.is_overtaken() || intent.namespaces.contains_key(&namespace)).then_some(())
        });
    }
}

/// Attaches a pod, unless a DEL came first. The caller holds the attachment's lock.
fn add(
    agent: &Agent,
    live: &Live,
    call: &CniCall,
    netns: &Netns,
    (id, pending): (&AttachmentId, &PendingAdd<'_>),
) -> Result<Attachment, Failure> {
    if pending.is_overtaken() {
        let details = "the pod is being deleted";
        return Err(Failure::new(Code::TryAgainLater, "a DEL came while the ADD waited", details));
    }
    attach::add(agent, live, call, id, netns).map_err(|error| attach::failure(&error))
}

/// CHECK: as ADD left it? Compared with the record, the kernel and the runtime's own `prevResult`.
fn check(live: &Live, call: &CniCall, id: &AttachmentId, netns: &Netns) -> Result<(), Failure> {
    use std::os::fd::AsFd;
    let failed = |details: String| Failure::new(Code::CheckFailed, "the pod's network is not as ADD left it", details);
    let record = live.records.get(id).ok_or_else(|| {
        Failure::new(
            Code::UnknownContainer,
            format!("no attachment {id} is known"),
            "delete the pod; its network is gone",
        )
    })?;
    let mut wrong =
        wire::differences(&record, netns.as_fd(), live.own_addresses()).map_err(|error| failed(error.to_string()))?;
    if !live.is_published(&record).map_err(|error| failed(error.to_string()))? {
        wrong.push("its entries in the datapath's maps are missing or changed; the next resync writes them".to_owned());
    }
    let told = call.config.get("prevResult").and_then(|result| result.get("ips")).and_then(Value::as_array);
    let told: Vec<&str> = told.into_iter().flatten().filter_map(|ip| ip.get("address")?.as_str()).collect();
    for address in &record.addresses {
        if !told.is_empty() && !told.iter().any(|text| text.split('/').next() == Some(address.to_string().as_str())) {
            wrong.push(format!("prevResult does not have the pod's address {address}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(failed(wrong.join("; "))) }
}

/// GC: every attachment that the runtime does not list goes. Goes on past errors and reports them all.
fn collect(live: &Live, call: &CniCall) -> Result<(), Failure> {
    let listed = call.config.get("cni.dev/valid-attachments").and_then(Value::as_array);
    let Some(listed) = listed else {
        let msg = "the config has no list cni.dev/valid-attachments; nothing was removed";
        return Err(Failure::new(Code::InvalidConfig, msg, ""));
    };
    let field = |item: &Value, name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let valid: Vec<AttachmentId> = listed
        .iter()
        .map(|item| AttachmentId::new(field(item, "containerID"), field(item, "ifname")))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::new(Code::InvalidConfig, error.to_string(), "nothing was removed"))?;
    let mut failed = Vec::new();
    for record in live.records.all().into_iter().filter(|record| !valid.contains(&record.id)) {
        tracing::info!(pod = record.pod, container_id = record.id.container_id(), "GC removes an attachment");
        if let Err(error) = live.exclusively(&record.id, || detach::del(live, &record.id)) {
            failed.push(error.to_string());
        }
    }
    let (left, msg) = (failed.len(), "some attachments could not be removed");
    if left == 0 { Ok(()) } else { Err(Failure::new(Code::Kernel, msg, failed.join("; "))) }
}

/// STATUS: can a pod be attached? Nothing is waited for. A node on which pods run says yes, whatever its agent knows: a runtime
/// that hears no makes its node `NotReady`, and they would be moved away. ADD says why it cannot.
fn status(agent: &Agent) -> Result<(), Failure> {
    let refusal = match agent.live.get() {
        None => not_ready(agent, Code::Unavailable),
        // A node whose addresses are all in use is full, not out of order.
        Some(live) => match live.records.check() {
            Ok(()) => return Ok(()),
            Err(error) => Failure::new(Code::Unavailable, "no pod's record can be written", error.to_string()),
        },
    };
    let links = Netlink::here().and_then(|mut host| host.links()).unwrap_or_default();
    if links.iter().any(|link| link.group == wire::GROUP) { Ok(()) } else { Err(refusal) }
}
