//! Leader election: etcd's concurrency recipe over the store's own primitives, so that the twin runs the same code.
//!
//! Each candidate writes `<prefix>/<lease hex>` under a lease; the lowest create revision leads, everyone else waits
//! for the deletion of the next-lower key. Promises: [`Leadership::lost`] resolves no later than etcd may give the
//! lead to another, judged by the local monotonic clock; a process that was frozen meanwhile is stopped by its
//! [`Fence`], which etcd compares.

mod hold;
mod observe;

use std::time::Duration;

use hold::Hold;
pub use hold::Loss;
pub use observe::{Leader, Observer};

use crate::backoff::Backoff;
use crate::entry::{Change, Entry, Update};
use crate::error::StoreError;
use crate::store::Store;
use crate::txn::{Compare, Outcome, Txn};

/// What a write of the leader is guarded with: its election key and that key's create revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    key: String,
    create_revision: i64,
}

impl Fence {
    /// The election key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The key's create revision; it rises from leader to leader.
    pub fn create_revision(&self) -> i64 {
        self.create_revision
    }
}

/// The way to leadership.
#[derive(Debug)]
pub struct Candidate;

impl Candidate {
    /// Runs for leadership of `prefix` as `identity` and returns once it leads.
    ///
    /// Waits through outages of etcd; only errors that no waiting heals (a refused login, a denied permission) end it.
    /// Dropping the future withdraws the candidacy: its lease is revoked in the background. `ttl` is rounded up to
    /// whole seconds, at least one; etcd may lengthen it (to 2 s by default).
    pub async fn campaign(
        store: &Store,
        prefix: &str,
        identity: &str,
        ttl: Duration,
    ) -> Result<Leadership, StoreError> {
        let prefix = candidates_under(prefix);
        let mut backoff = Backoff::new();
        loop {
            match run_once(store, &prefix, identity, ttl).await {
                Ok(leadership) => return Ok(leadership),
                Err(error) if error.is_transient() || is_lease_lost(&error) => {
                    tracing::info!(error = error.chain(), prefix, identity, "candidacy failed, running again");
                    backoff.wait().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads who leads `prefix` now.
    pub async fn leader(store: &Store, prefix: &str) -> Result<Option<Leader>, StoreError> {
        let snapshot = store.list(&candidates_under(prefix)).await?;
        Ok(observe::lowest(snapshot.entries.iter()))
    }

    /// Follows who leads `prefix`. Must be called within a tokio runtime.
    pub fn observe(store: &Store, prefix: &str) -> Observer {
        Observer::new(store.watch(&candidates_under(prefix)))
    }
}

fn candidates_under(prefix: &str) -> String {
    format!("{}/", prefix.trim_end_matches('/'))
}

fn is_lease_lost(error: &StoreError) -> bool {
    matches!(error, StoreError::LeaseLost { .. })
}

async fn run_once(store: &Store, prefix: &str, identity: &str, ttl: Duration) -> Result<Leadership, StoreError> {
    // From here on a drop revokes the lease, and with it the key.
    let hold = Hold::acquire(store, ttl).await?;
    let key = format!("{prefix}{:016x}", hold.lease());
    let create_revision = stand(store, &key, identity, hold.lease()).await?;
    let fence = Fence { key, create_revision };
    loop {
        let Some(ahead) = next_ahead(store, prefix, &fence).await? else {
            break;
        };
        tracing::debug!(prefix, identity, ahead, "waiting for the candidate ahead");
        tokio::select! {
            () = deleted(store, &ahead) => {}
            _ = hold.lost() => return Err(StoreError::LeaseLost { lease: hold.lease() }),
        }
    }
    if !hold.is_held() {
        return Err(StoreError::LeaseLost { lease: hold.lease() });
    }
    tracing::info!(prefix, identity, fence = fence.create_revision, "leading");
    Ok(Leadership { fence, hold })
}

/// Writes the candidate's key and returns its create revision. The key holds the lease's unique id, so that writing it
/// again after an unknown outcome is safe: the compare lets it happen once.
async fn stand(store: &Store, key: &str, identity: &str, lease: i64) -> Result<i64, StoreError> {
    let mut backoff = Backoff::new();
    loop {
        let txn = Txn::new().when(Compare::absent(key)).put_leased(key, identity, lease);
        match store.commit(txn).await {
            Ok(Outcome::Done { revision }) => return Ok(revision),
            Ok(Outcome::Conflict(conflict)) => {
                let current = conflict.failed.into_iter().find_map(|failed| failed.current);
                if let Some(entry) = current {
                    return Ok(entry.create_revision);
                }
            }
            Err(StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error),
        }
        backoff.wait().await;
    }
}

/// The key of the candidate just ahead of ours; `None` if we lead.
async fn next_ahead(store: &Store, prefix: &str, fence: &Fence) -> Result<Option<String>, StoreError> {
    let mut backoff = Backoff::new();
    let snapshot = loop {
        match store.list(prefix).await {
            Ok(snapshot) => break snapshot,
            // The lease decides whether the wait was too long, not this read.
            Err(error) if error.is_transient() => backoff.wait().await,
            Err(error) => return Err(error),
        }
    };
    let own = |e: &&Entry| e.key == fence.key && e.create_revision == fence.create_revision;
    if !snapshot.entries.iter().any(|e| own(&e)) {
        let lease = fence.key.rsplit('/').next().unwrap_or_default();
        let lease = i64::from_str_radix(lease, 16).unwrap_or_default();
        return Err(StoreError::LeaseLost { lease });
    }
    Ok(snapshot
        .entries
        .into_iter()
        .filter(|entry| entry.create_revision < fence.create_revision)
        .max_by_key(|entry| entry.create_revision)
        .map(|entry| entry.key))
}

/// Resolves once `key` does not exist.
async fn deleted(store: &Store, key: &str) {
    let mut watch = store.watch(key);
    while let Some(update) = watch.next().await {
        let gone = match update {
            Update::Snapshot(snapshot) => snapshot.get(key).is_none(),
            Update::Changes(changes) => {
                changes.changes.iter().any(|change| matches!(change, Change::Delete { key: k } if k == key))
            }
            Update::Unreachable { .. } => false,
        };
        if gone {
            return;
        }
    }
}

/// The lead, for as long as [`Leadership::lost`] has not resolved. Dropping it gives it up in the background.
#[derive(Debug)]
pub struct Leadership {
    fence: Fence,
    hold: Hold,
}

impl Leadership {
    /// What to guard every write with: [`Txn::fenced`].
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Resolves at the moment leadership can no longer be assumed. The future is independent of this value and may
    /// move into another task.
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static + use<> {
        self.hold.lost()
    }

    /// Judges by the clock, now. For reports; writes are guarded by the fence.
    pub fn is_held(&self) -> bool {
        self.hold.is_held()
    }

    /// Gives up the lead so that another takes over at once. On an error etcd frees it when the lease runs out.
    pub async fn resign(self) -> Result<(), StoreError> {
        self.hold.release().await
    }
}
