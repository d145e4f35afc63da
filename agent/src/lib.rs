//! The node's agent: intent from etcd, pods from the runtime, both carried into the kernel.

pub mod args;
pub mod datapath;
pub mod http;
pub mod intent;
pub mod kernel;
pub mod kubernetes;
pub mod live;
pub mod node;
pub mod pods;
pub mod preflight;
pub mod reconcile;
pub mod server;
mod sys;
pub mod uninstall;
