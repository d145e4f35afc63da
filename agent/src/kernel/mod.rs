//! What the agent needs of the kernel beside BPF maps: links, addresses, routes, rules, neighbours, qdiscs, filters, network
//! namespaces, nftables and sysctls.
//!
//! Blocking throughout: every call belongs on a thread of its own, never on an async executor. One [`Netlink`] is one socket in one
//! network namespace; changes are [`Op`]s that go to the kernel in one [`Netlink::batch`], state is read back by dumps. Nothing here
//! knows pods, tenants or intent, runs a program or leaves a thread in a namespace that is not its own.

mod address;
mod batch;
mod error;
mod filter;
mod interface_name;
mod link;
mod mac;
mod neighbour;
mod netns;
mod next_hop;
pub mod nftables;
mod nla;
mod op;
mod qdisc;
mod reply;
mod route;
mod rule;
mod socket;
pub mod sysctl;
mod tbf;
mod veth;
mod vxlan;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod wiring;

pub use address::Address;
pub use error::{BatchError, KernelError};
pub use filter::{BpfFilterSpec, Filter, Hook};
pub use interface_name::{InterfaceName, InterfaceNameError};
pub use link::{InetSetting, Link, VxlanState};
pub use mac::{Mac, MacError};
pub use neighbour::Neighbour;
pub use netns::{Netns, NetnsError, NetnsId, inside};
pub use next_hop::NextHop;
pub use op::Op;
pub use qdisc::Qdisc;
pub use route::{MAIN_TABLE, Route, RouteKind};
pub use rule::Rule;
pub use socket::Netlink;
pub use sysctl::SysctlError;
pub use tbf::{Tbf, TbfSpec};
pub use veth::VethSpec;
pub use vxlan::VxlanSpec;
