//! `bulkhead config`: the record that makes a cluster.

use bulkhead_core::keys;
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_core::{ClusterConfig, Mode};
use bulkhead_store::{Compare, Outcome, StoreError, Txn};
use serde::Serialize;

use crate::args::ConfigVerb;
use crate::cluster::{Cluster, Etcd};
use crate::error::CliError;
use crate::output::Console;

/// Carries a verb out.
pub async fn carry_out(verb: ConfigVerb, etcd: &Etcd, console: &mut Console<'_>) -> Result<(), CliError> {
    match verb {
        ConfigVerb::Show => show(&etcd.cluster().await?, console).await,
        ConfigVerb::Init { name, network, host_subnet_length, service_network, mode } => {
            let record = ConfigRecord {
                name,
                network,
                host_subnet_length,
                service_network,
                plugin_name: Mode::from(mode).plugin_name().to_owned(),
                unknown: serde_json::Map::new(),
            };
            init(etcd, &record).await?;
            show(&etcd.cluster().await?, console).await
        }
    }
}

/// Writes the config unless there is one.
async fn init(etcd: &Etcd, record: &ConfigRecord) -> Result<(), CliError> {
    ClusterConfig::try_from(record).map_err(|error| CliError::Usage(error.to_string()))?;
    let key = keys::config(etcd.prefix()?);
    let store = etcd.connect().await?;
    let outcome = store.commit(Txn::new().when(Compare::absent(&key)).put(&key, record.to_json())).await;
    let current = match outcome {
        Ok(Outcome::Done { .. }) => return Ok(()),
        Ok(Outcome::Conflict(_)) | Err(StoreError::OutcomeUnknown { .. }) => store.get(&key).await?,
        Err(error) => return Err(error.into()),
    };
    match current {
        Some(entry) if ConfigRecord::parse(&entry.value).is_ok_and(|there| there == *record) => Ok(()),
        Some(entry) => Err(CliError::Refused(format!(
            "there is another config in {key}: {}; it is never overwritten, change it by `etcdctl put` if you must",
            String::from_utf8_lossy(&entry.value)
        ))),
        None => Err(CliError::Contended),
    }
}

/// The config, as `config show -o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigCard<'a> {
    name: &'a str,
    network: &'a str,
    host_subnet_length: u64,
    service_network: &'a str,
    plugin_name: &'a str,
    mode: &'static str,
    /// The ledger's epoch; absent until a controller has seen the config.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    /// How many nodes fit.
    node_capacity: u32,
    /// What of the config does not hold, or is wrong; empty if nothing.
    problem: String,
}

async fn show(cluster: &Cluster, console: &mut Console<'_>) -> Result<(), CliError> {
    let (record, config, ledger) = (&cluster.record, cluster.config(), cluster.view().await?.cluster());
    let problem = match (&config, &ledger) {
        (Err(error), _) => error.to_string(),
        (Ok(_), None) => format!("not in force yet: {}", cluster.silence().await),
        (Ok(config), Some(ledger)) if ledger.networks != *config.networks() => {
            let holds: Vec<String> = ledger.networks.pools().map(|pool| pool.network().to_string()).collect();
            format!(
                "the ledger's ranges hold ({}, host subnet length {}): a change is not followed while nodes have subnets",
                holds.join(","),
                ledger.networks.v4().host_bits()
            )
        }
        (Ok(config), Some(ledger)) if ledger.mode != config.mode() => "the mode is not in force yet".to_owned(),
        (Ok(_), Some(_)) => String::new(),
    };
    let mode = match config.as_ref().map(ClusterConfig::mode) {
        Ok(Mode::Multitenant) => "multitenant",
        Ok(Mode::Flat) => "flat",
        Err(_) => "",
    };
    let capacity = config.as_ref().map_or(0, |config| config.networks().blocks());
    let epoch = ledger.map(|ledger| ledger.epoch);
    let lines = [
        ("Name", record.name.clone()),
        ("Network", record.network.clone()),
        ("Host subnet length", record.host_subnet_length.to_string()),
        ("Service network", record.service_network.clone()),
        ("Mode", if mode.is_empty() { record.plugin_name.clone() } else { mode.to_owned() }),
        ("Node capacity", capacity.to_string()),
        ("Epoch", epoch.map(|epoch| epoch.to_string()).unwrap_or_default()),
        ("Problem", problem.clone()),
    ];
    let card = ConfigCard {
        name: &record.name,
        network: &record.network,
        host_subnet_length: record.host_subnet_length,
        service_network: &record.service_network,
        plugin_name: &record.plugin_name,
        mode,
        epoch,
        node_capacity: capacity,
        problem,
    };
    console.card(&card, &lines)
}
