//! What answers in each endpoint: an echo on TCP and UDP, a service that says whom it sees, and a sink.
//!
//! | port | TCP | UDP |
//! |---|---|---|
//! | 7 | echoes | echoes |
//! | 8 | writes the peer's address and port, closes | answers with the peer's address and port |
//! | 9 | reads and forgets | reads and forgets |

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::error::{LabError, Tried};
use crate::netns::Netns;

/// The echo's port.
pub const ECHO: u16 = 7;
/// The port that tells the peer's address.
pub const WHOAMI: u16 = 8;
/// The sink's port.
pub const DISCARD: u16 = 9;
const PORTS: [u16; 3] = [ECHO, WHOAMI, DISCARD];

/// Servers in one namespace; stopped when dropped.
#[derive(Debug)]
pub struct EchoServers {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl EchoServers {
    /// Starts them on all addresses of the namespace.
    pub fn start(netns: &Netns) -> Result<Self, LabError> {
        let what = || format!("listen in {}", netns.name());
        let sockets = netns.run(bind_all)?.tried(what)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).tried(what)?);
        let connections = Arc::<Mutex<Vec<JoinHandle<()>>>>::default();
        let (stop_too, connections_too) = (Arc::clone(&stop), Arc::clone(&connections));
        let thread = netns.thread("echo", move || serve(&sockets, &stop_too, &connections_too))?;
        Ok(Self { stop, thread: Some(thread), connections })
    }
}

impl Drop for EchoServers {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
        let connections = std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        connections.into_iter().for_each(|thread| drop(thread.join()));
    }
}

type Sockets = Vec<(u16, TcpListener, UdpSocket)>;

fn bind_all() -> io::Result<Sockets> {
    let bind = |port| {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&udp, 8 << 20)?;
        Ok((port, tcp, udp))
    };
    PORTS.into_iter().map(bind).collect()
}

fn serve(sockets: &Sockets, stop: &Arc<OwnedFd>, connections: &Mutex<Vec<JoinHandle<()>>>) {
    let mut buffer = vec![0; 65536];
    loop {
        let mut ready: Vec<PollFd<'_>> = sockets
            .iter()
            .flat_map(|(_, tcp, udp)| [tcp.as_fd(), udp.as_fd()])
            .chain([stop.as_fd()])
            .map(readable)
            .collect();
        if poll(&mut ready, None).is_err() {
            continue;
        }
        if ready.last().is_some_and(|stop| !stop.revents().is_empty()) {
            return;
        }
        for (port, tcp, udp) in sockets {
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                let seen = peer.to_string();
                let answer = match *port {
                    ECHO => &buffer[..length],
                    WHOAMI => seen.as_bytes(),
                    _ => continue,
                };
                // What cannot be sent is lost, as UDP is.
                drop(udp.send_to(answer, peer));
            }
            while let Ok((stream, _)) = tcp.accept() {
                let (port, stop) = (*port, Arc::clone(stop));
                let thread = thread::spawn(move || drop(converse(port, &stream, &stop)));
                let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
                connections.retain(|thread| !thread.is_finished());
                connections.push(thread);
            }
        }
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

fn converse(port: u16, stream: &TcpStream, stop: &OwnedFd) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut stream = stream;
    if port == WHOAMI {
        return write!(stream, "{}", stream.peer_addr()?);
    }
    stream.set_write_timeout(Some(std::time::Duration::from_secs(2)))?;
    let mut buffer = vec![0; 65536];
    loop {
        let mut ready = [readable(stream.as_fd()), readable(stop.as_fd())];
        poll(&mut ready, None)?;
        if !ready[1].revents().is_empty() {
            return Ok(());
        }
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if port == ECHO {
            stream.write_all(&buffer[..length])?;
        }
    }
}
