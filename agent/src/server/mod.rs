//! The agent's unix socket: CNI calls from the plugin, questions from the command line. Root only.
//!
//! A thread per connection, one request each; calls for different containers run side by side. A socket that something removed
//! is made anew.

mod attach;
mod call;
mod desk;
mod detach;
mod spool;
pub mod status;

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::{self, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use thiserror::Error;

use self::desk::Desk;
use crate::reconcile::Agent;

/// How long until a socket that nobody can reach any more is missed.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
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

/// The socket at its place.
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

impl Listener {
    fn at(path: PathBuf) -> Result<Self, ServerError> {
        let socket = bind(&path)?;
        let file = file_at(&path);
        Ok(Self { socket, path, file })
    }

    fn is_in_place(&self) -> bool {
        self.file.is_some() && self.file == file_at(&self.path)
    }

    /// Whether somebody is at the door, after [`LOOK`] at the latest.
    fn is_called(&self) -> io::Result<bool> {
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&LOOK)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Starts serving on a thread of its own. Calls that come before the node is ready are told to try again.
pub fn serve(agent: Arc<Agent>) -> Result<(), ServerError> {
    let listener = Listener::at(socket_path(&agent.config.run_dir))?;
    std::thread::Builder::new().name("server".into()).spawn(move || accept(&agent, listener))?;
    Ok(())
}

/// Starts the thread that carries out spooled DELs, at once and at each resync, and looks whether the pods' records can still be
/// written down. To be called once, when the node is up: the socket is served already, so that no DEL can fall between the two.
pub fn start_upkeep(agent: &Arc<Agent>) {
    let kept = Arc::clone(agent);
    let work = move || {
        loop {
            if let Some(Err(error)) = kept.live.get().map(|live| live.records.check()) {
                tracing::error!(%error, "no pod can be attached");
            }
            spool::drain(&kept);
            std::thread::sleep(kept.config.resync);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("upkeep".into()).spawn(work) {
        tracing::error!(%error, "spooled DELs are carried out by their container's next ADD only; restart the agent");
    }
}

fn accept(agent: &Arc<Agent>, mut listener: Listener) {
    let desk = Arc::new(Desk::default());
    let mut said = String::new();
    loop {
        let stream = match listener.is_called() {
            Ok(true) => listener.socket.accept().map(|(stream, _)| Some(stream)),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        match stream {
            Ok(Some(stream)) => start(agent, &desk, stream),
            // Made anew here rather than by another agent: calls under way go on, and nobody has to watch this process.
            Ok(None) if !listener.is_in_place() => match Listener::at(listener.path.clone()) {
                Ok(new) => {
                    tracing::warn!(path = %new.path.display(), "something removed the agent's socket; it is made anew");
                    listener = new;
                    said.clear();
                }
                Err(error) => {
                    if said != error.to_string() {
                        said = error.to_string();
                        tracing::error!("something removed the agent's socket: {said}");
                    }
                }
            },
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn start(agent: &Arc<Agent>, desk: &Arc<Desk>, stream: UnixStream) {
    let place = desk.enter();
    let (agent, desk) = (Arc::clone(agent), Arc::clone(desk));
    let started = std::thread::Builder::new().name("call".into()).spawn(move || {
        answer(&agent, &desk, stream);
        drop(place);
    });
    if let Err(error) = started {
        tracing::error!(%error, "a call could not be served");
    }
}

fn answer(agent: &Agent, desk: &Desk, mut stream: UnixStream) {
    let reply = match request(&mut stream) {
        Ok((request, netns)) => match request {
            Request::Cni(cni) => call::answer(agent, desk, &cni, netns),
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
    let uid = crate::sys::peer_uid(&*stream).map_err(io)?;
    if uid != 0 {
        tracing::warn!(uid, "a peer that is not root was refused");
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clap::Parser as _;

    use super::*;
    use crate::args::Args;
    use crate::intent::Shared;

    fn ask(path: &Path) -> io::Result<Reply> {
        let mut stream = UnixStream::connect(path)?;
        let asked = protocol::send(&mut stream, &Request::Status).and_then(|()| protocol::receive(&[], &mut stream));
        asked.map_err(io::Error::other)
    }

    #[test]
    fn a_socket_that_is_removed_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let flags =
            ["bulkhead-agent", "--node-name", "n1", "--node-ip", "10.0.0.1", "--run-dir", run.to_str().unwrap()];
        let config = Args::try_parse_from(flags).unwrap().into_config(|| None).unwrap();
        let path = socket_path(&run);
        serve(Arc::new(Agent::new(config, Arc::new(Shared::default())))).unwrap();
        let answers = |path: &Path| matches!(ask(path), Ok(Reply::Status(_)));
        assert!(answers(&path));
        fs::remove_dir_all(&run).unwrap();
        assert!(!answers(&path));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !answers(&path) {
            assert!(Instant::now() < deadline, "nobody made the socket anew");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // Another agent's is left alone.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        let other = Listener { socket: other, file: file_at(&path), path };
        // What it does after the first question it has done by the second.
        for _ in 0..2 {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !other.is_called().unwrap() {
                assert!(Instant::now() < deadline, "nobody asked whether it lives");
            }
            drop(other.socket.accept().unwrap());
        }
        assert!(other.is_in_place());
    }
}
