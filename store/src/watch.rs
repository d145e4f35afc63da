//! The watch that heals: list at one revision, watch from the next, and on any break list again.
//!
//! Never resumes a broken stream: whatever broke it (a dead or frozen member, lost quorum, a compaction, a restore),
//! the next [`Snapshot`](crate::Snapshot) says everything, deletions included. The same code runs over etcd and the
//! twin.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::backoff::Backoff;
use crate::entry::Update;
use crate::error::StoreError;
use crate::store::Store;

/// Updates that wait for a slow receiver before the stream from etcd is held back.
const QUEUE: usize = 256;
/// A stream that lived this long starts a new series of waiting times when it breaks.
const STABLE: Duration = Duration::from_secs(5);

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    updates: mpsc::Receiver<Update>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn spawn(store: Store, prefixes: Prefixes) -> Self {
        let (sender, updates) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(store, prefixes, sender));
        Self { updates, task }
    }

    /// The next update; cancel-safe. `None` only when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(store: Store, prefixes: Prefixes, updates: mpsc::Sender<Update>) {
    let mut backoff = Backoff::new();
    let mut seen: Option<(u64, i64)> = None;
    let mut since = Instant::now();
    let mut reported = false;
    loop {
        let attempt = async {
            let snapshot = store.list_many(&prefixes).await?;
            let watch = store.raw_watch(&prefixes, &snapshot).await?;
            Ok::<_, StoreError>((snapshot, watch))
        };
        let (mut snapshot, mut watch) = match attempt.await {
            Ok(pair) => pair,
            Err(error) => {
                if !reported {
                    reported = true;
                    tracing::warn!(error = error.chain(), %prefixes, "watch cannot be established");
                    if updates.send(Update::Unreachable { since, error }).await.is_err() {
                        return;
                    }
                }
                backoff.wait().await;
                continue;
            }
        };
        reported = false;
        snapshot.discontinuity =
            seen.and_then(|(cluster_id, revision)| snapshot.discontinuity_since(cluster_id, revision));
        if let Some(discontinuity) = snapshot.discontinuity {
            tracing::warn!(?discontinuity, %prefixes, "etcd was restored or replaced");
        }
        let cluster_id = snapshot.cluster_id;
        seen = Some((cluster_id, snapshot.revision));
        let started = Instant::now();
        if updates.send(Update::Snapshot(snapshot)).await.is_err() {
            return;
        }
        let error = loop {
            match watch.next().await {
                Ok(changes) => {
                    seen = Some((cluster_id, changes.revision));
                    if updates.send(Update::Changes(changes)).await.is_err() {
                        return;
                    }
                }
                Err(error) => break error,
            }
        };
        tracing::info!(error = error.chain(), %prefixes, "watch broke, listing again");
        since = Instant::now();
        if started.elapsed() >= STABLE {
            backoff = Backoff::new();
        }
        backoff.wait().await;
    }
}

/// A set of prefixes, none of which contains another, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefixes(Vec<String>);

impl Prefixes {
    /// Drops prefixes that another one covers; an empty list becomes the empty prefix.
    pub(crate) fn new<P: AsRef<str>>(prefixes: &[P]) -> Self {
        let mut all: Vec<&str> = prefixes.iter().map(AsRef::as_ref).collect();
        all.sort_unstable();
        let mut kept: Vec<String> = Vec::new();
        for prefix in all {
            if !kept.last().is_some_and(|last| prefix.starts_with(last)) {
                kept.push(prefix.to_owned());
            }
        }
        if kept.is_empty() {
            kept.push(String::new());
        }
        Self(kept)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|prefix| key.starts_with(prefix))
    }

    /// The longest prefix that covers all of them.
    pub(crate) fn common(&self) -> &str {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else {
            return "";
        };
        // Sorted: what the first and the last share, all share.
        let end = first
            .char_indices()
            .zip(last.chars())
            .find(|((_, a), b)| a != b)
            .map_or(first.len().min(last.len()), |((at, _), _)| at);
        &first[..end]
    }
}

impl std::fmt::Display for Prefixes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_minimal_and_ordered() {
        let prefixes = Prefixes::new(&["/n/b/", "/n/a/", "/n/a/x", "/n/b/"]);
        assert_eq!(prefixes.iter().collect::<Vec<_>>(), ["/n/a/", "/n/b/"]);
        assert_eq!(prefixes.common(), "/n/");
        assert!(prefixes.contains("/n/a/1") && !prefixes.contains("/n/c"));
    }

    #[test]
    fn common_prefix_of_one_none_and_foreign_ones() {
        assert_eq!(Prefixes::new(&["/a/"]).common(), "/a/");
        assert_eq!(Prefixes::new::<&str>(&[]).common(), "");
        assert_eq!(Prefixes::new(&["a", "b"]).common(), "");
        assert_eq!(Prefixes::new(&["ä", "ö"]).common(), "");
    }
}
