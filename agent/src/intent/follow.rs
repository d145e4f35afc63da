//! Follows the ledger: list and watch into the shared intent, for as long as the agent lives.
//!
//! It may assume nothing of etcd. While etcd cannot be read the last state stays; a state that etcd cannot have reached
//! from the last one is held off (see `hold`). It promises that a transaction is applied whole, and none before an older one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bulkhead_core::{ClusterName, Keys, NodeName};
use bulkhead_store::{Change, Changes, Discontinuity, Snapshot, Store, StoreError, Update};
use thiserror::Error;

use super::config::{self, Beside, Said};
use super::hold::{self, Hold};
use super::register::Registration;
use super::retry::Retry;
use super::{Cache, Intent, Shared};

/// Why following ended.
#[derive(Debug, Error)]
pub enum FollowError {
    /// The prefix is not valid.
    #[error(transparent)]
    Prefix(#[from] bulkhead_core::keys::PrefixError),
    /// The store's task ended: the runtime is shutting down.
    #[error("the watch of etcd ended; the agent must be restarted")]
    Ended,
}

/// Who follows, and where.
#[derive(Debug, Clone)]
pub struct Follower {
    /// etcd.
    pub store: Store,
    /// The prefix of all keys.
    pub prefix: String,
    /// This node's name.
    pub node: NodeName,
    /// The underlay address under which this machine asks for its own subnet: an external machine, or a node without
    /// Kubernetes. None if it does not ask.
    pub register: Option<IpAddr>,
    /// Where the intent goes.
    pub shared: Arc<Shared>,
    /// Where a hold is kept across a restart; none for nowhere.
    pub cache: Option<Cache>,
}

impl Follower {
    /// Follows until the runtime ends.
    pub async fn run(self) -> Result<(), FollowError> {
        let name = match self.shared.read(|intent, _| intent.name.clone()) {
            Some(name) => name,
            None => self.cluster_name().await?,
        };
        let keys = Keys::new(&self.prefix, &name)?;
        let mut beside = Beside::new(keys.config(), name.clone());
        self.shared.update(|intent| intent.name = Some(name));
        let (mut watch, mut configs) = (self.store.watch(&keys.ledger()), self.store.watch(&keys.config()));
        let mut registration = Registration::new(&self, &keys);
        let mut list = Retry::default();
        loop {
            let followed = tokio::select! {
                update = watch.next() => match update.ok_or(FollowError::Ended)? {
                    Update::Snapshot(snapshot) => {
                        list.done();
                        self.take_snapshot(&keys, &snapshot)
                    }
                    Update::Changes(changes) => self.take_changes(&keys, &changes, &mut list),
                    Update::Unreachable { error, .. } => {
                        self.lost(&error);
                        None
                    }
                },
                update = configs.next() => {
                    beside.take(&update.ok_or(FollowError::Ended)?);
                    None
                }
                () = list.wait() => match self.store.list(&keys.ledger()).await {
                    Ok(snapshot) => {
                        list.done();
                        self.take_snapshot(&keys, &snapshot)
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the ledger cannot be listed; trying again");
                        list.failed();
                        None
                    }
                },
                () = registration.wait() => {
                    registration.ask().await;
                    None
                }
            };
            if let Some(Followed { released }) = followed {
                registration.followed(released);
            }
            self.compare(&beside);
        }
    }

    /// Waits for a valid config and says meanwhile what it waits for.
    async fn cluster_name(&self) -> Result<ClusterName, FollowError> {
        let key = bulkhead_core::keys::config(bulkhead_core::keys::check_prefix(&self.prefix)?);
        let mut watch = self.store.watch(&key);
        loop {
            let update = watch.next().await.ok_or(FollowError::Ended)?;
            if let Update::Unreachable { error, .. } = &update {
                self.lost(error);
                continue;
            }
            self.heard();
            let problem = match Said::of(&update, &key) {
                Said::Value(value) => match config::parse(&key, &value) {
                    Ok(config) => return Ok(config.name().clone()),
                    Err(problem) => problem,
                },
                Said::Absent => format!(
                    "there is no cluster config at {key} yet; in Kubernetes the controller writes it, elsewhere `bulkhead config init`"
                ),
                Said::Nothing => continue,
            };
            tracing::warn!("{problem}");
            self.shared.connection(|connection| connection.problem = Some(problem));
        }
    }

    fn heard(&self) {
        self.shared.connection(|connection| {
            connection.connected = true;
            connection.heard = Some(Instant::now());
            connection.problem = None;
        });
    }

    fn lost(&self, error: &StoreError) {
        let problem = format!("etcd cannot be reached, the last state stays in force: {error}");
        tracing::warn!("{problem}");
        self.shared.connection(|connection| {
            connection.connected = false;
            connection.problem = Some(problem);
        });
    }

    /// Says what of the config is not in force.
    fn compare(&self, beside: &Beside) {
        let problem = self.shared.read(|intent, _| beside.problem(intent.cluster.as_ref()));
        let said = self.shared.read(|_, connection| connection.config.clone());
        if problem != said {
            if let Some(problem) = &problem {
                tracing::warn!("{problem}");
            }
            self.shared.connection(|connection| connection.config = problem);
        }
    }

    fn take_snapshot(&self, keys: &Keys, snapshot: &Snapshot) -> Option<Followed> {
        self.heard();
        let mut fresh = self.shared.read(|intent, _| intent.clone());
        let since = (fresh.cluster_id != 0).then(|| snapshot.discontinuity_since(fresh.cluster_id, fresh.revision));
        fresh.replace(&keys.ledger(), snapshot);
        // The watch knows later revisions than a state that is held off leaves behind.
        self.take(fresh, since.flatten().or(snapshot.discontinuity))
    }

    /// Applies a transaction. While a state is held off, only a whole list is believed again, which `list` is to bring when
    /// the cluster's entry changes: everything that ends a hold changes it, last of all.
    fn take_changes(&self, keys: &Keys, changes: &Changes, list: &mut Retry) -> Option<Followed> {
        self.heard();
        let of_cluster = changes.changes.iter().map(Change::key).any(|key| key == keys.ledger_cluster());
        let (held, revision) = self.shared.read(|intent, connection| (connection.held.is_some(), intent.revision));
        if held {
            if of_cluster {
                list.want();
            }
            return None;
        }
        if changes.revision <= revision {
            // Already in a list of our own.
            return None;
        }
        if of_cluster {
            let mut fresh = self.shared.read(|intent, _| intent.clone());
            fresh.apply(&keys.ledger(), changes);
            return self.take(fresh, None);
        }
        self.shared.update(|intent| intent.apply(&keys.ledger(), changes));
        Some(Followed { released: false })
    }

    /// Follows a state, or holds it off.
    fn take(&self, fresh: Intent, discontinuity: Option<Discontinuity>) -> Option<Followed> {
        let (hold, seen) = self.shared.read(|seen, _| (hold::judge(seen, discontinuity, &fresh), seen.must_exceed));
        let Some(Hold { must_exceed, reason }) = hold else {
            let mut released = discontinuity.is_some() || seen.is_some();
            self.shared.connection(|connection| released |= connection.held.take().is_some());
            self.shared.update(|intent| *intent = fresh);
            return Some(Followed { released });
        };
        if must_exceed != seen {
            self.shared.update(|intent| intent.must_exceed = must_exceed);
            // The next agent holds as well, should this one be killed the moment it is told of.
            if let Some(Err(error)) = self.cache.as_ref().map(|cache| cache.save_now(&self.shared)) {
                tracing::warn!("{error}");
            }
        }
        if self.shared.read(|_, connection| connection.held.as_ref() != Some(&reason)) {
            tracing::error!("{reason}");
            self.shared.connection(|connection| connection.held = Some(reason));
        }
        None
    }
}

/// A state is followed.
struct Followed {
    /// Whether etcd's restore, or the ledger's deletion, may lie between it and the last one.
    released: bool,
}
