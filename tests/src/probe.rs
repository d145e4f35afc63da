//! Does a packet get from here to there and its answer back?

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::echo::{ECHO, WHOAMI};
use crate::endpoint::Endpoint;
use crate::error::{LabError, Tried};
use crate::icmp::{Heard, Pinger};
use crate::wait;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// An echo request.
    Icmp,
    /// A connection and an echo over it.
    Tcp,
    /// A datagram and its echo.
    Udp,
}

impl Proto {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Icmp, Self::Tcp, Self::Udp];
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// How long an answer is awaited where one is expected.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long one is awaited where none is.
pub const SILENCE: Duration = Duration::from_millis(400);
/// What is sent unless a size is given.
const SMALL: usize = 32;

static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// A number that no other prober of this process uses.
pub fn fresh_id() -> u16 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Whether an answer comes back in time. Datagrams are sent again while it does not.
pub fn reaches(from: &Endpoint, to: Ipv4Addr, proto: Proto, within: Duration) -> Result<bool, LabError> {
    reaches_with(from, to, ECHO, proto, SMALL, within)
}

/// As [`reaches`], to a port of choice with a payload of `size` bytes.
pub fn reaches_with(
    from: &Endpoint,
    to: Ipv4Addr,
    port: u16,
    proto: Proto,
    size: usize,
    within: Duration,
) -> Result<bool, LabError> {
    from.netns().aside(move || match proto {
        Proto::Icmp => ping(to, size, within),
        Proto::Tcp => tcp_echo((to, port).into(), size, within),
        Proto::Udp => udp_echo((to, port).into(), size, within),
    })
}

/// Fails unless every protocol passes.
pub fn expect_reaches(from: &Endpoint, to: &Endpoint) -> Result<(), LabError> {
    for proto in Proto::ALL {
        if !reaches(from, to.address(), proto, PATIENCE)? {
            return Err(wrong(from, to.name(), proto, "does not pass but should"));
        }
    }
    Ok(())
}

/// Fails if anything passes; `control` must be reached in the same time, so that silence means something.
pub fn expect_silence(from: &Endpoint, to: &Endpoint, control: &Endpoint) -> Result<(), LabError> {
    for proto in Proto::ALL {
        if reaches(from, to.address(), proto, SILENCE)? {
            return Err(wrong(from, to.name(), proto, "passes but should not"));
        }
    }
    expect_reaches(from, control)
}

/// Waits until `proto` passes; says after how long.
pub fn await_reaches(from: &Endpoint, to: &Endpoint, proto: Proto, limit: Duration) -> Result<Duration, LabError> {
    let begin = Instant::now();
    let step = Duration::from_millis(100);
    wait::until(&format!("{proto} from {from} to {to}"), limit, || {
        reaches(from, to.address(), proto, step).is_ok_and(|reached| reached).then_some(())
    })?;
    Ok(begin.elapsed())
}

/// Waits until `proto` no longer passes; says after how long the last answer came.
pub fn await_silence(from: &Endpoint, to: &Endpoint, proto: Proto, limit: Duration) -> Result<Duration, LabError> {
    let begin = Instant::now();
    let mut last = Duration::ZERO;
    wait::until(&format!("silence for {proto} from {from} to {to}"), limit, || {
        if reaches(from, to.address(), proto, Duration::from_millis(250)).is_ok_and(|reached| reached) {
            last = begin.elapsed();
            return None;
        }
        Some(())
    })?;
    Ok(last)
}

/// Whom the endpoint at `to` sees when `from` speaks to it; an error when it does not answer.
pub fn seen_as(from: &Endpoint, to: Ipv4Addr, port: u16, proto: Proto) -> Result<SocketAddr, LabError> {
    let peer = SocketAddr::from((to, port));
    let text = from.netns().aside(move || match proto {
        Proto::Tcp => {
            let mut stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        }
        Proto::Udp => udp_exchange(peer, b"who", PATIENCE).map(|answer| String::from_utf8_lossy(&answer).into_owned()),
        Proto::Icmp => Err(io::Error::from(io::ErrorKind::Unsupported)),
    })?;
    let text = text.tried(|| format!("{proto} from {from} to {peer}"))?;
    text.parse().map_err(|_| LabError::Refused { what: format!("whom does {peer} see"), answer: text })
}

/// [`seen_as`] at an endpoint's own service.
pub fn seen_by(from: &Endpoint, to: &Endpoint, proto: Proto) -> Result<Ipv4Addr, LabError> {
    match seen_as(from, to.address(), WHOAMI, proto)? {
        SocketAddr::V4(seen) => Ok(*seen.ip()),
        SocketAddr::V6(seen) => Err(LabError::Refused { what: "an IPv4 address".into(), answer: seen.to_string() }),
    }
}

fn wrong(from: &Endpoint, to: &str, proto: Proto, what: &str) -> LabError {
    LabError::Refused { what: format!("{proto} from {from} to {to}"), answer: what.to_owned() }
}

fn ping(to: Ipv4Addr, size: usize, within: Duration) -> bool {
    let run = || -> io::Result<bool> {
        let end = Instant::now() + within;
        let pinger = Pinger::open(to, fresh_id())?;
        pinger.set_patience(Duration::from_millis(20))?;
        let (mut number, mut next, mut buffer) = (0, Instant::now(), vec![0; 65536]);
        while Instant::now() < end {
            if Instant::now() >= next {
                // An error here may be the kernel telling of a smaller MTU: the next try fragments.
                drop(pinger.send(number, size));
                number += 1;
                next += Duration::from_millis(100);
            }
            if matches!(pinger.hear(&mut buffer), Ok(Heard::Reply(_, length)) if length >= size) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    run().unwrap_or(false)
}

fn tcp_echo(peer: SocketAddr, size: usize, within: Duration) -> bool {
    let run = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&peer, within)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        let sent: Vec<u8> = pattern(size);
        let mut received = vec![0; size];
        stream.write_all(&sent)?;
        stream.read_exact(&mut received)?;
        Ok(sent == received)
    };
    run().unwrap_or(false)
}

fn udp_echo(peer: SocketAddr, size: usize, within: Duration) -> bool {
    let sent = pattern(size);
    udp_exchange(peer, &sent, within).is_ok_and(|received| received == sent)
}

fn udp_exchange(peer: SocketAddr, sent: &[u8], within: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + within;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(peer)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = vec![0; 65536];
    while Instant::now() < end {
        // An ICMP error of an earlier try is reported here; the next try may pass.
        drop(socket.send(sent));
        if let Ok(length) = socket.recv(&mut buffer) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Bytes that no kernel makes by accident.
fn pattern(size: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(size).collect()
}

/// Sends datagrams of `size` bytes that may not be fragmented until the sending kernel has learned a smaller path MTU; gives
/// what it learned.
pub fn learned_mtu(from: &Endpoint, to: Ipv4Addr, size: usize, within: Duration) -> Result<Option<u32>, LabError> {
    use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover};
    let run = move || -> io::Result<Option<u32>> {
        let end = Instant::now() + within;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
        socket.connect((to, ECHO))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        // What an earlier packet has taught counts too: then the first send is refused by the pod's own stack.
        let (packet, mut buffer) = (size + 28, [0; 2048]);
        while Instant::now() < end {
            drop(socket.send(&pattern(size)));
            drop(socket.recv(&mut buffer));
            let now = ip_mtu(&socket)?;
            if (now as usize) < packet {
                return Ok(Some(now));
            }
        }
        Ok(None)
    };
    from.netns().aside(run)?.tried(|| format!("learn the path MTU from {from} to {to}"))
}

/// Sends `count` datagrams of `size` bytes by one system call, to be cut by the kernel or device (as QUIC does); gives how many
/// arrive whole.
pub fn segmented_datagrams(from: &Endpoint, to: &Endpoint, size: u16, count: usize) -> Result<usize, LabError> {
    use std::os::fd::AsFd;
    let what = || format!("send segmented datagrams from {from} to {to}");
    let address = to.address();
    let inbox = to.netns().run(move || UdpSocket::bind((address, 0)))?.tried(what)?;
    inbox.set_read_timeout(Some(Duration::from_secs(3))).tried(what)?;
    let peer = SocketAddr::from((address, inbox.local_addr().tried(what)?.port()));
    let outbox = from.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.tried(what)?;
    crate::syscall::segment_datagrams(outbox.as_fd(), size).tried(what)?;
    let one = pattern(usize::from(size));
    outbox.send_to(&one.repeat(count), peer).tried(what)?;
    let (mut whole, mut buffer) = (0, vec![0; 65536]);
    while let Ok(length) = inbox.recv(&mut buffer) {
        whole += usize::from(buffer[..length] == one);
        if whole == count {
            break;
        }
    }
    Ok(whole)
}
