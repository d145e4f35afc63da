//! `bulkhead etcd`: the etcd that the chart brings along.

mod members;
mod setup;

pub use setup::{SetupArgs, setup};
