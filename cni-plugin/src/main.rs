//! `bulkhead-cni`, the program that a container runtime starts for each CNI call (CNI specification 0.3.1 to 1.1.0).
//!
//! It checks what the runtime gave, hands it with the pod's open network namespace to the node's agent, and answers in
//! the form of the config's version. It holds no state; a DEL that no agent takes goes to the spool.
//!
//! Promises: nothing is done before all input has been checked; stdout carries the answer and nothing else; stderr
//! carries failures only; one thread, no buffer larger than the input.

mod agent;
mod config;
mod environment;
mod netns;
mod operation;
mod spool;
mod stdin;

use std::io::Write;
use std::process::ExitCode;

use bulkhead_core::cni::{Failure, Version};
use serde_json::Value;

use crate::environment::Operation;

/// A failed call, and the version in whose form the runtime reads it.
struct Failed {
    version: Version,
    failure: Failure,
}

impl From<Failure> for Failed {
    /// A failure before the config's version is known: told in the newest form.
    fn from(failure: Failure) -> Self {
        Self { version: Version::V1_1_0, failure }
    }
}

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprintln!(
            "bulkhead-cni {}: a CNI plugin, started by the container runtime (CNI {})",
            env!("CARGO_PKG_VERSION"),
            config::supported().join(", "),
        );
    }
    match run() {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) if print(&answer) => ExitCode::SUCCESS,
        Ok(Some(_)) => ExitCode::FAILURE,
        Err(Failed { version, failure }) => {
            eprintln!("bulkhead-cni: {}{}", failure.msg, appendix(&failure.details));
            print(&failure.to_json(version));
            ExitCode::FAILURE
        }
    }
}

/// The call's answer; none where success has no words.
fn run() -> Result<Option<Value>, Failed> {
    match environment::read()? {
        Operation::Version => Ok(Some(config::version_answer(&stdin::read()?)?)),
        Operation::Agent(call) => {
            let config = config::parse(&stdin::read()?)?;
            let version = config.version;
            operation::carry_out(call, config).map_err(|failure| Failed { version, failure })
        }
    }
}

fn print(answer: &Value) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}").and_then(|()| out.flush()).is_ok()
}

fn appendix(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(" ({details})") }
}
