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
    /// Starts them: TCP on all addresses of the namespace, UDP on these, so that an answer comes from the address that was
    /// asked.
    pub fn start(netns: &Netns, addresses: &[Ipv4Addr]) -> Result<Self, LabError> {
        let addresses = addresses.to_vec();
        let what = || format!("listen in {}", netns.name());
        let sockets = netns.run(move || bind_all(&addresses))?.tried(what)?;
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
        for thread in connections {
            drop(thread.join());
        }
    }
}

#[derive(Debug)]
struct Sockets {
    tcp: Vec<(u16, TcpListener)>,
    udp: Vec<(u16, UdpSocket)>,
}

fn bind_all(addresses: &[Ipv4Addr]) -> io::Result<Sockets> {
    let mut sockets = Sockets { tcp: Vec::new(), udp: Vec::new() };
    for port in PORTS {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        tcp.set_nonblocking(true)?;
        sockets.tcp.push((port, tcp));
        for address in addresses {
            let udp = UdpSocket::bind((*address, port))?;
            udp.set_nonblocking(true)?;
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&udp, 8 << 20)?;
            sockets.udp.push((port, udp));
        }
    }
    Ok(sockets)
}

fn serve(sockets: &Sockets, stop: &Arc<OwnedFd>, connections: &Mutex<Vec<JoinHandle<()>>>) {
    let mut buffer = vec![0; 65536];
    loop {
        let tcp = sockets.tcp.iter().map(|(_, listener)| listener.as_fd());
        let udp = sockets.udp.iter().map(|(_, socket)| socket.as_fd());
        let mut ready: Vec<PollFd<'_>> = tcp.chain(udp).chain([stop.as_fd()]).map(readable).collect();
        if poll(&mut ready, None).is_err() {
            continue;
        }
        if ready.last().is_some_and(|stop| !stop.revents().is_empty()) {
            return;
        }
        sockets.udp.iter().for_each(|(port, socket)| answer(*port, socket, &mut buffer));
        for (port, listener) in &sockets.tcp {
            while let Ok((stream, _)) = listener.accept() {
                let (port, stop) = (*port, Arc::clone(stop));
                let thread = thread::spawn(move || drop(converse(port, &stream, &stop)));
                let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
                connections.retain(|thread| !thread.is_finished());
                connections.push(thread);
            }
        }
    }
}

fn answer(port: u16, socket: &UdpSocket, buffer: &mut [u8]) {
    while let Ok((length, peer)) = socket.recv_from(buffer) {
        let seen = peer.to_string();
        let answer = match port {
            ECHO => &buffer[..length],
            WHOAMI => seen.as_bytes(),
            _ => continue,
        };
        // What cannot be sent is lost, as UDP is.
        drop(socket.send_to(answer, peer));
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
