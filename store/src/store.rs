//! The front: one type over the real etcd and the twin.
//!
//! Every watch and election runs the same code over both; only the primitives below differ. etcd's futures are boxed
//! here: they are large, and every caller's would be.

use std::fmt;
use std::time::Duration;

use crate::entry::{Changes, Entry, Snapshot};
use crate::error::StoreError;
use crate::etcd::{Etcd, EtcdWatch};
use crate::memory::{Client, Faults, MemoryWatch, Twin};
use crate::settings::Settings;
use crate::txn::{Outcome, Txn};
use crate::watch::{Prefixes, Watch};

/// A connection to the store; cheap to clone, all clones share it.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
}

#[derive(Clone)]
enum Backend {
    Etcd(Etcd),
    Memory(Client),
}

/// A watch that is not healed: it ends with the first error.
pub(crate) enum RawWatch {
    Etcd(Box<EtcdWatch>),
    Memory(MemoryWatch),
}

impl RawWatch {
    /// The next revision that touches the prefixes.
    pub(crate) async fn next(&mut self) -> Result<Changes, StoreError> {
        match self {
            Self::Etcd(watch) => watch.next().await,
            Self::Memory(watch) => watch.next().await,
        }
    }
}

/// A lease as granted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) id: i64,
    /// May be longer than asked for.
    pub(crate) ttl: Duration,
}

impl Store {
    /// Connects and makes sure that etcd answers and accepts the login. Ends within the connect and request timeouts.
    pub async fn connect(settings: Settings) -> Result<Self, StoreError> {
        let etcd = Etcd::open(settings)?;
        Box::pin(etcd.check()).await?;
        Ok(Self { backend: Backend::Etcd(etcd) })
    }

    /// Like [`Store::connect`] without waiting for etcd: for whoever must start while etcd is down. Only the TLS files
    /// are read.
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        Ok(Self { backend: Backend::Etcd(Etcd::open(settings)?) })
    }

    /// A new, empty in-memory twin. To let several clients share one, make a [`Twin`].
    pub fn in_memory() -> Self {
        Twin::new().store()
    }

    pub(crate) fn over(client: Client) -> Self {
        Self { backend: Backend::Memory(client) }
    }

    /// The faults of this in-memory client (and its clones); `None` on a real etcd.
    pub fn faults(&self) -> Option<Faults> {
        match &self.backend {
            Backend::Etcd(_) => None,
            Backend::Memory(client) => Some(client.faults()),
        }
    }

    /// Reads one key.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        match &self.backend {
            Backend::Etcd(etcd) => Box::pin(etcd.get(key)).await,
            Backend::Memory(client) => client.get(key),
        }
    }

    /// Reads every key under `prefix` (all keys if it is empty) at one revision.
    pub async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.list_many(&Prefixes::new(&[prefix])).await
    }

    pub(crate) async fn list_many(&self, prefixes: &Prefixes) -> Result<Snapshot, StoreError> {
        match &self.backend {
            Backend::Etcd(etcd) => Box::pin(etcd.list(prefixes)).await,
            Backend::Memory(client) => client.list(prefixes),
        }
    }

    /// Watches every key under `prefix` (all keys if it is empty). Must be called within a tokio runtime.
    pub fn watch(&self, prefix: &str) -> Watch {
        Watch::spawn(self.clone(), Prefixes::new(&[prefix]))
    }

    /// Watches several prefixes as one ordered stream of whole revisions; a revision that touches two of them arrives
    /// as one update. Must be called within a tokio runtime.
    ///
    /// It is one watch of the prefixes' longest common prefix, filtered here, so that no merge can tear a revision:
    /// the etcd role must allow reading that common prefix. An empty list means every key.
    pub fn watch_many<P: AsRef<str>>(&self, prefixes: &[P]) -> Watch {
        Watch::spawn(self.clone(), Prefixes::new(prefixes))
    }

    /// Starts a raw watch of what follows `snapshot`.
    pub(crate) async fn raw_watch(&self, prefixes: &Prefixes, snapshot: &Snapshot) -> Result<RawWatch, StoreError> {
        match &self.backend {
            Backend::Etcd(etcd) => {
                let watch = Box::pin(etcd.watch(prefixes, snapshot)).await?;
                Ok(RawWatch::Etcd(Box::new(watch)))
            }
            Backend::Memory(client) => Ok(RawWatch::Memory(client.watch(prefixes, snapshot)?)),
        }
    }

    /// Applies a transaction entirely or not at all.
    ///
    /// What is known not to have reached etcd is sent again, over the other endpoints, within the request timeout.
    /// What may have reached it is not: see [`StoreError::OutcomeUnknown`].
    pub async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check()?;
        match &self.backend {
            Backend::Etcd(etcd) => Box::pin(etcd.commit(&txn)).await,
            Backend::Memory(client) => client.commit(&txn),
        }
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        match &self.backend {
            Backend::Etcd(etcd) => Box::pin(etcd.grant(ttl)).await,
            Backend::Memory(client) => client.grant(ttl),
        }
    }

    /// Keeps a lease alive once; an endpoint that does not answer within `patience` is given up for another.
    pub(crate) async fn keep_alive(&self, id: i64, patience: Duration) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Etcd(etcd) => Box::pin(etcd.keep_alive(id, patience)).await,
            Backend::Memory(client) => client.keep_alive(id),
        }
    }

    pub(crate) async fn revoke(&self, id: i64) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Etcd(etcd) => Box::pin(etcd.revoke(id)).await,
            Backend::Memory(client) => client.revoke(id),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Backend::Etcd(etcd) => f.debug_tuple("Store").field(&etcd.settings().endpoints()).finish(),
            Backend::Memory(_) => f.write_str("Store(in memory)"),
        }
    }
}
