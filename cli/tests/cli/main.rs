//! The command line against the in-memory store, with a leader that answers; then the real program on a real etcd.
//!
//! `real.rs` needs the program `etcd` and fails without it.

// The lints allow these in functions marked as tests only, not in what such a function calls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod actions;
mod api;
mod backup;
mod certs;
mod faults;
mod fixture;
mod kubernetes;
mod leader;
mod local;
mod nodes;
mod overwritten;
mod real;
mod restore;
mod roles;
mod tables;
mod tenants;
