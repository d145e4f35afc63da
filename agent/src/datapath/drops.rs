//! Why packets were dropped: counters by reason, and events with the tuple.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aya::maps::{MapData, PerCpuArray, RingBuf};

use super::abi::{DropCount, DropEvent};
use super::{DatapathError, map_error};

/// One line of `bpf/reasons.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// Its number in the maps.
    pub number: u32,
    /// Its name in counters.
    pub counter: &'static str,
    /// What it means, for a person.
    pub meaning: &'static str,
}

/// All reasons.
pub static REASONS: &[Reason] = include!(concat!(env!("OUT_DIR"), "/reasons.rs"));

/// The maps `drops` and `events`.
pub struct DropCounters {
    counts: Mutex<PerCpuArray<MapData, [u8; DropCount::SIZE]>>,
    events: Mutex<RingBuf<MapData>>,
}

impl DropCounters {
    pub(super) const fn new(counts: PerCpuArray<MapData, [u8; DropCount::SIZE]>, events: RingBuf<MapData>) -> Self {
        Self { counts: Mutex::new(counts), events: Mutex::new(events) }
    }

    /// Packets and bytes by reason, over all CPUs; reasons that never occurred are left out.
    pub fn read(&self) -> Result<BTreeMap<&'static str, DropCount>, DatapathError> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = BTreeMap::new();
        for reason in REASONS {
            let per_cpu = counts.get(&reason.number, 0).map_err(map_error("drops", "read"))?;
            let sum = per_cpu.iter().fold(DropCount::default(), |sum, bytes| {
                let one = DropCount::from_bytes(*bytes);
                DropCount { packets: sum.packets + one.packets, bytes: sum.bytes + one.bytes }
            });
            if sum.packets > 0 {
                all.insert(reason.counter, sum);
            }
        }
        Ok(all)
    }

    /// Takes the events that have come since, at most `most`.
    pub fn take_events(&self, most: usize) -> Vec<DropEvent> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some(item) = events.next() else { break };
            taken.extend(DropEvent::from_bytes(&item));
        }
        taken
    }
}

impl DropEvent {
    /// Writes the event into the log, as one line.
    pub fn log(&self) {
        let reason = REASONS.iter().find(|reason| reason.number == self.reason);
        tracing::info!(
            reason = reason.map_or("unknown", |reason| reason.counter),
            meaning = reason.map_or("", |reason| reason.meaning),
            ifindex = self.ifindex,
            source = %format_args!("{}:{}", self.source.0, self.source.1),
            destination = %format_args!("{}:{}", self.destination.0, self.destination.1),
            protocol = self.protocol,
            source_vni = self.source_vni,
            destination_vni = self.destination_vni,
            "packet dropped"
        );
    }
}
