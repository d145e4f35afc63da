//! The real program against a fake agent on a real socket.
//!
//! Needs root, since each call gets a network namespace of its own made by `unshare --net`; fails without it.

// The lints allow these in functions marked as tests only, not in what such a function calls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod absence;
mod answers;
mod fixture;
mod requests;
