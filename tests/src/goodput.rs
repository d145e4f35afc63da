//! How fast payload arrives: bytes counted by the receiver over a window after the burst is spent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// Payload bits per second from one endpoint to another by TCP, measured for `window` after `warm_up`.
pub fn tcp(from: &Endpoint, to: &Endpoint, warm_up: Duration, window: Duration) -> Result<f64, LabError> {
    let what = || format!("measure TCP from {from} to {to}");
    let listener = to.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?.tried(what)?;
    let peer = SocketAddr::from((to.address(), listener.local_addr().tried(what)?.port()));
    let (count, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let receiver = thread::spawn({
        let count = Arc::clone(&count);
        move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut buffer = vec![0; 256 << 10];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => count.fetch_add(length as u64, Ordering::AcqRel),
                };
            }
        }
    });
    let mut stream =
        from.netns().aside(move || TcpStream::connect_timeout(&peer, Duration::from_secs(3)))?.tried(what)?;
    let sender = thread::spawn({
        let stop = Arc::clone(&stop);
        move || -> std::io::Result<()> {
            stream.set_write_timeout(Some(Duration::from_secs(10)))?;
            let buffer = vec![0; 128 << 10];
            while !stop.load(Ordering::Acquire) {
                let _ = stream.write(&buffer)?;
            }
            Ok(())
        }
    });
    thread::sleep(warm_up);
    let (begin, before) = (Instant::now(), count.load(Ordering::Acquire));
    thread::sleep(window);
    let (took, after) = (begin.elapsed(), count.load(Ordering::Acquire));
    stop.store(true, Ordering::Release);
    for thread in [sender, receiver] {
        thread.join().map_err(|_| LabError::ThreadGone("the measurement".into()))?.tried(what)?;
    }
    Ok(bits(after - before) / took.as_secs_f64())
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
