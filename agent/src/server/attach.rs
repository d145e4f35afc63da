//! ADD: an address, the devices in two batches, the maps, the record in one transaction, then the answer. What fails is
//! undone in reverse; an ADD that a crash cut off is undone by the next one for the same attachment.

use std::os::fd::AsFd;

use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cni::{Attachment, Code, Failure};
use bulkhead_core::name::NameError;
use bulkhead_core::protocol::CniCall;
use bulkhead_core::{Namespace, network};
use thiserror::Error;

use crate::datapath::DatapathError;
use crate::kernel::Netns;
use crate::live::{ForgetError, Live, locked};
use crate::pods::limit::LimitError;
use crate::pods::record::Stage;
use crate::pods::wire::{self, GATEWAY_MAC, WireError};
use crate::pods::{Limits, Record, RecordError, RemoveError};
use crate::reconcile::{Agent, apply_namespaces};

/// Why a pod cannot be attached.
#[derive(Debug, Error)]
pub(super) enum AttachError {
    #[error("CNI_ARGS does not say K8S_POD_NAMESPACE; a pod's network is its namespace's")]
    NoNamespace,
    #[error("K8S_POD_NAMESPACE: {0}")]
    Namespace(#[from] NameError),
    #[error(
        "the namespace {0} has no VNI yet; create it with `bulkhead tenant create {0}`, or see why the controller did not"
    )]
    UnknownNamespace(Namespace),
    #[error("the netns given for the pod is the host's own")]
    HostNetns,
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error("what was left of an earlier ADD cannot be removed: {0}")]
    Leftover(#[from] ForgetError),
    #[error(transparent)]
    Remove(#[from] RemoveError),
    #[error(transparent)]
    Netns(#[from] crate::kernel::NetnsError),
}

/// The one place where an ADD's errors become CNI codes.
pub(super) fn failure(error: &AttachError) -> Failure {
    let code = match error {
        AttachError::NoNamespace
        | AttachError::Namespace(_)
        | AttachError::HostNetns
        | AttachError::Wire(WireError::Name(_)) => Code::InvalidEnvironment,
        AttachError::UnknownNamespace(_) => Code::TryAgainLater,
        AttachError::Limit(_) => Code::InvalidConfig,
        AttachError::Record(RecordError::Full(_)) => Code::AddressPoolFull,
        AttachError::Wire(WireError::InterfaceExists(_)) => Code::InterfaceExists,
        AttachError::Wire(_) | AttachError::Remove(_) | AttachError::Netns(_) => Code::Kernel,
        AttachError::Record(_) | AttachError::Datapath(_) | AttachError::Leftover(_) => Code::Internal,
    };
    Failure::new(code, "the pod cannot be attached to its network", error.to_string())
}

fn arg<'a>(call: &'a CniCall, name: &str) -> &'a str {
    call.args.get(name).map_or("", String::as_str)
}

/// Attaches a pod. The caller holds the attachment's lock.
pub(super) fn add(
    agent: &Agent,
    live: &Live,
    call: &CniCall,
    id: &AttachmentId,
    netns: &Netns,
) -> Result<Attachment, AttachError> {
    let namespace = match arg(call, "K8S_POD_NAMESPACE") {
        "" => return Err(AttachError::NoNamespace),
        name => Namespace::new(name)?,
    };
    let pod = arg(call, "K8S_POD_NAME").to_owned();
    let uid = arg(call, "K8S_POD_UID").to_owned();
    let limits = Limits::of_config(&format!("{namespace}/{pod}"), &call.config)?;
    let home = Netns::own()?;
    if netns.id() == home.id() {
        return Err(AttachError::HostNetns);
    }
    let vni = vni_of(agent, live, &namespace)?;
    if let Some(held) = live.records.get(id)
        && leave(live, &held, &call.attempt, netns)?
    {
        return Ok(described(live, &held));
    }
    let record = live.records.create(|host, ifindex| Record {
        id: id.clone(),
        pod,
        uid,
        namespace,
        vni,
        netns: call.netns.clone(),
        host,
        addresses: live.addresses(host),
        ifindex,
        mtu: live.geometry.mtu,
        limits,
        attempt: call.attempt.clone(),
        stage: Stage::Attaching,
    })?;
    // The namespace may have gone before the record was there to hold its index.
    let held = with_index(agent, live, (&record.namespace, vni)).map_err(Into::into);
    match held.and_then(|()| attach(live, &record, netns, &home)) {
        Ok(()) => Ok(described(live, &record)),
        Err(error) => {
            undo(live, &record);
            Err(error)
        }
    }
}

/// The namespace's VNI, with its index in the maps. The caller has waited for a namespace that was just created.
fn vni_of(agent: &Agent, live: &Live, namespace: &Namespace) -> Result<u32, AttachError> {
    let found = agent.shared.read(|intent, _| intent.namespaces.get(namespace).map(|tenant| tenant.vni.get()));
    let vni = found.ok_or_else(|| AttachError::UnknownNamespace(namespace.clone()))?;
    with_index(agent, live, (namespace, vni))?;
    Ok(vni)
}

fn with_index(agent: &Agent, live: &Live, (namespace, vni): (&Namespace, u32)) -> Result<(), DatapathError> {
    let known = locked(&live.datapath.namespaces).is_known(namespace, vni);
    if known { Ok(()) } else { apply_namespaces(live, &agent.shared) }
}

/// What an earlier ADD of the same attachment left. One that still stands is an error, or the answer (true) if the plugin asks
/// again because an agent died before it could say so; anything else goes.
fn leave(live: &Live, held: &Record, attempt: &str, netns: &Netns) -> Result<bool, AttachError> {
    let stands = held.stage == Stage::Attached
        && wire::differences(held, netns.as_fd(), live.own_addresses()).is_ok_and(|wrong| wrong.is_empty());
    if stands && !attempt.is_empty() && held.attempt == attempt {
        return Ok(true);
    }
    if stands {
        return Err(WireError::InterfaceExists(held.id.interface().to_owned()).into());
    }
    live.remover.remove(held)?;
    live.forget(held)?;
    Ok(false)
}

fn attach(live: &Live, record: &Record, netns: &Netns, home: &Netns) -> Result<(), AttachError> {
    wire::connect(record, (netns.as_fd(), home.as_fd()), live.own_addresses(), &live.datapath.programs)?;
    // Into the maps before the answer: a pod never runs a moment under no policy.
    live.publish(record)?;
    Ok(live.records.update(&Record { stage: Stage::Attached, ..record.clone() })?)
}

fn undo(live: &Live, record: &Record) {
    if let Err(error) = live.remover.remove(record) {
        tracing::warn!(%error, "a failed ADD could not be undone in the kernel; the next resync does it");
    }
    if let Err(error) = live.forget(record) {
        tracing::warn!(%error, "a failed ADD could not be undone in the records; a DEL or a restart does it");
    }
}

fn described(live: &Live, record: &Record) -> Attachment {
    let with_gateway = |address: &std::net::IpAddr| (wire::host_network(*address), gateway_of(live, *address));
    Attachment {
        host_interface: record.host_interface(),
        host_mac: GATEWAY_MAC.to_string(),
        interface: record.id.interface().to_owned(),
        mac: record.mac().to_string(),
        netns: record.netns.clone(),
        mtu: record.mtu,
        addresses: record.addresses.iter().map(with_gateway).collect(),
    }
}

fn gateway_of(live: &Live, address: std::net::IpAddr) -> std::net::IpAddr {
    let pool = live.networks.pools().find(|pool| pool.network().is_ipv4() == address.is_ipv4());
    pool.and_then(|pool| pool.address(live.geometry.local_block, network::GATEWAY))
        .unwrap_or_else(|| live.gateway().into())
}
