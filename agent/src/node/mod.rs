//! What a node needs once, whatever its pods: the overlay device, routes, rules for the host's stack, programs on the
//! underlay. Each part lists what is there, compares, and repairs; it says what it had to change.

pub mod cni_binary;
pub mod cni_conf;
pub mod cni_versions;
pub mod firewall;
pub mod host_firewall;
pub mod overlay;
mod own_address;
pub mod routes;
pub mod underlay;

pub use own_address::{local_addresses, own_address};
