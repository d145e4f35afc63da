//! How fast payload arrives: bytes counted by the receiver over a window after the burst is spent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::error::{LabError, Tried};

/// The most of a rate that TCP payload can be at an MTU: Ethernet, IPv4 and TCP (with timestamps) headers take the rest. The
/// shaper counts the Ethernet header, not preamble and gap.
pub fn share_of_payload(mtu: u32) -> f64 {
    let mtu = f64::from(mtu);
    (mtu - 20.0 - 32.0) / (mtu + 14.0)
}

/// When how much had arrived. A slow link delivers in lumps: the rate is that between two arrivals, not between two moments.
#[derive(Debug, Default)]
struct Arrivals(Vec<(Instant, u64)>);

impl Arrivals {
    /// Arrivals less than this apart are one lump.
    const LUMP: Duration = Duration::from_millis(1);

    fn add(&mut self, bytes: u64) {
        let now = Instant::now();
        let total = self.0.last().map_or(0, |(_, total)| *total) + bytes;
        match self.0.last_mut() {
            Some((at, last)) if now - *at < Self::LUMP => *last = total,
            _ => self.0.push((now, total)),
        }
    }

    fn rate(&self, from: Instant, to: Instant) -> Option<f64> {
        let (first, before) = self.0.iter().find(|(at, _)| *at >= from)?;
        let (last, after) = self.0.iter().rev().find(|(at, _)| *at <= to)?;
        let took = last.checked_duration_since(*first).filter(|took| !took.is_zero())?;
        Some(bits(after - before) / took.as_secs_f64())
    }
}

/// Payload bits per second from one endpoint to another by TCP, measured for `window` after `warm_up`.
pub fn tcp(from: &Endpoint, to: &Endpoint, warm_up: Duration, window: Duration) -> Result<f64, LabError> {
    let what = || format!("measure TCP from {from} to {to}");
    let listener = to.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?.tried(what)?;
    let peer = SocketAddr::from((to.address(), listener.local_addr().tried(what)?.port()));
    let begin = Instant::now();
    let (measured_from, measured_to) = (begin + warm_up, begin + warm_up + window);
    let receiver = thread::spawn(move || -> std::io::Result<Arrivals> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (mut buffer, mut arrivals) = (vec![0; 256 << 10], Arrivals::default());
        while Instant::now() < measured_to {
            match stream.read(&mut buffer)? {
                0 => break,
                length => arrivals.add(length as u64),
            }
        }
        Ok(arrivals)
    });
    let mut stream =
        from.netns().aside(move || TcpStream::connect_timeout(&peer, Duration::from_secs(10)))?.tried(what)?;
    stream.set_write_timeout(Some(Duration::from_secs(10))).tried(what)?;
    let buffer = vec![0; 128 << 10];
    // Ends when the receiver, having seen enough, closes.
    while stream.write(&buffer).is_ok() {}
    let arrivals = receiver.join().map_err(|_| LabError::ThreadGone("the measurement".into()))?.tried(what)?;
    let none = || LabError::Broken(format!("{}: nothing arrived in {window:?}", what()));
    arrivals.rate(measured_from, measured_to).ok_or_else(none)
}

/// Bytes as bits.
pub fn bits(bytes: u64) -> f64 {
    // Below 2^53 for any run of this lab.
    #[allow(clippy::cast_precision_loss)]
    let bits = (bytes * 8) as f64;
    bits
}

/// `1.5M`, `938k`: a rate for people.
pub fn rate(bits_per_second: f64) -> String {
    let (value, unit) = match bits_per_second {
        rate if rate >= 1e9 => (rate / 1e9, "G"),
        rate if rate >= 1e6 => (rate / 1e6, "M"),
        rate if rate >= 1e3 => (rate / 1e3, "k"),
        rate => (rate, ""),
    };
    format!("{value:.2} {unit}bit/s")
}
