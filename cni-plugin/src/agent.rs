//! Talks to the node's agent: one request, one reply, one connection (`bulkhead_core::protocol`).
//!
//! Promises: every wait is bounded; the netns' descriptor goes beside the frame's first byte.

use std::fmt;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::{FrameError, Reply, receive};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// How long a connection and each part of a request may take; the agent accepts at once unless it is stuck.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no reply.
#[derive(Debug)]
pub enum AgentError {
    /// Nobody listens.
    Away(io::Error),
    /// The agent went away before it answered.
    Closed,
    /// It did not answer in time.
    Silent(Duration),
    /// The socket is not for this user.
    Denied(io::Error),
    /// What it says is not what it should be.
    Protocol(FrameError),
}

impl AgentError {
    /// Whether an agent that is restarting would look so.
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Closed)
    }

    /// Whether one was there since the node booted, and is no more: its socket is left.
    pub fn has_left(&self) -> bool {
        match self {
            Self::Away(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            _ => matches!(self, Self::Closed),
        }
    }

    /// The failure of a call, with the code of an agent that is away or stuck.
    pub fn into_failure(self, socket: &Path, away: Code) -> Failure {
        let (code, advice) = match &self {
            Self::Away(_) => (away, "start bulkhead-agent on this node, or correct \"socket\" in the CNI config"),
            Self::Closed => (away, "the agent's log says why it stopped"),
            Self::Silent(_) => (away, "look at the agent's log and at `bulkhead agent status`"),
            Self::Protocol(FrameError::Version(_)) => (away, "the node is in the middle of an upgrade?"),
            Self::Denied(_) => (Code::Io, "the socket is open to root only: run the runtime as root"),
            Self::Protocol(_) => (Code::Io, "does \"socket\" in the CNI config name the agent's socket?"),
        };
        Failure::new(code, format!("the Bulkhead agent at {}: {self}", socket.display()), advice)
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(error) => write!(f, "nobody answers: {error}"),
            Self::Closed => f.write_str("it closed the connection without an answer"),
            Self::Silent(patience) => write!(f, "no answer within {} s", patience.as_secs()),
            Self::Denied(error) => error.fmt(f),
            Self::Protocol(error) => error.fmt(f),
        }
    }
}

/// A request, ready to be sent more than once.
pub struct Question<'a> {
    /// Where the agent listens.
    pub socket: PathBuf,
    /// The frame.
    pub frame: Vec<u8>,
    /// The pod's netns.
    pub netns: Option<BorrowedFd<'a>>,
    /// How long the answer may take.
    pub patience: Duration,
}

impl Question<'_> {
    /// Asks the agent once.
    pub fn ask(&self) -> Result<Reply, AgentError> {
        let agent = self.connect()?;
        self.send(&agent)?;
        let mut answer = Patient { agent: &agent, until: Instant::now() + self.patience };
        receive(&[], &mut answer).map_err(|error| match error {
            FrameError::Io(error) => self.broken(&error),
            other => AgentError::Protocol(other),
        })
    }

    fn connect(&self) -> Result<OwnedFd, AgentError> {
        let failed = |errno: rustix::io::Errno| match io::Error::from(errno) {
            error if error.kind() == io::ErrorKind::PermissionDenied => AgentError::Denied(error),
            error if error.kind() == io::ErrorKind::WouldBlock => AgentError::Silent(SEND_TIMEOUT),
            error => AgentError::Away(error),
        };
        let address = SocketAddrUnix::new(&self.socket).map_err(failed)?;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
        // Bounds connect() too, which would wait for ever where the agent's backlog is full.
        set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIMEOUT)).map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        Ok(socket)
    }

    fn send(&self, agent: &OwnedFd) -> Result<(), AgentError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if let Some(netns) = &self.netns {
            beside.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(netns)));
        }
        let mut rest = self.frame.as_slice();
        while !rest.is_empty() {
            match rustix::net::sendmsg(agent, &[IoSlice::new(rest)], &mut beside, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    beside.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                // The agent may have answered before it closed: the answer, if any, says more.
                Err(rustix::io::Errno::PIPE) => return Ok(()),
                Err(errno) => return Err(self.broken(&errno.into())),
            }
        }
        Ok(())
    }

    fn broken(&self, error: &io::Error) -> AgentError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AgentError::Silent(self.patience),
            _ => AgentError::Closed,
        }
    }
}

/// Reads until a moment, whatever the size of the pieces that come.
struct Patient<'a> {
    agent: &'a OwnedFd,
    until: Instant,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_socket_timeout(self.agent, Timeout::Recv, Some(left))?;
        Ok(rustix::io::read(self.agent, buffer)?)
    }
}
