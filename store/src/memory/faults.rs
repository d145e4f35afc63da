//! Faults that a test injects into one in-memory client.
//!
//! They model what the client sees of a broken etcd or network; the server ([`Twin`]) goes on for everybody else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Twin;
use crate::error::StoreError;

/// What happens to writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WriteFault {
    /// They work.
    #[default]
    None,
    /// They are not sent: [`StoreError::Unreachable`].
    Unreachable,
    /// They are applied, but the answer is lost: [`StoreError::OutcomeUnknown`].
    UnknownApplied,
    /// They are lost on the way: [`StoreError::OutcomeUnknown`].
    UnknownLost,
}

#[derive(Debug, Default)]
struct Switches {
    reads: bool,
    /// How many more writes are sent before reads fail.
    reads_after: Option<usize>,
    writes: WriteFault,
    next_write: Option<WriteFault>,
    watches: bool,
    keep_alives: bool,
    cuts: u64,
}

/// The faults of one client and its clones. All are off at first and hold until switched off.
#[derive(Debug, Clone)]
pub struct Faults {
    twin: Twin,
    switches: Arc<Mutex<Switches>>,
}

impl Faults {
    pub(super) fn new(twin: Twin) -> Self {
        Self { twin, switches: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn twin_ref(&self) -> &Twin {
        &self.twin
    }

    /// The server behind this client.
    pub fn twin(&self) -> Twin {
        self.twin.clone()
    }

    /// Cuts the client off entirely (reads, writes, watches, keep-alives), or reconnects it.
    pub fn unreachable(&self, on: bool) {
        {
            let mut switches = self.lock();
            switches.reads = on;
            switches.watches = on;
            switches.keep_alives = on;
            switches.writes = if on { WriteFault::Unreachable } else { WriteFault::None };
        }
        self.twin.shared.wake();
    }

    /// Lets reads fail as unreachable.
    pub fn fail_reads(&self, on: bool) {
        self.lock().reads = on;
    }

    /// Lets reads fail as unreachable once so many more writes were sent, whatever became of those.
    pub fn fail_reads_after(&self, writes: usize) {
        self.lock().reads_after = Some(writes);
    }

    /// Whether reads fail now.
    pub fn reads_fail(&self) -> bool {
        self.lock().reads
    }

    /// Lets all writes fail.
    pub fn fail_writes(&self, fault: WriteFault) {
        self.lock().writes = fault;
    }

    /// Lets only the next write fail.
    pub fn fail_next_write(&self, fault: WriteFault) {
        self.lock().next_write = Some(fault);
    }

    /// Breaks running watches and lets new ones fail.
    pub fn fail_watches(&self, on: bool) {
        self.lock().watches = on;
        self.twin.shared.wake();
    }

    /// Lets lease keep-alives fail as unreachable, so that leases of this client run out.
    pub fn fail_keep_alives(&self, on: bool) {
        self.lock().keep_alives = on;
    }

    /// Breaks the running watches of this client once.
    pub fn cut_watches(&self) {
        self.lock().cuts += 1;
        self.twin.shared.wake();
    }

    pub(super) fn cuts(&self) -> u64 {
        self.lock().cuts
    }

    pub(super) fn check_read(&self) -> Result<(), StoreError> {
        fail_if(self.lock().reads)
    }

    pub(super) fn check_watch(&self) -> Result<(), StoreError> {
        fail_if(self.lock().watches)
    }

    pub(super) fn check_keep_alive(&self) -> Result<(), StoreError> {
        fail_if(self.lock().keep_alives)
    }

    pub(super) fn take_write_fault(&self) -> WriteFault {
        let mut switches = self.lock();
        switches.reads_after = switches.reads_after.map(|left| left.saturating_sub(1));
        if switches.reads_after == Some(0) {
            (switches.reads, switches.reads_after) = (true, None);
        }
        switches.next_write.take().unwrap_or(switches.writes)
    }
}

fn fail_if(on: bool) -> Result<(), StoreError> {
    if on { Err(unreachable()) } else { Ok(()) }
}

pub(super) fn unreachable() -> StoreError {
    StoreError::Unreachable { endpoints: "in memory".to_owned(), source: "injected fault".into() }
}

pub(super) fn outcome_unknown() -> StoreError {
    StoreError::OutcomeUnknown { what: "the transaction".to_owned(), source: "injected fault".into() }
}

pub(super) fn cut() -> StoreError {
    StoreError::WatchBroken { source: "injected cut".into() }
}
