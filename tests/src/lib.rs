//! The lab: a cluster of nodes that are network namespaces, with real etcd and the product's real binaries, and probes
//! that say exactly what passes between its pods.
//!
//! It needs root and the programs `ip`, `nft`, `etcd`, `etcdctl` and `bpftool`; without one of them it fails and names it. Everything
//! of a lab is in namespaces of its own and below one directory on a tmpfs: the host's network is never touched. A lab
//! whose process was killed is removed by the next that starts.

pub mod api_server;
pub mod binaries;
pub mod cgroup;
pub mod cli;
pub mod cluster;
pub mod counters;
pub mod echo;
pub mod endpoint;
pub mod error;
pub mod etcd;
pub mod flow;
pub mod frame;
pub mod goodput;
pub mod http;
pub mod icmp;
pub mod lab;
pub mod leak;
pub mod matrix;
pub mod netns;
pub mod node;
pub mod packet;
pub mod pod;
pub mod probe;
pub mod process;
pub mod registry;
pub mod runtime;
pub mod service;
pub mod signals;
pub mod standing;
pub mod syscall;
pub mod table;
pub mod tenancy;
pub mod underlay;
pub mod undisturbed;
pub mod wait;
pub mod worker;

pub use endpoint::Endpoint;
pub use error::LabError;
pub use lab::{Lab, LabBuilder};
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use probe::Proto;
