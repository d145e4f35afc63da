//! What is stored and what a watcher receives.
//!
//! Plain data; assumes nothing. Revisions are etcd's: one counter for the whole store, 1 when it is empty, raised by
//! one for every transaction that changes anything.

use std::time::Instant;

use crate::error::StoreError;

/// One key with its value and history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The full key.
    pub key: String,
    /// The value, as stored.
    pub value: Vec<u8>,
    /// Revision at which the key was created (again, after a deletion).
    pub create_revision: i64,
    /// Revision of the last write.
    pub mod_revision: i64,
}

/// All entries under the asked prefixes at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision that every entry was read at.
    pub revision: i64,
    /// The id of the etcd cluster that answered.
    pub cluster_id: u64,
    /// The entries, in rising order of keys.
    pub entries: Vec<Entry>,
    /// Set by a [`Watch`](crate::Watch) whose earlier history does not lead to this snapshot: etcd was restored or
    /// replaced. `None` in a plain list.
    pub discontinuity: Option<Discontinuity>,
}

impl Snapshot {
    /// Finds the entry of `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.key.as_str().cmp(key)).ok().map(|at| &self.entries[at])
    }

    /// Judges this snapshot against a cluster and revision seen earlier, for instance before a restart.
    pub fn discontinuity_since(&self, cluster_id: u64, revision: i64) -> Option<Discontinuity> {
        if self.cluster_id != cluster_id {
            Some(Discontinuity::ClusterChanged { seen: cluster_id, now: self.cluster_id })
        } else if self.revision < revision {
            Some(Discontinuity::RevisionWentBack { seen: revision, now: self.revision })
        } else {
            None
        }
    }
}

/// Why a snapshot is no successor of what the same watch delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discontinuity {
    /// Another cluster answers: etcd was replaced, or restored under a new id.
    ClusterChanged {
        /// The cluster id seen before.
        seen: u64,
        /// The cluster id that answers now.
        now: u64,
    },
    /// The revision is lower than one seen: etcd was restored from an older snapshot.
    RevisionWentBack {
        /// The highest revision seen before.
        seen: i64,
        /// The revision now.
        now: i64,
    },
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Entry),
    /// The key was deleted, or its lease expired.
    Delete {
        /// The full key.
        key: String,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key } => key,
        }
    }
}

/// All changes of one revision under the watched prefixes, never a part of them and never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The revision that made them.
    pub revision: i64,
    /// Each key at most once.
    pub changes: Vec<Change>,
}

/// What a watcher receives.
#[derive(Debug)]
pub enum Update {
    /// The whole state: first, and again whenever the watch had to be healed. Keys that are absent were deleted.
    Snapshot(Snapshot),
    /// One later revision, whole.
    Changes(Changes),
    /// etcd cannot be read now; the last state stays valid. Sent once per outage, a snapshot follows when it heals.
    Unreachable {
        /// When the watch broke.
        since: Instant,
        /// Why it could not be healed at once.
        error: StoreError,
    },
}
