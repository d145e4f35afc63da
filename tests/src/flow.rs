//! Traffic that runs while something is changed, and says afterwards what it felt.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::echo::ECHO;
use crate::endpoint::Endpoint;
use crate::error::{LabError, Tried};
use crate::icmp::{Heard, Pinger};
use crate::probe::fresh_id;

/// One packet each millisecond.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long the last packets may be under way after the sender stopped, on a machine that stands still for a while.
const DRAIN: Duration = Duration::from_secs(3);

/// What became of a flow's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Packets sent.
    pub sent: u64,
    /// Of them, how many never arrived.
    pub lost: u64,
    /// Arrived more than once.
    pub duplicates: u64,
    /// Sends that the kernel refused; not among `sent`.
    pub refused: u64,
    /// The longest time without an arrival.
    pub longest_gap: Duration,
    /// The numbers of the first lost packets, as ranges.
    pub lost_ranges: Vec<(u64, u64)>,
}

impl Loss {
    /// Nothing was lost or refused, and there was something to lose.
    pub fn is_none(&self) -> bool {
        self.sent > 0 && self.lost == 0 && self.refused == 0
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} lost", self.sent, self.lost)?;
        if self.refused > 0 {
            write!(f, ", {} refused", self.refused)?;
        }
        if let Some((first, last)) = self.lost_ranges.first() {
            write!(f, " (first: {first}-{last})")?;
        }
        write!(f, ", longest gap {:.1} ms", self.longest_gap.as_secs_f64() * 1000.0)
    }
}

/// Which numbers have arrived.
#[derive(Debug, Default)]
struct Arrivals {
    seen: Vec<bool>,
    count: u64,
    duplicates: u64,
    last: Option<Instant>,
    longest_gap: Duration,
}

impl Arrivals {
    fn mark(&mut self, number: u64) {
        let Ok(index) = usize::try_from(number) else { return };
        if index >= self.seen.len() {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.duplicates += 1;
            return;
        }
        self.count += 1;
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
    }

    fn loss(mut self, sent: u64, refused: u64) -> Loss {
        self.seen.resize(usize::try_from(sent).unwrap_or_default(), false);
        let mut lost_ranges: Vec<(u64, u64)> = Vec::new();
        for (number, _) in (0..sent).zip(&self.seen).filter(|(_, seen)| !**seen) {
            match lost_ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => lost_ranges.push((number, number)),
            }
        }
        lost_ranges.truncate(8);
        let (lost, duplicates, longest_gap) = (sent - self.count.min(sent), self.duplicates, self.longest_gap);
        Loss { sent, lost, duplicates, refused, longest_gap, lost_ranges }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    refused: AtomicU64,
}

/// Calls `send` with rising numbers until stopped.
fn pace(shared: &Shared, interval: Duration, mut send: impl FnMut(u64) -> io::Result<()>) {
    let mut next = Instant::now();
    while !shared.stop.load(Ordering::Acquire) {
        let number = shared.sent.load(Ordering::Acquire);
        match send(number) {
            Ok(()) => shared.sent.store(number + 1, Ordering::Release),
            Err(_) => {
                shared.refused.fetch_add(1, Ordering::AcqRel);
            }
        }
        next += interval;
        let now = Instant::now();
        match next.checked_duration_since(now) {
            Some(early) => thread::sleep(early),
            // A machine that stood still is no reason for a burst.
            None => next = now,
        }
    }
}

/// Receives until everything sent has arrived, or nothing more is to be expected.
fn collect(shared: &Shared, mut receive: impl FnMut() -> Option<u64>) -> Arrivals {
    let mut arrivals = Arrivals::default();
    let mut stopped: Option<Instant> = None;
    loop {
        if let Some(number) = receive() {
            arrivals.mark(number);
        }
        if shared.stop.load(Ordering::Acquire) {
            let since = *stopped.get_or_insert_with(Instant::now);
            if arrivals.count >= shared.sent.load(Ordering::Acquire) && since.elapsed() > 2 * INTERVAL
                || since.elapsed() > DRAIN
            {
                return arrivals;
            }
        }
    }
}

/// Numbered packets, one each millisecond unless said otherwise, each missed when it does not come.
#[derive(Debug)]
pub struct PacketFlow {
    name: String,
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<Arrivals>>,
}

impl PacketFlow {
    /// Pings an address; what counts is the round trip.
    pub fn ping(from: &Endpoint, to: Ipv4Addr) -> Result<Self, LabError> {
        Self::ping_each(INTERVAL, from, to)
    }

    /// As [`Self::ping`] with another time between two packets.
    pub fn ping_each(interval: Duration, from: &Endpoint, to: Ipv4Addr) -> Result<Self, LabError> {
        let shared = Arc::<Shared>::default();
        let id = fresh_id();
        let open = from.netns().run(move || Pinger::open(to, id))?;
        let pinger = Arc::new(open.tried(|| format!("ping from {from}"))?);
        pinger.set_patience(Duration::from_millis(20)).tried(|| format!("ping from {from}"))?;
        let (pings, counts) = (Arc::clone(&pinger), Arc::clone(&shared));
        let receiver = thread::spawn({
            let shared = Arc::clone(&shared);
            let mut buffer = vec![0; 65536];
            move || {
                collect(&shared, || match pinger.hear(&mut buffer) {
                    Ok(Heard::Reply(number, _)) => Some(number),
                    _ => None,
                })
            }
        });
        let sender = thread::spawn(move || pace(&counts, interval, |number| pings.send(number, 12)));
        Ok(Self { name: format!("ping {from} -> {to}"), shared, sender: Some(sender), receiver: Some(receiver) })
    }

    /// Sends datagrams to an endpoint; what counts is their arrival there.
    pub fn udp(from: &Endpoint, to: &Endpoint) -> Result<Self, LabError> {
        let shared = Arc::<Shared>::default();
        let what = || format!("send datagrams from {from} to {to}");
        let inbox = to.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.tried(what)?;
        inbox.set_read_timeout(Some(Duration::from_millis(20))).tried(what)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&inbox, 8 << 20).tried(what)?;
        let peer = SocketAddr::from((to.address(), inbox.local_addr().tried(what)?.port()));
        let outbox = from.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.tried(what)?;
        let counts = Arc::clone(&shared);
        let receiver = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut buffer = [0; 64];
                collect(&shared, || {
                    let length = inbox.recv(&mut buffer).ok()?;
                    buffer[..length].try_into().ok().map(u64::from_be_bytes)
                })
            }
        });
        let send = move |number: u64| outbox.send_to(&number.to_be_bytes(), peer).map(drop);
        let sender = thread::spawn(move || pace(&counts, INTERVAL, send));
        Ok(Self { name: format!("udp {from} -> {to}"), shared, sender: Some(sender), receiver: Some(receiver) })
    }

    /// What it is, for tables.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }

    /// Ends the flow and counts.
    pub fn stop(mut self) -> Loss {
        self.shared.stop.store(true, Ordering::Release);
        self.sender.take().into_iter().for_each(|sender| drop(sender.join()));
        let arrivals = self.receiver.take().and_then(|receiver| receiver.join().ok()).unwrap_or_default();
        arrivals.loss(self.shared.sent.load(Ordering::Acquire), self.shared.refused.load(Ordering::Acquire))
    }
}

impl Drop for PacketFlow {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

/// What a TCP conversation felt.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Bytes that went there and came back.
    pub bytes: u64,
    /// The longest time in which nothing came back.
    pub longest_stall: Duration,
    /// Why the connection broke, if it did.
    pub broken: Option<String>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stall = self.longest_stall.as_secs_f64() * 1000.0;
        write!(f, "{} KiB echoed, longest stall {stall:.1} ms", self.bytes >> 10)?;
        self.broken.iter().try_for_each(|why| write!(f, ", broken: {why}"))
    }
}

/// A TCP connection over which an endpoint's echo returns 8 KiB about each millisecond.
#[derive(Debug)]
pub struct TcpFlow {
    name: String,
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    thread: Option<JoinHandle<Progress>>,
}

impl TcpFlow {
    /// Connects and starts; fails if the connection cannot be made.
    pub fn start(from: &Endpoint, to: &Endpoint) -> Result<Self, LabError> {
        Self::start_at(from, to.address(), ECHO)
    }

    /// As [`Self::start`], to an echo at any address and port.
    pub fn start_at(from: &Endpoint, to: Ipv4Addr, port: u16) -> Result<Self, LabError> {
        let stop = Arc::<AtomicBool>::default();
        let peer = SocketAddr::from((to, port));
        let stream = from.netns().aside(move || TcpStream::connect_timeout(&peer, Duration::from_secs(10)))?;
        let stream = stream.tried(|| format!("connect from {from} to {peer}"))?;
        let echoed = Arc::<AtomicU64>::default();
        let thread = thread::spawn({
            let (stop, echoed) = (Arc::clone(&stop), Arc::clone(&echoed));
            move || converse(stream, &stop, &echoed)
        });
        Ok(Self { name: format!("tcp {from} -> {to}"), stop, echoed, thread: Some(thread) })
    }

    /// What it is, for tables.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that came back so far.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::Acquire)
    }

    /// Ends the connection and reports.
    pub fn stop(mut self) -> Progress {
        self.stop.store(true, Ordering::Release);
        let lost = || Progress { bytes: 0, longest_stall: Duration::MAX, broken: Some("its thread failed".into()) };
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_else(lost)
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn converse(mut stream: TcpStream, stop: &AtomicBool, echoed: &AtomicU64) -> Progress {
    let mut progress = Progress { bytes: 0, longest_stall: Duration::ZERO, broken: None };
    let (sent, mut received) = ([0x5a; 8192], [0; 8192]);
    let patience = Some(Duration::from_secs(10));
    let mut round = || {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        stream.write_all(&sent)?;
        stream.read_exact(&mut received)
    };
    while !stop.load(Ordering::Acquire) {
        let begin = Instant::now();
        let outcome = round();
        progress.longest_stall = progress.longest_stall.max(begin.elapsed());
        if let Err(error) = outcome {
            progress.broken = Some(error.to_string());
            break;
        }
        progress.bytes += sent.len() as u64;
        echoed.store(progress.bytes, Ordering::Release);
        // Its pace: it waits for nothing.
        thread::sleep(INTERVAL);
    }
    progress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_that_is_missing_is_counted_once() {
        let mut arrivals = Arrivals::default();
        for number in [0, 1, 4, 4, 5] {
            arrivals.mark(number);
        }
        let loss = arrivals.loss(8, 1);
        assert_eq!((loss.sent, loss.lost, loss.duplicates, loss.refused), (8, 4, 1, 1));
        assert_eq!(loss.lost_ranges, [(2, 3), (6, 7)]);
        assert!(!loss.is_none());
    }
}
