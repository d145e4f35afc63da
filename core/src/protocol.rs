//! The words on the agent's unix socket: length-prefixed JSON frames with a version, one request and one reply per
//! connection. The pod's netns travels beside a request's first byte by `SCM_RIGHTS` (unix(7)).
//!
//! Frame: `BLKH`, version (u16), zero (u16), length of the payload (u32), all big-endian; then the payload.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::attachment::{AttachmentError, AttachmentId};
use crate::cni::{Attachment, Failure};

/// The protocol's version: a peer of another one is refused by name.
pub const VERSION: u16 = 1;
/// The largest payload, in bytes.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Where the agent listens unless configured.
pub const DEFAULT_SOCKET: &str = "/run/bulkhead/agent.sock";

const MAGIC: [u8; 4] = *b"BLKH";
const HEADER: usize = 12;

/// Why a frame cannot be sent or received.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The socket failed or was closed early.
    #[error("the agent's socket failed: {0}")]
    Io(#[from] io::Error),
    /// The peer is not one of ours.
    #[error("the peer on the agent's socket does not speak Bulkhead's protocol")]
    NotOurs,
    /// The peer is of another version.
    #[error(
        "the peer speaks version {0} of the socket protocol, this program version {VERSION}; upgrade the older one"
    )]
    Version(u16),
    /// More than [`MAX_PAYLOAD`].
    #[error("a message of {0} bytes is too large for the agent's socket")]
    TooLarge(usize),
    /// The payload is not what it should be.
    #[error("a message on the agent's socket cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// A message as bytes, header and all.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message)?;
    let payload = frame.len() - HEADER;
    let length = u32::try_from(payload).ok().filter(|_| payload <= MAX_PAYLOAD).ok_or(FrameError::TooLarge(payload))?;
    frame[..4].copy_from_slice(&MAGIC);
    frame[4..6].copy_from_slice(&VERSION.to_be_bytes());
    frame[8..12].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Sends a message.
pub fn send<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?)?;
    Ok(to.flush()?)
}

/// Receives a message. `first` holds what has been read of it already (the bytes that came with the netns).
pub fn receive<T: DeserializeOwned>(first: &[u8], from: &mut impl Read) -> Result<T, FrameError> {
    let mut from = first.chain(from);
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    if header[..4] != MAGIC {
        return Err(FrameError::NotOurs);
    }
    let version = u16::from_be_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLarge(length));
    }
    let mut payload = Vec::with_capacity(length.min(64 << 10));
    from.take(length as u64).read_to_end(&mut payload)?;
    if payload.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&payload)?)
}

/// What a client asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub enum Request {
    /// A CNI call.
    Cni(CniCall),
    /// The pods of this node.
    Pods,
    /// How the agent is.
    Status,
}

/// The CNI operation (`CNI_COMMAND`); VERSION never reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Attach a pod.
    Add,
    /// Detach it.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Remove what is not listed.
    Gc,
    /// Can pods be attached?
    Status,
}

/// A CNI call, with the environment and config as the runtime gave them, checked for form by the plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniCall {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for GC and STATUS.
    #[serde(default)]
    pub container_id: String,
    /// `CNI_IFNAME`; empty for GC and STATUS.
    #[serde(default)]
    pub interface: String,
    /// `CNI_NETNS`; the open netns comes beside the frame where the operation needs it.
    #[serde(default)]
    pub netns: String,
    /// `CNI_ARGS`, split.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The network config from stdin.
    pub config: Value,
    /// Names this run of the plugin: an ADD that it asks again, because the agent died over it, is answered with what stands;
    /// one that the runtime repeats is an error (CNI specification, section 2).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub attempt: String,
}

impl CniCall {
    /// The attachment that it is about; an error for GC and STATUS, which are about none.
    pub fn attachment(&self) -> Result<AttachmentId, AttachmentError> {
        AttachmentId::new(self.container_id.as_str(), self.interface.as_str())
    }
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer", content = "with")]
pub enum Reply {
    /// ADD worked.
    Attached(Attachment),
    /// DEL, CHECK, GC or STATUS worked.
    Done,
    /// The pods of this node.
    Pods(Vec<PodStatus>),
    /// How the agent is.
    Status(Box<AgentStatus>),
    /// It failed.
    Failed(Failure),
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// The pod's name, empty if the runtime did not say.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// The runtime's container ID.
    pub container_id: String,
    /// The device in the pod.
    pub interface: String,
    /// The device on the host.
    pub host_interface: String,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its namespace's name on the wire.
    pub vni: u32,
    /// The network it is in; absent when its namespace was deleted.
    pub net_id: Option<u32>,
    /// Towards the pod, bits per second.
    pub ingress_bandwidth: Option<u64>,
    /// From the pod, bits per second.
    pub egress_bandwidth: Option<u64>,
}

/// How the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The program's version.
    pub version: String,
    /// This node's name.
    pub node: String,
    /// Its underlay address.
    pub host_ip: String,
    /// Its subnets, empty while it has none.
    pub subnets: Vec<String>,
    /// `multitenant` or `flat`.
    pub mode: String,
    /// Whether pods can be attached.
    pub ready: bool,
    /// Why not, and what else is wrong: sentences for a person.
    pub problems: Vec<String>,
    /// Whether etcd answers.
    pub etcd_connected: bool,
    /// The revision of etcd that the node's state is of.
    pub revision: i64,
    /// The ledger's epoch.
    pub epoch: u64,
    /// Seconds since etcd was last heard.
    pub etcd_silent_seconds: u64,
    /// Namespaces known.
    pub namespaces: u64,
    /// Nodes known, this one included.
    pub nodes: u64,
    /// Pods attached.
    pub pods: u64,
    /// Addresses that are free.
    pub free_addresses: u64,
    /// The pods' MTU.
    pub mtu: u32,
    /// Packets dropped, by reason; reasons that never occurred are left out.
    pub drops: BTreeMap<String, u64>,
    /// What the last resyncs had to repair, newest last.
    pub repairs: Vec<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_round_trips_and_may_come_in_parts() {
        let frame = encode(&Request::Pods).unwrap();
        for cut in 0..=frame.len() {
            let (first, mut rest) = frame.split_at(cut);
            assert_eq!(receive::<Request>(first, &mut rest).unwrap(), Request::Pods);
        }
    }

    #[test]
    fn strangers_are_refused() {
        let mut frame = encode(&Request::Status).unwrap();
        assert!(matches!(receive::<Request>(&[], &mut &frame[..frame.len() - 1]), Err(FrameError::Io(_))));
        frame[5] = 9;
        assert!(matches!(receive::<Request>(&[], &mut &frame[..]), Err(FrameError::Version(9))));
        assert!(matches!(receive::<Request>(&[], &mut &b"GET / HTTP/1.1\r\n"[..]), Err(FrameError::NotOurs)));
        frame[5] = 1;
        frame[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(receive::<Request>(&[], &mut &frame[..]), Err(FrameError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = receive::<Request>(&[], &mut &bytes[..]);
        }
    }
}
