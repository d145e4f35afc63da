//! etcd for Bulkhead: keys and values, lists and watches that heal, fenced transactions, leader election.
//!
//! The store knows keys (`String`) and values (`Vec<u8>`), nothing of tenants. [`Store`] is one cheap-to-clone type
//! over two backends: a real etcd ([`Store::connect`]) and an in-memory twin with the same semantics ([`Twin`],
//! [`Store::in_memory`]) into which tests inject faults ([`Faults`]).
//!
//! It promises:
//! - a [`Watch`] yields a [`Snapshot`], then every later revision whole and in order; when anything breaks (a dead
//!   member, a compaction, a restore) it lists again by itself and yields a new [`Snapshot`];
//! - [`Store::commit`] applies a [`Txn`] entirely or not at all, and never silently sends a write twice;
//! - a [`Leadership`] ends by the local clock before etcd gives it to somebody else, and a [`Txn::fenced`] write of a
//!   former leader is refused by etcd.

#[cfg(feature = "args")]
pub mod args;
mod backoff;
mod election;
mod entry;
mod error;
mod etcd;
mod memory;
#[cfg(feature = "etcd-process")]
pub mod process;
mod settings;
mod store;
mod txn;
mod watch;

pub use backoff::Backoff;
pub use election::{Candidate, Fence, Leader, Leadership, Loss, Observer};
pub use entry::{Change, Changes, Discontinuity, Entry, Snapshot, Update};
pub use error::StoreError;
pub use memory::{Checkpoint, Faults, Twin, WriteFault};
pub use settings::{Auth, Settings, SettingsError, Timeouts, Tls};
pub use store::Store;
pub use txn::{Compare, Conflict, FailedCompare, Outcome, Txn, TxnError};
pub use watch::Watch;
