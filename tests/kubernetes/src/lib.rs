//! The lab on a real Kubernetes: API server, kubelets, containerd, kube-proxy and CoreDNS, its nodes namespaces of this machine
//! with a disk each, on the same underlay as the lab without Kubernetes (`bulkhead-tests`).
//!
//! It needs root, what `scripts/setup kubernetes` installs, and the programs that `build/build.sh` makes. Nothing of it is
//! outside namespaces, `/dev/shm/bhl<number>` and control groups of that name, but for a limit of inotify that is raised; a lab
//! whose process was killed is removed by the next that starts.

pub mod bulkhead;
pub mod bundled;
pub mod caretaker;
pub mod certificates;
pub mod cluster;
pub mod conformance;
pub mod connections;
pub mod control_plane;
pub mod crowd;
pub mod disk;
pub mod dns;
pub mod elf;
pub mod endpoints;
pub mod flow;
pub mod helm;
pub mod image;
pub mod images;
pub mod inner;
pub mod inotify;
pub mod kubeconfig;
pub mod kubectl;
pub mod layer;
pub mod leftovers;
pub mod machine;
pub mod network;
pub mod node;
pub mod pod;
pub mod programs;
pub mod service;
pub mod shipped;
pub mod stock;
pub mod tenants;
pub mod traffic;

pub use cluster::{Cluster, ClusterBuilder};
pub use network::Network;
pub use pod::Pod;
pub use service::ProxyMode;
