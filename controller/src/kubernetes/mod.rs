//! Kubernetes in and out: what it has goes to the leader, what the leader decided goes back to where users look.
//!
//! Promises: nothing is taken for gone that was not missing in a whole list, and nothing while the API server is away;
//! only a leader writes, only what differs, at a bounded rate.

pub mod absence;
mod events;
mod memory;
mod read;
mod report;
mod reporter;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use thiserror::Error;

pub use report::Report;
pub(crate) use reporter::MANAGER;
pub use reporter::{AGAIN, PACE, report};
pub use watch::{Following, follow};

/// What is decided about Kubernetes when the controller starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesOptions {
    /// The file that says how to reach the API server; none for a pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// Where the agents' pods are.
    pub agent_namespace: String,
    /// The labels of the agents' pods.
    pub agent_selector: String,
    /// How long a node's subnet is kept for it after its Node is gone.
    pub node_release_after: Duration,
    /// Where Nodes' internal addresses have to be; empty for anywhere.
    pub node_networks: Vec<IpNetwork>,
}

/// Why the API server cannot even be tried.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The file cannot be used.
    #[error("the kubeconfig {path:?} cannot be used: {source}; name a file that kubectl can use (--kubeconfig)")]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// There is no service account.
    #[error("this is no pod with a service account: {0}; name a kubeconfig (--kubeconfig)")]
    InCluster(#[source] kube::config::InClusterError),
    /// The client cannot be made of it.
    #[error("the API server's client cannot be made: {0}")]
    Client(#[source] kube::Error),
}

/// How long an answer, or the next byte of one, is waited for: a server that lost its power or a cable sends nothing,
/// not even an end. A watch is asked anew before that (`watch::LONGEST`).
const SILENCE: Duration = Duration::from_secs(45);

/// Makes the client; the API server need not answer yet.
pub async fn client(options: &KubernetesOptions) -> Result<Client, ConnectError> {
    let mut config = match &options.kubeconfig {
        Some(path) => {
            let wrong = |source| ConnectError::Kubeconfig { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)?
        }
        None => Config::incluster().map_err(ConnectError::InCluster)?,
    };
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Client::try_from(config).map_err(ConnectError::Client)
}
