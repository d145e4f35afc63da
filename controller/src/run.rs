//! The controller's life: find the config, run for leadership, lead, and again.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_core::Keys;
use bulkhead_core::keys::PrefixError;
use bulkhead_core::record::ConfigRecord;
use bulkhead_store::{Candidate, Leadership, Settings, Store, StoreError};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::configure;
use crate::history::History;
use crate::lead::{self, Outside, Tally, Task};
use crate::plan::Policy;
use crate::state::State;

/// How long a controller that stops may take to withdraw.
const FAREWELL: Duration = Duration::from_secs(3);
/// The shortest and longest wait for an etcd that cannot be reached at the start.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Everything that is decided when the controller starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all keys begin with.
    pub prefix: String,
    /// How other controllers and people know this one.
    pub identity: String,
    /// How long etcd keeps the lead for a leader that it does not hear of.
    pub lease_ttl: Duration,
    /// What is decided for all namespaces.
    pub policy: Policy,
    /// The config to create if there is none.
    pub config: Option<ConfigRecord>,
    /// Where the memory of etcd's history is kept; none for nowhere.
    pub state_dir: Option<PathBuf>,
}

/// Why a controller cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// etcd refuses in a way that waiting does not heal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The prefix cannot begin a key.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
}

/// Connects; waits for an etcd that is not there yet.
pub async fn connect(settings: &Settings) -> Result<Store, StoreError> {
    let mut retry = RETRY.0;
    loop {
        match Store::connect(settings.clone()).await {
            Err(error) if error.is_transient() => {
                warn!(error = error.chain(), "waiting for etcd");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
            }
            outcome => return outcome,
        }
    }
}

/// Runs until `stop` turns true (or its sender is gone), then resigns.
pub async fn run(
    store: &Store,
    options: &Options,
    tally: &Tally,
    outside: Option<&Outside>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    if let Some(record) = &options.config {
        create(store, &options.prefix, record).await?;
    }
    let found = tokio::select! {
        biased;
        () = stopped(&mut stop) => None,
        config = configure::wait(store, &options.prefix) => config,
    };
    let Some(config) = found else { return Ok(()) };
    // This name is served until the process ends: see the plan of the cluster's entry.
    let keys = Keys::new(&options.prefix, config.name())?;
    let election = keys.election();
    let (everything, ledger) = (format!("{}/", options.prefix), keys.ledger_cluster());
    let mut history = History::load(options.state_dir.as_deref(), &keys).await;
    let mut state = State::new(keys.clone());
    if outside.is_some() {
        state = state.with_kubernetes();
    }
    tally.running.store(true, Ordering::Relaxed);
    let task = Task { store, prefix: &options.prefix, policy: &options.policy, tally, outside };
    info!(identity = options.identity, cluster = %config.name(), "running for leadership");
    loop {
        let leadership = tokio::select! {
            biased;
            () = stopped(&mut stop) => None,
            () = history.follow(store, &mut state, &everything, &ledger) => None,
            won = Candidate::campaign(store, &election, &options.identity, options.lease_ttl) => Some(won?),
        };
        let Some(leadership) = leadership else {
            withdrawn(store, &keys, &options.identity).await;
            return Ok(());
        };
        let ended = tokio::select! {
            biased;
            () = stopped(&mut stop) => None,
            ended = lead::lead(task, &leadership, (&mut history, &mut state)) => Some(ended),
        };
        match ended {
            None | Some(lead::Ended::Closed) => {
                resign(leadership).await;
                return Ok(());
            }
            Some(why) => warn!(?why, "leadership is over, running for it again"),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _gone = stop.wait_for(|stop| *stop).await;
}

async fn create(store: &Store, prefix: &str, record: &ConfigRecord) -> Result<(), StoreError> {
    let mut retry = RETRY.0;
    loop {
        match configure::create(store, prefix, record).await {
            Err(error) if error.is_transient() => {
                // Trying again is safe even if it was applied: it is created only where it is absent.
                warn!(error = error.chain(), "the config could not be created, trying again");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
            }
            outcome => return outcome.map(drop),
        }
    }
}

async fn resign(leadership: Leadership) {
    match tokio::time::timeout(FAREWELL, leadership.resign()).await {
        Ok(Ok(())) => info!("resigned"),
        Ok(Err(error)) => warn!(error = error.chain(), "not resigned: another leads once the lease has run out"),
        Err(_) => warn!("not resigned in time: another leads once the lease has run out"),
    }
}

/// Waits until the candidacy is gone from etcd, so that nobody waits behind it.
async fn withdrawn(store: &Store, keys: &Keys, identity: &str) {
    let gone = async {
        loop {
            match store.list(&keys.election()).await {
                Ok(snapshot) if snapshot.entries.iter().all(|entry| entry.value != identity.as_bytes()) => return,
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => return,
            }
        }
    };
    if tokio::time::timeout(FAREWELL, gone).await.is_err() {
        info!("the candidacy is still in etcd, its lease runs out");
    }
}
