//! Bulkhead's controller: the one leader that gives out VNIs and node subnets and carries actions out.
//!
//! It reads everything of its cluster by one watch ([`state`]), works out one transaction at a time ([`plan`]) and
//! commits it fenced ([`lead`]). Agents obey only what it writes to the ledger; people write to the records beside it.
//!
//! Promises: a number or subnet is never given out twice; what is not a current leader's write does not happen; a state
//! that needs nothing causes no write.

pub mod args;
pub mod configure;
pub mod endpoints;
pub mod history;
pub mod kubernetes;
pub mod lead;
pub mod memory;
pub mod objects;
pub mod plan;
pub mod run;
pub mod source;
pub mod state;
