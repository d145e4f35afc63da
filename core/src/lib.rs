//! What Bulkhead knows without touching anything: numbers, addresses, tenants and their rules, the etcd records, the
//! words spoken on the CNI socket.
//!
//! This crate is pure: no I/O, no clock, no randomness. Every type here that exists is valid; what comes from outside
//! becomes one of them by a fallible constructor or is refused with an error that says what was wrong.

pub mod annotation;
pub mod attachment;
pub mod bandwidth;
pub mod cluster;
pub mod cni;
pub mod keys;
pub mod ledger;
pub mod name;
pub mod network;
pub mod number;
pub mod protocol;
pub mod record;
pub mod spool;
pub mod tenant;
pub mod vni;

pub use attachment::AttachmentId;
pub use bandwidth::Bandwidth;
pub use cluster::{ClusterConfig, Mode};
pub use keys::Keys;
pub use name::{ClusterName, Namespace, NodeName};
pub use network::{AddressPool, NodeSubnets};
pub use number::Numbers;
pub use tenant::{Action, Tenant, Tenants};
pub use vni::{NetId, Vni};
