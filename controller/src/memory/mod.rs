//! What is remembered of etcd across restarts of it and of controllers, and what it says of the etcd that is found. Pure;
//! [`place`] keeps it.
//!
//! One set of rules for a list of etcd, whatever the memory comes from (this process, a file, Kubernetes): another cluster
//! id, a lower revision or a lower epoch of the ledger is a break. Then the ledger's epoch owes a rise above the remembered
//! one, which is what agents wait for; any leader's rise settles that.

pub mod place;

use bulkhead_store::Discontinuity;

/// How far etcd had come, and what its ledger owes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// etcd's cluster id.
    pub cluster_id: u64,
    /// The highest revision of it.
    pub revision: i64,
    /// The highest epoch of the ledger.
    pub epoch: u64,
    /// The epoch that the ledger's has to exceed before anything else happens.
    pub owed: Option<u64>,
}

/// Why an etcd does not lead on from what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Another cluster, or an earlier revision of the same one.
    History(Discontinuity),
    /// The ledger's epoch, which only rises, is lower: a restored etcd that has passed the remembered revision since.
    Epoch {
        /// The remembered one.
        seen: u64,
        /// What the ledger says; 0 if there is none.
        found: u64,
    },
}

impl Memory {
    /// Judges an etcd by this memory. `found` is the epoch of its ledger, 0 if there is none.
    pub fn broken_by(&self, cluster_id: u64, revision: i64, found: u64) -> Option<Break> {
        if cluster_id != self.cluster_id {
            Some(Break::History(Discontinuity::ClusterChanged { seen: self.cluster_id, now: cluster_id }))
        } else if revision < self.revision {
            Some(Break::History(Discontinuity::RevisionWentBack { seen: self.revision, now: revision }))
        } else if found < self.epoch {
            Some(Break::Epoch { seen: self.epoch, found })
        } else {
            None
        }
    }

    /// Takes an earlier memory into this one, which is of the etcd that is found now. `found` as above. What is owed is not
    /// settled by it: see [`reached`](Self::reached).
    pub fn follow(&mut self, earlier: &Self, found: u64) -> Option<Break> {
        let broken = earlier.broken_by(self.cluster_id, self.revision, found);
        self.epoch = self.epoch.max(earlier.epoch);
        self.owed = self.owed.max(earlier.owed).max(broken.map(|_| earlier.epoch));
        broken
    }

    /// Takes a revision and the epoch in that the ledger has by then; none if it is not known, or there is none.
    pub fn reached(&mut self, revision: i64, epoch: Option<u64>) {
        let epoch = epoch.unwrap_or(0);
        self.revision = self.revision.max(revision);
        self.epoch = self.epoch.max(epoch);
        self.owed = self.owed.filter(|owed| *owed >= epoch);
    }
}
