//! `bulkhead etcd`: the etcd that the chart brings along.

mod members;
mod remove;
mod setup;

pub use remove::remove_data;
pub use setup::{SetupArgs, setup};
