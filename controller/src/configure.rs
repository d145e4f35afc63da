//! The cluster's config before anything is led: found, waited for, or created once.
//!
//! Promises that a config that exists is never overwritten.

use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_core::{ClusterConfig, keys};
use bulkhead_store::{Change, Compare, Entry, Outcome, Store, StoreError, Txn, Update};
use tracing::{info, warn};

/// Creates the config unless there is one. True if it was created.
pub async fn create(store: &Store, prefix: &str, record: &ConfigRecord) -> Result<bool, StoreError> {
    let key = keys::config(prefix);
    let txn = Txn::new().when(Compare::absent(key.as_str())).put(key.as_str(), record.to_json());
    match store.commit(txn).await? {
        Outcome::Done { .. } => {
            info!(key, "the config was created");
            Ok(true)
        }
        Outcome::Conflict(conflict) => {
            let current = conflict.failed.into_iter().find_map(|failed| failed.current);
            let differs = current.is_some_and(|entry| ConfigRecord::parse(&entry.value).ok().as_ref() != Some(record));
            if differs {
                warn!(key, "there is a config already and it differs from the flags: the flags are ignored");
            }
            Ok(false)
        }
    }
}

/// Waits for a valid config. Says once what it waits for, and once of each revision what is wrong with it. None if the
/// runtime shuts down.
pub async fn wait(store: &Store, prefix: &str) -> Option<ClusterConfig> {
    let key = keys::config(prefix);
    // Other keys can begin with the same text; they are passed over.
    let mut watch = store.watch(&key);
    loop {
        let entry = match watch.next().await? {
            Update::Snapshot(snapshot) => snapshot.get(&key).cloned(),
            Update::Changes(changes) => match changes.changes.into_iter().find(|change| change.key() == key) {
                Some(Change::Put(entry)) => Some(entry),
                Some(Change::Delete { .. }) => None,
                None => continue,
            },
            Update::Unreachable { error, .. } => {
                warn!(error = error.chain(), "etcd cannot be read, waiting for it");
                continue;
            }
        };
        match entry.as_ref().map(read) {
            Some(Ok(config)) => return Some(config),
            Some(Err(reason)) => warn!(key, "the config cannot be used, waiting for a better one: {reason}"),
            None => warn!(
                key,
                "there is no config, waiting for one: write it with `bulkhead config init`, or start with --cluster-name and --network"
            ),
        }
    }
}

fn read(entry: &Entry) -> Result<ClusterConfig, String> {
    let record = ConfigRecord::parse(&entry.value).map_err(|error| error.to_string())?;
    ClusterConfig::try_from(&record).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ConfigRecord {
        ConfigRecord::parse(ConfigRecord::EXAMPLE.as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn a_config_is_created_once_and_never_overwritten() {
        let store = Store::in_memory();
        assert!(create(&store, "/p", &example()).await.unwrap());
        let other = ConfigRecord { name: "other".to_owned(), ..example() };
        assert!(!create(&store, "/p", &other).await.unwrap());
        assert_eq!(wait(&store, "/p").await.unwrap().name().as_str(), "k8ssdn");
    }

    #[tokio::test]
    async fn a_config_that_is_absent_or_wrong_is_waited_for() {
        let store = Store::in_memory();
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { wait(&store, "/p").await }
        });
        for value in ["{", r#"{"Name":"k8ssdn","Network":"172.11.5.0/16","HostSubnetLength":10}"#] {
            let done = store.commit(Txn::new().put("/p/config", value)).await.unwrap();
            assert!(done.done().is_some());
        }
        assert!(store.commit(Txn::new().put("/p/configuration", "{}")).await.unwrap().done().is_some());
        assert!(!waiting.is_finished());
        assert!(!create(&store, "/p", &example()).await.unwrap());
        assert!(store.commit(Txn::new().put("/p/config", example().to_json())).await.unwrap().done().is_some());
        assert_eq!(waiting.await.unwrap().unwrap().name().as_str(), "k8ssdn");
    }
}
