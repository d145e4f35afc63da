//! Traffic that must not notice a change, judged as a whole; a machine that stood still is told from a network that lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::error::LabError;
use crate::flow::{PacketFlow, TcpFlow};

const INTERVAL: Duration = Duration::from_millis(1);

/// The longest time that TCP may take for one round trip under the lab's load; a lost segment costs 200 ms at least.
pub const STALL: Duration = Duration::from_millis(190);

/// Flows that must not notice anything.
#[derive(Debug, Default)]
pub struct Undisturbed {
    packets: Vec<PacketFlow>,
    streams: Vec<TcpFlow>,
    lateness: Option<Lateness>,
}

/// Watches how late the machine lets a thread run that wants to each millisecond: a stall of that length is nobody's loss.
#[derive(Debug)]
pub struct Lateness {
    stop: Arc<AtomicBool>,
    /// Microseconds.
    longest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Lateness {
    /// From here on the machine, not the network, may be why a conversation stalled.
    const BUSY: Duration = Duration::from_millis(50);

    /// Begins to watch.
    pub fn watch() -> Self {
        let (stop, longest) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = thread::spawn({
            let (stop, longest) = (Arc::clone(&stop), Arc::clone(&longest));
            move || {
                while !stop.load(Ordering::Acquire) {
                    let begin = Instant::now();
                    // What is measured is how much longer than that it takes.
                    thread::sleep(INTERVAL);
                    let late = begin.elapsed().saturating_sub(INTERVAL);
                    longest.fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::AcqRel);
                }
            }
        });
        Self { stop, longest, thread }
    }

    /// The longest so far.
    pub fn so_far(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Acquire))
    }

    /// Ends the watch; the longest of all.
    pub fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Release);
        let longest = Arc::clone(&self.longest);
        drop(self.thread.join());
        Duration::from_micros(longest.load(Ordering::Acquire))
    }
}

/// The longest stall that says nothing about the network. A round trip passes through four threads.
pub fn stall_limit(lateness: Duration) -> Duration {
    if lateness < Lateness::BUSY { STALL } else { STALL + 4 * lateness }
}

impl Undisturbed {
    /// A 1 ms ping and a TCP conversation for each pair.
    pub fn start(pairs: &[(&Endpoint, &Endpoint)]) -> Result<Self, LabError> {
        let mut all = Self { lateness: Some(Lateness::watch()), ..Self::default() };
        for (from, to) in pairs {
            all.packets.push(PacketFlow::ping(from, to.address())?);
            all.streams.push(TcpFlow::start(from, to)?);
        }
        Ok(all)
    }

    /// How late the machine has let a thread run at most since the flows began.
    pub fn lateness(&self) -> Duration {
        self.lateness.as_ref().map(Lateness::so_far).unwrap_or_default()
    }

    /// Stops all; an error names each that lost a packet or stalled.
    pub fn expect(self, during: &str) -> Result<(), LabError> {
        let mut wrong = Vec::new();
        let late = self.lateness.map(Lateness::longest).unwrap_or_default();
        println!("    the machine let threads wait for up to {:.1} ms", late.as_secs_f64() * 1000.0);
        for flow in self.packets {
            let name = flow.name().to_owned();
            let loss = flow.stop();
            println!("    {name}: {loss}");
            if !loss.is_none() {
                wrong.push(format!("{name}: {loss}"));
            }
        }
        for flow in self.streams {
            let name = flow.name().to_owned();
            let progress = flow.stop();
            println!("    {name}: {progress}");
            if progress.broken.is_some() || progress.bytes == 0 || progress.longest_stall > stall_limit(late) {
                wrong.push(format!("{name}: {progress}"));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(LabError::Broken(format!("{during}: what should not notice did\n{}", wrong.join("\n"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_segment_is_never_excused_on_a_calm_machine() {
        assert!(stall_limit(Duration::from_millis(49)) < Duration::from_millis(200));
        assert!(stall_limit(Duration::from_millis(100)) > Duration::from_millis(500));
    }
}
