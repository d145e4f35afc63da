//! Transactions: compares that must all hold, then writes that happen together or not at all.
//!
//! Promises: a [`Txn`] that etcd would refuse for its size or shape is refused here first, with the number that breaks
//! the limit.

use std::collections::HashSet;

use crate::election::Fence;
use crate::entry::Entry;

/// etcd's default `--max-txn-ops`; compares and operations are counted apart.
pub(crate) const MAX_OPERATIONS: usize = 128;
/// etcd's default `--max-request-bytes`.
pub(crate) const MAX_BYTES: usize = 1_572_864;
/// Upper bound of what the encoding adds to the bytes of one compare or operation.
const OVERHEAD_BYTES: usize = 48;

/// Why a transaction is not even sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TxnError {
    /// Too many puts and deletes.
    #[error("{count} operations, etcd takes at most 128: split it")]
    TooManyOperations {
        /// How many there are.
        count: usize,
    },
    /// Too many compares.
    #[error("{count} compares, etcd takes at most 128: split it")]
    TooManyCompares {
        /// How many there are.
        count: usize,
    },
    /// A key is written twice.
    #[error("key {key:?} is written twice: keep one operation per key")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The request is too large.
    #[error("{bytes} bytes, etcd takes at most 1572864 (1.5 MiB): split it")]
    TooLarge {
        /// Upper bound of the encoded size.
        bytes: usize,
    },
    /// A key is empty.
    #[error("a key is empty: name it")]
    EmptyKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Mod(i64),
    Create(i64),
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub(crate) key: String,
    pub(crate) target: Target,
    pub(crate) fence: bool,
}

impl Compare {
    /// The key was last written at exactly this revision; 0 means that it is absent.
    pub fn mod_revision(key: impl Into<String>, revision: i64) -> Self {
        Self { key: key.into(), target: Target::Mod(revision), fence: false }
    }

    /// The key was created at exactly this revision; 0 means that it is absent.
    pub fn create_revision(key: impl Into<String>, revision: i64) -> Self {
        Self { key: key.into(), target: Target::Create(revision), fence: false }
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::create_revision(key, 0)
    }

    /// The key is still as it was read.
    pub fn unchanged(entry: &Entry) -> Self {
        Self::mod_revision(entry.key.clone(), entry.mod_revision)
    }

    /// Judges the condition against the key's state.
    pub(crate) fn holds(&self, current: Option<&Entry>) -> bool {
        match self.target {
            Target::Mod(n) => current.map_or(0, |e| e.mod_revision) == n,
            Target::Create(n) => current.map_or(0, |e| e.create_revision) == n,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Put { key: String, value: Vec<u8>, lease: Option<i64> },
    Delete { key: String },
}

impl Operation {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// A transaction under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    pub(crate) compares: Vec<Compare>,
    pub(crate) operations: Vec<Operation>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition; all of them must hold.
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds the condition that the leadership behind `fence` still stands in etcd.
    pub fn fenced(mut self, fence: &Fence) -> Self {
        let mut compare = Compare::create_revision(fence.key(), fence.create_revision());
        compare.fence = true;
        self.compares.push(compare);
        self
    }

    /// Writes a key.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.operations.push(Operation::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Writes a key that goes away with the lease.
    pub(crate) fn put_leased(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: i64) -> Self {
        self.operations.push(Operation::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Deletes a key; nothing happens if it is absent.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.operations.push(Operation::Delete { key: key.into() });
        self
    }

    /// Number of puts and deletes, at most 128 to be accepted.
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// Number of compares (a fence is one), at most 128 to be accepted.
    pub fn compares(&self) -> usize {
        self.compares.len()
    }

    /// Refuses what etcd would refuse, without sending anything. [`Store::commit`](crate::Store::commit) calls it.
    pub fn check(&self) -> Result<(), TxnError> {
        let count = self.operations.len();
        if count > MAX_OPERATIONS {
            return Err(TxnError::TooManyOperations { count });
        }
        let count = self.compares.len();
        if count > MAX_OPERATIONS {
            return Err(TxnError::TooManyCompares { count });
        }
        let mut written = HashSet::new();
        for operation in &self.operations {
            if !written.insert(operation.key()) {
                return Err(TxnError::DuplicateKey { key: operation.key().to_owned() });
            }
        }
        if written.contains("") || self.compares.iter().any(|c| c.key.is_empty()) {
            return Err(TxnError::EmptyKey);
        }
        let bytes = self.encoded_bound();
        if bytes > MAX_BYTES {
            return Err(TxnError::TooLarge { bytes });
        }
        Ok(())
    }

    /// An upper bound of the encoded request: each compared key travels twice, since a conflict reads it back.
    fn encoded_bound(&self) -> usize {
        let operations = self.operations.iter().map(|operation| match operation {
            Operation::Put { key, value, .. } => key.len() + value.len() + OVERHEAD_BYTES,
            Operation::Delete { key } => key.len() + OVERHEAD_BYTES,
        });
        let compares = self.compares.iter().map(|compare| 2 * (compare.key.len() + OVERHEAD_BYTES));
        OVERHEAD_BYTES + operations.sum::<usize>() + compares.sum::<usize>()
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a conflict means that nothing was written"]
pub enum Outcome {
    /// All compares held and all writes were applied.
    Done {
        /// The store's revision after it: that of the writes, if they changed anything.
        revision: i64,
    },
    /// A compare failed; nothing was written.
    Conflict(Conflict),
}

impl Outcome {
    /// The revision if it was applied.
    pub fn done(&self) -> Option<i64> {
        match self {
            Self::Done { revision } => Some(*revision),
            Self::Conflict(_) => None,
        }
    }
}

/// The compares that failed, with the state that made them fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The revision at which they were judged.
    pub revision: i64,
    /// One per failed compare, in the order of the transaction.
    pub failed: Vec<FailedCompare>,
}

impl Conflict {
    /// True if the fence failed: the writer does not lead any more and must stop.
    pub fn fenced_off(&self) -> bool {
        self.failed.iter().any(|failed| failed.fence)
    }

    pub(crate) fn judge(revision: i64, compares: &[Compare], current: impl Fn(&str) -> Option<Entry>) -> Self {
        let failed = compares
            .iter()
            .filter_map(|compare| {
                let current = current(&compare.key);
                (!compare.holds(current.as_ref())).then(|| FailedCompare {
                    key: compare.key.clone(),
                    current,
                    fence: compare.fence,
                })
            })
            .collect();
        Self { revision, failed }
    }
}

/// One failed compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCompare {
    /// The compared key.
    pub key: String,
    /// Its state when the compare failed; `None` if absent.
    pub current: Option<Entry>,
    /// True if it is the leader's fence.
    pub fence: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_name_the_number() {
        let many = |n: usize| (0..n).fold(Txn::new(), |txn, i| txn.put(format!("k{i}"), "v"));
        assert_eq!(many(128).check(), Ok(()));
        assert_eq!(many(129).check(), Err(TxnError::TooManyOperations { count: 129 }));
        let compares = (0..129).fold(Txn::new(), |txn, i| txn.when(Compare::absent(format!("k{i}"))));
        assert_eq!(compares.check(), Err(TxnError::TooManyCompares { count: 129 }));
        let twice = Txn::new().put("a", "1").delete("a").check();
        assert_eq!(twice, Err(TxnError::DuplicateKey { key: "a".into() }));
        assert_eq!(Txn::new().put("", "1").check(), Err(TxnError::EmptyKey));
        let large = Txn::new().put("a", vec![0; MAX_BYTES]).check();
        assert!(matches!(large, Err(TxnError::TooLarge { .. })), "{large:?}");
    }
}
