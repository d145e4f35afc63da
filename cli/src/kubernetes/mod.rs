//! Tenants and nodes in Kubernetes, and the API server that the flags name.

mod answers;
mod declare;
mod list;
mod nodes;
mod status;
mod tenant;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::api::PartialObjectMeta;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::CliError;

pub use nodes::list as node_list;
pub use tenant::carry_out as tenant;

/// A Namespace as far as it matters here: the API server sends its metadata alone.
type Object = PartialObjectMeta<k8s_openapi::api::core::v1::Namespace>;

/// How long one answer of the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether tenants are administered in Kubernetes, and which one.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Administer tenants by annotations in Kubernetes, not by records in etcd [default as kubectl-bulkhead]
    #[arg(long, env = "BULKHEAD_KUBERNETES", conflicts_with = "etcd")]
    pub kubernetes: bool,
    /// Administer tenants by records in etcd, even as kubectl-bulkhead
    #[arg(long)]
    pub etcd: bool,
    /// How to reach the API server; means --kubernetes [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, env = "BULKHEAD_KUBECONFIG", value_name = "PATH", conflicts_with = "etcd")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; means --kubernetes
    #[arg(long, value_name = "NAME", conflicts_with = "etcd")]
    pub context: Option<String>,
}

impl KubernetesArgs {
    /// Whether tenants are administered in Kubernetes. `plugin`: the program was called as kubectl's.
    pub fn is_chosen(&self, plugin: bool) -> bool {
        !self.etcd && (plugin || self.kubernetes || self.kubeconfig.is_some() || self.context.is_some())
    }

    /// Whether a kubeconfig is there for who types this, as kubectl would find it.
    pub fn has_kubeconfig(&self) -> bool {
        let home = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").is_file());
        self.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty()) || home()
    }

    /// Makes the client; the server need not answer yet.
    pub async fn connect(&self) -> Result<Client, CliError> {
        let unusable = |error: &dyn std::error::Error| CliError::Kubeconfig(chain(error));
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|error| unusable(&error))?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| unusable(&error))?
            }
            None => Config::infer().await.map_err(|error| unusable(&error))?,
        };
        config.connect_timeout = Some(PATIENCE);
        Client::try_from(config).map_err(|error| unusable(&error))
    }
}

/// What the API server answered, in words.
impl From<kube::Error> for CliError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => Self::Kubernetes(status.message.clone()),
            other => {
                Self::Kubernetes(format!("{}; does the API server answer? kubectl get --raw /readyz", chain(other)))
            }
        }
    }
}

/// A message with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
