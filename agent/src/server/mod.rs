//! The agent's unix socket: CNI calls from the plugin, questions from the command line. Root only.
//!
//! A thread per connection, one request each; calls for different containers run side by side. The spool is drained
//! between listening and accepting, so that no DEL can fall between the two.

mod attach;
mod call;
mod detach;
mod spool;
pub mod status;

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::{self, Reply, Request};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use thiserror::Error;

use crate::reconcile::Agent;

/// Connections served at once; more wait in the socket's queue.
const MOST_CALLS: usize = 128;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the socket cannot be served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The socket's place.
    #[error("the agent's socket {path} cannot be made: {source}; is --run-dir writable?")]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody serves it.
    #[error("another agent answers at {0}; stop it first, or give this one another --run-dir")]
    Busy(PathBuf),
    /// The thread.
    #[error("the server's thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// Where the socket is.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Where DELs wait that no agent took.
pub fn spool_path(run_dir: &Path) -> PathBuf {
    run_dir.join("spool")
}

fn bind(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Bind { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ServerError::Busy(path.to_owned()));
    }
    // Made under another name and renamed: at no moment is there a socket that others may write to.
    let fresh = path.with_extension("new");
    for old in [&fresh] {
        match fs::remove_file(old) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    Ok(listener)
}

/// Starts serving on a thread of its own. Calls that come before the node is ready are told to try again.
pub fn serve(agent: Arc<Agent>) -> Result<(), ServerError> {
    let listener = bind(&socket_path(&agent.config.run_dir))?;
    std::thread::Builder::new().name("server".into()).spawn(move || accept(&agent, &listener))?;
    Ok(())
}

/// Drains the spool: to be called once, when the node is up.
pub fn drain_spool(agent: &Agent) {
    spool::drain(agent);
}

fn accept(agent: &Arc<Agent>, listener: &UnixListener) {
    let running = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        while running.load(Ordering::Acquire) >= MOST_CALLS {
            std::thread::sleep(Duration::from_millis(1));
        }
        running.fetch_add(1, Ordering::AcqRel);
        let (agent, done) = (Arc::clone(agent), Arc::clone(&running));
        let started = std::thread::Builder::new().name("call".into()).spawn(move || {
            answer(&agent, stream);
            done.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = started {
            tracing::error!(%error, "a call could not be served");
            running.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn answer(agent: &Agent, mut stream: UnixStream) {
    let reply = match request(&mut stream) {
        Ok((request, netns)) => match request {
            Request::Cni(cni) => call::answer(agent, &cni, netns),
            Request::Pods => status::pods(agent),
            Request::Status => Reply::Status(Box::new(status::agent(agent))),
        },
        Err(failure) => Reply::Failed(failure),
    };
    if let Err(error) = protocol::send(&mut stream, &reply) {
        tracing::debug!(%error, "a client went away before its answer");
    }
}

/// Reads a request and the netns beside it, from a peer that is root.
fn request(stream: &mut UnixStream) -> Result<(Request, Option<OwnedFd>), Failure> {
    let io = |error: io::Error| Failure::new(Code::Io, "the agent could not read the request", error.to_string());
    let peer = rustix::net::sockopt::socket_peercred(&*stream).map_err(|error| io(error.into()))?;
    if !peer.uid.is_root() {
        tracing::warn!(uid = peer.uid.as_raw(), "a peer that is not root was refused");
        let msg = "the agent's socket is for root only";
        return Err(Failure::new(Code::InvalidEnvironment, msg, "run the command as root"));
    }
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = vec![0; 8 << 10];
    let received = recvmsg(&*stream, &mut [IoSliceMut::new(&mut first)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(|error| io(error.into()))?;
    let mut netns = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                netns.get_or_insert(descriptor);
            }
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Failure::new(Code::Io, "too many descriptors came with the request", "send one: the pod's netns"));
    }
    let refused =
        |error: protocol::FrameError| Failure::new(Code::Decode, "the request cannot be read", error.to_string());
    Ok((protocol::receive(&first[..received.bytes], stream).map_err(refused)?, netns))
}
