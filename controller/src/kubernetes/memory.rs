//! What Kubernetes remembers of etcd: the epoch, and how far etcd's history had come.
//!
//! It outlives etcd's restore and every controller, so one that was started afterwards notices the restore, too.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use tracing::{debug, warn};

/// The `ConfigMap` in the agents' namespace.
pub const NAME: &str = "bulkhead-epoch";
/// The shortest and longest wait for an API server that cannot be read.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How far etcd had come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The ledger's epoch.
    pub epoch: u64,
    /// etcd's cluster id.
    pub cluster_id: u64,
    /// etcd's revision.
    pub revision: i64,
}

/// The object that holds it.
pub(super) fn manifest(memory: &Memory) -> ConfigMap {
    let data = [
        ("epoch", memory.epoch.to_string()),
        ("clusterId", format!("{:x}", memory.cluster_id)),
        ("revision", memory.revision.to_string()),
    ];
    ConfigMap {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ..ConfigMap::default()
    }
}

fn parse(data: &BTreeMap<String, String>) -> Option<Memory> {
    Some(Memory {
        epoch: data.get("epoch")?.parse().ok()?,
        cluster_id: u64::from_str_radix(data.get("clusterId")?, 16).ok()?,
        revision: data.get("revision")?.parse().ok()?,
    })
}

/// Reads it once the API server answers; none if there is none, or it may not be read.
pub(super) async fn recall(client: &Client, namespace: &str) -> Option<Memory> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let mut retry = RETRY.0;
    loop {
        match api.get_opt(NAME).await {
            Ok(found) => {
                let data = found?.data.unwrap_or_default();
                let memory = parse(&data);
                if memory.is_none() {
                    warn!(namespace, name = NAME, "the ConfigMap cannot be read as an epoch and is written anew");
                }
                return memory;
            }
            Err(kube::Error::Api(answer)) if answer.code == 403 => {
                warn!(namespace, name = NAME, %answer, "the ConfigMap may not be read: a restore of etcd from before this start is not noticed");
                return None;
            }
            Err(error) if retry == RETRY.0 => {
                warn!(namespace, name = NAME, %error, "the ConfigMap cannot be read: nothing of Kubernetes is followed until it can");
            }
            Err(error) => debug!(%error, "the ConfigMap cannot be read"),
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let memory = Memory { epoch: 3, cluster_id: u64::MAX, revision: 12 };
        assert_eq!(parse(&manifest(&memory).data.unwrap()), Some(memory));
        assert_eq!(parse(&[("epoch".to_owned(), "3".to_owned())].into()), None);
    }
}
