//! Why a command failed, in words for the person who typed it.

use std::io;

use bulkhead_core::cluster::ConfigError;
use bulkhead_core::keys::PrefixError;
use bulkhead_core::record::RecordError;
use bulkhead_store::StoreError;
use bulkhead_store::args::ArgsError;
use thiserror::Error;

use crate::output::plain;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CliError {
    /// The words contradict each other or the state in a way that no other state would cure.
    #[error("{0}")]
    Usage(String),
    /// The etcd flags are wrong.
    #[error("{0}")]
    EtcdFlags(#[source] ArgsError),
    /// The etcd prefix is wrong.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// etcd failed.
    #[error("{0}")]
    Store(#[source] StoreError),
    /// Nothing answers where etcd is by default, and Kubernetes seems to be elsewhere.
    #[error(
        "{0}; where the chart installed Bulkhead, type it in the controller's pod, which has a way to etcd: \
         kubectl -n bulkhead-system exec deploy/bulkhead-controller -- bulkhead ..."
    )]
    NoEtcdHere(String),
    /// There is no cluster below the prefix.
    #[error(
        "no cluster is configured: etcd has no key {key}; write one with `bulkhead config init`, or correct --etcd-prefix"
    )]
    NoConfig {
        /// The key that is missing.
        key: String,
    },
    /// The cluster's config is not JSON.
    #[error("the cluster's config in {key}: {source}")]
    ConfigRecord {
        /// Its key.
        key: String,
        /// What is wrong.
        source: RecordError,
    },
    /// The cluster's config is wrong.
    #[error("the cluster's config: {0}")]
    Config(#[from] ConfigError),
    /// What was asked for cannot be done, and nothing was changed.
    #[error("{0}; nothing was changed")]
    Refused(String),
    /// Some of it was not done; each line says what and why.
    #[error("{}", .0.join("; "))]
    Unfinished(Vec<String>),
    /// The agent of this node cannot be asked.
    #[error("the agent at {socket}: {problem}")]
    Agent {
        /// Its socket.
        socket: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("the certificate: {0}")]
    Certificate(String),
    /// There is no way to the API server.
    #[error("no way to the API server: {0}; name a file that kubectl can use with --kubeconfig")]
    Kubeconfig(String),
    /// The API server refused or failed.
    #[error("Kubernetes: {0}")]
    Kubernetes(String),
    /// Others write the same records all the time.
    #[error("somebody else keeps changing the same records; try again")]
    Contended,
    /// The result cannot be printed.
    #[error("the result cannot be printed: {0}")]
    Output(#[from] io::Error),
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl CliError {
    /// 2 for usage, else 1.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Prefix(_) => 2,
            _ => 1,
        }
    }

    /// The same with a hint, if nobody named an etcd and none is there.
    pub fn with_hint(self, etcd_is_named: bool, has_kubeconfig: bool) -> Self {
        match self {
            Self::Store(error @ StoreError::Unreachable { .. }) if !etcd_is_named && has_kubeconfig => {
                Self::NoEtcdHere(error.chain())
            }
            other => other,
        }
    }

    /// The error as it is printed: one line per thing that failed.
    pub fn lines(&self) -> String {
        let lines = match self {
            Self::Unfinished(lines) => lines.clone(),
            Self::Store(error) => vec![error.chain()],
            other => vec![other.to_string()],
        };
        lines.iter().fold(String::new(), |text, line| text + "error: " + &plain(line) + "\n")
    }
}
