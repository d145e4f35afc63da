//! The cluster that the flags name: how to reach it, its config, its state at one revision, who leads it.

use bulkhead_core::keys::{self, Keys};
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_core::{ClusterConfig, ClusterName};
use bulkhead_store::args::EtcdArgs;
use bulkhead_store::{Candidate, Store};

use crate::error::CliError;
use crate::view::View;

/// The etcd that the flags name, connected to when it is needed.
pub struct Etcd {
    args: EtcdArgs,
    given: Option<Store>,
}

impl Etcd {
    /// `given` stands in for a connection.
    pub const fn new(args: EtcdArgs, given: Option<Store>) -> Self {
        Self { args, given }
    }

    /// The checked prefix.
    pub fn prefix(&self) -> Result<&str, CliError> {
        Ok(keys::check_prefix(&self.args.etcd_prefix)?)
    }

    /// Connects.
    pub async fn connect(&self) -> Result<Store, CliError> {
        match &self.given {
            Some(store) => Ok(store.clone()),
            None => Ok(Store::connect(self.args.settings().map_err(CliError::EtcdFlags)?).await?),
        }
    }

    /// Connects and reads the cluster's config.
    pub async fn cluster(&self) -> Result<Cluster, CliError> {
        let prefix = self.prefix()?;
        let store = self.connect().await?;
        let key = keys::config(prefix);
        let Some(entry) = store.get(&key).await? else { return Err(CliError::NoConfig { key }) };
        let record = ConfigRecord::parse(&entry.value).map_err(|source| CliError::ConfigRecord { key, source })?;
        let name = ClusterName::new(record.name.clone()).map_err(|error| CliError::Config(error.into()))?;
        let keys = Keys::new(prefix, &name)?;
        Ok(Cluster { store, keys, record })
    }
}

/// A cluster that has a config.
#[derive(Debug)]
pub struct Cluster {
    /// Its etcd.
    pub store: Store,
    /// Its keys.
    pub keys: Keys,
    /// Its config as written: it may be wrong, and the cluster still be there to be looked at.
    pub record: ConfigRecord,
}

impl Cluster {
    /// The checked config.
    pub fn config(&self) -> Result<ClusterConfig, CliError> {
        Ok(ClusterConfig::try_from(&self.record)?)
    }

    /// All of its state, at one revision.
    pub async fn view(&self) -> Result<View, CliError> {
        let snapshot = self.store.list(&self.keys.root()).await?;
        Ok(View::new(self.keys.clone(), snapshot))
    }

    /// Why nobody may have answered: a sentence that names the leader, if there is one.
    pub async fn silence(&self) -> String {
        match Candidate::leader(&self.store, &self.keys.election()).await {
            Ok(Some(leader)) => {
                format!("the controller {} leads but has not answered; look at its log", leader.identity)
            }
            Ok(None) => "no controller leads; start bulkhead-controller".to_owned(),
            Err(error) => error.chain(),
        }
    }
}
