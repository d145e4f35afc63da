//! `bulkhead etcd`: the etcd that the chart brings along.

mod access;
mod certificates;
mod configure;
mod join;
mod members;
mod membership;
mod nodes;
mod record;
mod remove;
mod setup;

pub use configure::{ConfigureArgs, configure};
pub use remove::remove_data;
pub use setup::{SetupArgs, setup};
