//! Why the lab itself failed, as opposed to what it was asked to prove.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// A failure of the lab.
#[derive(Error)]
pub enum LabError {
    /// A system call or file operation.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program said no.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// Program and arguments.
        program: String,
        /// How it ended.
        status: String,
        /// What it printed.
        output: String,
    },
    /// A program is not there.
    #[error("{0} is not there: run `cargo build --workspace` first, or set BULKHEAD_BIN_DIR to where the binaries are")]
    NotBuilt(PathBuf),
    /// Not root.
    #[error("the lab needs root: it makes network namespaces and loads eBPF")]
    NotRoot,
    /// A condition did not come true.
    #[error("{what} did not happen within {}.{:03} s{detail}", .waited.as_secs(), .waited.subsec_millis())]
    TimedOut {
        /// What was awaited.
        what: String,
        /// For how long.
        waited: Duration,
        /// What was seen last, and where to look.
        detail: String,
    },
    /// A process ended that should run.
    #[error("{name} ended ({status}); the end of its log:\n{log}")]
    Died {
        /// The process.
        name: String,
        /// How it ended.
        status: String,
        /// Its last lines.
        log: String,
    },
    /// The product answered something else than expected.
    #[error("{what}: {answer}")]
    Refused {
        /// What was asked.
        what: String,
        /// The answer.
        answer: String,
    },
    /// What was measured is not what was promised.
    #[error("{0}")]
    Broken(String),
    /// A namespace's thread is gone.
    #[error("the thread of network namespace {0} has ended")]
    ThreadGone(String),
}

impl fmt::Debug for LabError {
    /// As [`fmt::Display`]: a test that returns this error prints it so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Names what was tried when a system call fails.
pub trait Tried<T> {
    /// Adds the text.
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| LabError::Io { what: what(), source: source.into() })
    }
}

/// Fails with a text unless a promise holds.
pub fn promised(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), LabError> {
    if holds { Ok(()) } else { Err(LabError::Broken(otherwise())) }
}

/// Failures that do not end a test at once: all are seen in one run.
#[derive(Debug, Default)]
pub struct Tally(std::cell::RefCell<Vec<String>>);

impl Tally {
    /// Keeps a failure.
    pub fn note(&self, outcome: Result<(), LabError>) {
        if let Err(error) = outcome {
            println!("    FAILED: {error}");
            self.0.borrow_mut().push(error.to_string());
        }
    }

    /// All failures as one.
    pub fn settle(self) -> Result<(), LabError> {
        let failures = self.0.into_inner();
        promised(failures.is_empty(), || failures.join("\n"))
    }
}
