//! 1-byte ping-pong between two network namespaces, both ends pinned to one core: what a path costs, without the scheduler's
//! dice. Across cores the wake-up costs several times the path, whatever the path is.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Round trips before the first that counts: caches, neighbours, the route.
const WARM_UP: usize = 1_000;
/// The sockets wait without a timeout of their own (arming one costs); this ends a run whose packets are lost.
const LIMIT: Duration = Duration::from_mins(1);

/// How the byte travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Connected UDP at the client.
    Udp,
    /// TCP without Nagle's delay.
    Tcp,
}

impl Transport {
    /// Its name in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }
}

/// The core that both ends run on: the last one that this process may use, for the first takes most interrupts.
pub fn core() -> Result<usize, LabError> {
    let allowed = sched_getaffinity(None).tried(|| "ask for the allowed cores".into())?;
    Ok((0..CpuSet::MAX_CPU).rev().find(|core| allowed.is_set(*core)).unwrap_or_default())
}

/// Binds the calling thread to a core.
fn pin(core: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(core);
    Ok(sched_setaffinity(None, &only)?)
}

/// The time of each of `count` round trips from one namespace to an address in another, in microseconds.
pub fn measure(
    transport: Transport,
    from: &Netns,
    (to, address): (&Netns, Ipv4Addr),
    core: usize,
    count: usize,
) -> Result<Vec<f64>, LabError> {
    let what = || format!("{} ping-pong from {} to {}", transport.name(), from.name(), to.name());
    let (done, times) = mpsc::channel();
    let total = WARM_UP + count;
    match transport {
        Transport::Udp => {
            let server = to.run(move || UdpSocket::bind((address, 0)))?.tried(what)?;
            let peer = server.local_addr().tried(what)?;
            to.thread("pong", move || pin(core).and_then(|()| answer_udp(&server, total)))?;
            from.thread("ping", move || done.send(pin(core).and_then(|()| ask_udp(peer, total))))?;
        }
        Transport::Tcp => {
            let server = to.run(move || TcpListener::bind((address, 0)))?.tried(what)?;
            let peer = server.local_addr().tried(what)?;
            to.thread("pong", move || pin(core).and_then(|()| answer_tcp(&server, total)))?;
            from.thread("ping", move || done.send(pin(core).and_then(|()| ask_tcp(peer, total))))?;
        }
    }
    let mut times = match times.recv_timeout(LIMIT) {
        Ok(times) => times.tried(what)?,
        Err(RecvTimeoutError::Timeout) => {
            return Err(LabError::TimedOut { what: what(), waited: LIMIT, detail: "; was a packet lost?".into() });
        }
        Err(RecvTimeoutError::Disconnected) => return Err(LabError::ThreadGone(from.name().into())),
    };
    times.drain(..WARM_UP.min(times.len()));
    Ok(times)
}

fn answer_udp(server: &UdpSocket, total: usize) -> io::Result<()> {
    let mut byte = [0];
    for _ in 0..total {
        let (_, peer) = server.recv_from(&mut byte)?;
        server.send_to(&byte, peer)?;
    }
    Ok(())
}

fn ask_udp(peer: SocketAddr, total: usize) -> io::Result<Vec<f64>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(peer)?;
    let mut byte = [0];
    ping(total, || {
        socket.send(&[1])?;
        socket.recv(&mut byte).map(drop)
    })
}

fn answer_tcp(server: &TcpListener, total: usize) -> io::Result<()> {
    let (mut stream, _) = server.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    for _ in 0..total {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask_tcp(peer: SocketAddr, total: usize) -> io::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(peer)?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    ping(total, || {
        stream.write_all(&[1])?;
        stream.read_exact(&mut byte)
    })
}

fn ping(total: usize, mut once: impl FnMut() -> io::Result<()>) -> io::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(total);
    for _ in 0..total {
        let begin = Instant::now();
        once()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
