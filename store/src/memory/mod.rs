//! The in-memory twin of etcd: one server ([`Twin`]), any number of clients, each with its own faults.
//!
//! Promises the semantics that the store's users see of etcd: revisions, whole transactions, history until it is
//! compacted, leases that expire by the clock, restores. It has one member and no pages.

mod faults;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use faults::{Faults, WriteFault};
use state::State;

use crate::entry::{Changes, Entry, Snapshot};
use crate::error::StoreError;
use crate::store::{Granted, Store};
use crate::txn::{Outcome, Txn};
use crate::watch::Prefixes;

/// An in-memory etcd server; clones are the same server.
#[derive(Clone, Debug)]
pub struct Twin {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts up whenever a watch may have something to see.
    tick: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.tick.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A copy of a [`Twin`]'s data, as `etcdctl snapshot save` makes one.
#[derive(Clone, Debug)]
pub struct Checkpoint(State);

impl Default for Twin {
    fn default() -> Self {
        Self::new()
    }
}

impl Twin {
    /// An empty server at revision 1.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new()), tick: watch::Sender::new(0) }) }
    }

    /// A new client with faults of its own ([`Store::faults`]).
    pub fn store(&self) -> Store {
        Store::over(Client { faults: Faults::new(self.clone()) })
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.shared.lock().revision
    }

    /// Forgets the history up to the current revision; watches that have not read it yet break.
    pub fn compact(&self) {
        self.shared.lock().compact();
        self.shared.wake();
    }

    /// Breaks every watch of every client, as a restart of the server does.
    pub fn cut_watches(&self) {
        self.shared.lock().incarnation += 1;
        self.shared.wake();
    }

    /// Expires the lease of `key` now, whatever its holder believes. False if the key has none.
    pub fn expire_lease_of(&self, key: &str) -> bool {
        let expired = self.shared.lock().expire_lease_of(key);
        self.shared.wake();
        expired
    }

    /// Answers as another cluster from now on, and breaks every watch.
    pub fn set_cluster_id(&self, cluster_id: u64) {
        self.shared.lock().cluster_id = cluster_id;
        self.cut_watches();
    }

    /// Saves the data.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint(self.shared.lock().clone())
    }

    /// Goes back to saved data and its revision under the same cluster id; breaks every watch. Leases run from anew.
    pub fn restore(&self, checkpoint: &Checkpoint) {
        let ids = self.shared.lock().restore(&checkpoint.0);
        for id in ids {
            self.expire_in_time(id);
        }
        self.shared.wake();
    }

    /// Lets the lease expire by the clock unless it is renewed.
    fn expire_in_time(&self, id: i64) {
        let weak = Arc::downgrade(&self.shared);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            loop {
                let Some(deadline) = weak.upgrade().and_then(|s| s.lock().lease_deadline(id)) else {
                    return;
                };
                tokio::time::sleep_until(deadline).await;
                let Some(shared) = weak.upgrade() else { return };
                if shared.lock().expire_if_due(id, Instant::now()) {
                    shared.wake();
                    return;
                }
            }
        });
    }
}

/// One client of the twin.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    faults: Faults,
}

impl Client {
    fn shared(&self) -> &Shared {
        &self.faults.twin_ref().shared
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.clone()
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.faults.check_read()?;
        Ok(self.shared().lock().get(key))
    }

    pub(crate) fn list(&self, prefixes: &Prefixes) -> Result<Snapshot, StoreError> {
        self.faults.check_read()?;
        Ok(self.shared().lock().list(prefixes))
    }

    pub(crate) fn commit(&self, txn: &Txn) -> Result<Outcome, StoreError> {
        let fault = self.faults.take_write_fault();
        let apply = || {
            let outcome = self.shared().lock().apply(txn);
            self.shared().wake();
            outcome
        };
        match fault {
            WriteFault::None => apply(),
            WriteFault::Unreachable => Err(faults::unreachable()),
            WriteFault::UnknownApplied => {
                // The answer is what gets lost, a conflict's included.
                let _lost = apply();
                Err(faults::outcome_unknown())
            }
            WriteFault::UnknownLost => Err(faults::outcome_unknown()),
        }
    }

    pub(crate) fn watch(&self, prefixes: &Prefixes, snapshot: &Snapshot) -> Result<MemoryWatch, StoreError> {
        self.faults.check_watch()?;
        // Subscribe before looking, so that nothing falls in between.
        let tick = self.shared().tick.subscribe();
        let incarnation = self.shared().lock().incarnation;
        Ok(MemoryWatch {
            client: self.clone(),
            prefixes: prefixes.clone(),
            cursor: snapshot.revision,
            incarnation,
            cuts: self.faults.cuts(),
            tick,
        })
    }

    pub(crate) fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        if self.faults.take_write_fault() != WriteFault::None {
            return Err(faults::unreachable());
        }
        let id = self.shared().lock().grant(ttl, Instant::now());
        self.faults.twin_ref().expire_in_time(id);
        Ok(Granted { id, ttl })
    }

    pub(crate) fn keep_alive(&self, id: i64) -> Result<(), StoreError> {
        self.faults.check_keep_alive()?;
        self.shared().lock().keep_alive(id, Instant::now())
    }

    pub(crate) fn revoke(&self, id: i64) -> Result<(), StoreError> {
        if self.faults.take_write_fault() != WriteFault::None {
            return Err(faults::unreachable());
        }
        self.shared().lock().revoke(id);
        self.shared().wake();
        Ok(())
    }
}

/// A raw watch: a cursor into the server's history.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    client: Client,
    prefixes: Prefixes,
    cursor: i64,
    incarnation: u64,
    cuts: u64,
    tick: watch::Receiver<u64>,
}

impl MemoryWatch {
    pub(crate) async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            self.tick.borrow_and_update();
            if let Some(changes) = self.look()? {
                return Ok(changes);
            }
            if self.tick.changed().await.is_err() {
                return Err(faults::cut());
            }
        }
    }

    fn look(&mut self) -> Result<Option<Changes>, StoreError> {
        self.client.faults.check_watch()?;
        if self.client.faults.cuts() != self.cuts {
            return Err(faults::cut());
        }
        let state = self.client.shared().lock();
        if state.incarnation != self.incarnation {
            return Err(faults::cut());
        }
        let next = state.after(self.cursor, &self.prefixes)?;
        self.cursor = next.as_ref().map_or(state.revision, |c| c.revision);
        Ok(next)
    }
}
