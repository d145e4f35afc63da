//! Waits until the state says what one waits for.
//!
//! Level-triggered: started after a write, it sees that write's effect whether the answer came before or after. Ready
//! before a write, it sees every revision from then on one by one, unless the watch has to be healed. What breaks on the
//! way (a dead member, a compaction) is the store's to heal.

use std::time::Duration;

use bulkhead_store::{StoreError, Update, Watch};
use tokio::time::{Instant, timeout_at};

use crate::cluster::Cluster;
use crate::view::View;

/// Nobody answered in time.
#[derive(Debug)]
pub struct TimedOut {
    /// The last state seen; none if etcd could not be read at all.
    pub last: Option<View>,
    /// Whom that may be due to, in a sentence.
    pub cause: String,
}

/// A wait that has begun.
pub struct Waiting<'a> {
    cluster: &'a Cluster,
    watch: Watch,
    patience: Duration,
    view: Option<View>,
    unreachable: Option<String>,
}

impl<'a> Waiting<'a> {
    /// Begins to watch.
    pub fn start(cluster: &'a Cluster, patience: Duration) -> Self {
        let watch = cluster.store.watch(&cluster.keys.root());
        Self { cluster, watch, patience, view: None, unreachable: None }
    }

    /// Waits for the first state: no revision after this goes by unseen.
    pub async fn ready(mut self) -> Result<Self, StoreError> {
        match self.watch.next().await {
            Some(Update::Unreachable { error, .. }) => Err(error),
            Some(update) => {
                self.take(update);
                Ok(self)
            }
            None => Ok(self),
        }
    }

    /// Waits, for as long as the patience lasts from now on, until `answer` finds one in the state.
    pub async fn until<T>(mut self, mut answer: impl FnMut(&View) -> Option<T>) -> Result<T, TimedOut> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(found) = self.view.as_ref().and_then(&mut answer) {
                return Ok(found);
            }
            match timeout_at(deadline, self.watch.next()).await {
                Ok(Some(update)) => self.take(update),
                Ok(None) | Err(_) => break,
            }
        }
        let cause = match self.unreachable {
            Some(error) => error,
            None => self.cluster.silence().await,
        };
        Err(TimedOut { last: self.view, cause })
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Snapshot(snapshot) => {
                self.unreachable = None;
                self.view = Some(View::new(self.cluster.keys.clone(), snapshot));
            }
            Update::Changes(changes) => {
                if let Some(view) = &mut self.view {
                    view.apply(changes);
                }
            }
            Update::Unreachable { error, .. } => self.unreachable = Some(error.chain()),
        }
    }
}
